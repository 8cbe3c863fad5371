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
	"sync/atomic"
	"syscall"
	"time"

	"github.com/zcnet-go/zcnet/internal/cli"
	"github.com/zcnet-go/zcnet/internal/perf"
)

// This file has other processes of this program work for bench and sweep: one
// that receives, as a receiver on another host does, and one that keeps the
// sender's processor busy. In the sender's process they would share the
// runtime with what is measured: its threads, its poller and its CPU time.

// hireEnv is set in the environment of such a process, to what it has to do.
const hireEnv = "ZCPERF_HIRED"

// What hireEnv is set to.
const (
	hiredToReceive = "receive"
	hiredToSpin    = "spin"
)

// hired reports whether this process works for another one. If so it has done
// that.
func hired() bool {
	var work func() error
	switch os.Getenv(hireEnv) {
	case hiredToReceive:
		work = receiveForParent
	case hiredToSpin:
		work = spinForParent
	default:
		return false
	}
	// A terminal sends them to all its processes: the sender decides what becomes
	// of the transfer.
	signal.Ignore(os.Interrupt, syscall.SIGTERM)
	if err := work(); err != nil {
		fmt.Fprintln(os.Stderr, "zcperf: the process that is to "+os.Getenv(hireEnv)+":", err)
		os.Exit(cli.Failed)
	}
	return true
}

// receiveForParent receives until the parent closes standard input or ends, in
// whatever way.
func receiveForParent() error {
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

// What a parent writes to a spinning process.
const (
	spinOn  = '1'
	spinOff = '0'
)

// spinForParent keeps a processor busy whenever the parent says so, until it
// closes standard input or ends.
func spinForParent() error {
	var on atomic.Bool
	begin := make(chan struct{}, 1)
	go func() {
		for range begin {
			for on.Load() {
			}
		}
	}()
	for command := make([]byte, 1); ; {
		switch _, err := os.Stdin.Read(command); {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
		if on.Store(command[0] == spinOn); on.Load() {
			select {
			case begin <- struct{}{}:
			default:
			}
		}
	}
}

// A worker is a process that works for this one.
type worker struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
}

// hire starts a process of this program to do some work. It ends when it is
// fired, or when this process ends.
func hire(work string, start startFunc, files ...*os.File) (*worker, error) {
	program, err := thisProgram()
	if err != nil {
		return nil, err
	}
	w := &worker{cmd: exec.Command(program)}
	w.cmd.Env = append(os.Environ(), hireEnv+"="+work)
	w.cmd.ExtraFiles = files
	w.cmd.Stderr = os.Stderr
	if w.stdin, err = w.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := start(w.cmd); err != nil {
		return nil, fmt.Errorf("start the process that is to %s: %w", work, err)
	}
	return w, nil
}

// hireReceiver starts a receiving process for a listener, which is its own from
// then on, unless hireReceiver fails.
func hireReceiver(l net.Listener, start startFunc) (*worker, error) {
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	w, err := hire(hiredToReceive, start, f)
	if err != nil {
		return nil, err
	}
	l.Close()
	return w, nil
}

// spent is the process's clock.
func (w *worker) spent() (time.Duration, error) { return perf.ProcessTimeOf(w.cmd.Process.Pid) }

// tell writes a command to the process.
func (w *worker) tell(command byte) error {
	_, err := w.stdin.Write([]byte{command})
	return err
}

// fire returns when the process has ended.
func (w *worker) fire() {
	w.stdin.Close()
	late := time.AfterFunc(firePatience, func() { _ = w.cmd.Process.Kill() })
	defer late.Stop()
	_ = w.cmd.Wait() // what became of it the transfers tell
}

// firePatience is how long a process may take to end.
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
