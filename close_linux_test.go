package zcnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcnet-go/zcnet/internal/lab"
)

// Closes that linger: what they hold comes back soon if the peer takes nothing,
// at once if a goroutine waits for it, and whatever the process may not do.

// stalling is a configuration under which a peer that takes nothing loses the
// rest long before the timeout.
var stalling = &Config{Threshold: 1, insist: true, CloseTimeout: time.Hour, StallTimeout: 200 * time.Millisecond}

func TestCloseGivesUpAPeerThatTakesNothing(t *testing.T) {
	for _, peer := range []struct {
		name string
		make func(t *testing.T, link *lab.Link, c *Conn, far *net.TCPConn)
	}{
		{"it does not read", func(*testing.T, *lab.Link, *Conn, *net.TCPConn) {}},
		{"it has ended its side and does not read", func(t *testing.T, _ *lab.Link, c *Conn, far *net.TCPConn) {
			check(t, far.CloseWrite())
			expectEOF(t, c)
		}},
		{"it is gone", func(t *testing.T, link *lab.Link, _ *Conn, far *net.TCPConn) {
			trouble{lost: 256, rate: 1}.make(t, link.Sender)
			go io.Copy(io.Discard, far)
		}},
		{"it sends and does not read", func(t *testing.T, _ *lab.Link, c *Conn, far *net.TCPConn) {
			send(t, far, "never read")
			eventually(t, "it arrives", func() bool { return unreadBytes(t, c.TCPConn) > 0 })
		}},
	} {
		t.Run(peer.name, func(t *testing.T) {
			link := lab.ForTest(t)
			near, far := labPair(t, link)
			c := wrap(t, near, stalling)
			socket := watchDescriptors(t, c)
			p, _ := allocNoise(t, 16<<20, 1)
			ticket, _ := pendingWrite(t, c, p)
			p.Release()
			peer.make(t, link, c, far)
			before := lingeringNow()
			check(t, c.Close())
			if now := c.Stats(); now.Lingering.Conns <= before.Conns || now.Lingering.Bytes < now.BytesInFlight || now.BytesInFlight == 0 {
				t.Errorf("Stats shows %+v beside %d bytes in flight, and before Close %+v", now.Lingering, now.BytesInFlight, before)
			}
			if r := Probe(c).String(); !strings.Contains(r, "closed connections hold") {
				t.Errorf("Probe does not tell of lingering connections:\n%s", r)
			}
			if err := ticket.Wait(testContext(t)); !errors.Is(err, ErrConnFailed) || !strings.Contains(err.Error(), "acknowledged nothing") {
				t.Errorf("the ticket: %v, want ErrConnFailed and the reason", err)
			}
			wantFreed(t, p)
			wantNothingLeft(t, c, socket)
			if now := lingeringNow(); now.Resets <= before.Resets {
				t.Errorf("the reset is not counted: %+v, before %+v", now, before)
			}
		})
	}
}

func TestLingeringBytesComeDown(t *testing.T) {
	near, far := narrowPair(t)
	c := wrap(t, near, hourly)
	socket := watchDescriptors(t, c)
	before := inProcess.lingering.bytes.Load()
	pendingWrite(t, c, Pin(noise(8<<20, 1)))
	held := c.Stats().BytesInFlight
	check(t, c.Close())
	if now := inProcess.lingering.bytes.Load(); now < held {
		t.Errorf("%d bytes linger, want at least %d", now, held)
	}
	go io.Copy(io.Discard, far)
	socket.wantGone(t)
	eventually(t, "the count is as before", func() bool { return inProcess.lingering.bytes.Load() <= before })
	if now := inProcess.lingering.bytes.Load(); now < 0 {
		t.Errorf("%d bytes linger", now)
	}
}

// TestPoolIsServedThoughPeersDoNotRead closes as many connections as the pool
// has buffers, whose peers do not read.
func TestPoolIsServedThoughPeersDoNotRead(t *testing.T) {
	const buffers, size = 4, 1 << 20
	pool, err := NewPool(size, buffers)
	check(t, err)
	defer pool.Close()
	for range buffers {
		near, _ := narrowPair(t)
		c := wrap(t, near, hourly)
		p, err := pool.Get(testContext(t))
		check(t, err)
		pendingWrite(t, c, p)
		check(t, c.Close())
		p.Release()
	}
	near, far := narrowPair(t)
	other := wrap(t, near, hourly) // holds nothing that is waited for
	memory, want := allocNoise(t, size, 1)
	ticket, queued := pendingWrite(t, other, memory)
	memory.Release()
	check(t, other.Close())

	p, err := pool.Get(testContext(t))
	check(t, err)
	p.Release()
	if ticket.Ready() {
		t.Errorf("a connection that holds other memory was reset: %v", ticket.Wait(testContext(t)))
	}
	expect(t, far, want[:queued])
	expectEOF(t, far)
	check(t, ticket.Wait(testContext(t)))
}

