package perf

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// This file runs the sender that is written in C, as a process of its own.

//go:embed csender/csender.c
var csenderSource []byte

// ErrNoCompiler is matched by the error of [CompileC] where there is no C
// compiler, or none that can compile the sender.
var ErrNoCompiler = errors.New("no C compiler")

// A CProgram is the sender in C, compiled.
type CProgram struct{ file *os.File }

// CompileC compiles the sender with gcc. The program has no name, so that none
// is left behind.
func CompileC() (*CProgram, error) {
	if runtime.GOOS != "linux" {
		return nil, fmt.Errorf("%s has no MSG_ZEROCOPY for TCP: %w", runtime.GOOS, ErrUnavailable)
	}
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		return nil, fmt.Errorf("%w: install gcc: %w", ErrNoCompiler, err)
	}
	dir, err := os.MkdirTemp("", "csender")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "csender")
	cmd := exec.Command(gcc, "-O2", "-x", "c", "-o", path, "-")
	cmd.Stdin = bytes.NewReader(csenderSource)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: gcc: %w: %s", ErrNoCompiler, err, out)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &CProgram{f}, nil
}

// path returns what a child process executes: its copy of the open file.
func (p *CProgram) path() string { return fmt.Sprintf("/proc/self/fd/%d", p.file.Fd()) }

// A CTransfer is what the sender in C is to do.
type CTransfer struct {
	ZeroCopy             bool          // with MSG_ZEROCOPY, or plainly
	Addr                 string        // a literal address and a port
	Write, Total, Region int64         // bytes: of one write, of all, of the memory that is cycled through
	Memory               string        // huge, small or heap
	Congestion           string        // congestion control, empty for the system's
	Header               []byte        // sent before the content
	Limit                time.Duration // of sending; 0 for none
}

// A CResult is what the sender in C says of its transfer.
type CResult struct {
	Bytes    int64   `json:"bytes"`
	Writes   int64   `json:"writes"`
	Calls    uint64  `json:"calls"`
	Seconds  float64 `json:"seconds"`
	CPU      float64 `json:"cpu"` // processor seconds of the process
	Uncopied int64   `json:"uncopied"`
	Copied   int64   `json:"copied"`
	Enobufs  uint64  `json:"enobufs"`
	Control  string  `json:"control"`

	Answer []byte `json:"-"` // of the receiver
}

// A CSender is a process that runs the program.
type CSender struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	stderr bytes.Buffer
}

// Start starts a process by start, such as exec.Cmd's own, and returns when its
// memory is filled and it is connected. The end of ctx kills it.
func (p *CProgram) Start(ctx context.Context, t CTransfer, start func(*exec.Cmd) error) (*CSender, error) {
	args, err := t.args()
	if err != nil {
		return nil, err
	}
	s := &CSender{cmd: exec.CommandContext(ctx, p.path(), args...)}
	s.cmd.Stderr = &s.stderr
	if s.stdin, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := start(s.cmd); err != nil {
		return nil, fmt.Errorf("start the sender in C: %w", err)
	}
	s.stdout = bufio.NewReader(stdout)
	if _, err := s.stdout.ReadString('\n'); err != nil {
		return nil, s.failed(err)
	}
	return s, nil
}

// args returns the arguments of the program.
func (t CTransfer) args() ([]string, error) {
	host, port, err := net.SplitHostPort(t.Addr)
	if err != nil {
		return nil, err
	}
	mode, control := "write", "-"
	if t.ZeroCopy {
		mode = "zc"
	}
	if t.Congestion != "" {
		control = t.Congestion
	}
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	return []string{
		mode, host, port, number(t.Write), number(t.Total), number(t.Region), t.Memory, control,
		number(t.Limit.Milliseconds()), hex.EncodeToString(t.Header),
	}, nil
}

// Send has the process send, and returns when the receiver has answered and all
// memory is the process's own again. The process stays until Close.
func (s *CSender) Send() (r CResult, err error) {
	if _, err := io.WriteString(s.stdin, "go\n"); err != nil {
		return r, s.failed(err)
	}
	line, err := s.stdout.ReadBytes('\n')
	if err != nil {
		return r, s.failed(err)
	}
	parsed := struct {
		*CResult
		Answer string `json:"answer"`
	}{CResult: &r}
	if err := json.Unmarshal(line, &parsed); err != nil {
		return r, fmt.Errorf("the sender in C: %w", err)
	}
	r.Answer, err = hex.DecodeString(parsed.Answer)
	return r, err
}

// failed returns what the process, which has ended, has said about err.
func (s *CSender) failed(err error) error {
	_ = s.cmd.Wait()
	if said := strings.TrimSpace(s.stderr.String()); said != "" {
		return errors.New(said)
	}
	return fmt.Errorf("the sender in C ended: %w", err)
}

// Close ends the process, whatever it does.
func (s *CSender) Close() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}
