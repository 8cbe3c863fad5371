package zcnet

import (
	"math"
	"sync/atomic"
	"time"
)

// This file bounds what is in flight: by Config.MaxInFlight, and by what the kernel allows, so that it need not refuse
// (ENOBUFS).

// limits are what the kernel lets be in flight.
type limits struct {
	ids    uint64 // notifications of one connection, at least (net.core.optmem_max)
	pinned int64  // bytes of this process (RLIMIT_MEMLOCK)
	read   time.Time
}

// notificationCharge is what the kernel charges a connection for a notification that is outstanding or unread: the
// truesize of an empty sk_buff (sock_omalloc in net/core/sock.c), 832 bytes on x86-64 with Linux 6.18.
const notificationCharge = 832

// noLimits is for a system that tells none.
var noLimits = limits{ids: math.MaxUint64, pinned: math.MaxInt64}

// limitsHold is for how long limits are taken for granted. An administrator may change them at any time.
const limitsHold = time.Second

var knownLimits atomic.Pointer[limits]

// currentLimits returns the limits, not older than limitsHold.
func currentLimits(now time.Time) *limits {
	if l := knownLimits.Load(); l != nil && now.Sub(l.read) <= limitsHold {
		return l
	}
	return renewLimits(now)
}

// renewLimits asks for the limits. They are those of the calling thread's network namespace: a socket of another one may
// have less, which ENOBUFS tells.
func renewLimits(now time.Time) *limits {
	l := readLimits()
	l.read = now
	knownLimits.Store(l)
	return l
}

// tally counts what is in flight.
type tally struct{ bytes, ids atomic.Int64 }

// inProcess is the tally of all connections, for RLIMIT_MEMLOCK. The kernel counts other processes of the user, too.
var inProcess tally

// pinnedFor is what the kernel charges for calls of so many bytes: their pages, and two more for each call
// (mm_account_pinned_pages in net/core/skbuff.c).
func pinnedFor(bytes, calls int64) int64 { return bytes + 2*page*calls }

func (t *tally) pinned() int64 { return pinnedFor(t.bytes.Load(), t.ids.Load()) }

// withinBounds reports whether the next call may be flagged without more being in flight than may be, and makes the call
// smaller if that helps. Completions that nobody has read yet count as in flight, so it reads them before it says no.
func (w *write) withinBounds(fd uintptr) bool {
	if w.limit == 0 {
		w.limit = w.longestCall(fd)
	}
	why, ok := w.fit()
	if _, ids := w.s.ledger().inFlight(); (!ok || ids >= w.limits.ids) && w.s.drain(fd) > 0 {
		why, ok = w.fit()
	}
	if !ok {
		w.why.add(why)
	}
	return ok
}

// longestCall returns the longest flagged call of the rest of the write. Where there are bounds, several find room.
func (w *write) longestCall(fd uintptr) int {
	longest, looked := w.s.rhythm.longest(w.total-w.queued, w.s.kernel, fd)
	if looked {
		w.syscalls++
	}
	room := w.limits.pinned
	if most := w.s.cfg.MaxInFlight; most > 0 {
		room = min(room, most)
	}
	longest = int(min(int64(longest), max(room/callsInBounds, flaggedCall)))
	if w.most > 0 {
		longest = min(longest, w.most)
	}
	return longest
}

// callsInBounds is how many of the longest calls the bounds have room for, unless they are very narrow.
const callsInBounds = 8

// fit sets the size of the next flagged call, or returns why there can be none now.
func (w *write) fit() (why reason, ok bool) {
	l := w.s.ledger()
	bytes, ids := l.inFlight()
	room, why := w.limits.pinned-l.total.pinned()-pinnedFor(0, 1), reasonMemlock
	if most := w.s.cfg.MaxInFlight; most > 0 && most-bytes < room {
		room, why = most-bytes, reasonInFlight
	}
	if w.size = int(min(room, int64(w.limit))); w.size >= smallestCall {
		w.size &^= page - 1
	}
	switch {
	case ids >= w.s.optmem.most(w.limits.read):
		return reasonOptmem, false
	case int64(w.size) < min(smallestCall, w.total-w.queued):
		return why, false
	}
	return 0, true
}

// blame returns which limit is the likely cause of an ENOBUFS while so many IDs of the connection are in flight. Other
// processes of the user may have taken what RLIMIT_MEMLOCK allows.
func (l *limits) blame(ids uint64) reason {
	if l.pinned == noLimits.pinned || ids > l.ids/2 {
		return reasonOptmem
	}
	return reasonMemlock
}

// An optmemBound is how many IDs of a connection may be in flight by net.core.optmem_max. What the kernel charges it keeps to
// itself, for it gives several calls one notification where it can: many more IDs may be in flight than notifications are
// allowed. So the first ENOBUFS tells, and what it has told holds for limitsHold. It is the writer's.
type optmemBound struct {
	ids   uint64
	until time.Time
}

// most returns the bound.
func (b *optmemBound) most(now time.Time) uint64 {
	if !now.Before(b.until) {
		return math.MaxUint64
	}
	return b.ids
}

// refused takes note of an ENOBUFS while so many IDs were in flight.
func (b *optmemBound) refused(ids uint64, now time.Time) {
	b.ids, b.until = ids-ids/8, now.Add(limitsHold)
}
