package zcnet

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() { children["heir"] = heirChild }

// A stream that is handed over to another owner while memory of it is in flight.

// fillUp writes p from its beginning until the peer's window and the send buffer
// are full. It returns the last ticket, and how many bytes it has written.
func fillUp(t *testing.T, c *Conn, p Pinned) (ticket Ticket, queued int) {
	t.Helper()
	for ticket.Ready() {
		check(t, c.SetWriteDeadline(time.Now().Add(50*time.Millisecond)))
		var err error
		ticket, err = c.WritePinned(p.Slice(queued, p.Len()))
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a write to a peer that does not read: %v, want a timeout", err)
		}
		queued += int(queuedOf(err))
	}
	check(t, c.SetWriteDeadline(never))
	return ticket, queued
}

// handOver hands the stream of c over to a plain connection, and closes c.
func handOver(t *testing.T, c *Conn) (next net.Conn) {
	t.Helper()
	f, err := c.File()
	check(t, err)
	next, err = net.FileConn(f)
	check(t, err)
	t.Cleanup(func() { next.Close() })
	check(t, f.Close())
	check(t, c.Close())
	return next
}

// goesOn checks that next goes on with a stream of which the peer has not read
// what was queued before.
func goesOn(t *testing.T, next net.Conn, far *net.TCPConn, queued []byte) {
	t.Helper()
	tail := noise(300<<10, 9)
	check(t, next.SetWriteDeadline(time.Now().Add(testTimeout)))
	var sending sync.WaitGroup
	defer sending.Wait()
	sending.Go(func() {
		if _, err := next.Write(tail); err != nil {
			t.Errorf("the next owner's Write: %v", err)
		}
	})
	expect(t, far, queued)
	expect(t, far, tail)
}

// answers checks that next reads, and that the end of its stream is the end.
func answers(t *testing.T, next net.Conn, far *net.TCPConn) {
	t.Helper()
	send(t, far, "answer")
	expect(t, next, []byte("answer"))
	check(t, next.Close())
	expectEOF(t, far)
}

func TestStreamGoesOnWithItsNextOwner(t *testing.T) {
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		for name, linger := range map[string]int{"linger off": -1, "linger of 0": 0, "long linger": 3600} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				near, far := pair(t)
				c := wrap(t, near, hourly)
				socket := watchDescriptors(t, c)
				p, want := allocNoise(t, 16<<20, 1)
				ticket, queued := fillUp(t, c, p)
				p.Release()
				check(t, c.SetLinger(linger))
				next := handOver(t, c)
				goesOn(t, next, far, want[:queued])
				check(t, ticket.Wait(testContext(t)))
				check(t, c.Flush(testContext(t)))
				wantFreed(t, p)
				if got := lingerOf(t, next.(*net.TCPConn)); got != linger {
					t.Errorf("the next owner's linger time is %d, want %d as it was", got, linger)
				}
				check(t, next.(*net.TCPConn).SetLinger(-1))
				c.s.dropped() // as when the collector finds it
				if _, err := NewConn(next.(*net.TCPConn), nil); !errors.Is(err, errors.ErrUnsupported) {
					t.Errorf("NewConn of a socket whose completions another Conn has counted: %v", err)
				}
				answers(t, next, far)
				wantNothingLeft(t, c, socket)
			})
		}
	})
}

// lingerOf returns what SetLinger has set.
func lingerOf(t *testing.T, c *net.TCPConn) (seconds int) {
	t.Helper()
	raw, err := c.SyscallConn()
	check(t, err)
	check(t, raw.Control(func(fd uintptr) {
		l, err := unix.GetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER)
		check(t, err)
		if seconds = int(l.Linger); l.Onoff == 0 {
			seconds = -1
		}
	}))
	return seconds
}

