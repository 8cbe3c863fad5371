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
	ids    uint64        // notifications of one connection, at least (net.core.optmem_max)
	pinned int64         // bytes of this process (RLIMIT_MEMLOCK)
	read   time.Duration // by clock
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
func currentLimits(now time.Duration) *limits {
	if l := knownLimits.Load(); l != nil && now-l.read <= limitsHold {
		return l
	}
	return renewLimits(now)
}

// renewLimits asks for the limits. They are those of the calling thread's network namespace: a socket of another one may
// have less, which ENOBUFS tells.
func renewLimits(now time.Duration) *limits {
	l := readLimits()
	l.read = now
	knownLimits.Store(l)
	return l
}

// A tally counts what is in flight: what the kernel charges for it to RLIMIT_MEMLOCK, and what closed connections hold.
type tally struct {
	pinned    atomic.Int64
	lingering struct {
		conns, bytes atomic.Int64
		resets       atomic.Uint64
	}
}

// inProcess is the tally of all connections. The kernel counts other processes of the user, too.
var inProcess tally

// pinnedByCall is what the kernel charges for a call beside its bytes: two pages (mm_account_pinned_pages in
// net/core/skbuff.c).
const pinnedByCall = 2 * page

// withinBounds reports whether the next call may be flagged without more being in flight than may be, and makes the call
// smaller if that helps. Completions that no goroutine has read yet count as in flight, so it reads them before it says no.
func (w *write) withinBounds(fd uintptr) bool {
	if w.unbounded() {
		w.size = w.s.path.longestCall()
		return true
	}
	why, ok := w.fit()
	if !ok && w.s.drain(fd) > 0 {
		why, ok = w.fit()
	}
	if !ok {
		w.why.add(why)
	}
	return ok
}

// unbounded reports whether nothing is known that bounds what is in flight.
func (w *write) unbounded() bool {
	return w.limits.pinned == noLimits.pinned && w.s.cfg.MaxInFlight == 0 && w.limit == 0 && w.s.optmem.ids == 0
}

// callsInBounds is how many flagged calls the bounds have room for, unless they are very narrow: a call's memory comes back
// as a whole.
const callsInBounds = 8

// fit sets the size of the next flagged call, or returns why there can be none now.
func (w *write) fit() (why reason, ok bool) {
	l := w.s.ledger()
	bytes, ids := l.inFlight()
	bound, room, why := w.limits.pinned, w.limits.pinned-l.total.pinned.Load()-pinnedByCall, reasonMemlock
	if most := w.s.cfg.MaxInFlight; most > 0 {
		bound = min(bound, most)
		if most-bytes < room {
			room, why = most-bytes, reasonInFlight
		}
	}
	w.size = int(min(int64(w.s.path.longestCall()), room, max(bound/callsInBounds, smallCall)))
	if w.limit > 0 {
		w.size = min(w.size, w.limit)
	}
	if w.size >= smallestCall {
		w.size &^= page - 1
	}
	switch {
	case ids >= w.s.optmem.most(w.now):
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
	ids   uint64        // 0 if there was no ENOBUFS lately
	until time.Duration // by clock
}

// most returns the bound.
func (b *optmemBound) most(now time.Duration) uint64 {
	if now >= b.until {
		b.ids = 0
	}
	if b.ids == 0 {
		return math.MaxUint64
	}
	return b.ids
}

// refused takes note of an ENOBUFS while so many IDs were in flight.
func (b *optmemBound) refused(ids uint64, now time.Duration) {
	b.ids, b.until = max(1, ids-ids/8), now+limitsHold
}
