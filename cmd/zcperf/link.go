package main

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/zcnet-go/zcnet/internal/lab"
)

// This file is about the links over which bench and sweep send.

// dialTimeout bounds the wait for a connection.
const dialTimeout = 10 * time.Second

// A linkKind is a link that can be asked for.
type linkKind struct {
	name string
	open func() (*link, error)
}

func (k linkKind) String() string { return k.name }

// linkKinds returns all links, in the order in which they are measured.
func linkKinds() []linkKind {
	return []linkKind{{"loopback", openLoopback}, {"lab", openLab}}
}

// A link is a way from a sender in this process to a receiver.
type link struct {
	name   string
	listen func() (net.Listener, error) // nil if the receiver is elsewhere
	dial   func(ctx context.Context, addr string) (net.Conn, error)
	close  func() error
}

// openLoopback returns the way over the loopback device, on which the kernel always copies.
func openLoopback() (*link, error) {
	return &link{name: "loopback", listen: listenLoopback, dial: dialTCP, close: func() error { return nil }}, nil
}

// listenLoopback listens on IPv4, or on IPv6 where there is no other.
func listenLoopback() (net.Listener, error) {
	l, err := listenTCP("127.0.0.1:0")
	if err == nil {
		return l, nil
	}
	l, err6 := listenTCP("[::1]:0")
	if err6 == nil {
		return l, nil
	}
	return nil, errors.Join(err, err6)
}

// openLab builds the copy-free link.
func openLab() (*link, error) {
	l, err := lab.New()
	if err != nil {
		return nil, err
	}
	return labLink(l), nil
}

func labLink(l *lab.Link) *link {
	return &link{
		name: "lab",
		listen: func() (net.Listener, error) {
			return l.Receiver.ListenAddr("tcp", net.JoinHostPort(l.Receiver.IPv4().String(), "0"))
		},
		dial: func(ctx context.Context, addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, dialTimeout)
			defer cancel()
			return l.Sender.Dial(ctx, "tcp", addr)
		},
		close: l.Close,
	}
}

// listenTCP listens for plain TCP: Go's listeners speak Multipath TCP by default, which has no MSG_ZEROCOPY.
func listenTCP(addr string) (net.Listener, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	return config.Listen(context.Background(), "tcp", addr)
}

// dialTCP connects by plain TCP.
func dialTCP(ctx context.Context, addr string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: dialTimeout}
	dialer.SetMultipathTCP(false)
	return dialer.DialContext(ctx, "tcp", addr)
}
