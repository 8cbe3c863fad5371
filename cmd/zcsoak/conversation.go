package main

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zcnet-go/zcnet"
)

// This file is a conversation: one connection, from dialling until nothing of it is left.

// A conversation is a connection in progress.
type conversation struct {
	s    *soaking
	link *link
	plan *plan
	ends [2]*end

	// patience ends when what must have happened has not: some time after the last close, or when nothing moves.
	patience context.Context
	lose     context.CancelFunc
	failed   atomic.Bool // something was wrong, and the ending is not the planned one
}

// converse takes a conversation from its beginning to its end.
func (s *soaking) converse(l *link, p *plan) {
	c := &conversation{s: s, link: l, plan: p}
	c.patience, c.lose = context.WithCancel(context.Background())
	defer c.lose()
	if err := c.connect(); err != nil {
		s.tally.add(func(f *figures) { f.WrongOutcomes++ })
		s.tally.problem("connection %d over %s: %v", p.id, l.name, err)
		return
	}
	c.talk()
	c.settle()
	s.tally.add(func(f *figures) {
		f.Conversations[l.name]++
		f.Endings[p.ending.String()]++
	})
}

// connect makes both ends.
func (c *conversation) connect() error {
	way := c.link.ways[c.plan.family%len(c.link.ways)]
	l, err := way.listen()
	if err != nil {
		return err
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), c.s.cfg.patience)
	defer cancel()
	dialled, err := way.dial(ctx, l.Addr())
	if err != nil {
		return err
	}
	if c.plan.ends[dialler].wrapped {
		dialled = zcnet.Wrap(dialled, &c.plan.ends[dialler].config)
	}
	accepted, err := c.accept(l)
	if err != nil {
		dialled.Close()
		return err
	}
	for i, conn := range []net.Conn{dialled, accepted} {
		if c.ends[i], err = newEnd(c, i, conn); err != nil {
			dialled.Close()
			accepted.Close()
			return err
		}
	}
	return nil
}

// accept waits for the other end to arrive, which takes some time if the link loses packets.
func (c *conversation) accept(l net.Listener) (net.Conn, error) {
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(c.s.cfg.patience)); err != nil {
		return nil, err
	}
	if p := &c.plan.ends[acceptor]; p.wrapped {
		return zcnet.NewListener(l, &p.config).Accept()
	}
	return l.Accept()
}

// talk lasts until both ends have sent and received all they will.
func (c *conversation) talk() {
	c.s.live.add(c)
	defer c.s.live.remove(c)
	var work sync.WaitGroup
	for _, e := range c.ends {
		work.Go(e.send)
		work.Go(e.receive)
		work.Go(e.meddle)
	}
	work.Go(c.end)
	quit := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { c.watch(quit) })
	work.Wait()
	close(quit)
	watching.Wait()
}

// end begins the ending, if it does not come about by itself.
func (c *conversation) end() {
	closer, other := c.ends[c.plan.closer], c.ends[1-c.plan.closer]
	switch c.plan.ending {
	case endBesideWrite:
		<-closer.read
		c.await(closer.written, c.plan.delay/20)
		c.close(closer)
	case endReset:
		c.await(closer.reached, c.plan.delay)
		c.s.tally.fault(faultReset, 1)
		other.cut.Store(true)
		closer.cut.Store(true)
		_ = closer.conn.SetLinger(0)
		_ = closer.conn.Close() // may be wrong about a connection that has failed already
	case endGivenUp:
		c.await(other.reached, c.plan.delay)
		other.cut.Store(true)
		c.close(closer)
	}
}

// await waits until ch is closed, but not longer than d.
func (c *conversation) await(ch <-chan struct{}, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ch:
	case <-timer.C:
	}
}

// close closes an end before its time.
func (c *conversation) close(e *end) {
	c.s.tally.fault(faultClose, 1)
	e.cut.Store(true)
	if err := e.conn.Close(); err != nil && !c.failed.Load() {
		e.wrong("Close: %v", err)
	}
}

// afterCut is by how much there is less patience once an end was closed or reset: the other must soon hear of it.
const afterCut = 4

