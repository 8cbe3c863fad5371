package zcnet

import (
	"sync/atomic"
	"time"
)

// This file decides who reads completions, and when. The kernel merges a completion into the last unread one where it
// can, but reports an error on the socket, and so wakes every epoll that watches it, for each
// (__msg_zerocopy_callback in net/core/skbuff.c). Under bulk sending that would be thousands of wake-ups per gigabyte.
//
// So the poller is told of a completion once, and then no more until its watch is set again. While somebody sends and
// nobody waits, it leaves the completion: the writer, who is in the kernel anyway, reads the queue every drainEvery
// calls. The watch is set again by the first who waits for a ticket or for memory, or by the poller, which looks from
// time to time whether the connection still sends.

const (
	// drainEvery is how many flagged calls the writer makes before it reads what has come.
	drainEvery = 32
	// firstLook and lastLook bound the times between two looks of the poller, which grow by patienceGrowth while
	// connections go on sending: a completion that nobody waits for is read some hundredths of a second after a short burst,
	// and at the latest twice lastLook after a long one. The looks are few because the runtime takes notice of each: its own
	// monitor runs fast for milliseconds after it has taken the processor away from a thread that blocks (sysmon in
	// runtime/proc.go).
	firstLook      = 5 * time.Millisecond
	lastLook       = 100 * time.Millisecond
	patienceGrowth = 4
)

// drainer is the agreement between the writer, of which there is one at a time, the poller, and who waits.
type drainer struct {
	sending atomic.Bool // a flagged call was made since the poller looked
	left    atomic.Bool // the poller has left a completion, and the watch unset
	calls   int         // flagged calls since the last read; the writer's
}

// called is called by the writer after each flagged call. It reports whether to read the error queue now.
func (d *drainer) called() (due bool) {
	if !d.sending.Load() {
		d.sending.Store(true)
	}
	if d.calls++; d.calls < drainEvery {
		return false
	}
	d.calls = 0
	return d.left.Load()
}

// leave is called by the poller when a completion has come. It reports whether somebody else will see to it: the writer
// at work, unless somebody waits, be it to read, in which case the watch must be set. Who begins to wait says so first and
// then looks at what is left, and here it is the other way round, so that one of them sees the other.
func (s *socket) leave() bool {
	d := &s.drainer
	if s.readers.waiting() || !d.sending.Load() {
		return false
	}
	d.left.Store(true)
	s.keepLeft()
	return !s.awaited() || !d.left.Swap(false)
}

// awaited reports whether somebody waits for a completion of s.
func (s *socket) awaited() bool { return s.ledger().waited.Load() > 0 || memoryAwaited.Load() > 0 }

// memoryAwaited counts those who wait for memory to come back from any connection.
var memoryAwaited atomic.Int32

// awaitMemory is called by those who begin to. They call the function that it returns when they have it.
func awaitMemory() (done func()) {
	memoryAwaited.Add(1)
	readAllLeft()
	return func() { memoryAwaited.Add(-1) }
}

// look is called by the poller from time to time for what it has left. It reads it if no call was made since.
func (s *socket) look() {
	if !s.drainer.sending.Swap(false) {
		s.readLeft()
	}
}

// readLeft reads what the poller has left.
func (s *socket) readLeft() {
	if s.drainer.left.Swap(false) {
		s.drained()
	}
}
