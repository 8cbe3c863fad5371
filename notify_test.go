package zcnet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"
)

// newLedger returns a ledger whose next ID is start.
func newLedger(start uint64) *ledger {
	return &ledger{base: start, next: start, answered: mark{ids: start}}
}

// writeIDs books a write of n calls of size bytes each, and seals it.
func writeIDs(l *ledger, n, size int) Ticket {
	c := l.begin(0)
	for range n {
		l.reserve(0)
		l.commit(c, size)
	}
	return l.seal(c, false)
}

// ready returns which of the tickets are done, by position.
func ready(ts []Ticket) (done []int) {
	for i, t := range ts {
		if t.Ready() {
			done = append(done, i)
		}
	}
	return done
}

// ids is one range as the kernel reports it.
type ids struct{ lo, hi uint32 }

func TestTicketsAreDoneWhenTheirLastIDIs(t *testing.T) {
	const top = 1<<32 - 1
	tests := []struct {
		name     string
		start    uint64
		writes   []int // IDs of each write
		complete []ids
		done     []int // tickets that are then done
		rejected uint64
		inFlight uint64
	}{
		{"nothing complete", 0, []int{1, 1}, nil, nil, 0, 2},
		{"one ID each, in order", 0, []int{1, 1, 1}, []ids{{0, 0}, {1, 1}}, []int{0, 1}, 0, 1},
		{"one range over many tickets", 0, []int{1, 3, 2}, []ids{{0, 5}}, []int{0, 1, 2}, 0, 0},
		{"a range that ends inside a ticket", 0, []int{2, 4}, []ids{{0, 3}}, []int{0}, 0, 2},
		{"later IDs first", 0, []int{1, 1, 1}, []ids{{2, 2}, {1, 1}}, []int{1, 2}, 0, 1},
		{"a prefix is not enough", 0, []int{3}, []ids{{1, 2}}, nil, 0, 1},
		{"holes filled from both sides", 0, []int{5}, []ids{{0, 0}, {4, 4}, {2, 2}, {1, 1}, {3, 3}}, []int{0}, 0, 0},
		{"duplicate range", 0, []int{1, 1}, []ids{{0, 0}, {0, 0}}, []int{0}, 1, 1},
		{"duplicate of an out-of-order range", 0, []int{1, 1, 1}, []ids{{2, 2}, {2, 2}}, []int{2}, 1, 2},
		{"partly duplicate range frees the new part", 0, []int{1, 1, 1}, []ids{{1, 1}, {0, 2}}, []int{0, 1, 2}, 1, 0},
		{"partly duplicate below the base", 0, []int{1, 1, 1}, []ids{{0, 1}, {1, 2}}, []int{0, 1, 2}, 1, 0},
		{"never issued", 0, []int{2}, []ids{{2, 2}}, nil, 1, 2},
		{"never issued, far ahead", 0, []int{2}, []ids{{77, 1 << 20}}, nil, 1, 2},
		{"reaching beyond what was issued", 0, []int{2}, []ids{{1, 2}}, nil, 1, 2},
		{"ends reversed: a range of nearly 2^32", 0, []int{2}, []ids{{1, 0}}, nil, 1, 2},
		{"everything there is", 0, []int{2}, []ids{{0, top}}, nil, 1, 2},
		{"nothing issued yet", 0, nil, []ids{{0, 0}, {top, top}}, nil, 2, 0},
		{"across the wrap in one range", 1<<32 - 2, []int{1, 1, 1, 1}, []ids{{top - 1, 1}}, []int{0, 1, 2, 3}, 0, 0},
		{"across the wrap one by one, backwards", 1<<32 - 2, []int{1, 1, 1, 1}, []ids{{1, 1}, {0, 0}, {top, top}}, []int{1, 2, 3}, 0, 1},
		{"a ticket over the wrap", 1<<32 - 2, []int{4}, []ids{{0, 1}, {top - 1, top}}, []int{0}, 0, 0},
		{"old IDs after the wrap", 1<<32 - 2, []int{3}, []ids{{5, 9}, {top - 2, top - 2}}, nil, 2, 3},
		{"the third time round", 3<<32 - 1, []int{1, 1}, []ids{{0, 0}, {top, top}}, []int{0, 1}, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLedger(tt.start)
			var ts []Ticket
			for _, n := range tt.writes {
				ts = append(ts, writeIDs(l, n, 100))
			}
			for _, r := range tt.complete {
				l.completed(r.lo, r.hi, false)
			}
			if got := ready(ts); !slices.Equal(got, tt.done) {
				t.Errorf("tickets done: %v, want %v", got, tt.done)
			}
			counts, _ := l.snapshot()
			if counts.rejected != tt.rejected || counts.idsInFlight != tt.inFlight {
				t.Errorf("rejected %d, in flight %d; want %d, %d", counts.rejected, counts.idsInFlight, tt.rejected, tt.inFlight)
			}
			if idle := l.idle(); idle != (tt.inFlight == 0) {
				t.Errorf("idle: %v with %d IDs in flight", idle, tt.inFlight)
			}
		})
	}
}

