package zcnet

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// deferredWrite returns a connection in the care of the poller's tick, and the
// ticket of a write of p that has completed, though no goroutine has read that.
// Until stop is called, or the test ends, the connection appears to send.
func deferredWrite(t *testing.T, p Pinned) (c *Conn, ticket Ticket, stop func()) {
	t.Helper()
	near, far := loopbackPair(t)
	c = wrap(t, near, insist)
	k := &busyKernel{kernel: c.s.kernel}
	k.busy.Store(true)
	c.s.kernel = k
	c.s.path.free.Store(true) // or the writer would look for what the path does
	ticket, err := c.WritePinned(p)
	p.Release()
	check(t, err)
	_, err = io.CopyN(io.Discard, far, int64(p.Len()))
	check(t, err)
	eventually(t, "the write has completed", func() bool { return unacknowledged(t, c) == 0 })
	if !ticket.pending() {
		t.Fatal("the completion was read although the connection was deferred")
	}
	return c, ticket, func() { k.busy.Store(false); k.s.Load().tick() }
}

// busyKernel keeps the poller's tick away from a connection for as long as it
// is busy, as if a writer went on sending.
type busyKernel struct {
	kernel
	busy atomic.Bool
	s    atomic.Pointer[socket]
}

func (k *busyKernel) setDeferred(s *socket, on bool) {
	k.s.Store(s)
	if on && k.busy.Load() {
		thePoller.mu.Lock()
		defer thePoller.mu.Unlock()
		thePoller.deferred[s] = struct{}{} // no tick is set
		return
	}
	k.kernel.setDeferred(s, on)
}

func modeOf(c *Conn) interest {
	c.s.watch.mu.Lock()
	defer c.s.watch.mu.Unlock()
	return c.s.watch.interest.mode()
}

func TestDeferredCompletionIsReadSoonAfterTheWriter(t *testing.T) {
	p, err := Alloc(page)
	check(t, err)
	c, ticket, stop := deferredWrite(t, p)
	if mode := modeOf(c); mode != modeDeferred {
		t.Fatalf("mode %v, want deferred", mode)
	}
	stop()
	stop() // the first tick finds that a call was made since the last
	eventually(t, "the memory is released", func() bool { return p.r.state.Load()&regionUse == regionReleased })
	eventually(t, "the ticket is done", func() bool { return !ticket.pending() })
	eventually(t, "the connection is idle", func() bool { return modeOf(c) == modeIdle })
}

func TestDeferredCompletionIsReadForWhoeverWaits(t *testing.T) {
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
			p, err := pool.Get(testContext(t))
			p.Release()
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := pool.Get(testContext(t))
			check(t, err)
			c, ticket, _ := deferredWrite(t, p)
			check(t, wait(c, ticket))
		})
	}
}

// A connection in bulk does not wake the poller, and the poller does not look
// after one that is idle.
func TestWakeupsOfBulkAndOfIdleConnections(t *testing.T) {
	near, far := loopbackPair(t)
	c := wrap(t, near, insist)
	go io.Copy(io.Discard, far)
	p, err := Alloc(64 << 10)
	check(t, err)
	defer p.Release()
	for range 2000 {
		_, err := c.WritePinned(p)
		check(t, err)
	}
	check(t, c.Flush(testContext(t)))
	s := c.Stats()
	if s.Wakeups > s.Sends/10 {
		t.Errorf("the poller was woken %d times in %d calls", s.Wakeups, s.Sends)
	}
	eventually(t, "the connection is idle", func() bool { return modeOf(c) == modeIdle })
	thePoller.mu.Lock()
	defer thePoller.mu.Unlock()
	if _, ok := thePoller.deferred[c.s]; ok {
		t.Error("the poller's tick looks after an idle connection")
	}
}

// A writer that has nothing in flight meets the poller that finds so.
func TestNoCompletionIsMissedWhenAConnectionBecomesIdle(t *testing.T) {
	near, far := loopbackPair(t)
	c := wrap(t, near, insist)
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
				ticket, err := c.WritePinned(p)
				if err == nil && i%2 == 0 {
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
	check(t, c.Flush(ctx))
	if s := c.Stats(); s.IDsInFlight != 0 {
		t.Errorf("%d IDs are in flight after Flush", s.IDsInFlight)
	}
}

// The tick reads what no event could be had for.
func TestTicketsEndThoughThePollerCannotBeArmed(t *testing.T) {
	near, far := loopbackPair(t)
	c := wrap(t, near, insist)
	c.s.kernel = unarmable{c.s.kernel}
	go io.Copy(io.Discard, far)
	for range 3 {
		ticket, err := c.WritePinned(Pin(make([]byte, 100<<10)))
		check(t, err)
		check(t, ticket.Wait(testContext(t)))
	}
}

type unarmable struct{ kernel }

func (unarmable) arm(uintptr, *socket, interest, bool) error {
	return errors.New("no space left on device")
}

func TestIdleProcessHasNoTick(t *testing.T) {
	near, far := loopbackPair(t)
	c := wrap(t, near, insist)
	ticket, err := c.WritePinned(Pin(make([]byte, page)))
	check(t, err)
	_, err = io.CopyN(io.Discard, far, page)
	check(t, err)
	check(t, ticket.Wait(testContext(t)))
	quiet := func() bool {
		thePoller.mu.Lock()
		defer thePoller.mu.Unlock()
		return thePoller.tickAt == 0 && thePoller.checkAt == 0 && len(thePoller.deferred) == 0
	}
	eventually(t, "neither a tick nor a check is due", quiet)
	time.Sleep(2 * tickEvery)
	if !quiet() {
		t.Error("the poller's timer is set with nothing in flight")
	}
}

// A goroutine begins to wait for memory between the transition that makes a
// connection deferred and its entry in the poller's list.
func TestMemoryIsNotForgottenByAConnectionThatBecomesDeferred(t *testing.T) {
	pool, err := NewPool(page, 1)
	check(t, err)
	defer pool.Close()
	near, far := loopbackPair(t)
	c := wrap(t, near, insist)
	got := make(chan error, 1)
	c.s.kernel = &lateKernel{kernel: c.s.kernel, meanwhile: func() {
		waiting := waitsForMemory.Load()
		go func() {
			p, err := pool.Get(testContext(t))
			p.Release()
			got <- err
		}()
		eventually(t, "Get has begun to wait", func() bool { return waitsForMemory.Load() > waiting })
		doze() // it has looked at the list
	}}
	p, err := pool.Get(testContext(t))
	check(t, err)
	_, err = c.WritePinned(p)
	p.Release()
	check(t, err)
	if modeOf(c) == modeDeferred {
		t.Error("the connection is deferred though a goroutine waits for memory")
	}
	_, err = io.CopyN(io.Discard, far, page)
	check(t, err)
	check(t, <-got)
}

// A lateKernel does something before the first connection becomes deferred.
type lateKernel struct {
	kernel
	meanwhile func()
}

func (k *lateKernel) setDeferred(s *socket, on bool) {
	if f := k.meanwhile; on && f != nil {
		k.meanwhile = nil
		f()
	}
	k.kernel.setDeferred(s, on)
}