// The peer does not read until the close timeout has passed: the stream is the
// other owner's, so that memory is given up rather than the connection.
func TestStreamOutlivesTheCloseTimeoutOfItsFirstOwner(t *testing.T) {
	for name, prepare := range map[string]func(*Conn){
		"close timeout":        func(*Conn) {},
		"no second descriptor": func(c *Conn) { c.s.kernel = crampedKernel{c.s.kernel} },
		"no poller":            func(c *Conn) { c.s.kernel = unjoinable{c.s.kernel} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			near, far := narrowPair(t)
			c := wrap(t, near, &Config{Threshold: 1, insist: true, CloseTimeout: 100 * time.Millisecond})
			p, want := allocNoise(t, 16<<20, 1)
			ticket, queued := fillUp(t, c, p)
			p.Release()
			prepare(c)
			next := handOver(t, c)
			if err := ticket.Wait(testContext(t)); !errors.Is(err, ErrReleaseUnproven) || errors.Is(err, ErrConnFailed) {
				t.Errorf("the ticket: %v, want %v", err, ErrReleaseUnproven)
			}
			if s := c.Stats(); s.UnprovenBytes == 0 || s.ConnectionFailed {
				t.Errorf("stats: %+v", s)
			}
			if p.r.state.Load()&regionUse == regionReleased {
				t.Error("memory that the kernel sends from is free")
			}
			goesOn(t, next, far, want[:queued])
			answers(t, next, far)
		})
	}
}

// After File nothing more is lent, so that the completions can be waited for
// before the other owner begins to read.
func TestNothingIsLentAfterFile(t *testing.T) {
	near, far := narrowPair(t)
	c := wrap(t, near, insist)
	content := noise(256<<10, 1)
	var receiving sync.WaitGroup
	receiving.Go(func() { expect(t, far, content); expect(t, far, content) })
	_, err := c.WritePinned(Pin(content))
	check(t, err)
	f, err := c.File()
	check(t, err)
	defer f.Close()
	check(t, c.Flush(testContext(t)))
	before := c.Stats()
	ticket, err := c.WritePinned(Pin(content))
	check(t, err)
	if s := c.Stats(); ticket.Outcome() != OutcomeCopied || s.Sends != before.Sends || s.Fallbacks.Refused != 1 {
		t.Errorf("a write after File: %v, %d more flagged calls, %+v", ticket.Outcome(), s.Sends-before.Sends, s.Fallbacks)
	}
	if r := Probe(c); r.ZeroCopy || !strings.Contains(r.Reason, "File") {
		t.Errorf("Probe after File: %v, %q", r.ZeroCopy, r.Reason)
	}
	receiving.Wait()
}

func TestFileAfterCloseFails(t *testing.T) {
	near, _ := loopbackPair(t)
	c := wrap(t, near, nil)
	check(t, c.Close())
	if _, err := c.File(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("File after Close: %v, want net.ErrClosed", err)
	}
}

// The next owner is another process, which gets the descriptor by ExtraFiles.
func TestStreamIsHandedOverToAChild(t *testing.T) {
	near, far := narrowPair(t)
	c := wrap(t, near, hourly)
	p, want := allocNoise(t, 16<<20, 1)
	ticket, queued := fillUp(t, c, p)
	p.Release()
	f, err := c.File()
	check(t, err)
	cmd := exec.CommandContext(testContext(t), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=heir")
	cmd.ExtraFiles = []*os.File{f}
	begin, err := cmd.StdinPipe()
	check(t, err)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	check(t, cmd.Start())
	check(t, f.Close())
	check(t, c.Close())
	expect(t, far, want[:queued])
	check(t, ticket.Wait(testContext(t)))
	wantFreed(t, p)
	check(t, begin.Close())
	send(t, far, "who are you?\n")
	expect(t, far, []byte("the heir, who was asked: who are you?\n"))
	expectEOF(t, far)
	if err := cmd.Wait(); err != nil {
		t.Errorf("the child: %v\n%s", err, out.String())
	}
}

// heirChild answers a question that comes by descriptor 3, once its standard
// input has ended.
func heirChild() error {
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	c, err := net.FileConn(os.NewFile(3, "inherited"))
	if err != nil {
		return err
	}
	defer c.Close()
	question, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(c, "the heir, who was asked: ", question)
	return err
}
