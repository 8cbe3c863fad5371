package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/zcnet-go/zcnet/internal/cli"
	"github.com/zcnet-go/zcnet/internal/perf"
)

// This file has bench and sweep receive in a process of its own, as a receiver on another host is one. In the sender's it
// would share the runtime with what is measured: its threads, its poller and its CPU time.

// hireEnv is set in the environment of a receiving process.
const hireEnv = "ZCPERF_RECEIVER"

// hired reports whether this process receives for another one. If so it has done that.
func hired() bool {
	if os.Getenv(hireEnv) == "" {
		return false
	}
	if err := receiveForParent(); err != nil {
		fmt.Fprintln(os.Stderr, "zcperf: the receiver:", err)
		os.Exit(cli.Failed)
	}
	return true
}

// receiveForParent receives until the parent closes standard input or ends, in whatever way.
func receiveForParent() error {
	// A terminal sends them to all its processes: the sender decides what becomes of the transfer.
	signal.Ignore(os.Interrupt, syscall.SIGTERM)
	f := os.NewFile(3, "listener") // the first of exec.Cmd.ExtraFiles
	l, err := net.FileListener(f)
	if err != nil {
		return err
	}
	f.Close()
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	return (&receiver{}).serve(ctx, l)
}

// hire starts a receiving process for a listener, which is its own from then on, unless hire fails. The process ends when
// fire is called, or when this one ends.
func hire(l net.Listener) (spent clock, fire func(), err error) {
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	program, err := thisProgram()
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), hireEnv+"=1")
	cmd.ExtraFiles = []*os.File{f}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("start the receiving process: %w", err)
	}
	l.Close()
	spent = func() (time.Duration, error) { return perf.ProcessTimeOf(cmd.Process.Pid) }
	fire = func() {
		stdin.Close()
		late := time.AfterFunc(firePatience, func() { _ = cmd.Process.Kill() })
		defer late.Stop()
		_ = cmd.Wait() // what became of it the transfers tell
	}
	return spent, fire, nil
}

// firePatience is how long a receiving process may take to end.
const firePatience = 3 * time.Second

// thisProgram returns a path of the program that is running, on Linux even if its file is gone.
func thisProgram() (string, error) {
	if runtime.GOOS == "linux" {
		return "/proc/self/exe", nil
	}
	return os.Executable()
}

// canHire reports whether a process can inherit a listener here.
const canHire = runtime.GOOS != "windows" && runtime.GOOS != "plan9" && runtime.GOOS != "js" && runtime.GOOS != "wasip1"
