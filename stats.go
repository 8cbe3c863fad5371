package zcnet

import (
	"sync/atomic"
	"time"
)

// Stats is what a connection has done so far. The counts of one snapshot are taken one after the other: those of
// writes under way may be in some and not yet in others.
type Stats struct {
	Writes uint64 // WritePinned and WritePinnedBuffers calls that sent something
	Sends  uint64 // flagged system calls that queued something: notification IDs issued

	// Bytes of those writes, by outcome; the first two once their ticket is
	// done. ZeroCopiedBytes were sent without copy, or given back unsent by a
	// connection that failed: the kernel reports both alike, so that the count
	// is not 0 even over loopback when connections are reset.
	ZeroCopiedBytes  int64
	MaybeCopiedBytes int64 // sent with MSG_ZEROCOPY by tickets of which the kernel reported a copy
	CopiedBytes      int64 // copied by the library

	Fallbacks Fallbacks // why it copied

	BytesInFlight int64  // bytes whose completions have not come
	IDsInFlight   uint64 // notification IDs not completed
	UnprovenBytes int64  // bytes whose release was never proven; their memory is not used again

	Notifications         uint64 // completions read, each a range of IDs
	RejectedNotifications uint64 // completions that named IDs complete already or never issued
	ForeignMessages       uint64 // other messages of the error queue
	Drains                uint64 // times the error queue was read
	Wakeups               uint64 // times the library's poller was woken for this connection
	Syscalls              uint64 // system calls made to send and to hear of completions; those of Read and Write are not seen

	EnobufsOptmem  uint64 // ENOBUFS by net.core.optmem_max
	EnobufsMemlock uint64 // ENOBUFS by RLIMIT_MEMLOCK, which all processes of the user share
	EnobufsOther   uint64 // ENOBUFS by neither, as io_uring's SEND_ZC on the same socket brings it about

	GuardViolations uint64 // tickets that reported ErrChangedInFlight

	SlowReads uint64 // reads that the runtime's poller refused and the library's served

	Released         uint64        // tickets done
	ReleaseTotal     time.Duration // from their first system call until they were done, added up
	ReleaseMax       time.Duration // the longest
	PathCopies       bool          // the kernel copies on this path, so that the library sends plainly
	ZeroCopyRefused  bool          // flagged calls do not work on this connection; Probe says why
	ConnectionFailed bool          // tickets report ErrConnFailed

	// CompletionsDistrusted tells that the kernel's completions were found not to
	// match the calls that were made, or did not come. No further call is flagged.
	CompletionsDistrusted bool

	Dropped   Dropped   // of the whole process
	Lingering Lingering // of the whole process
}

// Lingering is what connections of this process hold that were closed with
// memory in flight; see [Conn.Close].
type Lingering struct {
	Conns  int64  // connections that wait for their peers
	Bytes  int64  // of memory in flight on closed connections
	Resets uint64 // connections so far that Close had to reset, and whose data may not have arrived
}

func lingeringNow() Lingering {
	n := &inProcess.lingering
	return Lingering{Conns: n.conns.Load(), Bytes: n.bytes.Load(), Resets: n.resets.Load()}
}

// ReleaseMean returns how long tickets took to be done, on average.
func (s Stats) ReleaseMean() time.Duration {
	if s.Released == 0 {
		return 0
	}
	return s.ReleaseTotal / time.Duration(s.Released)
}

// counters are the live counts that the ledger does not keep.
type counters struct {
	writes                        atomic.Uint64
	copiedBytes                   atomic.Int64
	shortWrites                   atomic.Uint64 // those of writeShort, each one plain call
	shortBytes                    atomic.Int64
	fallbacks                     fallbackCounts
	drains, foreign, slowReads    atomic.Uint64
	wakeups, syscalls             atomic.Uint64
	enobufsOptmem, enobufsMemlock atomic.Uint64
	enobufsOther                  atomic.Uint64
	guardViolations               atomic.Uint64
}

// count books a write that has ended.
func (s *socket) count(w *progress) {
	s.stats.syscalls.Add(w.syscalls)
	if w.queued > 0 {
		s.stats.writes.Add(1)
		s.stats.fallbacks.count(w.why)
	}
}

// refused books an ENOBUFS.
func (n *counters) refused(why reason) {
	switch why {
	case reasonOptmem:
		n.enobufsOptmem.Add(1)
	case reasonMemlock:
		n.enobufsMemlock.Add(1)
	default:
		n.enobufsOther.Add(1)
	}
}

// countShort books a short write that has queued n bytes. It does no more than it must, for such writes are many.
func (s *socket) countShort(n int) {
	if n > 0 {
		s.stats.shortWrites.Add(1)
		s.stats.shortBytes.Add(int64(n))
	}
}

// Stats returns a snapshot. It does not block, and works after Close.
func (c *Conn) Stats() Stats {
	s := c.s
	l, failed := s.ledger().snapshot()
	short := s.stats.shortWrites.Load()
	fallbacks := s.stats.fallbacks.snapshot()
	fallbacks.Threshold += short
	return Stats{
		Writes:                s.stats.writes.Load() + short,
		Sends:                 l.sends,
		ZeroCopiedBytes:       l.zeroCopiedBytes,
		MaybeCopiedBytes:      l.maybeCopiedBytes,
		CopiedBytes:           s.stats.copiedBytes.Load() + s.stats.shortBytes.Load(),
		Fallbacks:             fallbacks,
		BytesInFlight:         l.bytesInFlight,
		IDsInFlight:           l.idsInFlight,
		UnprovenBytes:         l.unprovenBytes,
		Notifications:         l.notifications,
		RejectedNotifications: l.rejected,
		ForeignMessages:       s.stats.foreign.Load(),
		Drains:                s.stats.drains.Load(),
		Wakeups:               s.stats.wakeups.Load(),
		Syscalls:              s.stats.syscalls.Load() + short,
		EnobufsOptmem:         s.stats.enobufsOptmem.Load(),
		EnobufsMemlock:        s.stats.enobufsMemlock.Load(),
		EnobufsOther:          s.stats.enobufsOther.Load(),
		GuardViolations:       s.stats.guardViolations.Load(),
		SlowReads:             s.stats.slowReads.Load(),
		Released:              l.released,
		ReleaseTotal:          l.releaseTotal,
		ReleaseMax:            l.releaseMax,
		PathCopies:            s.path.copying.Load(),
		ZeroCopyRefused:       s.refused.Load() != nil,
		CompletionsDistrusted: s.ledger().distrusted(),
		ConnectionFailed:      failed,
		Dropped:               droppedSoFar(),
		Lingering:             lingeringNow(),
	}
}