func TestLedgerWorkFollowsRangesNotIDs(t *testing.T) {
	// One write of 2^31 IDs: a loop over IDs would take many seconds.
	l := newLedger(1<<32 - 5)
	c := l.begin(0)
	const n = 1 << 31
	l.next += n
	c.hi, c.pending, l.counts.idsInFlight = l.next, n, n
	ticket := l.seal(c, false)
	if news, _ := l.completed(1<<32-5+1, 0x80000000-6, false); news != n-1 {
		t.Fatalf("%d IDs were news, want %d", news, n-1)
	}
	if ticket.Ready() {
		t.Fatal("the ticket is done before its first ID")
	}
	l.completed(1<<32-5, 1<<32-5, false)
	if !ticket.Ready() {
		t.Fatal("the ticket is not done after its last ID")
	}
}

func TestCompletionMayOvertakeTheSend(t *testing.T) {
	l := newLedger(0)
	first := writeIDs(l, 1, 10)
	c := l.begin(0)
	l.reserve(0)
	if news, _ := l.completed(0, 1, true); news != 2 {
		t.Fatalf("%d IDs were news, want 2: the one in the kernel counts", news)
	}
	if !first.Ready() {
		t.Error("the ticket of the ID below is not done")
	}
	if l.idle() {
		t.Error("the ledger is idle while a call is in the kernel")
	}
	if news, _ := l.completed(1, 1, false); news != 0 {
		t.Error("the reserved ID completed twice")
	}
	l.commit(c, 10)
	if second := l.seal(c, false); !second.Ready() || second.Outcome() != OutcomeMaybeCopied {
		t.Errorf("ready %v, outcome %v; want a done ticket that was perhaps copied", second.Ready(), second.Outcome())
	}
	if !l.idle() {
		t.Error("the ledger is not idle")
	}
}

func TestCompletionOfACallThatFailedIsRejected(t *testing.T) {
	l := newLedger(0)
	c := l.begin(0)
	l.reserve(0)
	l.completed(0, 0, false)
	l.cancel()
	l.reserve(0)
	l.commit(c, 10)
	ticket := l.seal(c, false)
	if ticket.Ready() {
		t.Error("the ticket took over the completion of a call that had queued nothing")
	}
	l.completed(0, 0, false)
	if counts, _ := l.snapshot(); !ticket.Ready() || counts.rejected != 1 {
		t.Errorf("ready %v, rejected %d; want true, 1", ticket.Ready(), counts.rejected)
	}
}

// A plain call is in the stream before a flagged one, and has not returned when
// that does: its bytes must not be taken for later ones.
func TestPlainBytesBeforeAFlaggedCallProveNothing(t *testing.T) {
	l := newLedger(0)
	l.gated, l.plain = true, &plainBytes{}
	l.plain.begin(100)
	ticket := writeIDs(l, 1, 1000)
	l.completed(0, 0, false)
	l.plain.end(100, 100)
	at := l.mark()
	l.acknowledged(at.sent - 100) // the peer lacks the last bytes of the flagged call
	if ticket.Ready() {
		t.Fatal("the ticket is done, with 100 of its bytes not acknowledged")
	}
	l.acknowledged(at.sent)
	if !ticket.Ready() {
		t.Fatal("the ticket is not done, with everything acknowledged")
	}
}

