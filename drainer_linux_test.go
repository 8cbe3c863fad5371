package zcnet

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// leftCompletion returns a connection with a completion of a write of p that the poller has left, and the ticket. Until
// stop or the end of the test the poller finds that the connection still sends.
func leftCompletion(t *testing.T, p Pinned) (c *Conn, ticket Ticket, stop func()) {
	t.Helper()
	defer p.Release()
	for range 100 {
		near, _ := loopbackPair(t)
		c = wrap(t, near, insist)
		check(t, c.s.raw.Control(func(fd uintptr) { check(t, c.s.watch(fd)) }))
		stop = keepSending(t, c)
		ticket, err := c.WritePinned(p)
		check(t, err)
		for ticket.pending() && !isLeft(c) {
			time.Sleep(100 * time.Microsecond)
		}
		if ticket.pending() {
			return c, ticket, stop
		}
		stop() // it was read before it could be left, or by a poller that had to wait for its turn
		check(t, c.Close())
	}
	t.Fatal("the poller never leaves a completion")
	return nil, Ticket{}, nil
}

// keepSending has the poller find that c goes on sending.
func keepSending(t *testing.T, c *Conn) (stop func()) {
	var sending sync.WaitGroup
	quit := make(chan struct{})
	sending.Go(func() {
		for {
			select {
			case <-quit:
				return
			default:
				c.s.drainer.sending.Store(true)
				time.Sleep(50 * time.Microsecond)
			}
		}
	})
	stop = sync.OnceFunc(func() { close(quit); sending.Wait() })
	t.Cleanup(stop)
	return stop
}

// isLeft reports whether a completion of c is left, and the poller looks after it.
func isLeft(c *Conn) bool {
	thePoller.mu.Lock()
	defer thePoller.mu.Unlock()
	_, kept := thePoller.left[c.s]
	return kept && c.s.drainer.left.Load()
}

func TestLeftCompletionIsReadSoonAfterTheWrite(t *testing.T) {
	p, err := Alloc(page)
	check(t, err)
	_, ticket, stop := leftCompletion(t, p)
	stop()
	eventually(t, "the memory is released", func() bool { return p.r.state.Load()&regionUse == regionReleased })
	eventually(t, "the ticket is done", func() bool { return !ticket.pending() })
	eventually(t, "the poller has forgotten the connection", func() bool {
		thePoller.mu.Lock()
		defer thePoller.mu.Unlock()
		return len(thePoller.left) == 0
	})
}

func TestLeftCompletionIsReadByWhoeverWaits(t *testing.T) {
	pool, err := NewPool(page, 1)
	check(t, err)
	defer pool.Close()
	for name, wait := range map[string]func(c *Conn, ticket Ticket) error{
		"Wait":  func(_ *Conn, ticket Ticket) error { return ticket.Wait(testContext(t)) },
		"Done":  func(_ *Conn, ticket Ticket) error { <-ticket.Done(); return nil },
		"Flush": func(c *Conn, _ Ticket) error { return c.Flush(testContext(t)) },
		"Close": func(c *Conn, ticket Ticket) error { c.Close(); return ticket.Wait(testContext(t)) },
		"Ready": func(_ *Conn, ticket Ticket) error {
			if !ticket.Ready() {
				return errors.New("Ready is false")
			}
			return nil
		},
		"Pool.Get": func(_ *Conn, ticket Ticket) error {
			defer awaitMemory()() // as Get does, and not later
			if ticket.pending() {
				return errors.New("who waits for memory has left the completion")
			}
			p, err := pool.Get(testContext(t))
			p.Release()
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := pool.Get(testContext(t))
			check(t, err)
			c, ticket, _ := leftCompletion(t, p)
			check(t, wait(c, ticket))
		})
	}
}

