package zcnet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Things that are dropped without Close or Release. Whatever a test holds here it holds in a function that has returned by
// the time it is to be collected.

// dropHeard collects what the log hook hears in one test.
type dropHeard struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (d *dropHeard) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.text.Write(b)
}

func (d *dropHeard) has(what string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Contains(d.text.String(), what)
}

func hearDrops(t *testing.T) *dropHeard {
	d := &dropHeard{}
	LogDropped(slog.New(slog.NewTextHandler(d, nil)))
	t.Cleanup(func() { LogDropped(nil) })
	return d
}

// collected waits until the collector has brought about what ok reports.
func collected(t testing.TB, what string, ok func() bool) {
	t.Helper()
	eventually(t, what, func() bool {
		runtime.GC()
		return ok()
	})
}

// droppablePair is loopbackPair, but that nothing refers to near.
func droppablePair(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	n, err := net.Dial("tcp4", l.Addr().String())
	check(t, err)
	f, err := l.Accept()
	check(t, err)
	t.Cleanup(func() { f.Close() })
	return n.(*net.TCPConn), f.(*net.TCPConn)
}

// descriptorOf returns c's descriptor as /proc shows it, which no later one does.
func descriptorOf(t *testing.T, c *net.TCPConn) (link string) {
	t.Helper()
	raw, err := c.SyscallConn()
	check(t, err)
	check(t, raw.Control(func(fd uintptr) { link, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)) }))
	check(t, err)
	return link
}

func isOpen(link string) bool {
	for _, open := range openSockets() {
		if strings.HasSuffix(open, link) {
			return true
		}
	}
	return false
}

func TestDroppedConnIsClosedAfterTheLastCompletion(t *testing.T) {
	heard := hearDrops(t)
	before := droppedSoFar().Conns
	want := noise(1<<20, 1)
	var link string
	var ticket Ticket
	var reading sync.WaitGroup
	near, far := droppablePair(t)
	narrow(t, near, far)
	func() {
		defer func() { near = nil }()
		link = descriptorOf(t, near)
		c, err := NewConn(near, insist)
		check(t, err)
		reading.Go(func() {
			for range 5 { // while the write waits for room
				time.Sleep(10 * time.Millisecond)
				runtime.GC()
			}
			if droppedSoFar().Conns != before {
				t.Error("a Conn that writes counts as dropped")
			}
			expect(t, far, want)
		})
		ticket, err = c.WritePinned(Pin(want)) // the last use of c: while it blocks it is a use
		check(t, err)
	}()
	reading.Wait()
	check(t, ticket.Wait(testContext(t)))
	ticket = Ticket{}
	collected(t, "the descriptor is closed", func() bool { return !isOpen(link) })
	expectEOF(t, far)
	if got := droppedSoFar().Conns; got != before+1 || !heard.has("Conn was dropped") {
		t.Errorf("%d drops counted, %d before; heard %q", got, before, heard.text.String())
	}
}

func TestDroppedConnOfAPeerThatDoesNotReadIsReset(t *testing.T) {
	var ticket Ticket
	near, far := droppablePair(t)
	narrow(t, near, far)
	func() {
		defer func() { near = nil }()
		c, err := NewConn(near, &Config{Threshold: 1, insist: true, CloseTimeout: 50 * time.Millisecond})
		check(t, err)
		ticket, _ = pendingWrite(t, c, Pin(make([]byte, 4<<20)))
	}()
	collected(t, "the ticket is done", ticket.Ready)
	if err := ticket.Wait(testContext(t)); !errors.Is(err, ErrConnFailed) {
		t.Errorf("the ticket: %v, want ErrConnFailed", err)
	}
	if _, err := io.Copy(io.Discard, far); err == nil {
		t.Error("the peer saw an orderly end")
	}
}

func TestTheConnectionOfADroppedConnGoesOn(t *testing.T) {
	near, far := droppablePair(t)
	defer near.Close()
	before := droppedSoFar().Conns
	func() {
		c, err := NewConn(near, insist)
		check(t, err)
		ticket, err := c.WritePinned(Pin([]byte("hello")))
		check(t, err)
		check(t, ticket.Wait(testContext(t)))
	}()
	collected(t, "the Conn is found dropped", func() bool { return droppedSoFar().Conns > before })
	send(t, near, " again")
	expect(t, far, []byte("hello again"))
	collected(t, "nothing is watched", func() bool {
		thePoller.mu.Lock()
		defer thePoller.mu.Unlock()
		return len(thePoller.sockets) == 0
	})
}

