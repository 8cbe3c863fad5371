package zcnet

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// parkingKernel keeps the flagged calls of a connection, which have queued
// their bytes, in the kernel until they are let go.
type parkingKernel struct {
	kernel
	in, out chan struct{}
}

func (k *parkingKernel) send(fd uintptr, m *message, flags int) (int, error) {
	n, err := k.kernel.send(fd, m, flags)
	if k.in != nil && flags&msgZeroCopy != 0 {
		close(k.in)
		<-k.out
		k.in = nil
	}
	return n, err
}

// The embedded *net.TCPConn is closed while the first flagged call of a write is
// in the kernel, and another goroutine finds that out. The call has no ID yet.
func TestTicketEndsThoughTheEmbeddedConnIsClosedUnderItsCall(t *testing.T) {
	near, _ := narrowPair(t)
	c := wrap(t, near, insist)
	k := &parkingKernel{kernel: c.s.kernel, in: make(chan struct{}), out: make(chan struct{})}
	c.s.kernel = k
	var ticket Ticket
	var writing sync.WaitGroup
	in := k.in
	writing.Go(func() { ticket, _ = c.WritePinned(Pin(make([]byte, page))) })
	<-in
	var closing sync.WaitGroup
	closing.Go(func() { c.TCPConn.Close() }) // it waits for the call
	eventually(t, "the descriptor is being closed", func() bool { return c.s.raw.Control(func(uintptr) {}) != nil })
	c.s.reap() // as the poller, its tick and Ready do
	close(k.out)
	writing.Wait()
	closing.Wait()
	if err := ticket.Wait(briefContext(t)); !errors.Is(err, ErrReleaseUnproven) {
		t.Errorf("Wait: %v, want %v", err, ErrReleaseUnproven)
	}
}

// armedWrite returns a connection with a write in flight that the peer does not
// read, for whose completion the poller is armed.
func armedWrite(t *testing.T) (c *Conn, ticket Ticket) {
	t.Helper()
	near, _ := narrowPair(t)
	c = wrap(t, near, insist)
	check(t, near.SetWriteDeadline(time.Now().Add(100*time.Millisecond)))
	ticket, err := c.WritePinned(Pin(make([]byte, 16<<20)))
	if err == nil {
		t.Fatal("the peer's window takes everything")
	}
	eventually(t, "the poller is armed", func() bool { return modeOf(c) == modeArmed })
	return c, ticket
}

// The descriptor is closed other than by Close while the poller is armed. The
// kernel takes it out of the epoll set without an event.
func TestTicketsEndThoughTheEmbeddedConnIsClosed(t *testing.T) {
	for name, wait := range map[string]func(*Conn, Ticket) error{
		"Wait":  func(_ *Conn, ticket Ticket) error { return ticket.Wait(briefContext(t)) },
		"Flush": func(c *Conn, _ Ticket) error { return c.Flush(briefContext(t)) },
	} {
		t.Run(name, func(t *testing.T) {
			c, ticket := armedWrite(t)
			check(t, c.TCPConn.Close())
			if err := wait(c, ticket); !errors.Is(err, ErrReleaseUnproven) {
				t.Errorf("%s: %v, want %v", name, err, ErrReleaseUnproven)
			}
		})
	}
}

// The same while a goroutine waits already.
func TestParkedWaitEndsThoughTheEmbeddedConnIsClosed(t *testing.T) {
	c, ticket := armedWrite(t)
	waiting := beginCall(func() error { return ticket.Wait(testContext(t)) })
	eventually(t, "Wait is parked", func() bool { return c.s.ledger().waited.Load() > 0 })
	doze()
	check(t, c.TCPConn.Close())
	if err := <-waiting; !errors.Is(err, ErrReleaseUnproven) {
		t.Errorf("Wait: %v, want %v", err, ErrReleaseUnproven)
	}
}

// A reader that waits with the library's poller is not told either; it looks
// again from time to time.
func TestReadEndsThoughTheEmbeddedConnIsClosed(t *testing.T) {
	near, _ := loopbackPair(t)
	c := wrap(t, near, insist)
	check(t, c.SetReadDeadline(time.Time{}))
	read := make(chan error, 1)
	go func() { _, err := c.s.read(make([]byte, 1)); read <- err }()
	eventually(t, "the reader waits", func() bool {
		c.s.watch.mu.Lock()
		defer c.s.watch.mu.Unlock()
		return c.s.watch.interest&wantsData != 0
	})
	time.Sleep(100 * time.Millisecond)
	check(t, c.TCPConn.Close())
	select {
	case err := <-read:
		t.Log(err)
	case <-time.After(testTimeout):
		t.Error("Read hangs after the embedded *net.TCPConn was closed")
		c.Close()
		<-read
	}
}

func briefContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// crampedKernel has no second descriptor for Close.
type crampedKernel struct{ kernel }

func (crampedKernel) duplicate(uintptr) (keeper, error) { return nil, unix.EMFILE }

// A hook closes its connection, as one does on an ICMP error, while a Close that
// cannot hold the descriptor is at work.
func TestErrorQueueHookMayClose(t *testing.T) {
	near, _ := narrowPair(t)
	var c *Conn
	cfg := *insist
	cfg.ErrorQueue = func(*net.TCPConn, ErrorQueueMessage) { c.Close() }
	var err error
	c, err = NewConn(near, &cfg) // not by wrap: its cleanup would hang, too
	check(t, err)
	_, err = c.WritePinned(Pin(make([]byte, 256<<10)))
	check(t, err)
	c.s.kernel = crampedKernel{c.s.kernel}
	c.s.foreign.add(ErrorQueueMessage{}) // read by a writer, which has not ended yet
	closed := make(chan struct{})
	go func() { c.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(3 * time.Second):
		t.Fatal("Close waits for a Close by the hook that it calls")
	}
}

// slowTick is a connection for which no event can be had and whose error queue
// takes longer to read than a tick: one, or many of them.
type slowTick struct{ kernel }

func (slowTick) arm(uintptr, *socket, interest, bool) error { return unix.ENOSPC }
func (k slowTick) poll(fd uintptr, p *[1]unix.PollFd) error {
	time.Sleep(tickEvery + 10*time.Millisecond)
	return k.kernel.poll(fd, p)
}

// Ticks that take longer than the time between two of them leave room for
// events.
func TestTicksDoNotStarveEvents(t *testing.T) {
	slowNear, _ := narrowPair(t)
	slow := wrap(t, slowNear, insist)
	slow.s.kernel = slowTick{slow.s.kernel}
	_, err := slow.WritePinned(Pin(make([]byte, 200<<10))) // more than the peer's window
	check(t, err)
	near, far := loopbackPair(t)
	c := wrap(t, near, insist)
	ticket, err := c.WritePinned(Pin(make([]byte, page)))
	check(t, err)
	done := ticket.Done() // armed, if it has not come already
	time.Sleep(4 * tickEvery)
	go io.Copy(io.Discard, far)
	for i := range 20 {
		ticket, err = c.WritePinned(Pin(make([]byte, 1<<20)))
		check(t, err)
		if err := ticket.Wait(briefContext(t)); err != nil {
			t.Fatalf("Wait for write %d: %v: %+v", i, err, c.s.watch.interest)
		}
	}
	<-done
}

// What was given up for lost is not counted for RLIMIT_MEMLOCK any more.
func TestAbandonedCallsLeaveTheTally(t *testing.T) {
	before := inProcess.pinned.Load()
	near, _ := narrowPair(t)
	c := wrap(t, near, insist)
	check(t, near.SetWriteDeadline(time.Now().Add(50*time.Millisecond)))
	ticket, _ := c.WritePinned(Pin(make([]byte, 16<<20)))
	check(t, c.TCPConn.Close())
	c.s.reap()
	if err := ticket.Wait(briefContext(t)); !errors.Is(err, ErrReleaseUnproven) {
		t.Fatal(err)
	}
	c.Close()
	if n := inProcess.pinned.Load() - before; n != 0 {
		t.Errorf("%d bytes of closed connections are pinned, by the tally; the ledger has %d bytes and %d IDs in flight", n, c.Stats().BytesInFlight, c.Stats().IDsInFlight)
	}
	if s := c.Stats(); s.IDsInFlight != 0 || s.BytesInFlight != 0 {
		t.Errorf("%d bytes and %d IDs are in flight after all was given up for lost", s.BytesInFlight, s.IDsInFlight)
	}
}

// Without the poller no event tells Close of the completions: it looks for them.
func TestCloseDeliversWhereThePollerCannotBeHad(t *testing.T) {
	near, far := narrowPair(t)
	c := wrap(t, near, hourly)
	socket := watchDescriptors(t, c)
	want := noise(16<<20, 1)
	ticket, queued := pendingWrite(t, c, Pin(want))
	c.s.kernel = unjoinable{c.s.kernel}
	check(t, c.Close())
	expect(t, far, want[:queued])
	expectEOF(t, far)
	check(t, ticket.Wait(testContext(t)))
	wantNothingLeft(t, c, socket)
}

type unjoinable struct{ kernel }

func (unjoinable) join(*socket) error { return unix.EMFILE }