// farAway is a peer whose acknowledgements take a while, or whose window is
// closed.
type farAway struct {
	kernel
	rtt, shut time.Duration
}

func (k farAway) backlog(fd uintptr) backlog {
	return backlog{k.kernel.backlog(fd).left, k.shut, k.rtt}
}

func TestWhatIsOnItsWayIsNotAStall(t *testing.T) {
	pool, err := NewPool(1<<20, 1)
	check(t, err)
	defer pool.Close()
	near, _ := narrowPair(t)
	c := wrap(t, near, insist)
	p, err := pool.Get(testContext(t))
	check(t, err)
	pendingWrite(t, c, p)
	for _, tt := range []struct {
		stalled, shut, rtt time.Duration // shut is before Close
		released, waiting  bool          // of the pool's buffer
		cut                bool
	}{
		{3 * time.Second, 0, 0, false, true, false}, // which would not free the buffer
		{3 * time.Second, 0, 0, true, true, true},
		{3 * time.Second, 0, 0, true, false, false},
		{1500 * time.Millisecond, 0, 0, true, true, false}, // perhaps it was lost, and is sent again
		{0, time.Minute, 0, true, true, true},
		{0, time.Minute, 0, true, false, false}, // before Close it may have taken its time
		{time.Second, 1500 * time.Millisecond, 0, true, true, true},
		{3 * time.Second, 0, time.Second, true, true, false},
		{4500 * time.Millisecond, 0, time.Second, true, true, true},
		{6 * time.Second, 0, 0, true, false, true},
		{6 * time.Second, 0, 2 * time.Second, true, true, false},
	} {
		if tt.released && p.r.held(p.gen) {
			p.Release()
		}
		pool.waiting.Store(0)
		if tt.waiting {
			pool.waiting.Store(1)
		}
		c.s.kernel = farAway{system{near}, tt.rtt, tt.shut}
		v := c.s.newVigil(grace{time.Hour, 5 * time.Second})
		v.stalled = tt.stalled
		if why := v.look(); (why != "") != tt.cut {
			t.Errorf("%+v: it is cut because of %q", tt, why)
		}
	}
	pool.waiting.Store(0)
}

// TestASteadyReaderIsNotStalled: a peer that reads a little at a time opens its
// window only when there is room for a segment, which is as long as a packet
// over loopback. Meanwhile a goroutine waits for the memory.
func TestASteadyReaderIsNotStalled(t *testing.T) {
	pool, err := NewPool(8<<20, 1)
	check(t, err)
	defer pool.Close()
	near, far := narrowPair(t)
	c := wrap(t, near, hourly)
	p, err := pool.Get(testContext(t))
	check(t, err)
	ticket, queued := pendingWrite(t, c, p)
	check(t, c.Close())
	p.Release()
	got := beginCall(func() error { p, err := pool.Get(testContext(t)); p.Release(); return err })
	const little, times = 8 << 10, 12
	for range times {
		time.Sleep(100 * time.Millisecond)
		_, err := io.ReadFull(far, make([]byte, little))
		check(t, err)
	}
	if n, err := io.Copy(io.Discard, far); err != nil || n != int64(queued-times*little) {
		t.Errorf("the peer received %d of %d bytes, and %v", times*little+n, queued, err)
	}
	check(t, got.wait(t))
	check(t, ticket.Wait(testContext(t)))
}

// A process that was stopped, with its virtual machine, has not seen what its
// peer has acknowledged.
func TestTimeWithoutALookIsNotAStall(t *testing.T) {
	near, _ := narrowPair(t)
	c := wrap(t, near, insist)
	pendingWrite(t, c, Pin(noise(8<<20, 1)))
	v := c.s.newVigil(grace{time.Hour, 5 * time.Second})
	v.last -= time.Minute
	if why := v.look(); why != "" {
		t.Error(why)
	}
}

