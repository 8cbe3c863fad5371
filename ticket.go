package zcnet

import (
	"context"
	"errors"
)

// This file is what a caller sees of a write's completion: the ticket, its outcome and its errors.

// ErrConnFailed is what a [Ticket] reports when the connection failed (reset, timed out, or aborted by Close) before it
// was known that the peer's kernel had acknowledged the ticket's bytes. The memory is free; the data may have arrived or
// not. Read and Write of the connection report the cause.
var ErrConnFailed = errors.New("connection failed, and the data is not known to have been acknowledged")

// ErrReleaseUnproven is the one error of a [Ticket] after which its memory is not free: Close gave the descriptor
// up before the kernel had released the pages. Memory from [Alloc] is kept for ever by the library, and memory
// from [Pin] is never collected; the caller must not write to it, for what is written may still be sent.
var ErrReleaseUnproven = errors.New("the kernel never released the memory of this write: do not reuse it")

// Outcome says how the bytes of one write travelled. It is a hint for measuring and tuning, not for correctness:
// the kernel may lose or spread the mark that distinguishes ZeroCopied from MaybeCopied when it merges
// notifications (skb_zerocopy_notify_extend in net/core/skbuff.c).
type Outcome uint8

const (
	// OutcomePending means that the ticket is not done.
	OutcomePending Outcome = iota
	// OutcomeZeroCopied means that the kernel sent every byte from the caller's
	// memory, or, if Wait reports ErrConnFailed, that it copied none.
	OutcomeZeroCopied
	// OutcomeMaybeCopied means that every byte was sent with MSG_ZEROCOPY and that the kernel reported a copy of
	// at least a part (SO_EE_CODE_ZEROCOPY_COPIED).
	OutcomeMaybeCopied
	// OutcomeCopied means that the library sent at least a part by plain copying sends.
	OutcomeCopied
	// OutcomeUnknown is the outcome of the zero Ticket, of memory whose release was never proven, and of a ticket
	// so old that its connection has forgotten it: it remembers at least its last 16 tickets.
	OutcomeUnknown
)

// String returns the outcome in words.
func (o Outcome) String() string {
	switch o {
	case OutcomePending:
		return "pending"
	case OutcomeZeroCopied:
		return "sent without copy"
	case OutcomeMaybeCopied:
		return "perhaps copied by the kernel"
	case OutcomeCopied:
		return "copied by zcnet"
	}
	return "unknown"
}

// A Ticket is one write's claim on its memory. Until it is done the memory belongs to the kernel: it may be read,
// and sent again, but not written. A Ticket is small and comparable, may be copied freely, dropped without harm,
// and used by many goroutines at once. The zero Ticket is done.
type Ticket struct {
	c   *claim
	gen uint64
}

// copiedTicket is the ticket of every write that was copied whole: done when the write returns.
var copiedTicket = func() Ticket {
	c := &claim{l: &ledger{}}
	c.state.Store(claimState(1, OutcomeCopied, nil))
	return c.ticket()
}()

// closedChan is the channel of every ticket that is done.
var closedChan = func() chan struct{} {
	ch := make(chan struct{})
	close(ch)
	return ch
}()

// Ready reports whether the ticket is done, without blocking.
func (t Ticket) Ready() bool {
	if t.pending() {
		t.c.l.await()
	}
	return !t.pending()
}

// pending reports whether the ticket is not done as far as is known.
func (t Ticket) pending() bool { return t.c != nil && t.Outcome() == OutcomePending }

// Done returns a channel that is closed when the ticket is done. What it then came to is told by Wait, which
// returns at once.
func (t Ticket) Done() <-chan struct{} {
	if !t.pending() {
		return closedChan
	}
	done := t.c.l.doneChan(t)
	t.c.l.await()
	return done
}

// Wait blocks until the ticket is done or ctx is. It returns
//
//   - nil when the memory is free and the connection was not known to have
//     failed when the completion came. That the peer's kernel has the bytes it
//     says only of those that went uncopied, whose completion is its
//     acknowledgement. Bytes that were copied, by the library or on the path,
//     may still be in the socket's buffer or in a device's queue, and a later
//     reset that loses them is not reported here: [Conn.Acknowledged] tells
//     when they have arrived;
//   - an error that matches [ErrConnFailed] when the memory is free and the data is not known to have arrived;
//   - an error that matches [ErrChangedInFlight], under Config.Guard, when the memory is free and was written to before;
//   - an error that matches [ErrReleaseUnproven] when the memory will never be known to be free;
//   - ctx.Err() when ctx ended first; the ticket is still pending then, and the memory still lent.
//
// A ticket that is done returns its own result even if ctx has ended. Wait does not look at the connection's
// deadlines.
func (t Ticket) Wait(ctx context.Context) error {
	if t.pending() {
		select {
		case <-t.Done():
		case <-ctx.Done():
			if t.pending() {
				return ctx.Err()
			}
		}
	}
	return t.err()
}

// Outcome tells how the bytes travelled, once the ticket is done.
func (t Ticket) Outcome() Outcome {
	if t.c == nil {
		return OutcomeUnknown
	}
	s := t.c.state.Load()
	if s>>genShift != t.gen {
		return OutcomeUnknown
	}
	return Outcome(s & outcomeMask)
}

// err returns the result of a ticket that is done. A claim that failed is never used for another ticket, so a
// ticket of an earlier generation had none.
func (t Ticket) err() error {
	if t.c == nil {
		return nil
	}
	if s := t.c.state.Load(); s>>genShift != t.gen || s&failedBit == 0 {
		return nil
	}
	t.c.l.mu.Lock()
	defer t.c.l.mu.Unlock()
	return t.c.err
}
