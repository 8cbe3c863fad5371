package zcnet

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// reapEvery is how many flagged calls a writer makes before it reads the error
// queue. Between 8 and 128 the number makes no difference to what sending
// costs; it bounds how many notifications net.core.optmem_max has to hold.
const reapEvery = 32

// A watch is what the poller and the goroutines that wait share about a socket.
//
// Locks are taken in this order, each only while those before it may be held:
//
//	socket.closeMu, the descriptor's write lock (RawConn.Write), socket.drainMu,
//	watch.mu, then one of poller.mu, ledger.mu and Pool.mu, then outer.mu
type watch struct {
	mu       sync.Mutex
	interest interest
	token    uint64        // names the socket to the poller; 0 if it does not know it
	issued   uint64        // IDs that had been issued at the last tick or reap
	ready    chan struct{} // closed to have those who wait for data try again; nil if none does
	deadline time.Duration // of reads, by clock
	known    bool          // deadline was set here; before that only the runtime knows it
}

// A stall is what the poller has found at its last checks of a socket. It is
// guarded by watch.mu.
type stall struct {
	oldest uint64        // the number of the oldest claim in flight
	since  time.Duration // by clock: the last look at which its completion was not overdue
}

// completionTimeout is how long a completion may be missing of what the peer has
// acknowledged. So long may a device hold on to a frame that was sent twice.
const completionTimeout = 5 * time.Second

// waitsForMemory counts the goroutines that wait for memory to come back from
// any connection.
var waitsForMemory atomic.Int32

// awaited reports whether a goroutine waits for a completion of s.
func (s *socket) awaited() bool { return s.ledger().waited.Load() > 0 || waitsForMemory.Load() > 0 }

// sent reports whether s has made a flagged call since it was last asked.
// s.watch.mu is held.
func (s *socket) sent() bool {
	before := s.watch.issued
	s.watch.issued = s.ledger().issued()
	return s.watch.issued != before
}

// wakeReaders has the goroutines that wait for data try again. w.mu is held.
func (w *watch) wakeReaders() {
	if w.ready != nil {
		close(w.ready)
		w.ready = nil
	}
}

// wake is wakeReaders for those who do not hold the lock.
func (w *watch) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wakeReaders()
}

// setDeadline sets the deadline of reads here and, by set, for the runtime, in
// one step: else two that are set at once could be in force at the same time.
func (w *watch) setDeadline(t time.Time, set func(time.Time) error) error {
	at := byClock(t)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := set(t); err != nil {
		return err
	}
	w.deadline, w.known = at, true
	w.wakeReaders()
	return nil
}

// noDeadline is the deadline of reads that have none.
const noDeadline = math.MaxInt64

// byClock returns when, by clock, the time t comes. It is asked once, when a
// deadline is set, as package net does: t may be of another clock, such as that
// of a bubble of testing/synctest.
func byClock(t time.Time) time.Duration {
	if t.IsZero() {
		return noDeadline
	}
	left := time.Until(t)
	now := clock() // later, so that no read ends before its deadline
	if left > noDeadline-now {
		return noDeadline
	}
	return now + left
}

func (w *watch) readDeadline() (at time.Duration, known bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.deadline, w.known
}
