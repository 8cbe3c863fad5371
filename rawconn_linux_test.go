package zcnet

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What reaches for the socket of a Conn by SyscallConn, by os.File, or by an
// option.

// rawReadable is what a *net.TCPConn and a *Conn have in common here.
type rawReadable interface {
	net.Conn
	syscall.Conn
	CloseRead() error
}

// A rawReader reads by RawConn.Read.
type rawReader struct{ rawReadable }

func byRawRead(c net.Conn) net.Conn { return rawReader{c.(rawReadable)} }

func (c rawReader) Read(b []byte) (n int, err error) {
	if len(b) == 0 {
		return 0, nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	if rawErr := raw.Read(func(fd uintptr) bool {
		n, err = receiveNow(fd, b)
		return err != unix.EAGAIN
	}); rawErr != nil {
		return 0, rawErr
	}
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

func TestRawReadsBehaveLikeTCP(t *testing.T) {
	compareReads(t, narrowPair, byRawRead, []sceneKind{
		{"wrapped", func(t *testing.T) scene {
			near, far := narrowPair(t)
			return scene{wrap(t, near, nil), far, dozeOver}
		}},
		{"refused by the runtime's poller", func(t *testing.T) scene { return stalled(t, narrowPair) }},
	})
}

// stillGood looks at an idle connection as the database drivers do before they
// use it again: it reads a byte without waiting, and wants none.
func stillGood(c syscall.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var found error
	return errors.Join(raw.Read(func(fd uintptr) bool {
		switch n, err := unix.Read(int(fd), make([]byte, 1)); {
		case n > 0:
			found = errUnexpectedByte
		case err == nil:
			found = io.EOF
		case err != unix.EAGAIN:
			found = err
		}
		return true
	}), found)
}

var errUnexpectedByte = errors.New("a byte that no request has asked for")

func TestLivenessCheckFindsABusyConnectionGood(t *testing.T) {
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		s := stalled(t, pair)
		c := s.c.(*Conn)
		for range 100 {
			if err := stillGood(c); err != nil {
				t.Fatalf("a connection whose send buffer is full: %v", err)
			}
		}
		if c.Stats().SlowReads < 100 {
			t.Error("no check was refused by the runtime's poller")
		}
		c.s.watch.mu.Lock()
		armed := c.s.watch.interest&wantsData != 0
		c.s.watch.mu.Unlock()
		if armed {
			t.Error("a check that does not wait leaves the poller armed for data")
		}
		send(t, s.peer, "x")
		eventually(t, "the byte is found", func() bool { return errors.Is(stillGood(c), errUnexpectedByte) })
		check(t, s.peer.CloseWrite())
		eventually(t, "the end of the stream is found", func() bool { return errors.Is(stillGood(c), io.EOF) })
	})
}

func TestLivenessCheckDuringBulk(t *testing.T) {
	near, far := narrowPair(t)
	c := wrap(t, near, insist)
	sending := startBulk(t, c, far)
	for n := 0; n < 20 || c.Stats().SlowReads < 10; n++ {
		if err := stillGood(c); err != nil {
			t.Fatalf("check %d: %v", n, err)
		}
		time.Sleep(time.Millisecond)
	}
	sending.stop(t)
}

// The function passed to Read is called again while it reports false, and by one
// Read at a time.
func TestRawReadsExcludeOneAnother(t *testing.T) {
	s := stalled(t, narrowPair)
	raw, err := s.c.(*Conn).SyscallConn()
	check(t, err)
	var calls, others atomic.Int32
	line := make(chan error, 1)
	go func() {
		line <- raw.Read(func(fd uintptr) bool { // as far as the end of the line
			calls.Add(1)
			for b := make([]byte, 1); ; {
				if n, err := receiveNow(fd, b); n == 0 || err != nil || b[0] == '\n' {
					return err != unix.EAGAIN
				}
			}
		})
	}()
	eventually(t, "the first Read waits", func() bool { return calls.Load() > 0 })
	rest := begin(s.c)
	look := make(chan error, 1)
	go func() { look <- raw.Read(func(uintptr) bool { others.Add(1); return true }) }()
	for _, part := range []string{"one ", "two ", "three"} {
		before := calls.Load()
		send(t, s.peer, part)
		eventually(t, "it is called again", func() bool { return calls.Load() > before })
	}
	if others.Load() > 0 || rest.ended() {
		t.Errorf("while a Read waits, %d others were called, and a Read of the Conn has ended: %v", others.Load(), rest.ended())
	}
	send(t, s.peer, "\nrest")
	check(t, <-line)
	check(t, <-look)
	rest.wants(t, "rest")
}

