package main

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zcnet-go/zcnet"
)

// This file is one end of a connection: its sender, its receiver, and who else uses it meanwhile.

// An end is one end of a connection.
type end struct {
	c     *conversation
	which int
	plan  *endPlan

	conn tcpConn
	w    zcnet.ZeroCopyWriter
	zc   *zcnet.Conn // nil if the end is not wrapped, or this system cannot

	// cut is set before anything is done after which calls may fail. An error that comes earlier is wrong.
	cut atomic.Bool

	// The sender's.
	out     stream
	sent    atomic.Int64 // bytes that are in the stream
	own     int64        // of them by calls that Conn.Stats counts
	stock   *stock
	scratch []byte
	ready   []pending // tickets that the sender itself looks at
	thrown  []mark
	written chan struct{} // closed when it has sent its last byte

	// The receiver's.
	in       checker
	received atomic.Int64
	stalls   []stall
	reached  chan struct{} // closed when the receiver has come to the place where the ending begins
	once     sync.Once
	read     chan struct{} // closed when it has ended

	watchers sync.WaitGroup
}

// tcpConn is what both *net.TCPConn and *zcnet.Conn have.
type tcpConn interface {
	net.Conn
	CloseWrite() error
	SetLinger(sec int) error
	SetReadBuffer(bytes int) error
	SetWriteBuffer(bytes int) error
}

// pending is memory in flight.
type pending struct {
	ticket zcnet.Ticket
	slab   *slab
}

func newEnd(c *conversation, which int, conn net.Conn) (*end, error) {
	p := &c.plan.ends[which]
	e := &end{
		c: c, which: which, plan: p,
		conn: conn.(tcpConn), w: zcnet.NewWriter(conn),
		out:     newStream(c.s.cfg.seed, c.plan.id, which),
		in:      checker{stream: newStream(c.s.cfg.seed, c.plan.id, 1-which)},
		stalls:  p.reading.stalls,
		written: make(chan struct{}),
		reached: make(chan struct{}),
		read:    make(chan struct{}),
	}
	e.zc, _ = conn.(*zcnet.Conn)
	if p.sendBuf > 0 {
		if err := e.conn.SetWriteBuffer(p.sendBuf); err != nil {
			return nil, err
		}
	}
	if p.recvBuf > 0 {
		if err := e.conn.SetReadBuffer(p.recvBuf); err != nil {
			return nil, err
		}
	}
	var err error
	e.stock, err = newStock(p.slabs, p.slabSize)
	return e, err
}

// send takes the steps, and ends the stream.
func (e *end) send() {
	defer close(e.written)
	steps, last := e.plan.steps, []step(nil)
	begins := e.which == e.c.plan.closer
	if ending := e.c.plan.ending; begins && (ending == endInFlight || ending == endLinger) {
		n := max(0, len(steps)-finalSteps)
		steps, last = steps[:n], steps[n:]
	}
	for _, s := range steps {
		if e.c.s.stop.Err() != nil || !e.takeStep(s) {
			break
		}
	}
	if last != nil {
		e.closeInFlight(last)
		return
	}
	if begins && e.c.plan.ending == endBesideWrite {
		return // the other end has to meet the end of the stream by Close
	}
	if err := e.conn.CloseWrite(); err != nil && !e.cut.Load() {
		e.wrong("CloseWrite: %v", err)
	}
}

// closeInFlight sends the last steps once the other end has nothing more to send, and closes at once.
func (e *end) closeInFlight(last []step) {
	<-e.read
	for _, s := range last {
		s.then = thenNothing
		if !e.takeStep(s) {
			break
		}
	}
	if e.c.plan.ending == endLinger {
		_ = e.conn.SetLinger(lingerSeconds) // fails only if the connection has, which Close will find out
	}
	e.c.close(e)
}

// lingerSeconds is how long Close of endLinger waits at most. What it does not see delivered goes on in the background.
const lingerSeconds = 2

// takeStep takes one step. It reports whether there can be another.
func (e *end) takeStep(s step) bool {
	if e.cut.Load() {
		return false
	}
	n, err := e.do(s)
	e.sent.Add(n)
	e.c.s.tally.add(func(f *figures) {
		f.Calls[s.call.String()]++
		f.SentBytes += n
	})
	if s.deadline > 0 {
		e.setDeadline(s.both, time.Time{})
	}
	return e.judge(s, n, err) && e.afterwards(s)
}

// arm sets the step's deadline, right before its call.
func (e *end) arm(s step) {
	if s.deadline > 0 {
		e.setDeadline(s.both, time.Now().Add(s.deadline))
	}
}

