package main

import (
	"context"
	"net"

	"github.com/zcnet-go/zcnet/internal/lab"
)

// This file is the links over which is sent.

// linkNames are all links.
var linkNames = []string{"loopback", "lab"}

// A link is a pair of hosts and the ways between them.
type link struct {
	name         string
	ways         []way
	disturbances []disturbance
	without      map[string]error // faults that it should have and has not
	close        func() error
}

// A way is how to connect: a family of addresses.
type way struct {
	listen func() (net.Listener, error)
	dial   func(ctx context.Context, to net.Addr) (net.Conn, error)
}

func openLink(name string, faults map[string]bool) (*link, error) {
	if name == "lab" {
		return openLab(faults)
	}
	return openLoopback()
}

// openLoopback returns the ways over the loopback device that this system has.
func openLoopback() (*link, error) {
	l := &link{name: "loopback", close: func() error { return nil }}
	var err error
	for _, at := range []struct{ listen, dial string }{
		{"127.0.0.1", "127.0.0.1"},
		{"::1", "::1"},
		{"::", "127.0.0.1"}, // IPv4 on an IPv6 socket, which is what Go's listeners mostly have
	} {
		w := loopbackWay(at.listen, at.dial)
		if err = w.try(); err == nil {
			l.ways = append(l.ways, w)
		}
	}
	if len(l.ways) == 0 {
		return nil, err
	}
	return l, nil
}

func loopbackWay(listen, dial string) way {
	return way{
		listen: func() (net.Listener, error) {
			var config net.ListenConfig
			config.SetMultipathTCP(false) // it has no MSG_ZEROCOPY
			return config.Listen(context.Background(), "tcp", net.JoinHostPort(listen, "0"))
		},
		dial: func(ctx context.Context, to net.Addr) (net.Conn, error) {
			var dialer net.Dialer
			dialer.SetMultipathTCP(false)
			return dialer.DialContext(ctx, "tcp", withPort(dial, to))
		},
	}
}

// try reports why a way cannot be gone.
func (w way) try() error {
	l, err := w.listen()
	if err != nil {
		return err
	}
	defer l.Close()
	c, err := w.dial(context.Background(), l.Addr())
	if err != nil {
		return err
	}
	return c.Close()
}

// withPort returns the address of host with the port of another.
func withPort(host string, addr net.Addr) string {
	_, port, _ := net.SplitHostPort(addr.String())
	return net.JoinHostPort(host, port)
}

// openLab builds the copy-free link, and what disturbs it.
func openLab(faults map[string]bool) (*link, error) {
	pair, err := lab.New()
	if err != nil {
		return nil, err
	}
	l := &link{name: "lab", without: make(map[string]error), close: pair.Close}
	v4, v6 := pair.Receiver.IPv4().String(), pair.Receiver.IPv6().String()
	for _, at := range []struct{ listen, dial string }{{v4, v4}, {v6, v6}, {"::", v4}} {
		l.ways = append(l.ways, way{
			listen: func() (net.Listener, error) {
				return pair.Receiver.ListenAddr("tcp", net.JoinHostPort(at.listen, "0"))
			},
			dial: func(ctx context.Context, to net.Addr) (net.Conn, error) {
				return pair.Sender.Dial(ctx, "tcp", withPort(at.dial, to))
			},
		})
	}
	l.disturb(pair, faults)
	return l, nil
}
