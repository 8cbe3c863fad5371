package zcnet

import (
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// This file is the ledger of one connection: which notification IDs belong to which write, which of them the
// kernel has completed, and who is waiting. It makes no system call and is the same on every system.
//
// The kernel numbers the flagged calls of a socket with a 32-bit counter and completes them in inclusive ranges,
// merged and in any order (https://docs.kernel.org/networking/msg_zerocopy.html, "Notification Reception").
// The ledger counts in 64 bits, so that nothing in it ever wraps, and works on ranges, so that its cost follows
// the number of ranges and tickets, never the number of IDs.

// A claim is what stands behind a pending ticket. Claims are used again when the ledger has moved on; the
// generation in state tells a ticket whether the claim is still its own.
type claim struct {
	l     *ledger
	state atomic.Uint64 // generation<<genShift | failedBit | outcome

	loan loan // the memory; touched only by the writer before sealing and by the one who settles after

	// The rest is guarded by l.mu.
	seq     uint64        // position among the claims of this ledger
	lo, hi  uint64        // the IDs of this write: lo <= ID < hi
	pending uint64        // how many of them are not complete
	bytes   int64         // bytes sent under these IDs
	out     int64         // bytes of those that are not complete, if all IDs are of one size
	end     int64         // position in the stream of what follows its last flagged byte, at most
	held    bool          // all IDs are complete, and the acknowledgement is not known yet
	sealed  bool          // the write has returned: no further ID will be added
	settled bool          // memory given back, ticket done
	copied  bool          // a completion said that the kernel copied
	helped  bool          // a part of the write was copied by the library
	born    time.Duration // when the write began, by the ledger's clock
	done    chan struct{} // made for the first who waits
	err     error         // of the ticket
	next    *claim        // in the list of claims to settle
}

// The parts of claim.state.
const (
	outcomeMask = 1<<3 - 1
	failedBit   = 1 << 3
	genShift    = 4
)

func claimState(gen uint64, o Outcome, err error) uint64 {
	s := gen<<genShift | uint64(o)
	if err != nil {
		s |= failedBit
	}
	return s
}

func (c *claim) generation() uint64 { return c.state.Load() >> genShift }
func (c *claim) ticket() Ticket     { return Ticket{c: c, gen: c.generation()} }

// rememberedClaims is how many finished claims a ledger keeps before it uses the oldest again.
const rememberedClaims = 16

// A span is a range of IDs, lo <= ID < hi.
type span struct{ lo, hi uint64 }

// A flusher waits until every claim before the one numbered until is settled.
type flusher struct {
	until uint64
	done  chan struct{}
}

// reservation is the ID that the call now in the kernel will take if it queues anything. Its completion can be
// read by another goroutine before that call has returned to tell.
type reservation struct {
	open   bool  // a call is in the kernel
	early  bool  // its completion has already come
	copied bool  // with the kernel's mark for a copy
	size   int64 // bytes that it was asked to send
	charge int64 // to RLIMIT_MEMLOCK
}

// An awaiter is told that a goroutine begins to wait for completions.
type awaiter interface{ await() }

// ledger holds the accounts of one connection. Writers are serialized by their caller (the descriptor's write
// lock); everything else may be called from any goroutine. No lock is taken while mu is held, and memory is given
// back after it is dropped.
type ledger struct {
	mu       sync.Mutex
	base     uint64        // every ID below is complete
	next     uint64        // the ID that the next flagged call takes
	complete []span        // complete IDs from base on: ascending, disjoint, never adjacent
	reserved reservation   //
	claims   queue[*claim] // not settled, in order of seq; the settled ones behind an unsettled one too
	free     queue[*claim] // settled, the oldest first
	nextSeq  uint64        //
	sealed   uint64        // every claim below this seq is sealed, or about to be
	flushers []flusher     //
	failed   error         // why tickets that finish from now on report an error
	failures []error       // the tickets that did, for Flush
	closed   bool          // no further reservation
	lost     bool          // no completion will be read any more; see abandon
	wrong    bool          // the kernel's count of calls is not the ledger's; see distrust
	gated    bool          // a claim is not done before its bytes are known to be acknowledged
	plain    *plainBytes   // what else is in the stream; nil if that is nothing
	sent     int64         // bytes of flagged calls
	acked    int64         // the peer has acknowledged what lies before this position of the stream
	answered mark          // when the last completion was booked
	freed    uint64        // the bytes of IDs below are acknowledged, or not held by the kernel
	idleNow  chan struct{} // closed when nothing is in flight; nil if that is not waited for
	counts   ledgerCounts  //

	bytesInFlight int64        // bytes not complete, to within the rounding of claims that are partly so
	held          atomic.Int32 // claims that are held for their acknowledgement; written with mu held
	charged       int64        // to RLIMIT_MEMLOCK, for IDs not complete and for the reserved one
	charges       charges      // that by ID
	waited        atomic.Int32 // pending tickets and flushes that somebody may be waiting for
	total         *tally       // of all ledgers of the process; nil if this is none of them
	reader        awaiter      // reads the completions; nil if none ever come
}

// ledgerCounts are the ledger's part of [Stats].
type ledgerCounts struct {
	bytesInFlight    int64
	idsInFlight      uint64
	notifications    uint64 // ranges
	rejected         uint64 // ranges that named IDs complete already, or never issued
	zeroCopiedBytes  int64
	maybeCopiedBytes int64
	unprovenBytes    int64
	sends            uint64 // IDs issued
	released         uint64 // tickets
	releaseTotal     time.Duration
	releaseMax       time.Duration
}

// processStart is the zero of the clock by which claims are timed. A time is one
// word by it, and one reading of the system's clock.
var processStart = time.Now()

func clock() time.Duration { return realTime().Sub(processStart) }

// begin opens the claim of a write that is about to send its first flagged call
// and that began at now.
func (l *ledger) begin(now time.Duration) *claim {
	l.mu.Lock()
	defer l.mu.Unlock()
	var c *claim
	if l.free.len() > rememberedClaims {
		c = l.free.popFront()
	} else {
		c = &claim{l: l}
	}
	c.state.Store(claimState(c.generation()+1, OutcomePending, nil))
	c.seq, c.lo, c.hi, c.pending, c.bytes, c.out, c.end = l.nextSeq, l.next, l.next, 0, 0, 0, 0
	c.held, c.sealed, c.settled, c.copied, c.helped, c.done = false, false, false, false, false, nil
	c.born = now
	l.nextSeq++
	l.claims.pushBack(c)
	return c
}

// errUntrusted is why a flagged call must not be made on a connection whose
// completions cannot be told apart.
var errUntrusted = errors.New("completions do not count the calls")

// reserve announces a flagged call of size bytes. It fails if the call must not
// be made, and reports whether nothing was in flight before.
func (l *ledger) reserve(size int) (first bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return false, net.ErrClosed
	case l.wrong || l.lost:
		return false, errUntrusted
	}
	l.reserved = reservation{open: true, size: int64(size), charge: pinnedBy(int64(size))}
	l.charge(l.reserved.charge)
	return l.counts.idsInFlight == 0, nil
}