// Of two deadlines that are set at once the same is in force for a read that the
// runtime's poller refuses and for one that it does not.
func TestDeadlinesThatAreSetAtOnce(t *testing.T) {
	near, _ := loopbackPair(t)
	c := wrap(t, near, nil)
	const rounds = 5000
	var arrived atomic.Int64
	meet := func(n int64) {
		for arrived.Add(1); arrived.Load() < n; {
			runtime.Gosched()
		}
	}
	var setters sync.WaitGroup
	for i, deadline := range []time.Time{time.Unix(1, 0), never} {
		setters.Go(func() {
			for round := range int64(rounds) {
				meet(4*round + 2)
				check(t, c.SetReadDeadline(deadline))
				meet(4*round + 4)
				if i > 0 {
					continue // the other one looks, and then begins the next round
				}
				passed := errors.Is(c.s.raw.Read(func(uintptr) bool { return true }), os.ErrDeadlineExceeded)
				if at, _ := c.s.watch.readDeadline(); passed != (at != noDeadline) {
					t.Errorf("round %d: the runtime's deadline has passed: %v, ours: %v", round, passed, at != noDeadline)
				}
			}
		})
	}
	setters.Wait()
}

// Options are set by Control, as gRPC does it where it finds a *net.TCPConn.
func TestRawControlAndWriteReachTheSocket(t *testing.T) {
	near, far := loopbackPair(t)
	c := wrap(t, near, nil)
	raw, err := net.Conn(c).(syscall.Conn).SyscallConn()
	check(t, err)
	check(t, raw.Control(func(fd uintptr) {
		check(t, unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 4321))
	}))
	if got := userTimeout(t, near); got != 4321 {
		t.Errorf("TCP_USER_TIMEOUT is %d, want 4321", got)
	}
	check(t, raw.Write(func(fd uintptr) bool {
		_, err := unix.Write(int(fd), []byte("hello"))
		return err != unix.EAGAIN
	}))
	expect(t, far, []byte("hello"))
	check(t, c.Close())
	never := func(uintptr) bool { t.Error("called after Close"); return true }
	for name, err := range map[string]error{
		"Control": raw.Control(func(fd uintptr) { never(fd) }),
		"Read":    raw.Read(never),
		"Write":   raw.Write(never),
	} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s after Close: %v, want net.ErrClosed", name, err)
		}
	}
}

// A read that waits with the library's poller does not wait inside of the system
// call if another owner has put the socket in blocking mode.
func TestRefusedReadOfABlockingSocketKeepsItsDeadline(t *testing.T) {
	near, _ := loopbackPair(t)
	c := wrap(t, near, nil)
	check(t, c.s.raw.Control(func(fd uintptr) { check(t, unix.SetNonblock(int(fd), false)) }))
	check(t, c.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	read := begin(readerFunc(c.s.read))
	read.fails(t, os.ErrDeadlineExceeded)
}

// What sendfile has sent is the file's own pages: it changes with the file as
// long as it has not been received.
func TestFilesAreSentBySendfile(t *testing.T) {
	for name, send := range map[string]func(*Conn, *os.File, int64) (int64, error){
		"io.Copy":       func(c *Conn, f *os.File, _ int64) (int64, error) { return io.Copy(c, f) },
		"io.CopyN":      func(c *Conn, f *os.File, n int64) (int64, error) { return io.CopyN(c, f, n) },
		"Conn.ReadFrom": func(c *Conn, f *os.File, _ int64) (int64, error) { return c.ReadFrom(f) },
		"File.WriteTo":  func(c *Conn, f *os.File, _ int64) (int64, error) { return f.WriteTo(c) },
	} {
		t.Run(name, func(t *testing.T) {
			near, far := loopbackPair(t)
			c := wrap(t, near, insist)
			fd, err := unix.MemfdCreate("zcnet", unix.MFD_CLOEXEC)
			check(t, err)
			f := os.NewFile(uintptr(fd), "memfd")
			defer f.Close()
			before, after := noise(64<<10, 1), noise(64<<10, 2)
			_, err = f.WriteAt(before, 0)
			check(t, err)
			if n, err := send(c, f, int64(len(before))); n != int64(len(before)) || err != nil {
				t.Fatalf("%d of %d bytes, %v", n, len(before), err)
			}
			_, err = f.WriteAt(after, 0)
			check(t, err)
			expect(t, far, after)
		})
	}
}
