package main

import (
	"context"
	"net"
	"sync"
)

// This file joins a sender and a receiver by a link.

// A path is an open link with a receiver at its far end, which is this process unless the link has no listen.
type path struct {
	*link
	addr     string
	cancel   context.CancelFunc
	receiver sync.WaitGroup
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
	return newPath(l, listener, &receiver{}), nil
}

// newPath lets r receive on a link.
func newPath(l *link, listener net.Listener, r *receiver) *path {
	ctx, cancel := context.WithCancel(context.Background())
	p := &path{link: l, addr: listener.Addr().String(), cancel: cancel}
	p.receiver.Go(func() { r.serve(ctx, listener) })
	return p
}

// remotePath returns the way to a serve in another process.
func remotePath(addr string) *path {
	l := &link{name: addr, dial: dialTCP, close: func() error { return nil }}
	return &path{link: l, addr: addr, cancel: func() {}}
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
	p.cancel()
	p.receiver.Wait()
	return p.link.close()
}

// transfer makes one transfer over a connection of its own.
func (p *path) transfer(ctx context.Context, m mode, t transfer) (result, error) {
	c, err := p.dial(ctx, p.addr)
	if err != nil {
		return result{}, err
	}
	s, err := openSender(m, c)
	if err != nil {
		return result{}, err
	}
	return t.run(ctx, s)
}