// commit records that the reserved call has queued n bytes and so has taken its
// ID for c. The kernel charges the call whole, whatever part of it was queued.
func (l *ledger) commit(c *claim, n int) {
	l.mu.Lock()
	r := l.reserved
	l.reserved = reservation{}
	l.next++
	l.counts.sends++
	l.sent += int64(n)
	l.charges.add(l.next-1, r.size)
	if c.settled { // abandoned meanwhile
		l.counts.unprovenBytes += int64(n)
		l.mu.Unlock()
		return
	}
	c.hi = l.next
	c.pending++
	l.hold(c, false)
	c.bytes += int64(n)
	c.end = l.sent + l.plain.most()
	l.moveOut(c, int64(n))
	l.counts.idsInFlight++
	var finished *claim
	if r.early && !l.wrong {
		_, finished = l.credit(span{l.next - 1, l.next}, r.copied)
	}
	l.mu.Unlock()
	l.settle(finished)
}

// abort is cancel of a call that the kernel has charged. If the call was to
// share the notification of the newest ID, the charge stays until that is
// complete (msg_zerocopy_put_abort in net/core/skbuff.c). Whether it was is not
// to be seen, so it counts as if it was.
func (l *ledger) abort() (stray bool) {
	l.mu.Lock()
	if n := len(l.complete); l.base < l.next && (n == 0 || l.complete[n-1].hi < l.next) && l.charges.join(l.next-1, l.reserved.size) {
		l.reserved.charge = 0 // it is the newest ID's now
	}
	l.mu.Unlock()
	return l.cancel()
}