func TestTicketIsNotDoneBeforeItsWriteHasReturned(t *testing.T) {
	l := newLedger(0)
	c := l.begin(0)
	l.reserve(0)
	l.commit(c, 10)
	ticket := c.ticket()
	l.completed(0, 0, false)
	if ticket.Ready() {
		t.Fatal("done while the write may still send from the memory")
	}
	l.seal(c, false)
	if !ticket.Ready() {
		t.Fatal("not done after the write and its only completion")
	}
}

func TestOutcomes(t *testing.T) {
	l := newLedger(0)
	plain, marked := writeIDs(l, 2, 10), writeIDs(l, 2, 10)
	c := l.begin(0)
	l.reserve(0)
	l.commit(c, 10)
	helped := l.seal(c, true)
	if got := plain.Outcome(); got != OutcomePending {
		t.Errorf("before completion: %v", got)
	}
	l.completed(0, 1, false)
	l.completed(2, 2, true)
	l.completed(3, 4, false)
	for _, tt := range []struct {
		ticket Ticket
		want   Outcome
	}{
		{plain, OutcomeZeroCopied},
		{marked, OutcomeMaybeCopied},
		{helped, OutcomeCopied},
		{copiedTicket, OutcomeCopied},
		{Ticket{}, OutcomeUnknown},
	} {
		if got := tt.ticket.Outcome(); got != tt.want {
			t.Errorf("%v, want %v", got, tt.want)
		}
	}
	counts, _ := l.snapshot()
	if counts.zeroCopiedBytes != 30 || counts.maybeCopiedBytes != 20 {
		t.Errorf("%d bytes without copy and %d perhaps copied, want 30 and 20", counts.zeroCopiedBytes, counts.maybeCopiedBytes)
	}
}

func TestOldTicketsStayDone(t *testing.T) {
	l := newLedger(0)
	var ts []Ticket
	for i := range uint32(10 * rememberedClaims) {
		ts = append(ts, writeIDs(l, 1, 1))
		l.completed(i, i, false)
	}
	for i, ticket := range ts {
		if !ticket.Ready() || ticket.Wait(context.Background()) != nil {
			t.Fatalf("ticket %d of %d is not done any more", i, len(ts))
		}
		if i >= len(ts)-rememberedClaims && ticket.Outcome() != OutcomeZeroCopied {
			t.Errorf("the outcome of one of the last %d tickets is forgotten", rememberedClaims)
		}
	}
	if ts[0] == ts[rememberedClaims+1] {
		t.Error("two tickets compare equal")
	}
	pending := writeIDs(l, 1, 1)
	for i, ticket := range ts {
		if ticket == pending {
			t.Fatalf("ticket %d compares equal to a later one", i)
		}
		if !ticket.Ready() {
			t.Fatalf("ticket %d is pending again after its claim was used again", i)
		}
	}
}

func TestWaitReturnsWhenTheContextEnds(t *testing.T) {
	l := newLedger(0)
	ticket := writeIDs(l, 1, 1)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := ticket.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("pending ticket: %v, want context.Canceled", err)
	}
	l.completed(0, 0, false)
	if err := ticket.Wait(ctx); err != nil {
		t.Errorf("done ticket: %v, want its own result", err)
	}
}

func TestFailureReachesTicketsThatFinishLater(t *testing.T) {
	l := newLedger(0)
	before, during := writeIDs(l, 1, 1), writeIDs(l, 1, 4096)
	l.completed(0, 0, false)
	l.fail(fmt.Errorf("%w: first reason", ErrConnFailed))
	l.fail(errors.New("second reason"))
	if during.Ready() {
		t.Fatal("done without a completion")
	}
	l.completed(1, 1, false)
	if err := before.Wait(context.Background()); err != nil {
		t.Errorf("completed before the failure: %v", err)
	}
	if err := during.Wait(context.Background()); !errors.Is(err, ErrConnFailed) {
		t.Errorf("completed after the failure: %v, want ErrConnFailed", err)
	}
	if got := len(l.failuresSoFar()); got != 1 {
		t.Errorf("%d failures for Flush, want 1", got)
	}
}

