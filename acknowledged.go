package zcnet

import (
	"context"
	"fmt"
	"runtime"
	"time"
)

// Acknowledged waits until the peer's kernel has acknowledged every byte that
// was written to the connection before the call, by whichever call: Write, the
// write calls of Pinned, ReadFrom and io.Copy, sendfile and splice, also of the
// embedded *net.TCPConn. It does not wait for what other goroutines write
// meanwhile. This is what a barrier of a replication or a migration asks for,
// and what neither Ticket.Wait nor Flush tells (see there).
//
// It returns
//
//   - nil when every such byte is acknowledged. The connection may have failed
//     since, which Read and Write report; and that the peer's program has read
//     the bytes, only the peer's program can tell;
//   - an error that matches [ErrConnFailed] when the connection has failed
//     before that: reset, or timed out;
//   - an error that matches net.ErrClosed when the connection was closed,
//     before the call or during it: call Acknowledged before Close. After
//     CloseWrite it works;
//   - an error that matches errors.ErrUnsupported when the system does not tell
//     what is acknowledged;
//   - ctx.Err() when ctx ended first.
//
// The kernel tells of an acknowledgement only for what it sent without copying,
// by the completion. So Acknowledged looks when what is in flight has
// completed, and beside that by a timer, at intervals that grow from one
// millisecond to 50: it returns at most so much later. It does not look at
// deadlines, and leaves them alone. It may be called by many goroutines at
// once.
func (c *Conn) Acknowledged(ctx context.Context) error {
	defer runtime.KeepAlive(c)
	return c.s.awaitAcknowledged(ctx)
}

// The intervals at which Acknowledged looks though no completion has come. They
// are variables for a test.
var (
	firstAsk = time.Millisecond
	lastAsk  = 50 * time.Millisecond
)

// A delivery tells how much of the stream the peer's kernel has. Positions
// count bytes from where the kernel began to.
type delivery struct {
	acked   uint64 // everything before it is acknowledged
	written uint64 // everything before it was written
	dead    bool   // nothing will be acknowledged any more
	opening bool   // the handshake is not complete, so that the positions are not known yet
}

var errNotAcknowledged = fmt.Errorf("a part of what was written before is not acknowledged: %w", ErrConnFailed)

// awaitAcknowledged is Acknowledged.
func (s *socket) awaitAcknowledged(ctx context.Context) error {
	l := s.ledger()
	completed := l.flush()
	if completed != nil {
		l.await()
		defer l.unflush(completed)
	}
	var until uint64 // the position to wait for, from the first look on that tells it
	for known, wait := false, firstAsk; ; wait = min(2*wait, lastAsk) {
		d, err := s.delivery()
		if err != nil {
			return s.opError("acknowledge", cause(err))
		}
		if !known && !d.opening {
			until, known = d.written, true
		}
		switch {
		case known && (d.acked >= until || d.acked >= d.written):
			return nil
		case d.dead:
			return s.opError("acknowledge", errNotAcknowledged)
		}
		timer := newTimer(wait)
		select {
		case <-completed:
			completed = nil
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		timer.Stop()
	}
}