// cancel records that the reserved call has queued nothing and taken no ID. It
// reports whether a completion has named that ID all the same.
func (l *ledger) cancel() (stray bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if stray = l.reserved.early; stray {
		l.counts.rejected++
	}
	l.charge(-l.reserved.charge)
	l.reserved = reservation{}
	l.checkIdle()
	return stray
}

// seal ends c's write. helped tells whether the library copied a part of it. The ticket is c's from here on.
func (l *ledger) seal(c *claim, helped bool) Ticket {
	l.mu.Lock()
	t := c.ticket()
	c.sealed, c.helped = true, helped
	l.sealed = max(l.sealed, c.seq+1)
	lost := l.lost && !c.settled && (c.pending > 0 || !l.proven(c))
	if lost {
		l.giveUp(c, clock())
		l.sweep()
	}
	finished := l.finish(c, nil)
	l.checkIdle()
	l.mu.Unlock()
	l.settle(finished)
	if lost {
		unproven.keep(&c.loan)
	}
	return t
}

// completed books the kernel's notification that the IDs from lo to hi, both
// included and modulo 2^32, are complete. It returns how many IDs were news,
// and whether all were. IDs that were complete already or never issued change
// nothing: the kernel does not name them, unless its count is another one.
func (l *ledger) completed(lo, hi uint32, copied bool) (news uint64, ok bool) {
	l.mu.Lock()
	l.counts.notifications++
	s, ok := l.widen(lo, hi)
	if !ok || l.lost || l.wrong {
		if !l.wrong {
			l.counts.rejected++
		}
		l.mu.Unlock()
		return 0, l.lost || l.wrong
	}
	claimed := s.hi - s.lo
	if s.hi > l.next {
		l.reserved.early, l.reserved.copied = true, copied
		s.hi = l.next
		news++
	}
	s.lo = max(s.lo, l.base)
	fresh, finished := l.credit(s, copied)
	if news += fresh; news < claimed {
		l.counts.rejected++
	}
	l.mu.Unlock()
	l.settle(finished)
	return news, news == claimed
}

// widen finds the 64-bit IDs that a 32-bit range means: those that end in these bits and were issued last, the
// reserved one included. It reports false for a range that cannot have been issued or is complete already.
func (l *ledger) widen(lo, hi uint32) (span, bool) {
	limit := l.next
	if l.reserved.open && !l.reserved.early {
		limit++
	}
	n := uint64(hi-lo) + 1
	back := uint64(uint32(limit-1) - hi) // how far the range's end lies behind the newest ID
	if back+n > limit {
		return span{}, false
	}
	s := span{limit - back - n, limit - back}
	return s, s.hi > l.base
}

// credit marks the IDs of s complete, tells the claims they belong to, and returns how many were not complete
// before, and the claims that this finished. l.mu is held.
func (l *ledger) credit(s span, copied bool) (fresh uint64, finished *claim) {
	if s.lo >= s.hi {
		return 0, nil
	}
	first := sort.Search(len(l.complete), func(i int) bool { return l.complete[i].hi >= s.lo })
	last, merged, at := first, s, s.lo
	for ; last < len(l.complete) && l.complete[last].lo <= s.hi; last++ {
		known := l.complete[last]
		if at < known.lo {
			fresh += known.lo - at
			finished = l.tell(span{at, known.lo}, copied, finished)
		}
		at = max(at, known.hi)
		merged = span{min(merged.lo, known.lo), max(merged.hi, known.hi)}
	}
	if at < s.hi {
		fresh += s.hi - at
		finished = l.tell(span{at, s.hi}, copied, finished)
	}
	if merged.lo <= l.base {
		l.base = merged.hi
		l.charges.forget(l.base)
		l.complete = slices.Delete(l.complete, first, last)
	} else {
		l.complete = slices.Replace(l.complete, first, last, merged)
	}
	l.counts.idsInFlight -= fresh
	if fresh > 0 {
		l.answered = mark{l.next, l.sent}
	}
	l.checkIdle()
	return fresh, finished
}

