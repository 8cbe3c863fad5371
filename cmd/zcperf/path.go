package main

import (
	"context"
	"errors"
	"net"
	"sync"
)

// This file joins a sender and a receiver by a link.

// A path is an open link with a receiver at its far end.
type path struct {
	*link
	addr     string
	receiver clock  // of the receiver
	fire     func() // ends the receiver, and returns when it has ended
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
	p = &path{link: l, addr: listener.Addr().String()}
	if p.receiver, p.fire, why = hire(listener); why != nil {
		return newPath(l, listener, &receiver{}), why, nil
	}
	return p, nil, nil
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
	return &path{link: l, addr: listener.Addr().String(), receiver: ownClock, fire: fire}
}

// remotePath returns the way to a serve in another process.
func remotePath(addr string) *path {
	l := &link{name: addr, dial: dialTCP, close: func() error { return nil }}
	return &path{link: l, addr: addr, receiver: ownClock, fire: func() {}}
}

// where says in words where a path is.
func (p *path) where() string {
	if p.listen == nil {
		return "to " + p.name
	}
	return "on " + p.name
}

// close ends the receiver and closes the link.
func (p *path) close() error {
	p.fire()
	return p.link.close()
}

// transfer makes one transfer over a connection of its own.
func (p *path) transfer(ctx context.Context, m mode, t transfer) (result, error) {
	c, err := p.dial(ctx, p.addr)
	if err != nil {
		return result{}, err
	}
	t.receiver = p.receiver
	return t.over(ctx, c, m)
}
