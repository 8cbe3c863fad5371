package main

import (
	"io"
	"net"

	"github.com/zcnet-go/zcnet/cmd/zcvm/internal/plan"
)

// This file is the host's end of a transfer.

// A receiver takes one stream and compares it.
type receiver struct {
	l    net.Listener
	got  plan.Checker
	err  error
	done chan struct{}
}

// listen begins to wait for the stream, on a port of the loopback device that only this machine, and the virtual one's
// user network, can reach.
func listen() (*receiver, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &receiver{l: l, done: make(chan struct{})}
	go r.receive()
	return r, nil
}

// port returns where the receiver listens.
func (r *receiver) port() int { return r.l.Addr().(*net.TCPAddr).Port }

func (r *receiver) receive() {
	defer close(r.done)
	c, err := r.l.Accept()
	if err != nil {
		r.err = err
		return
	}
	defer c.Close()
	_, r.err = io.Copy(&r.got, c)
}

// close stops waiting, and returns what has come. The machine has ended by then, and its connection with it.
func (r *receiver) close() (plan.Checker, error) {
	r.l.Close()
	<-r.done
	return r.got, r.err
}