// tell subtracts newly completed IDs from what is charged, and from the claims
// that own them.
func (l *ledger) tell(s span, copied bool, finished *claim) *claim {
	l.charge(l.charges.below(s.lo) - l.charges.below(s.hi))
	i := sort.Search(l.claims.len(), func(i int) bool { return l.claims.at(i).hi > s.lo })
	for ; i < l.claims.len() && l.claims.at(i).lo < s.hi; i++ {
		c := l.claims.at(i)
		n := min(c.hi, s.hi) - max(c.lo, s.lo)
		if n > 0 && !c.settled {
			l.moveOut(c, -int64(float64(c.out)*float64(n)/float64(c.pending)))
		}
		c.pending -= n
		c.copied = c.copied || (copied && n > 0)
		if n > 0 {
			finished = l.finish(c, finished)
		}
	}
	return finished
}

// moveOut changes how many bytes of c are in flight. l.mu is held.
func (l *ledger) moveOut(c *claim, bytes int64) {
	c.out += bytes
	l.bytesInFlight += bytes
	if l.closed && l.total != nil {
		l.total.lingering.bytes.Add(bytes)
	}
}

// charge changes what is charged to RLIMIT_MEMLOCK. When all that was in flight
// has been given up, nothing is. l.mu is held.
func (l *ledger) charge(n int64) {
	if l.lost {
		n = -l.charged
	}
	l.charged += n
	if l.total != nil {
		l.total.pinned.Add(n)
	}
}

// finish puts c on the list of claims to settle if its last ID is complete, its
// write has returned and its bytes are acknowledged. l.mu is held.
func (l *ledger) finish(c *claim, finished *claim) *claim {
	if c.pending > 0 || c.settled {
		return finished
	}
	if l.hold(c, !l.proven(c)) || !c.sealed {
		return finished
	}
	if c.lo < c.hi { // of a write that queued nothing there is nothing to fail
		c.err = l.failed
	}
	c.next = finished
	return c
}

// proven reports whether c's bytes are known to be acknowledged, or not to be held
// any more. l.mu is held.
func (l *ledger) proven(c *claim) bool { return !l.gated || c.end <= l.acked || c.hi <= l.freed }

// hold notes whether c is held for its acknowledgement, and returns that. l.mu is
// held.
func (l *ledger) hold(c *claim, on bool) bool {
	if on != c.held {
		c.held = on
		if on {
			l.held.Add(1)
		} else {
			l.held.Add(-1)
		}
	}
	return on
}

// A mark is a moment in the life of a connection.
type mark struct {
	ids  uint64 // every ID below had been issued
	sent int64  // bytes that were in the stream, at least
}

func (l *ledger) mark() mark {
	l.mu.Lock()
	defer l.mu.Unlock()
	return mark{l.next, l.sent + l.plain.least()}
}

// plainBytes counts what is sent by plain calls, which go on beside the flagged
// ones without the ledger's knowledge of their order. So it counts twice: what is
// in the stream at least, and what may be in it at most.
type plainBytes struct{ begun, ended atomic.Int64 }

// begin is called before a call with n bytes, and end after it, when it has sent
// so many of them.
func (p *plainBytes) begin(n int) { p.begun.Add(int64(n)) }

func (p *plainBytes) end(n, sent int) {
	p.ended.Add(int64(sent))
	p.begun.Add(int64(sent - n))
}

func (p *plainBytes) most() int64 {
	if p == nil {
		return 0
	}
	return p.begun.Load()
}

