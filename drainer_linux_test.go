package zcnet

import (
	"sync"
	"sync/atomic"
	"testing"
)

// leftCompletion returns a connection with a completion that the poller has left to a writer, and the ticket and memory
// of the write.
func leftCompletion(t *testing.T) (c *Conn, ticket Ticket, p Pinned) {
	t.Helper()
	near, _ := loopbackPair(t)
	c = wrap(t, near, insist)
	p, err := Alloc(page)
	check(t, err)
	check(t, c.s.raw.Control(func(fd uintptr) { check(t, c.s.watch(fd)) }))
	thePoller.mu.Lock() // it has not heard of the completion before somebody writes again
	ticket, err = c.WritePinned(p)
	c.s.drainer.begin()
	thePoller.mu.Unlock()
	check(t, err)
	p.Release()
	eventually(t, "the poller leaves the completion to the writer", c.s.drainer.left.Load)
	if ticket.Ready() {
		t.Fatal("somebody has read the completion")
	}
	return c, ticket, p
}

func TestLeftCompletionIsReadSoonAfterTheWrite(t *testing.T) {
	c, ticket, p := leftCompletion(t)
	if _, err := c.WritePinned(Pin([]byte("short, and so copied"))); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the memory is released", func() bool { return p.r.state.Load()&regionUse == regionReleased })
	if !ticket.Ready() {
		t.Error("the memory is released and the ticket is not done")
	}
}

func TestLeftCompletionIsReadByWhoeverWaits(t *testing.T) {
	for name, wait := range map[string]func(c *Conn, ticket Ticket) error{
		"Wait":  func(_ *Conn, ticket Ticket) error { return ticket.Wait(testContext(t)) },
		"Done":  func(_ *Conn, ticket Ticket) error { <-ticket.Done(); return nil },
		"Flush": func(c *Conn, _ Ticket) error { return c.Flush(testContext(t)) },
		"Close": func(c *Conn, ticket Ticket) error { c.Close(); return ticket.Wait(testContext(t)) },
	} {
		t.Run(name, func(t *testing.T) {
			c, ticket, _ := leftCompletion(t)
			check(t, wait(c, ticket)) // the writer is still at work, and will not read for long
		})
	}
}

func TestPollerLeavesNothingWhileSomebodyWaits(t *testing.T) {
	var d drainer
	var waited atomic.Int32
	d.begin()
	if !d.leave(&waited) {
		t.Error("with a writer and nobody who waits, the poller reads itself")
	}
	waited.Add(1)
	d.left.Store(false)
	if d.leave(&waited) || d.left.Load() {
		t.Error("with somebody who waits, the poller leaves the completion")
	}
	waited.Add(-1)
	d.end()
	if d.leave(&waited) {
		t.Error("with no writer, the poller leaves the completion")
	}
}

// TestNoCompletionIsLeftToNobody lets the end of a write meet the poller in every way that 200,000 tries bring about.
func TestNoCompletionIsLeftToNobody(t *testing.T) {
	var d drainer
	var waited atomic.Int32
	for range 200_000 {
		d.begin()
		var meeting sync.WaitGroup
		var later, left bool
		meeting.Go(func() { later = d.end() })
		left = d.leave(&waited)
		meeting.Wait()
		if left && !later {
			t.Fatal("the poller has left it, and the writer has not seen it")
		}
		d.left.Store(false)
		d.armed.Store(false)
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
