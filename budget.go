package zcnet

import (
	"math"
	"os"
	"sort"
	"sync/atomic"
	"time"
)

// This file bounds what is in flight: by Config.MaxInFlight, by what the kernel
// is known to allow, and, when it has refused a call all the same (ENOBUFS), by
// what it has been found to allow.

// limits are what the kernel lets be in flight, as far as the system tells.
type limits struct {
	ids    uint64        // notifications of one connection, at least (net.core.optmem_max)
	pinned int64         // bytes of all processes of the user (RLIMIT_MEMLOCK)
	read   time.Duration // by clock
}

// notificationCharge is what the kernel charges a connection for a notification that is outstanding or unread: the
// truesize of an empty sk_buff (sock_omalloc in net/core/sock.c), 832 bytes on x86-64 with Linux 6.18.
const notificationCharge = 832

// noLimits is for a system that tells none.
var noLimits = limits{ids: math.MaxUint64, pinned: math.MaxInt64}

// limitsHold is for how long limits are taken for granted, those that were read
// as well as those that a refusal has told. They may change at any time, and
// what they leave room for is to be used within a second.
const limitsHold = 500 * time.Millisecond

var knownLimits atomic.Pointer[limits]

// currentLimits returns the limits, not older than limitsHold.
func currentLimits(now time.Duration) *limits {
	if l := knownLimits.Load(); l != nil && now-l.read <= limitsHold {
		return l
	}
	return renewLimits(now)
}

// renewLimits asks for the limits. optmem_max is that of the calling thread's
// network namespace, and a socket of another one has another; see optmemUse.
func renewLimits(now time.Duration) *limits {
	l := readLimits()
	l.read = now
	knownLimits.Store(l)
	return l
}

// A tally counts what is in flight: what closed connections hold, and what the
// kernel charges to RLIMIT_MEMLOCK. It remembers how much the kernel let be
// charged when it last refused. The limit is one for all processes of a user,
// and the kernel does not tell what the others have.
type tally struct {
	pinned    atomic.Int64
	refused   bound
	lingering struct {
		conns, bytes atomic.Int64
		resets       atomic.Uint64
	}
}

// inProcess is the tally of all connections.
var inProcess tally

// kernelPage is the unit in which the kernel charges.
var kernelPage = int64(os.Getpagesize())

// pinnedBy is what the kernel charges for a call of size bytes, however many of
// them it queues (mm_account_pinned_pages in net/core/skbuff.c).
func pinnedBy(size int64) int64 { return size&^(kernelPage-1) + 2*kernelPage }

// charges tell what the kernel has charged for each ID, from some ID on: runs
// of IDs with the same charge.
type charges struct {
	runs   queue[chargeRun]
	joined int64 // bytes of the calls that may share the newest ID's notification
}

type chargeRun struct {
	hi   uint64 // the first ID behind the run
	each int64
	sum  int64 // of all IDs below hi, ever
}

// mostJoined is the most bytes of calls to which the kernel gives one
// notification (msg_zerocopy_realloc in net/core/skbuff.c).
const mostJoined = 512 << 10

// add begins the newest ID, which a call of size bytes has taken.
func (c *charges) add(id uint64, size int64) {
	c.joined = size
	c.put(id, pinnedBy(size))
}

// join adds a call of size bytes to the newest ID, unless it is too long to
// share its notification.
func (c *charges) join(id uint64, size int64) bool {
	if c.runs.len() == 0 || c.joined+size > mostJoined {
		return false
	}
	c.joined += size
	last := c.runs.last()
	n := last.each + pinnedBy(size)
	last.hi--
	last.sum -= last.each
	if k := c.runs.len(); k > 1 && c.runs.at(k-2).hi == last.hi { // the run was of this ID alone
		c.runs.n--
	}
	c.put(id, n)
	return true
}

// put appends the charge of one ID.
func (c *charges) put(id uint64, n int64) {
	sum := c.below(id) + n
	if c.runs.len() > 0 && c.runs.last().each == n {
		c.runs.last().hi, c.runs.last().sum = id+1, sum
	} else {
		c.runs.pushBack(chargeRun{id + 1, n, sum})
	}
}

// below returns what has ever been charged for the IDs below id.
func (c *charges) below(id uint64) int64 {
	i := sort.Search(c.runs.len(), func(i int) bool { return c.runs.at(i).hi >= id })
	if i == c.runs.len() {
		return 0
	}
	r := c.runs.at(i)
	return r.sum - int64(r.hi-id)*r.each
}

// forget ends the memory of IDs below id.
func (c *charges) forget(id uint64) {
	for c.runs.len() > 1 && c.runs.at(0).hi <= id {
		c.runs.popFront()
	}
}

// A bound is how much may be in flight since the kernel has refused more:
// notifications of a connection, or what a tally counts. It is kept for
// limitsHold only: then a call may exceed it again, and so ask the kernel.
type bound struct{ last atomic.Pointer[refusal] }

// refusal is what an ENOBUFS has told.
type refusal struct {
	why   reason
	most  int64         // may be in flight
	until time.Duration // by clock
}

var noRefusal = refusal{most: math.MaxInt64}

// current returns what holds now.
func (b *bound) current(now time.Duration) *refusal {
	if r := b.last.Load(); r != nil && now < r.until {
		return r
	}
	return &noRefusal
}