func TestFlushWaitsForWhatWasIssuedBefore(t *testing.T) {
	closed := func(ch <-chan struct{}) bool {
		select {
		case <-ch:
			return true
		default:
			return ch == nil
		}
	}
	l := newLedger(0)
	if !closed(l.flush()) {
		t.Error("a flush of nothing waits")
	}
	open := l.begin(0) // a write under way has no ticket yet
	l.reserve(0)
	l.commit(open, 1)
	if !closed(l.flush()) {
		t.Error("a flush waits for a write that has not returned")
	}
	l.seal(open, false)
	writeIDs(l, 2, 1)
	first := l.flush()
	writeIDs(l, 1, 1)
	second := l.flush()
	gone := l.flush()
	l.unflush(gone)
	l.completed(1, 3, false)
	if closed(first) || closed(second) {
		t.Error("a flush ended before the oldest ticket was done")
	}
	l.completed(0, 0, false)
	if !closed(first) || !closed(second) {
		t.Error("a flush did not end with the last ticket before it")
	}
	if closed(gone) {
		t.Error("a flush that was taken back was still served")
	}
}

func TestAbandonedTicketsNeverGiveTheirMemoryBack(t *testing.T) {
	l := newLedger(0)
	fine, lost := writeIDs(l, 1, 10), l.begin(0)
	p := &region{}
	p.lend(0)
	lost.loan.regions = []*region{p}
	l.reserve(0)
	l.commit(lost, 4096)
	ticket := l.seal(lost, false)
	l.completed(0, 0, false)
	done := ticket.Done()
	if n := l.abandon(); n != 4096 {
		t.Errorf("%d bytes abandoned, want 4096", n)
	}
	select {
	case <-done:
	case <-time.After(testTimeout):
		t.Fatal("the ticket is not done")
	}
	if err := ticket.Wait(context.Background()); !errors.Is(err, ErrReleaseUnproven) {
		t.Errorf("%v, want ErrReleaseUnproven", err)
	}
	if err := fine.Wait(context.Background()); err != nil {
		t.Errorf("the ticket that had completed: %v", err)
	}
	l.completed(1, 1, false) // too late to count
	if s := p.state.Load(); s != regionLoan {
		t.Errorf("the memory was given back: state %d", s)
	}
}

func TestQueueKeepsOrderWhileItGrows(t *testing.T) {
	var q queue[int]
	next, want := 0, 0
	for round := range 50 {
		for range round {
			q.pushBack(next)
			next++
		}
		for range min(round*2/3, q.len()) {
			if got := q.popFront(); got != want {
				t.Fatalf("popped %d, want %d", got, want)
			}
			want++
		}
		for i := range q.len() {
			if got := q.at(i); got != want+i {
				t.Fatalf("at(%d) is %d, want %d", i, got, want+i)
			}
		}
	}
}

func TestSteadyLedgerDoesNotAllocate(t *testing.T) {
	l := newLedger(0)
	next := uint32(0)
	step := func() {
		ticket := writeIDs(l, 3, 1)
		l.completed(next+2, next+2, false)
		l.completed(next, next+1, false)
		next += 3
		if !ticket.Ready() || ticket.Wait(context.Background()) != nil {
			t.Fatal("not done")
		}
	}
	for range 100 {
		step()
	}
	if n := testing.AllocsPerRun(1000, step); n != 0 {
		t.Errorf("%v allocations a write, want 0", n)
	}
}

// Close meets the only flagged call, which then queues nothing.
func TestCancelledCallEndsTheWaitOfClose(t *testing.T) {
	l := &ledger{}
	c := l.begin(0)
	l.reserve(0)
	idle, again := l.close()
	if idle == nil || again {
		t.Fatalf("close: idle %v, again %v; want a channel, and false", idle, again)
	}
	l.cancel()
	select {
	case <-idle:
	default:
		t.Error("nothing is in flight, and Close waits")
	}
	if ticket := l.seal(c, false); !ticket.Ready() {
		t.Error("the ticket of a write that queued nothing is pending")
	}
}
