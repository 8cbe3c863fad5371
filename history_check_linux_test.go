package zcnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing/synctest"
)

// This file says what must be true after every step of a history.

// check compares the connection with the model. Nothing runs meanwhile.
func (h *history) check() {
	synctest.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.k.mu.Lock()
	defer h.k.mu.Unlock()
	h.assert(h.failure == "", "%s", h.failure)
	for _, op := range h.ops {
		h.checkWrite(op)
	}
	h.checkMemory()
	h.checkWaiters()
	h.checkCounts()
	h.checkWatch()
	h.checkForeign()
}

// checkForeign is about messages for the hook. Those that a write has read come when it ends.
func (h *history) checkForeign() {
	got, want := h.heard, h.k.foreign
	h.assert(len(got) == len(want) || len(got) < len(want) && h.k.writer != nil, "%d foreign messages came, want %d", len(got), len(want))
	for i := range got {
		h.assert(bytes.Equal(got[i].Control, want[i].Control) && bytes.Equal(got[i].Data, want[i].Data) && got[i].Flags == want[i].Flags, "foreign message %d is another one", i)
	}
}

func (h *history) assert(ok bool, format string, args ...any) {
	if !ok {
		h.t.Helper()
		h.t.Fatalf("%s\nsettings: %+v\nsteps: %s", fmt.Sprintf(format, args...), h.set, strings.Join(h.steps, "; "))
	}
}

func (h *history) checkWrite(op *writeOp) {
	if !op.returned {
		return
	}
	h.checkReturn(op)
	if done := !op.ticket.pending(); done != op.done {
		h.assert(done, "write %d: its ticket was done and is pending again", op.number)
		op.done, op.result = true, op.ticket.Wait(context.Background())
		h.checkResult(op)
	} else if done {
		again := op.ticket.Wait(context.Background())
		h.assert(errors.Is(again, op.result) || again == op.result, "write %d: its ticket says %v, and said %v", op.number, again, op.result)
	}
	if !op.unproven() {
		h.checkDone(op)
	}
}

// checkDone is about when a ticket is done. A completion that was lost or
// invented, and bytes that were not acknowledged when it was read, put it off.
func (h *history) checkDone(op *writeOp) {
	h.assert(!op.done || len(op.ids) == op.lost, "write %d is done, with %d of %d IDs unread and %d lost", op.number, len(op.ids), op.flagged, op.lost)
	l := h.c.s.ledger()
	if op.done || len(op.ids) > 0 || l.distrusted() {
		return
	}
	h.assert(l.held.Load() > 0 && h.k.notifications() > 0, "write %d is not done, though all of its %d IDs are read: %d are held, with %d notifications outstanding or unread",
		op.number, op.flagged, l.held.Load(), h.k.notifications())
}

// checkReturn is about what the call returned.
func (h *history) checkReturn(op *writeOp) {
	if op.err == nil {
		h.assert(op.queued == op.total, "write %d: no error, and %d of %d bytes were queued", op.number, op.queued, op.total)
	} else {
		var we *WriteError
		h.assert(errors.As(op.err, &we) && we.Queued == int64(op.queued) && we.Total == int64(op.total) && op.queued < op.total,
			"write %d: %v; %d of %d bytes were queued", op.number, op.err, op.queued, op.total)
	}
	if !op.plain && op.flagged > 0 {
		h.assert(op.ticket.c != nil && op.ticket.c != copiedTicket.c, "write %d: %d flagged calls, and no ticket", op.number, op.flagged)
	}
}

// checkResult is about a ticket that has just become done.
func (h *history) checkResult(op *writeOp) {
	switch err := op.result; {
	case err == nil:
		h.assert(op.unacked == 0, "write %d: its ticket reports success, and the peer lacks %d bytes", op.number, op.unacked)
	case errors.Is(err, ErrReleaseUnproven):
		h.assert(h.closed && len(op.ids) > 0, "write %d: release unproven, though %d IDs are unread", op.number, len(op.ids))
	case errors.Is(err, ErrConnFailed):
		h.assert(h.k.dead || h.k.resetNow || h.closed, "write %d: the connection is said to have failed", op.number)
	default:
		h.assert(false, "write %d: %v", op.number, err)
	}
	if o := op.ticket.Outcome(); op.flagged == 0 && op.queued > 0 && op.ticket.c != nil {
		h.assert(o == OutcomeCopied || o == OutcomeUnknown, "write %d, copied whole: %v", op.number, o)
	}
}