func TestPollerLeavesNothingWhileSomebodyWaits(t *testing.T) {
	s := socket{kernel: system{}}
	leaves := func(when string, want bool) {
		t.Helper()
		if s.leave() != want || s.drainer.left.Swap(false) != want {
			t.Errorf("%s: want the poller to leave a completion: %v", when, want)
		}
	}
	leaves("before anything was sent", false)
	s.drainer.called()
	leaves("while the connection sends and nobody waits", true)
	s.ledger().waited.Add(1)
	leaves("while somebody waits for a ticket", false)
	s.ledger().waited.Add(-1)
	memoryAwaited.Add(1)
	leaves("while somebody waits for memory", false)
	memoryAwaited.Add(-1)
	s.readers.armed = true
	leaves("while somebody waits to read", false)
	s.readers.armed = false
	leaves("afterwards", true)
	s.look()
	leaves("with nothing sent since the poller looked", false)
}

// TestNoCompletionIsLeftWhileSomebodyWaits lets the beginning of a wait meet the poller in every way that 200,000 tries
// bring about.
func TestNoCompletionIsLeftWhileSomebodyWaits(t *testing.T) {
	s := socket{kernel: system{}}
	for range 200_000 {
		s.drainer.called()
		var meeting sync.WaitGroup
		var seen bool
		meeting.Go(func() {
			s.ledger().waited.Add(1)
			seen = s.drainer.left.Swap(false) // as await does
		})
		left := s.leave()
		meeting.Wait()
		if left && !seen {
			t.Fatal("the poller has left a completion, and who waits has not seen it")
		}
		s.drainer.left.Store(false)
		s.ledger().waited.Add(-1)
	}
}

func TestWriterReadsWhatWasLeftEverySoManyCalls(t *testing.T) {
	var d drainer
	d.left.Store(true)
	for range 3 {
		for i := 1; i <= drainEvery; i++ {
			if due := d.called(); due != (i == drainEvery) {
				t.Fatalf("call %d of %d: due is %v", i, drainEvery, due)
			}
		}
	}
	d.left.Store(false)
	for range drainEvery {
		if d.called() {
			t.Fatal("due though nothing was left")
		}
	}
}

// restingConn returns a connection that has learned that its path copies, and is not watched any more. It tries the path
// again when the test says so.
func restingConn(t *testing.T) (c *Conn, far *net.TCPConn, k *orderKernel) {
	t.Helper()
	near, far := loopbackPair(t)
	c = wrap(t, near, &Config{Threshold: 1})
	k = &orderKernel{kernel: c.s.kernel, t: t}
	c.s.kernel = k
	p, _ := allocNoise(t, 8<<10, 1)
	defer p.Release()
	ctx := testContext(t)
	for !c.s.pathCopies() {
		ticket, err := c.WritePinned(p)
		check(t, err)
		_, err = io.CopyN(io.Discard, far, int64(p.Len()))
		check(t, err)
		check(t, ticket.Wait(ctx))
	}
	eventually(t, "the connection rests", func() bool { return !c.s.watched.Load() })
	c.tryPathAt(time.Now().Add(time.Hour))
	k.watches.Store(0)
	return c, far, k
}

// A connection that sends plainly, because its path copies, is not watched while it has nothing in flight, and is again
// for each flagged call by which it tries the path: from when its ID is reserved on. It takes no new descriptor then.
func TestACopyingPathIsWatchedOnlyWhenItIsTried(t *testing.T) {
	c, far, k := restingConn(t)
	p, _ := allocNoise(t, 8<<10, 1)
	defer p.Release()
	for range 20 {
		sends, epoll := c.Stats().Sends, thePoller.descriptor()
		c.tryPathAt(time.Time{})
		ticket, err := c.WritePinned(p)
		check(t, err)
		_, err = io.CopyN(io.Discard, far, int64(p.Len()))
		check(t, err)
		check(t, ticket.Wait(testContext(t)))
		if got := c.Stats().Sends; got != sends+1 {
			t.Fatalf("%d flagged calls after %d: the path was due for a try", got, sends)
		}
		eventually(t, "the watch ends", func() bool { return !c.s.watched.Load() })
		if now := thePoller.descriptor(); now != epoll || now == 0 {
			t.Fatalf("the poller's descriptor is %d after %d: there may be none left for a new one", now, epoll)
		}
	}
	if n := k.watches.Load(); n != 20 {
		t.Errorf("the watch was set by a write %d times, want 20", n)
	}
}