// watch ends the conversation when nothing has moved for too long.
func (c *conversation) watch(quit <-chan struct{}) {
	tick := time.NewTicker(c.s.cfg.patience / 60)
	defer tick.Stop()
	moved, last := time.Now(), int64(-1)
	for {
		select {
		case <-quit:
			return
		case <-tick.C:
		}
		var now int64
		limit := c.s.cfg.patience
		for _, e := range c.ends {
			now += e.sent.Load() + e.received.Load()
			if e.cut.Load() {
				limit = c.s.cfg.patience / afterCut
			}
		}
		if now != last {
			moved, last = time.Now(), now
			continue
		}
		if time.Since(moved) > limit {
			for _, e := range c.ends {
				if !e.finished() {
					e.wrong("nothing has moved for %v: %s", limit, e.state())
				}
			}
			defer time.AfterFunc(c.s.cfg.patience, c.lose).Stop()
			<-quit
			return
		}
	}
}

// finished reports whether an end has nothing more to do.
func (e *end) finished() bool { return isClosed(e.written) && isClosed(e.read) }

// state says how far an end has come.
func (e *end) state() string {
	return fmt.Sprintf("%d bytes are sent (ended: %v), %d are received (ended: %v), closed or reset here or there: %v",
		e.sent.Load(), isClosed(e.written), e.received.Load(), isClosed(e.read), e.cut.Load())
}

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// fail ends a conversation in which something was wrong, so that it takes no more time.
func (c *conversation) fail() {
	if c.failed.Swap(true) {
		return
	}
	for _, e := range c.ends {
		e.cut.Store(true)
	}
	for _, e := range c.ends {
		_ = e.conn.SetLinger(0)
		_ = e.conn.Close()
	}
}

// settle closes what is still open, waits until nothing is in flight, and compares what was sent with what came.
func (c *conversation) settle() {
	for _, e := range c.ends {
		if err := e.conn.Close(); err != nil && !e.cut.Load() {
			e.wrong("Close at the end: %v", err)
		}
	}
	timer := time.AfterFunc(c.s.cfg.patience, c.lose)
	defer timer.Stop()
	start := time.Now()
	for i, e := range c.ends {
		e.settle()
		c.compare(e, c.ends[1-i])
	}
	if took := time.Since(start); took > c.s.cfg.patience/afterCut && !c.failed.Load() {
		c.ends[c.plan.closer].wrong("what was in flight took %v to come back after both ends were closed", took)
	}
}

// compare checks that all that one end has sent has come to the other, if it must, and no more.
func (c *conversation) compare(from, to *end) {
	sent, came := from.sent.Load(), to.in.pos
	if came > sent || came < sent && c.plan.ending.whole() && !c.failed.Load() {
		c.s.tally.add(func(f *figures) { f.MissingBytes += magnitude(sent - came) })
		c.problem(to, "%d bytes came, %d were sent", came, sent)
	}
}

// until waits for something to become true while there is patience, and reports whether it did.
func (c *conversation) until(ok func() bool) bool {
	for !ok() {
		select {
		case <-c.patience.Done():
			return ok()
		case <-time.After(time.Millisecond):
		}
	}
	return true
}

// problem describes something wrong about an end.
func (c *conversation) problem(e *end, format string, args ...any) {
	who := [2]string{"dialler", "acceptor"}[e.which]
	kind := "a plain connection"
	if e.zc != nil {
		kind = "wrapped"
	}
	c.s.tally.problem("connection %d over %s, %s (%s), ending %v by %s: %s", c.plan.id, c.link.name, who, kind, c.plan.ending,
		[2]string{"dialler", "acceptor"}[c.plan.closer], fmt.Sprintf(format, args...))
}

// live is the conversations that are going on, for those who flush several.
type live struct {
	mu  sync.Mutex
	all map[*conversation]struct{}
}

func (l *live) add(c *conversation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all[c] = struct{}{}
}

func (l *live) remove(c *conversation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.all, c)
}

// someOthers returns the writers of a few connections.
func (s *soaking) someOthers() (ws []zcnet.ZeroCopyWriter) {
	s.live.mu.Lock()
	defer s.live.mu.Unlock()
	for c := range s.live.all { // in no order
		for _, e := range c.ends {
			ws = append(ws, e.w)
		}
		if len(ws) >= 4 {
			break
		}
	}
	return ws
}
