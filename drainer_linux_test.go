package zcnet

import (
	"errors"
	"sync"
	"testing"
)

// leftCompletion returns a connection with a completion of a write of p that the poller has left to a writer who is
// still at work, and the ticket.
func leftCompletion(t *testing.T, p Pinned) (c *Conn, ticket Ticket) {
	t.Helper()
	near, _ := loopbackPair(t)
	c = wrap(t, near, insist)
	check(t, c.s.raw.Control(func(fd uintptr) { check(t, c.s.watch(fd)) }))
	thePoller.mu.Lock() // it has not heard of the completion before somebody writes again
	ticket, err := c.WritePinned(p)
	c.s.drainer.begin()
	thePoller.mu.Unlock()
	check(t, err)
	p.Release()
	eventually(t, "the poller leaves the completion to the writer", func() bool {
		thePoller.mu.Lock()
		defer thePoller.mu.Unlock()
		_, left := thePoller.left[c.s]
		return left && c.s.drainer.left.Load()
	})
	if ticket.pending() {
		return c, ticket
	}
	t.Fatal("somebody has read the completion")
	return nil, Ticket{}
}

func TestLeftCompletionIsReadSoonAfterTheWrite(t *testing.T) {
	p, err := Alloc(page)
	check(t, err)
	c, ticket := leftCompletion(t, p)
	if _, err := c.WritePinned(Pin([]byte("short, and so copied"))); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the memory is released", func() bool { return p.r.state.Load()&regionUse == regionReleased })
	if ticket.pending() {
		t.Error("the memory is released and the ticket is not done")
	}
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
		"Pool.Get": func(*Conn, Ticket) error {
			p, err := pool.Get(testContext(t))
			p.Release()
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := pool.Get(testContext(t))
			check(t, err)
			c, ticket := leftCompletion(t, p)
			check(t, wait(c, ticket)) // the writer is still at work, and will not read for long
		})
	}
}

func TestPollerLeavesNothingWhileSomebodyWaits(t *testing.T) {
	var s socket
	leaves := func(when string, want bool) {
		t.Helper()
		if s.leave() != want || s.drainer.left.Swap(false) != want {
			t.Errorf("%s: want the poller to leave a completion: %v", when, want)
		}
	}
	leaves("with no writer", false)
	s.drainer.begin()
	leaves("with a writer and nobody who waits", true)
	s.ledger.waited.Add(1)
	leaves("while somebody waits for a ticket", false)
	s.ledger.waited.Add(-1)
	memoryAwaited.Add(1)
	leaves("while somebody waits for memory", false)
	memoryAwaited.Add(-1)
	s.readers.armed = true
	leaves("while somebody waits to read", false)
	s.readers.armed = false
	s.drainer.end()
	leaves("after the write", false)
}

// TestNoCompletionIsLeftWhileSomebodyWaits lets the beginning of a wait meet the poller in every way that 200,000 tries
// bring about.
func TestNoCompletionIsLeftWhileSomebodyWaits(t *testing.T) {
	var s socket
	s.drainer.begin()
	for range 200_000 {
		var meeting sync.WaitGroup
		var seen bool
		meeting.Go(func() {
			s.ledger.waited.Add(1)
			seen = s.drainer.left.Swap(false) // as await does
		})
		left := s.leave()
		meeting.Wait()
		if left && !seen {
			t.Fatal("the poller has left a completion, and who waits has not seen it")
		}
		s.drainer.left.Store(false)
		s.ledger.waited.Add(-1)
	}
}

func TestWriterReadsWhatWasLeftEverySoManyCalls(t *testing.T) {
	var d drainer
	d.left.Store(true)
	for range 3 {
		for i := 1; i <= drainEvery; i++ {
			if due := d.due(); due != (i == drainEvery) {
				t.Fatalf("call %d of %d: due is %v", i, drainEvery, due)
			}
		}
	}
	d.left.Store(false)
	for range drainEvery {
		if d.due() {
			t.Fatal("due though nothing was left")
		}
	}
}