// setDeadline fails only on a closed connection, which the next call will say too.
func (e *end) setDeadline(both bool, t time.Time) {
	if both {
		_ = e.conn.SetDeadline(t)
	} else {
		_ = e.conn.SetWriteDeadline(t)
	}
}

// judge says whether a step went as it may, and reports whether there can be another.
func (e *end) judge(s step, n int64, err error) bool {
	switch {
	case n < 0 || n > int64(s.size):
		e.wrong("%v of %d bytes from %v: %d bytes were queued, error %v", s.call, s.size, s.memory, n, err)
	case err == nil && n == int64(s.size):
		return true
	case err == nil:
		e.wrong("%v of %d bytes from %v queued %d and returned no error", s.call, s.size, s.memory, n)
	case isTimeout(err) && s.deadline > 0:
		e.c.s.tally.fault(faultDeadline, 1)
		return true
	case errors.Is(err, errStarved) || !e.cut.Load():
		e.wrong("%v of %d bytes from %v: %v", s.call, s.size, s.memory, err)
	}
	return false
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// afterwards does what comes before the next step. It always reports true.
func (e *end) afterwards(s step) bool {
	e.look()
	switch s.then {
	case thenFlush:
		e.checkFlush(e.w.Flush(e.c.patience))
	case thenFlushBriefly:
		e.flushBriefly(rand.New(rand.NewPCG(s.seed, 2)))
	case thenFlushAll:
		e.flushAll()
	case thenPause:
		pauseFor(e.c.s.stop, s.pause)
	}
	return true
}

// pauseFor waits for d, or until ctx ends.
func pauseFor(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func (e *end) flushBriefly(rng *rand.Rand) {
	ctx, cancel := context.WithTimeout(e.c.patience, time.Duration(rng.Int64N(int64(2*time.Millisecond))))
	defer cancel()
	if err := e.w.Flush(ctx); ctx.Err() == nil {
		e.checkFlush(err)
	}
}

// flushAll is a barrier over this connection and some others, which may fail and take their time.
func (e *end) flushAll() {
	ctx, cancel := context.WithTimeout(e.c.patience, time.Second)
	defer cancel()
	err := zcnet.FlushAll(ctx, append(e.c.s.someOthers(), e.w)...)
	if errors.Is(err, zcnet.ErrReleaseUnproven) {
		e.wrong("FlushAll: %v", err)
	}
}

// checkFlush judges what Flush of this connection returned. That patience has ended is the tickets' to say.
func (e *end) checkFlush(err error) {
	switch {
	case err == nil, e.c.patience.Err() != nil:
	case errors.Is(err, zcnet.ErrReleaseUnproven), !errors.Is(err, zcnet.ErrConnFailed), !e.cut.Load():
		e.wrong("Flush: %v", err)
	}
}

// meddle uses the connection from another goroutine until the sender has ended.
func (e *end) meddle() {
	rng := rand.New(rand.NewPCG(e.plan.meddling, 3))
	for {
		select {
		case <-e.written:
			return
		case <-time.After(time.Duration(rng.Int64N(int64(20 * time.Millisecond)))):
		}
		switch rng.IntN(6) {
		case 0:
			e.flushAll()
		case 1:
			if r := zcnet.Probe(e.conn); r.String() == "" {
				e.wrong("Probe has nothing to say")
			}
		case 2, 3:
			e.flushBriefly(rng)
		default:
			if e.zc != nil {
				_ = e.zc.Stats()
			}
		}
	}
}

// watch has somebody wait for a ticket, and take its memory back.
func (e *end) watch(how watch, s *slab, t zcnet.Ticket) {
	e.c.s.tally.add(func(f *figures) { f.Tickets++ })
	p := pending{t, s}
	if e.c.s.cfg.breakIt {
		poison(s.pinned.Bytes())
	}
	switch how {
	case watchWait:
		e.watchers.Go(func() { e.settled(p, t.Wait(e.c.patience)) })
	case watchDone:
		e.watchers.Go(func() {
			select {
			case <-t.Done():
			case <-e.c.patience.Done():
			}
			e.settled(p, t.Wait(e.c.patience))
		})
	case watchReady:
		e.ready = append(e.ready, p)
	}
}

// look takes the memory back of those tickets that the sender looks at itself.
func (e *end) look() {
	kept := e.ready[:0]
	for _, p := range e.ready {
		if !p.ticket.Ready() {
			kept = append(kept, p)
			continue
		}
		e.settled(p, p.ticket.Wait(e.c.patience))
	}
	clear(e.ready[len(kept):])
	e.ready = kept
}

// lookAgain returns a channel on which it is told when to look, if there is something to look at.
func (e *end) lookAgain() <-chan time.Time {
	if len(e.ready) == 0 {
		return nil
	}
	return time.After(time.Millisecond)
}

// settled takes memory back of which the ticket says that it is free, and judges what else the ticket says.
func (e *end) settled(p pending, err error) {
	switch {
	case err == nil:
	case errors.Is(err, zcnet.ErrConnFailed) && !errors.Is(err, zcnet.ErrReleaseUnproven):
		e.c.s.tally.add(func(f *figures) { f.FailedTickets++ })
		if !e.cut.Load() {
			e.wrong("a ticket: %v", err)
		}
	case errors.Is(err, context.Canceled):
		e.c.s.tally.add(func(f *figures) { f.LostTickets++ })
		e.c.problem(e, "a ticket is not done %v after its connection has ended", e.c.s.cfg.patience)
		return
	default:
		e.wrong("a ticket: %v", err)
		return
	}
	if !p.ticket.Ready() || p.ticket.Outcome() == zcnet.OutcomePending {
		e.wrong("Wait has returned %v, and the ticket is not ready", err)
	}
	p.slab.back()
}

// receive reads until the end of the stream, and checks.
func (e *end) receive() {
	defer close(e.read)
	defer e.reach()
	buf := make([]byte, e.plan.reading.chunk)
	for {
		if d := e.plan.reading.deadline; d > 0 {
			_ = e.conn.SetReadDeadline(time.Now().Add(d)) // fails on a closed connection, as reading will
		}
		done, err := e.receiveSome(buf)
		switch {
		case done:
			return
		case err == nil:
		case isTimeout(err) && e.c.s.faults[faultDeadline]:
			e.c.s.tally.fault(faultDeadline, 1)
			if e.plan.reading.deadline == 0 {
				time.Sleep(time.Millisecond) // it is the sender's, and holds until its call has ended
			}
		case e.cut.Load():
			return
		default:
			e.wrong("reading after %d bytes: %v", e.in.pos, err)
			return
		}
	}
}

// receiveSome reads once, or by io.Copy until something ends it. It reports whether that was the end of the stream.
func (e *end) receiveSome(buf []byte) (done bool, err error) {
	if e.plan.reading.whole {
		_, err = io.Copy(receiver{e}, e.conn)
		return err == nil, err
	}
	n, err := e.conn.Read(buf)
	e.accept(buf[:n])
	if err == io.EOF {
		return true, nil
	}
	return false, err
}

// receiver is an end as a writer of what it has received.
type receiver struct{ e *end }

func (r receiver) Write(b []byte) (int, error) {
	r.e.accept(b)
	return len(b), nil
}

// accept checks received bytes, and stalls where the plan says so.
func (e *end) accept(b []byte) {
	before := e.in.wrong
	e.in.check(b)
	if before == 0 && e.in.wrong > 0 {
		e.c.problem(e, "received %v", e.in.first)
	}
	wrong := e.in.wrong - before
	e.c.s.tally.add(func(f *figures) {
		f.CheckedBytes += int64(len(b))
		f.WrongBytes += wrong
	})
	e.received.Store(e.in.pos)
	if e.in.pos >= e.c.plan.after {
		e.reach()
	}
	for len(e.stalls) > 0 && e.in.pos >= e.stalls[0].at {
		e.c.s.tally.fault(faultStall, 1)
		time.Sleep(e.stalls[0].time)
		e.stalls = e.stalls[1:]
	}
}

// reach says that the receiver is where the ending begins, or will not come there any more.
func (e *end) reach() { e.once.Do(func() { close(e.reached) }) }

// settle waits until nothing of the end is in flight any more, and checks what is left.
func (e *end) settle() {
	for _, p := range e.ready {
		e.watchers.Go(func() { e.settled(p, p.ticket.Wait(e.c.patience)) })
	}
	e.watchers.Wait()
	if e.zc != nil {
		e.checkFlush(e.zc.Flush(e.c.patience))
		if !e.c.until(func() bool { s := e.zc.Stats(); return s.BytesInFlight == 0 && s.IDsInFlight == 0 }) {
			e.c.problem(e, "%d bytes are still in flight %v after Close", e.zc.Stats().BytesInFlight, e.c.s.cfg.patience)
		}
		e.c.s.tally.stats(e.zc.Stats(), e.own)
	}
	gone := append(e.stock.release(), e.thrown...)
	for _, m := range gone {
		if !e.c.until(func() bool { return !m.mapped() }) {
			e.c.s.tally.add(func(f *figures) { f.LeakedMappings++ })
			e.c.problem(e, "memory that was released is still mapped, at %#x", m.addr)
		}
	}
}

// wrong books an error or outcome that should not be, and ends the conversation.
func (e *end) wrong(format string, args ...any) {
	e.c.s.tally.add(func(f *figures) { f.WrongOutcomes++ })
	e.c.problem(e, format, args...)
	e.c.fail()
}