func (p *plainBytes) least() int64 {
	if p == nil {
		return 0
	}
	return p.ended.Load()
}

// acknowledged records that the peer has acknowledged what lies before upTo in
// the stream, or with math.MaxInt64 that this cannot be known. It is the second
// proof that memory is free, beside the completion: TCP keeps pages for
// retransmission until then. Completions that count another program's calls
// would come too early, and so free nothing.
func (l *ledger) acknowledged(upTo int64) {
	l.mu.Lock()
	var finished *claim
	if !l.wrong {
		l.acked = max(l.acked, upTo)
		finished = l.letGo(nil)
	}
	l.mu.Unlock()
	l.settle(finished)
}

// missing reports whether a completion of a call before the mark has not been
// read.
func (l *ledger) missing(at mark) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.base < at.ids && !l.lost
}

// acknowledgedAll records that nothing was unacknowledged at a time after the
// mark.
func (l *ledger) acknowledgedAll(at mark) {
	l.mu.Lock()
	var finished *claim
	if !l.wrong {
		l.freed = max(l.freed, at.ids)
		finished = l.letGo(nil)
	}
	l.mu.Unlock()
	l.settle(finished)
}

// released records that the kernel held no memory of flagged calls at all at a
// time after the mark, whatever completions were read.
func (l *ledger) released(at mark) {
	l.mu.Lock()
	l.freed = max(l.freed, at.ids)
	var finished *claim
	if !l.lost {
		_, finished = l.credit(span{l.base, at.ids}, true)
	}
	finished = l.letGo(finished)
	l.mu.Unlock()
	l.settle(finished)
}

// letGo finishes the claims that were held and are acknowledged. l.mu is held.
func (l *ledger) letGo(finished *claim) *claim {
	for i, left := 0, l.held.Load(); left > 0; i++ {
		if c := l.claims.at(i); c.held {
			finished = l.finish(c, finished)
			left--
		}
	}
	l.checkIdle()
	return finished
}

// distrust ends belief in completions: from here on none is booked, and no
// flagged call is to be made. It reports whether they were believed before.
func (l *ledger) distrust() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.wrong
	l.wrong = true
	return !before
}

// doubtful reports whether completions do not suffice to tell what is in flight:
// some came before their acknowledgement, they are not believed, or after many
// calls not one has come.
func (l *ledger) doubtful() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held.Load() > 0 || l.wrong || l.counts.notifications == 0 && l.counts.sends >= reapEvery
}

// mostUnanswered and mostUnansweredBytes together bound what is lost where completions
// never come, until that is certain. It is more than goes out between two
// completions on a connection that has them: calls that are short share one.
const (
	mostUnanswered      = 128
	mostUnansweredBytes = 16 << 20
)

// silent reports whether that many calls with so much were made since the last
// completion.
func (l *ledger) silent() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next-l.answered.ids >= mostUnanswered && l.sent-l.answered.sent >= mostUnansweredBytes
}

// distrusted reports whether distrust was called.
func (l *ledger) distrusted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.wrong
}

// sharedSpan is more of the stream than calls take that share a notification,
// which completes with the last of them. Of flagged calls that is 512 KiB
// (byte_limit in msg_zerocopy_realloc, net/core/skbuff.c), with some plain ones
// between.
const sharedSpan = 16 << 20

// An elder is the oldest claim in flight.
type elder struct {
	number uint64 // not 0
	acked  bool   // its bytes are acknowledged, with all that may share their notification, and not all is complete
	mute   bool   // not one completion has come on this connection
}

// oldest returns the oldest claim in flight, and false if nothing is.
func (l *ledger) oldest() (e elder, busy bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.busy() || l.claims.len() == 0 {
		return e, false
	}
	c := l.claims.at(0)
	return elder{
		number: c.seq + 1,
		acked:  c.pending > 0 && l.acked != math.MaxInt64 && (c.hi <= l.freed || c.end+sharedSpan <= l.acked),
		mute:   l.counts.notifications == 0,
	}, true
}

