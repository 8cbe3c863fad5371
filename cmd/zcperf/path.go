package main

import (
	"context"
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

// openPath opens a link and begins to receive on it.
func openPath(kind linkKind) (*path, error) {
	l, err := kind.open()
	if err != nil {
		return nil, err
	}
	listener, err := l.listen()
	if err != nil {
		l.close()
		return nil, err
	}
	if !canHire {
		return newPath(l, listener, &receiver{}), nil
	}
	p := &path{link: l, addr: listener.Addr().String()}
	if p.receiver, p.fire, err = hire(listener); err != nil {
		l.close()
		return nil, err
	}
	return p, nil
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
	return &path{link: l, addr: addr, fire: func() {}}
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
