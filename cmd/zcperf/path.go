package main

import (
	"context"
	"errors"
	"net"
	"sync"

	"github.com/zcnet-go/zcnet/internal/perf"
)

// This file joins a sender and a receiver by a link.

// A path is an open link with a receiver at its far end.
type path struct {
	*link
	addr    string
	clocks  clocks
	spinner *worker // keeps the sender's processor busy during transfers; nil if none does
	fire    func()  // ends the receiver, and returns when it has ended
}

// openPath opens a link and has another process receive on it, or this one where that cannot be: then why says so.
func openPath(kind linkKind) (p *path, why, err error) {
	l, listener, err := listen(kind)
	if err != nil {
		return nil, nil, err
	}
	if !canHire {
		return newPath(l, listener, &receiver{}), errors.New("processes cannot inherit a listener here"), nil
	}
	w, why := hireReceiver(listener, l.startReceiver)
	if why != nil {
		return newPath(l, listener, &receiver{}), why, nil
	}
	apart := []perf.Clock{w.spent}
	if l.receiving != nil {
		apart = append(apart, l.receiving)
	}
	return &path{link: l, addr: listener.Addr().String(), clocks: clocksApart(apart), fire: w.fire}, nil, nil
}

// listen opens a link and listens at its far end.
func listen(kind linkKind) (*link, net.Listener, error) {
	l, err := kind.open()
	if err != nil {
		return nil, nil, err
	}
	listener, err := l.listen()
	if err != nil {
		l.close()
		return nil, nil, err
	}
	return l, listener, nil
}

// newPath lets r receive on a link, in this process.
func newPath(l *link, listener net.Listener, r *receiver) *path {
	ctx, cancel := context.WithCancel(context.Background())
	var receiving sync.WaitGroup
	receiving.Go(func() { r.serve(ctx, listener) })
	fire := func() {
		cancel()
		receiving.Wait()
	}
	return &path{link: l, addr: listener.Addr().String(), clocks: clocksTogether(), fire: fire}
}

// remotePath returns the way to a serve in another process.
func remotePath(addr string) *path {
	return &path{link: localLink(addr), addr: addr, clocks: clocksTogether(), fire: func() {}}
}

// keepBusy has a process keep the sender's processor busy during transfers.
func (p *path) keepBusy() (err error) {
	p.spinner, err = hire(hiredToSpin, p.startBeside)
	if err == nil {
		p.clocks.setApart(p.spinner.spent)
	}
	return err
}

// isRemote reports whether the receiver is elsewhere.
func (p *path) isRemote() bool { return p.listen == nil }

// where says in words where a path is.
func (p *path) where() string {
	if p.isRemote() {
		return "to " + p.name
	}
	return "on " + p.name
}

// close ends the receiver and closes the link.
func (p *path) close() error {
	if p.spinner != nil {
		p.spinner.fire()
	}
	p.fire()
	return p.link.close()
}

// occupy moves this process to the sending host's processors, if the link has
// two hosts.
func (p *path) occupy() (restore func(), err error) {
	if p.sendingCPUs == nil {
		return func() {}, nil
	}
	return perf.RunOn(p.sendingCPUs)
}

// transfer makes one transfer over a connection of its own.
func (p *path) transfer(ctx context.Context, m mode, t transfer) (result, error) {
	t.clocks = p.clocks
	restore, err := p.occupy()
	if err != nil {
		return result{}, err
	}
	defer restore()
	if p.spinner != nil {
		if err := p.spinner.tell(spinOn); err != nil {
			return result{}, err
		}
		defer p.spinner.tell(spinOff)
	}
	if m.c != nil {
		return m.c.transfer(ctx, p, t)
	}
	c, err := p.dial(ctx, p.addr, t.congestion)
	if err != nil {
		return result{}, err
	}
	return t.over(ctx, c, m)
}
