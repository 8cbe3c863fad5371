package zcnet

import (
	"sync/atomic"
	"time"
)

// This file decides who reads completions, and when. The kernel merges a completion into the last unread one where it
// can, but reports an error on the socket, and so wakes every epoll that watches it, for each
// (__msg_zerocopy_callback in net/core/skbuff.c). Under bulk sending that would be thousands of wake-ups per gigabyte.
//
// So the poller is told of a completion once, and then no more until its watch is set again. While somebody writes and
// nobody waits, it leaves the completion: the writer, who is in the kernel anyway, reads the queue every drainEvery
// calls, and the watch is set again by the first who waits for a ticket, or lingerUnread after the write, whichever
// comes first.

const (
	// drainEvery is how many flagged calls the writer makes before it reads what has come.
	drainEvery = 32
	// lingerUnread is how long a completion may stay unread after the write in which it came.
	lingerUnread = time.Millisecond
)

// drainer is the agreement between the writer, of which there is one at a time, the poller, and who waits.
type drainer struct {
	writing atomic.Bool // a write is making system calls
	left    atomic.Bool // the poller has left a completion, and the watch unset
	armed   atomic.Bool // the timer will see to it
	timer   *time.Timer // made by the first write that needs it
	calls   int         // flagged calls since the last read; the writer's
}

// begin is called by a writer that begins to make calls.
func (d *drainer) begin() { d.writing.Store(true) }

// due reports, after a flagged call, whether the writer is to read the error queue now.
func (d *drainer) due() bool {
	if d.calls++; d.calls < drainEvery {
		return false
	}
	d.calls = 0
	return d.left.Load()
}

// end is called by a writer that returns or waits for buffer space. It reports whether something was left that the
// timer must see to.
func (d *drainer) end() bool {
	d.writing.Store(false)
	return d.left.Load() && !d.armed.Swap(true)
}

// leave is called by the poller when a completion has come. It reports whether somebody else will see to it: whoever
// ends a write or begins to wait says so first and then looks at left, and here it is the other way round, so that
// one of them sees the other.
func (d *drainer) leave(waited *atomic.Int32) bool {
	if !d.writing.Load() {
		return false
	}
	d.left.Store(true)
	if d.writing.Load() && waited.Load() == 0 {
		return true
	}
	return !d.left.Swap(false)
}

// readLater has the timer see to what was left.
func (s *socket) readLater() {
	if s.drainer.timer == nil {
		s.drainer.timer = time.AfterFunc(lingerUnread, s.readOverdue)
		return
	}
	s.drainer.timer.Reset(lingerUnread)
}

// readOverdue is called by the timer. A writer at work will set it again.
func (s *socket) readOverdue() {
	s.drainer.armed.Store(false)
	if !s.drainer.writing.Load() {
		s.readLeft()
	}
}

// readLeft reads what the poller has left.
func (s *socket) readLeft() {
	if s.drainer.left.Swap(false) {
		s.drained()
	}
}
