package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/zcnet-go/zcnet/cmd/zcvm/internal/plan"
)

// This file runs a virtual machine from its start to its report.

// qemu's user network has these addresses, unless told otherwise.
const (
	guestAddress = "10.0.2.15/24"
	hostAddress  = "10.0.2.2"
)

// A machine is what is booted.
type machine struct {
	accel   string // how qemu runs the processor
	kernel  string // file
	initrd  string // file
	device  string // qemu's name
	dir     string // for the files of this machine
	console io.Writer
	timeout time.Duration
}

// arguments returns qemu's command line.
func (m *machine) arguments(reportFile string, verbose bool) []string {
	// panic=-1 restarts at once, and -no-reboot makes that the end.
	kernelArgs := "console=ttyS0 panic=-1"
	if !verbose {
		kernelArgs += " quiet"
	}
	return []string{
		"-accel", m.accel, "-cpu", "max", "-smp", "2", "-m", "1024",
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-serial", "stdio", "-serial", "file:" + reportFile,
		"-netdev", "user,id=net", "-device", m.device + ",netdev=net,romfile=",
		"-kernel", m.kernel, "-initrd", m.initrd, "-append", kernelArgs,
	}
}

// boot runs the machine to its end and returns what it has reported.
func (m *machine) boot(ctx context.Context, verbose bool) (*plan.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, m.timeout)
	defer cancel()
	reportFile := filepath.Join(m.dir, "report.json")
	cmd := exec.CommandContext(ctx, qemuSystem, m.arguments(reportFile, verbose)...)
	end := &tail{}
	cmd.Stdout = io.MultiWriter(m.console, end)
	cmd.Stderr = cmd.Stdout
	err := cmd.Run()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("%w: install the package qemu-system-x86", err)
	case ctx.Err() == context.DeadlineExceeded:
		err = fmt.Errorf("the machine did not end within %v (-timeout sets it)", m.timeout)
	}
	if err != nil {
		return nil, end.explain(err)
	}
	r, err := readReport(reportFile)
	if err != nil {
		return nil, end.explain(err)
	}
	return r, nil
}

const qemuSystem = "qemu-system-x86_64"

// readReport reads what the machine has written to its second serial line.
func readReport(file string) (*plan.Report, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := &plan.Report{}
	if err := json.Unmarshal(bytes.TrimSpace(b), r); err != nil {
		return nil, fmt.Errorf("the machine ended without a whole report: %w", err)
	}
	return r, nil
}

// A tail keeps the last of what is written to it.
type tail struct{ b []byte }

const tailBytes = 2000

func (t *tail) Write(b []byte) (int, error) {
	t.b = append(t.b, b...)
	if over := len(t.b) - tailBytes; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(b), nil
}

// explain adds to an error what the console said last.
func (t *tail) explain(err error) error {
	text := strings.TrimSpace(strings.ReplaceAll(string(t.b), "\r", ""))
	if text == "" {
		return err
	}
	return fmt.Errorf("%w; the last of its console:\n%s", err, text)
}