// settle gives the memory of finished claims back and then, not before, makes their tickets done.
func (l *ledger) settle(finished *claim) {
	if finished == nil {
		return
	}
	for c := finished; c != nil; c = c.next {
		c.err = c.loan.endGuard(c.err) // nobody else looks at it before the claim is settled
		c.loan.giveBack()
	}
	now := clock()
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := finished; c != nil; {
		next := c.next
		l.resolve(c, c.outcome(), now)
		c = next
	}
	l.sweep()
}

// outcome of a claim whose IDs are all complete.
func (c *claim) outcome() Outcome {
	switch {
	case c.helped:
		return OutcomeCopied
	case c.copied:
		return OutcomeMaybeCopied
	}
	return OutcomeZeroCopied
}

// resolve makes c's ticket done. l.mu is held.
func (l *ledger) resolve(c *claim, o Outcome, now time.Duration) {
	c.next = nil
	c.settled = true
	if c.err != nil {
		c.err = fmt.Errorf("zero-copy write %d (%d bytes): %w", c.seq, c.bytes, c.err)
		l.failures = append(l.failures, c.err)
	}
	l.moveOut(c, -c.out)
	l.counts.add(c, o, now)
	c.state.Store(claimState(c.generation(), o, c.err))
	if c.done != nil {
		l.waited.Add(-1)
		close(c.done)
	}
}

// add books a settled claim.
func (n *ledgerCounts) add(c *claim, o Outcome, now time.Duration) {
	switch {
	case o == OutcomeUnknown:
		n.unprovenBytes += c.bytes
		return
	case c.copied:
		n.maybeCopiedBytes += c.bytes
	default:
		n.zeroCopiedBytes += c.bytes
	}
	d := now - c.born
	n.released++
	n.releaseTotal += d
	n.releaseMax = max(n.releaseMax, d)
}

// sweep retires settled claims from the front and wakes the flushers that waited for them. A claim that failed
// stays its ticket's for good. l.mu is held.
func (l *ledger) sweep() {
	for l.claims.len() > 0 && l.claims.at(0).settled {
		if c := l.claims.popFront(); c.err == nil {
			l.free.pushBack(c)
		}
	}
	front := l.nextSeq
	if l.claims.len() > 0 {
		front = l.claims.at(0).seq
	}
	l.flushers = slices.DeleteFunc(l.flushers, func(f flusher) bool {
		if front < f.until {
			return false
		}
		l.waited.Add(-1)
		close(f.done)
		return true
	})
}

// flush returns a channel that is closed when every ticket issued so far is done, or nil if they all are.
func (l *ledger) flush() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.claims.len() == 0 || l.claims.at(0).seq >= l.sealed {
		return nil
	}
	f := flusher{until: l.sealed, done: newSignal()}
	l.flushers = append(l.flushers, f)
	l.waited.Add(1)
	return f.done
}

// await is called without a lock by a goroutine that has begun to wait, or that
// asks.
func (l *ledger) await() {
	if l.reader != nil {
		l.reader.await()
	}
}

// unflush takes back the wait for done.
func (l *ledger) unflush(done <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flushers = slices.DeleteFunc(l.flushers, func(f flusher) bool {
		if f.done == done {
			l.waited.Add(-1)
		}
		return f.done == done
	})
}

// doneChan returns the channel on which to wait for t.
func (l *ledger) doneChan(t Ticket) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !t.pending() {
		return closedChan
	}
	if t.c.done == nil {
		t.c.done = newSignal()
		l.waited.Add(1)
	}
	return t.c.done
}

// fail makes tickets that finish from now on report err. The first reason stands.
func (l *ledger) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed == nil {
		l.failed = err
	}
}

// close ends reservations. It returns a channel that is closed when nothing is
// in flight any more, or nil if nothing is, and whether the ledger was closed
// before.
func (l *ledger) close() (idle chan struct{}, again bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	again, l.closed = l.closed, true
	if !again && l.total != nil {
		l.total.lingering.bytes.Add(l.bytesInFlight)
	}
	return l.whenIdle(), again
}