// orderKernel checks that an ID is reserved when a write sets the watch.
type orderKernel struct {
	kernel
	t       *testing.T
	watches atomic.Int32
}

func (k *orderKernel) watch(fd uintptr, s *socket, read bool) error {
	k.watches.Add(1)
	if s.ledger().idle() {
		k.t.Error("the watch is set before the ID is reserved: who is about to rest does not see the call")
	}
	return k.kernel.watch(fd, s, read)
}

// descriptor returns the epoll descriptor, or 0 if there is none.
func (p *poller) descriptor() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil {
		return 0
	}
	return p.epfd
}

// Messages that nobody reads take the room of what is to be received.
func TestAConnectionWithTimestampsDoesNotRest(t *testing.T) {
	c, far, _ := restingConn(t)
	check(t, c.s.raw.Control(func(fd uintptr) {
		check(t, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPING, unix.SOF_TIMESTAMPING_TX_ACK|unix.SOF_TIMESTAMPING_SOFTWARE))
	}))
	p, _ := allocNoise(t, 8<<10, 1)
	defer p.Release()
	c.tryPathAt(time.Time{})
	for i := range 3 {
		ticket, err := c.WritePinned(p)
		check(t, err)
		_, err = io.CopyN(io.Discard, far, int64(p.Len()))
		check(t, err)
		check(t, ticket.Wait(testContext(t)))
		eventually(t, "the timestamp is read", func() bool { return c.Stats().ForeignMessages > uint64(i) })
	}
	if !c.s.watched.Load() {
		t.Error("the connection rests")
	}
}

// Nobody hears of a reset while the connection rests, but a write does.
func TestARestingConnectionFailsWithItsNextWrite(t *testing.T) {
	c, far, _ := restingConn(t)
	p, _ := allocNoise(t, 16<<20, 1)
	defer p.Release()
	check(t, c.SetWriteDeadline(time.Now().Add(100*time.Millisecond)))
	if _, err := c.WritePinned(p); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the peer does not read: %v, want a timeout", err)
	}
	check(t, c.SetWriteDeadline(time.Time{}))
	check(t, far.SetLinger(0))
	check(t, far.Close())
	eventually(t, "the reset arrives", func() bool {
		_, err := c.WritePinned(p)
		return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	})
	if !c.Stats().ConnectionFailed {
		t.Error("Stats does not say that the connection has failed")
	}
}

// Whoever tries the path may meet the poller that is about to end the watch.
func TestNoCompletionIsMissedWhenTheWatchEnds(t *testing.T) {
	near, far := loopbackPair(t)
	c := wrap(t, near, &Config{Threshold: 1})
	var receiving, sending sync.WaitGroup
	receiving.Go(func() { _, _ = io.Copy(io.Discard, far) })
	defer receiving.Wait()
	defer c.Close()
	ctx := testContext(t)
	for i := range 4 {
		p, _ := allocNoise(t, 8<<10, uint64(i))
		defer p.Release()
		sending.Go(func() {
			for range 3000 {
				c.tryPathAt(time.Time{})
				ticket, err := c.WritePinned(p)
				if err == nil {
					err = ticket.Wait(ctx)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	sending.Wait()
	if s := c.Stats(); s.IDsInFlight != 0 || !s.PathCopies || s.Sends < 1000 {
		t.Errorf("%+v, want more than 1000 flagged calls, all of which were copied", s)
	}
}

// tryPathAt says from when on a path that copies is due for a flagged call.
func (c *Conn) tryPathAt(when time.Time) {
	c.s.path.mu.Lock()
	defer c.s.path.mu.Unlock()
	c.s.path.tryAt = when
}