func TestCloseThatWaitsReportsWhatItGaveUp(t *testing.T) {
	near, _ := narrowPair(t)
	c := wrap(t, near, stalling)
	pendingWrite(t, c, Pin(noise(8<<20, 1)))
	check(t, c.SetLinger(int(testTimeout/time.Second)))
	if err := c.Close(); !errors.Is(err, ErrConnFailed) {
		t.Errorf("Close: %v, want ErrConnFailed", err)
	}
}

// A call on a descriptor in blocking mode does not return when it is closed.
func TestCloseTimeoutStartsThoughCallsDoNotReturn(t *testing.T) {
	near, _ := narrowPair(t)
	cfg := *hourly
	cfg.CloseTimeout = 50 * time.Millisecond
	c := wrap(t, near, &cfg)
	socket := watchDescriptors(t, c)
	ticket, _ := pendingWrite(t, c, Pin(noise(8<<20, 1)))
	check(t, c.s.raw.Control(func(fd uintptr) { check(t, unix.SetNonblock(int(fd), false)) }))
	calls := []pendingCall{
		beginCall(func() error { _, err := c.Read(make([]byte, 1)); return err }),
		beginCall(func() error { _, err := c.Write(make([]byte, 8<<20)); return err }),
	}
	time.Sleep(20 * time.Millisecond)
	check(t, beginCall(c.Close).wait(t))
	wantFailed(t, ticket)
	for _, call := range calls {
		if err := call.wait(t); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a blocked call: %v, want net.ErrClosed", err)
		}
	}
	wantNothingLeft(t, c, socket)
}

// A hook that blocks holds up its own connection's messages and nothing else.
func TestHookThatBlocksDoesNotHoldUpOthers(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	cfg := *insist
	cfg.ErrorQueue = func(*net.TCPConn, ErrorQueueMessage) { close(entered); <-leave }
	near, far := narrowPair(t)
	c := wrap(t, near, &cfg)
	ticket, queued := pendingWrite(t, c, Pin(noise(8<<20, 1)))
	ticket.Done() // the poller is armed from here on
	c.s.foreign.add(ErrorQueueMessage{})
	go io.CopyN(io.Discard, far, int64(queued))
	<-entered

	near2, far2 := narrowPair(t)
	other := wrap(t, near2, insist)
	ticket2, queued2 := pendingWrite(t, other, Pin(noise(8<<20, 1)))
	done := ticket2.Done()
	go io.CopyN(io.Discard, far2, int64(queued2))
	select {
	case <-done:
	case <-time.After(testTimeout):
		t.Error("the poller waits for the hook")
	}
	close(leave)
	check(t, ticket.Wait(testContext(t)))
}

// Where no event can be had a read that the runtime's poller has refused looks
// again from time to time.
func TestReadsGoOnWhereThePollerCannotBeHad(t *testing.T) {
	for name, k := range map[string]func(kernel) kernel{
		"joined": func(k kernel) kernel { return unjoinable{k} },
		"armed":  func(k kernel) kernel { return unarmable{k} },
	} {
		t.Run("or "+name, func(t *testing.T) {
			near, far := loopbackPair(t)
			c := wrap(t, near, insist)
			c.s.kernel = k(c.s.kernel)
			check(t, c.SetReadDeadline(time.Now().Add(2*testTimeout)))
			read := beginCall(func() error { _, err := c.s.read(make([]byte, 1)); return err })
			time.Sleep(20 * time.Millisecond)
			send(t, far, "x")
			check(t, read.wait(t))
			check(t, c.SetReadDeadline(time.Now().Add(30*time.Millisecond)))
			read = beginCall(func() error { _, err := c.s.read(make([]byte, 1)); return err })
			if err := read.wait(t); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Read: %v, want a timeout", err)
			}
		})
	}
}

func TestCloseWithoutADescriptorToSpare(t *testing.T) { runChild(t, "nofile") }

