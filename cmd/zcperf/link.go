package main

import (
	"context"
	"errors"
	"net"
	"os/exec"
	"syscall"
	"time"

	"github.com/zcnet-go/zcnet/internal/lab"
	"github.com/zcnet-go/zcnet/internal/perf"
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

// linkKinds returns all links.
func linkKinds() []linkKind {
	return append(usualLinks(), linkKind{"lab-inline", openInlineLab})
}

// usualLinks returns those that are measured if none is asked for, in order.
func usualLinks() []linkKind {
	return []linkKind{{"loopback", openLoopback}, {"lab", openLab}}
}

// A link is a way from a sender in this process to a receiver.
type link struct {
	name   string
	listen func() (net.Listener, error) // nil if the receiver is elsewhere
	dial   func(ctx context.Context, addr, congestion string) (net.Conn, error)
	close  func() error

	// inline says why the receiving end works inside the sender's calls although
	// the link is meant to be two hosts. It is empty if it does not.
	inline string
	// receiving tells the processor time of the receiving end's thread. It is nil
	// if there is none.
	receiving perf.Clock
	// sendingCPUs are the processors of the sending host. It is nil if senders may
	// run anywhere.
	sendingCPUs []int

	startReceiver startFunc // starts the receiving process
	startBeside   startFunc // starts what is to compete with the sender
	startSender   startFunc // starts a sending process
}

// A startFunc starts a process that belongs to one of a link's hosts.
type startFunc func(*exec.Cmd) error

// localLink returns a way between processes that need no host of their own.
func localLink(name string) *link {
	return &link{
		name:          name,
		dial:          dialControlled,
		close:         func() error { return nil },
		startReceiver: (*exec.Cmd).Start,
		startBeside:   (*exec.Cmd).Start,
		startSender:   (*exec.Cmd).Start,
	}
}

// openLoopback returns the way over the loopback device, on which the kernel
// always copies.
func openLoopback() (*link, error) {
	l := localLink("loopback")
	l.listen = listenLoopback
	return l, nil
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
	return labLink("lab", l), nil
}

// openInlineLab builds the same with the receiving end at the sender's expense.
func openInlineLab() (*link, error) {
	l, err := lab.NewInline()
	if err != nil {
		return nil, err
	}
	return labLink("lab-inline", l), nil
}

func labLink(name string, l *lab.Link) *link {
	link := &link{
		name: name,
		listen: func() (net.Listener, error) {
			return l.Receiver.ListenAddr("tcp", net.JoinHostPort(l.Receiver.IPv4().String(), "0"))
		},
		dial: func(ctx context.Context, addr, congestion string) (c net.Conn, err error) {
			err = l.Sender.Do(func() error {
				c, err = dialControlled(ctx, addr, congestion)
				return err
			})
			return c, err
		},
		close:         l.Close,
		inline:        l.Inline(),
		startReceiver: l.StartReceiver,
		startBeside:   l.StartBeside,
		startSender: func(cmd *exec.Cmd) error {
			return l.Sender.Do(func() error { return l.StartBeside(cmd) })
		},
	}
	if link.inline == "" {
		link.receiving, link.sendingCPUs = l.ReceivingTime, l.SendingCPUs()
	}
	return link
}

// listenTCP listens for plain TCP: Go's listeners speak Multipath TCP by default, which has no MSG_ZEROCOPY.
func listenTCP(addr string) (net.Listener, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	return config.Listen(context.Background(), "tcp", addr)
}

// dialTCP connects by plain TCP.
func dialTCP(ctx context.Context, addr string) (net.Conn, error) {
	return dialControlled(ctx, addr, "")
}

// dialControlled connects with a congestion control, empty for the system's. It
// is set before there is a connection: one that begins with BBR goes on pacing
// under another control (bbr_init in net/ipv4/tcp_bbr.c sets sk_pacing_status,
// and nothing takes that back), which costs timers.
func dialControlled(ctx context.Context, addr, congestion string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: dialTimeout}
	dialer.SetMultipathTCP(false)
	if congestion != "" {
		dialer.Control = func(_, _ string, socket syscall.RawConn) error { return setCongestion(socket, congestion) }
	}
	return dialer.DialContext(ctx, "tcp", addr)
}