// refuse takes note of an ENOBUFS while tried was in flight or about to be, and
// that most may be. A refusal of what the bound had allowed halves it, so that
// few can follow one another.
func (b *bound) refuse(why reason, tried, most int64, now time.Duration) {
	old := b.current(now).most
	if most = min(most, old); tried <= old {
		most = min(most, old/2)
	}
	b.last.Store(&refusal{why, most, now + limitsHold})
}

// withinBounds reports whether the next call may be flagged without more being
// in flight than may be, and makes the call smaller if that helps. Completions
// that no goroutine has read yet count as in flight, so it reads them before it
// says no. Then it is not asked again before the send buffer has room again,
// because acknowledgements, which make that, bring completions. So what is
// copied takes no more calls than Write.
func (w *write) withinBounds(fd uintptr) bool {
	if w.syscalls > 0 { // they may have changed since the write began
		w.now = clock()
		w.limits = w.s.kernel.currentLimits(w.now)
	}
	if w.unbounded() {
		w.size = w.s.path.longestCall()
		return true
	}
	why, ok := w.fit()
	if _, ids := w.s.ledger().inFlight(); !ok && ids > 0 && w.s.drain(fd) > 0 {
		why, ok = w.fit()
	}
	if !ok {
		w.why.add(why)
		w.full = true
	}
	return ok
}

// unbounded reports whether nothing is known that bounds what is in flight.
func (w *write) unbounded() bool {
	return w.limits.pinned == noLimits.pinned && w.s.cfg.MaxInFlight == 0 && !w.refused() && !w.s.ledger().silent()
}

// refused reports whether the kernel has refused a call lately.
func (w *write) refused() bool {
	return w.s.enobufs.current(w.now) != &noRefusal || w.s.ledger().total.refused.current(w.now) != &noRefusal
}

// callsInBounds is how many flagged calls the bounds have room for, unless they are very narrow: a call's memory comes back
// as a whole.
const callsInBounds = 8

// fit sets the size of the next flagged call, or returns why there can be none now.
func (w *write) fit() (why reason, ok bool) {
	l := w.s.ledger()
	if l.silent() {
		return reasonRefused, false
	}
	bytes, ids := l.inFlight()
	if r := w.s.enobufs.current(w.now); int64(ids) >= r.most {
		return r.why, false
	}
	most := min(w.limits.pinned, l.total.refused.current(w.now).most)
	room, why := most-l.total.pinned.Load()-pinnedBy(0), reasonMemlock
	if m := w.s.cfg.MaxInFlight; m > 0 {
		most = min(most, m)
		if m-bytes < room {
			room, why = m-bytes, reasonInFlight
		}
	}
	w.size = int(min(int64(w.s.path.longestCall()), room, max(most/callsInBounds, smallCall)))
	if w.size >= smallestCall {
		w.size &^= page - 1
	}
	least := max(smallestCall, min(smallCall, most/callsInBounds))
	return why, int64(w.size) >= min(least, w.total-w.queued)
}

// noBuffers answers ENOBUFS. It never waits: it finds out which limit it was
// and how much may be in flight by that, and leaves it to withinBounds to make
// the next call smaller, or to have it copied.
func (w *write) noBuffers(fd uintptr) {
	s, total := w.s, w.s.ledger().total
	w.now = clock()
	_, ids := s.ledger().inFlight()
	charged, ok := s.kernel.optionMemory(fd)
	if !ok {
		charged = unknown
	}
	before, size := total.pinned.Load(), int64(w.msg.size)
	if ids > 0 {
		s.drain(fd)
	}
	pinned := total.pinned.Load()
	// What has completed since may have made room, and is asked for, too.
	asked := size + max(0, before-pinned)
	w.limits = s.kernel.renewLimits(w.now)
	room := s.kernel.roomToPin(asked)
	why := w.blame(fd, charged, asked, room)
	s.stats.refused(why)
	if why != reasonMemlock || room == asked {
		s.enobufs.refuse(why, int64(ids), int64(ids-ids/8), w.now)
		return
	}
	if room == unknown {
		room = size / 2
	}
	total.refused.refuse(why, before+pinnedBy(size), pinned+pinnedBy(room), w.now)
}

// blame tells which limit an ENOBUFS was about. net.core.optmem_max is about
// what one socket was charged for notifications (sock_omalloc in
// net/core/sock.c), RLIMIT_MEMLOCK about what all sockets of the user were
// charged, and the size of the call. So room tells, which is how much of what
// was asked another socket is granted, one that was charged nothing yet.
//
// Where it does not, what the socket was charged for notifications is compared
// with what the system says of optmem_max, if that is about this socket.
func (w *write) blame(fd uintptr, charged, asked, room int64) reason {
	l := w.limits
	limited, told := l.pinned < noLimits.pinned, l.ids < noLimits.ids
	far := told && charged != unknown && uint64(charged) < l.ids*notificationCharge/2 && w.s.kernel.inOurNamespace(fd)
	switch {
	case room != unknown && room < asked && l.ids > 0: // or no socket is granted anything
		return reasonMemlock
	case far && limited: // by room that has come back since
		return reasonMemlock
	case far: // such as after IORING_OP_SEND_ZC on the same socket (msg_zerocopy_realloc in net/core/skbuff.c)
		return reasonRefused
	case room == unknown && charged == 0 && limited && !told:
		return reasonMemlock
	}
	return reasonOptmem
}

// unknown is what the kernel does not tell.
const unknown = -1