func TestDroppedAllocIsUnmappedAfterTheLastCompletion(t *testing.T) {
	heard := hearDrops(t)
	before := droppedSoFar().Allocs
	near, far := narrowPair(t)
	c := wrap(t, near, insist)
	var want []byte
	var addr uintptr
	var queued int
	func() {
		p, err := Alloc(4 << 20)
		check(t, err)
		copy(p.Bytes(), noise(p.Len(), 1))
		want = bytes.Clone(p.Bytes())
		addr = uintptr(unsafe.Pointer(&p.Bytes()[0]))
		_, queued = pendingWrite(t, c, p)
	}()
	for range 3 {
		runtime.GC()
	}
	if !isMapped(addr) || droppedSoFar().Allocs != before {
		t.Fatal("memory in flight was unmapped")
	}
	expect(t, far, want[:queued])
	collected(t, "the memory is unmapped", func() bool { return !isMapped(addr) })
	if got := droppedSoFar().Allocs; got != before+1 || !heard.has("dropped without Release") {
		t.Errorf("%d drops counted, %d before; heard %q", got, before, heard.text.String())
	}
}

// isMapped reports whether there is memory at addr.
func isMapped(addr uintptr) bool {
	resident := make([]byte, 1)
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, addr&^(uintptr(page)-1), 1, uintptr(unsafe.Pointer(&resident[0])))
	return errno == 0
}

func TestReleasedAllocIsNotCalledDropped(t *testing.T) {
	before := droppedSoFar()
	var pools []*Pool // which outlive their buffers
	for range 10 {
		p, err := Alloc(page)
		check(t, err)
		p.Release()
		pool, err := NewPool(page, 2)
		check(t, err)
		used, err := pool.Get(testContext(t))
		check(t, err)
		check(t, pool.Close())
		used.Release()
		pools = append(pools, pool)
	}
	for range 3 {
		runtime.GC()
		time.Sleep(time.Millisecond)
	}
	runtime.KeepAlive(pools)
	if got := droppedSoFar(); got != before {
		t.Errorf("%+v, before %+v", got, before)
	}
}

func TestDroppedBufferComesBackToItsPool(t *testing.T) {
	heard := hearDrops(t)
	before := droppedSoFar().Buffers
	pool, err := NewPool(page, 2)
	check(t, err)
	defer pool.Close()
	for range 6 {
		if p, ok := pool.tryGet(); ok {
			p.Bytes()[0] = 1
		}
		collected(t, "the buffer is back", func() bool { return len(pool.free) == 2 })
	}
	if got := droppedSoFar().Buffers; got != before+6 || !heard.has("buffer of a Pool was dropped") {
		t.Errorf("%d drops counted, %d before; heard %q", got, before, heard.text.String())
	}
}

func TestDroppedPoolIsUnmappedAfterTheLastCompletion(t *testing.T) {
	for _, end := range []string{"not closed", "closed"} {
		t.Run(end, func(t *testing.T) {
			before := droppedSoFar()
			near, far := narrowPair(t)
			c := wrap(t, near, insist)
			var addr uintptr
			var queued int
			func() {
				pool, err := NewPool(4<<20, 1)
				check(t, err)
				p, err := pool.Get(testContext(t))
				check(t, err)
				addr = uintptr(unsafe.Pointer(&p.Bytes()[0]))
				_, queued = pendingWrite(t, c, p)
				if end == "closed" {
					check(t, pool.Close())
				}
			}()
			for range 3 {
				runtime.GC()
			}
			if !isMapped(addr) {
				t.Fatal("memory in flight was unmapped")
			}
			expect(t, far, make([]byte, queued))
			collected(t, "the memory is unmapped", func() bool { return !isMapped(addr) })
			got := droppedSoFar()
			got.Pools -= before.Pools
			got.Buffers -= before.Buffers
			if want := end != "closed"; (got.Pools == 1) != want || (got.Buffers == 1) == want {
				t.Errorf("%d pools and %d buffers counted as dropped", got.Pools, got.Buffers)
			}
		})
	}
}

// A lookedAt kernel tells how often it was asked for the backlog after Close.
type lookedAt struct {
	kernel
	closed atomic.Bool
	looks  atomic.Int32
}

func (k *lookedAt) duplicate(fd uintptr) (keeper, error) {
	k.closed.Store(true)
	return k.kernel.duplicate(fd)
}

func (k *lookedAt) backlog(fd uintptr) backlog {
	if k.closed.Load() {
		k.looks.Add(1)
	}
	return k.kernel.backlog(fd)
}

// A dropped connection has waited for its peer when it is closed, and does not
// do so again. What the reset leaves is measured once.
func TestDroppedConnWaitsForItsPeerOnce(t *testing.T) {
	near, _ := narrowPair(t)
	c, err := NewConn(near, stalling)
	check(t, err)
	k := &lookedAt{kernel: c.s.kernel}
	c.s.kernel = k
	ticket, _ := pendingWrite(t, c, Pin(noise(8<<20, 1)))
	c = nil
	collected(t, "it is closed", k.closed.Load)
	wantFailed(t, ticket)
	if n := k.looks.Load(); n > 1 {
		t.Errorf("%d looks at the backlog after Close, want at most one", n)
	}
}