// nofileChild closes connections with memory in flight when no descriptor can be
// had. Everything arrives, what was written plainly included, and to everyone
// else they are closed.
func nofileChild() error {
	const conns, lent, copied = 3, 200 << 10, 100 << 10
	type pair struct {
		near *Conn
		far  net.Conn
		want []byte
	}
	var pairs []pair
	for i := range conns {
		near, far, err := childPair(hourly)
		if err != nil {
			return err
		}
		if err := errors.Join(near.SetWriteBuffer(1<<20), far.(*net.TCPConn).SetReadBuffer(64<<10)); err != nil {
			return err
		}
		want := noise(lent+copied, uint64(i))
		if _, err := near.WritePinned(Pin(want[:lent])); err != nil {
			return err
		}
		if _, err := near.Write(want[lent:]); err != nil {
			return err
		}
		if near.Stats().IDsInFlight == 0 {
			return errors.New("nothing is in flight")
		}
		pairs = append(pairs, pair{near, far, want})
	}
	if err := useUpDescriptors(); err != nil {
		return err
	}
	var reading sync.WaitGroup
	errs := make([]error, conns)
	for i, p := range pairs {
		reading.Go(func() { _, errs[i] = p.near.Read(make([]byte, 1)) })
	}
	time.Sleep(20 * time.Millisecond)
	for _, p := range pairs {
		if err := p.near.Close(); err != nil {
			return fmt.Errorf("Close: %w", err)
		}
		_, err := p.near.Write([]byte("x"))
		_, readErr := p.near.Read(make([]byte, 1))
		if !errors.Is(err, net.ErrClosed) || !errors.Is(readErr, net.ErrClosed) || !errors.Is(p.near.Close(), net.ErrClosed) {
			return fmt.Errorf("after Close Write: %v, Read: %v; want net.ErrClosed", err, readErr)
		}
	}
	reading.Wait()
	for _, err := range errs {
		if !errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("a blocked Read: %v, want net.ErrClosed", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	for _, p := range pairs {
		if err := receive(p.far, p.want); err != nil {
			return err
		}
		if n, err := p.far.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			return fmt.Errorf("the end of the stream: %d bytes, %v", n, err)
		}
		if err := p.near.Flush(ctx); err != nil {
			return err
		}
	}
	for lingeringNow().Conns > 0 {
		if ctx.Err() != nil {
			return errors.New("descriptors are kept in use")
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

// useUpDescriptors lowers the limit of the process to what is in use.
func useUpDescriptors() error {
	fd, err := unix.Dup(1)
	if err != nil {
		return err
	}
	if err := unix.Close(fd); err != nil {
		return err
	}
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(fd), Max: 1 << 10}) // every lower one is in use
}

func TestCloseWhereConnectIsForbidden(t *testing.T) { runChild(t, "noconnect") }

// noconnectChild closes connections whose peers do not read, in a process that
// a seccomp filter forbids to call connect(2): what they hold comes back.
func noconnectChild() error {
	near, far, err := childPair(stalling)
	if err != nil {
		return err
	}
	defer far.Close()
	data := noise(16<<20, 1)
	if err := near.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		return err
	}
	ticket, err := near.WritePinned(Pin(data))
	if !errors.Is(err, os.ErrDeadlineExceeded) || ticket.Ready() {
		return fmt.Errorf("the write: %v, ready %v; want a timeout with bytes in flight", err, ticket.Ready())
	}
	if err := forbid(seccompRule{unix.SYS_CONNECT, nil, unix.EPERM}); err != nil {
		return err
	}
	if _, err := net.Dial("tcp", far.LocalAddr().String()); !errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("connect: %v, want EPERM", err)
	}
	if err := near.Close(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	if err := ticket.Wait(ctx); !errors.Is(err, ErrConnFailed) {
		return fmt.Errorf("ticket: %v, want ErrConnFailed", err)
	}
	if s := near.Stats(); s.UnprovenBytes != 0 || s.BytesInFlight != 0 {
		return fmt.Errorf("%d bytes unproven and %d in flight", s.UnprovenBytes, s.BytesInFlight)
	}
	return nil
}

// The reset for received bytes that were left unread comes after the end of the
// stream, which may take longer than the memory that was in flight.
func TestResetForUnreadBytesDoesNotOvertakeTheEnd(t *testing.T) {
	near, far := narrowPair(t)
	c := wrap(t, near, hourly)
	socket := watchDescriptors(t, c)
	send(t, far, "never read")
	eventually(t, "it arrives", func() bool { return unreadBytes(t, near) > 0 })
	c.s.path.free.Store(true) // or the writer would look whether it is done
	const lent = 100 << 10
	want := noise(300<<10, 1)
	ticket, err := c.WritePinned(Pin(want[:lent]))
	check(t, err)
	n, err := near.Write(want[lent:])
	check(t, err)
	if c.Stats().IDsInFlight == 0 || n != len(want)-lent {
		t.Fatal("nothing is in flight")
	}
	check(t, c.Close())
	expect(t, far, want[:lent])
	check(t, ticket.Wait(testContext(t)))
	time.Sleep(2 * lookEvery)
	expect(t, far, want[lent:])
	expectEOF(t, far)
	socket.wantGone(t)
}