// awaitIdle returns a channel that is closed when nothing is in flight any more,
// or nil if nothing is.
func (l *ledger) awaitIdle() chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.whenIdle()
}

// whenIdle is awaitIdle. l.mu is held.
func (l *ledger) whenIdle() chan struct{} {
	if l.busy() && l.idleNow == nil {
		l.idleNow = newSignal()
	}
	return l.idleNow
}

// checkIdle tells those who wait for it that nothing is in flight. l.mu is held.
func (l *ledger) checkIdle() {
	if l.idleNow != nil && !l.busy() {
		close(l.idleNow)
		l.idleNow = nil
	}
}

// busy reports whether an ID is out or may come to be, or bytes are not known to
// be acknowledged. l.mu is held.
func (l *ledger) busy() bool {
	return l.counts.idsInFlight > 0 || l.reserved.open || l.held.Load() > 0
}

// inFlight returns how much is out.
func (l *ledger) inFlight() (bytes int64, ids uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytesInFlight, l.counts.idsInFlight
}

// isClosed reports whether close was called.
func (l *ledger) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

// issued returns how many IDs have been issued.
func (l *ledger) issued() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next
}

// idle reports whether every ID has come back.
func (l *ledger) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.busy()
}

// abandon resolves every ticket that is left without giving its memory back, and
// returns how many bytes that is. No completion is accepted any more, and no
// flagged call. The loans stay referenced for the life of the process.
func (l *ledger) abandon() (bytes int64) {
	now := clock()
	var lost []*claim
	l.mu.Lock()
	l.lost = true
	for i := range l.claims.len() {
		if c := l.claims.at(i); !c.settled && (c.pending > 0 || c.held) {
			bytes += c.bytes
			lost = append(lost, c)
			l.giveUp(c, now)
		}
	}
	l.charge(-l.charged)
	l.sweep()
	l.checkIdle()
	l.mu.Unlock()
	for _, c := range lost {
		unproven.keep(&c.loan)
	}
	return bytes
}

// giveUp resolves c, whose memory the kernel may read for ever: the caller has it
// kept. l.mu is held.
func (l *ledger) giveUp(c *claim, now time.Duration) {
	l.hold(c, false)
	l.counts.idsInFlight -= c.pending
	c.err = ErrReleaseUnproven
	l.resolve(c, OutcomeUnknown, now)
}

// snapshot returns the counts, and whether the connection has failed.
func (l *ledger) snapshot() (n ledgerCounts, failed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n = l.counts
	n.bytesInFlight = l.bytesInFlight
	return n, l.failed != nil
}

// failure returns why the connection has failed, or nil.
func (l *ledger) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// wanted reports whether a goroutine waits for memory that is in flight.
func (l *ledger) wanted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.claims.len() {
		// The loan is not touched now: the write has lent it before it had an ID,
		// and it is given back when no ID is pending and the claim not held.
		if c := l.claims.at(i); (c.pending > 0 || c.held) && !c.settled && c.loan.wanted() {
			return true
		}
	}
	return false
}

func (l *ledger) failuresSoFar() []error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clip(l.failures)
}

// queue is a first-in, first-out queue with random access, which allocates only to grow.
type queue[T any] struct {
	ring    []T
	head, n int
}

func (q *queue[T]) len() int   { return q.n }
func (q *queue[T]) at(i int) T { return q.ring[(q.head+i)%len(q.ring)] }

func (q *queue[T]) pushBack(v T) {
	if q.n == len(q.ring) {
		grown := make([]T, max(4, 2*q.n))
		for i := range q.n {
			grown[i] = q.at(i)
		}
		q.ring, q.head = grown, 0
	}
	q.ring[(q.head+q.n)%len(q.ring)] = v
	q.n++
}

func (q *queue[T]) last() *T { return &q.ring[(q.head+q.n-1)%len(q.ring)] }

func (q *queue[T]) popFront() T {
	var zero T
	v := q.ring[q.head]
	q.ring[q.head] = zero
	q.head = (q.head + 1) % len(q.ring)
	q.n--
	return v
}