// checkMemory is about who may use it.
func (h *history) checkMemory() {
	out := 0
	for _, m := range h.own {
		r, loans := m.p.r, 0
		for _, op := range h.ops {
			if n := op.loans[r]; n > 0 && slices.Contains(m.users, op) && (!op.returned || op.lent()) {
				loans += n
			}
		}
		s := r.state.Load()
		back := m.released && loans == 0
		if !back && !r.lost.Load() { // in the place of what is lost there is another
			out++
		}
		switch {
		case r.home == nil || !back:
			want := uint64(m.p.gen)<<regionGen | uint64(loans*regionLoan)
			if m.released {
				want |= regionReleased
			}
			h.assert(s == want, "memory is in state %#x, want %#x: %d loans, released %v", s, want, loans, m.released)
		default:
			h.assert(uint32(s>>regionGen) > m.p.gen, "memory has not come back to its pool: state %#x", s)
		}
		if r.home == nil && !back && !r.lost.Load() {
			out--
		}
	}
	if h.getters() == 0 {
		h.assert(len(h.pool.free) == historyPool-out, "the pool has %d buffers, want %d", len(h.pool.free), historyPool-out)
	}
}

func (h *history) getters() (n int) {
	for _, w := range h.waiters {
		if w.get && !w.returned {
			n++
		}
	}
	return n
}

// checkWaiters is about who must have returned by now.
func (h *history) checkWaiters() {
	for _, w := range h.waiters {
		if w.get {
			h.assert(w.returned || len(h.pool.free) == 0, "Get waits though there is memory")
			continue
		}
		over := !slices.ContainsFunc(w.ops, func(op *writeOp) bool { return !op.done })
		h.assert(w.returned == (over || w.cancelled), "%s: returned %v, though all it waits for is done: %v, cancelled: %v", w.what, w.returned, over, w.cancelled)
		if w.returned && w.err == nil {
			for _, op := range w.ops {
				h.assert(op.result == nil, "%s reports success, and write %d has failed: %v", w.what, op.number, op.result)
			}
		}
	}
}

func (h *history) checkCounts() {
	ids, unproven, pending, charged := 0, false, 0, int64(0)
	for _, op := range h.ops {
		ids += len(op.ids) - op.uncommitted
		unproven = unproven || op.unproven()
		for id := range op.ids {
			charged += h.k.charges[id]
		}
		if len(op.ids) > 0 && !op.unproven() {
			pending += op.queued
		}
	}
	s := h.c.Stats()
	trusted := !h.c.s.ledger().distrusted()
	if early := h.early(); !unproven && !early && trusted {
		h.assert(s.IDsInFlight == uint64(ids), "%d IDs in flight, want %d", s.IDsInFlight, ids)
		pinned := h.c.s.ledger().total.pinned.Load()
		h.assert(pinned == charged || pinned > charged && ids > 0 && h.k.aborted, "%d bytes pinned by the tally of the process, want %d", pinned, charged)
	}
	h.assert(s.BytesInFlight >= 0 && (s.BytesInFlight <= int64(pending) || !trusted), "%d bytes in flight, of writes of %d", s.BytesInFlight, pending)
}

// early reports whether a call is parked whose completion may have been read already.
func (h *history) early() bool { return len(h.k.parked) > 0 }

// checkWatch is about completions that nobody would ever read.
func (h *history) checkWatch() {
	k := h.k
	closing := k.closing[mainFD] && k.open[mainFD] && h.closes > 0 // a call is in the kernel, and Close goes on when it returns
	if len(k.queue) == 0 || !k.joined || closing || k.reports() {
		return
	}
	h.assert(k.deferred, "%d messages are queued, and nobody will look", len(k.queue))
	waiting := 0
	for _, w := range h.waiters {
		if !w.returned {
			waiting++
		}
	}
	h.assert(waiting == 0 || k.unarmed, "%d messages are queued, a goroutine waits, and nobody reads them", len(k.queue))
}
