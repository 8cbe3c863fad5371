package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/zcnet-go/zcnet/internal/cli"
	"github.com/zcnet-go/zcnet/internal/perf"
)

// This file is the receiving side, of serve and of bench.

const (
	// headerTimeout ends connections that do not say what they want.
	headerTimeout = 10 * time.Second
	// receiveBuffer is what one read takes.
	receiveBuffer = 256 << 10
	// acceptPause is the wait after a failed accept, as for want of descriptors.
	acceptPause = 100 * time.Millisecond
)

// A receiver receives from any number of senders.
type receiver struct {
	work *work            // done for every sender, whatever it asks for; nil does what each asks for
	raw  bool             // senders are any programs: there is no header and no answer
	done func(connection) // called once for each connection, possibly by many goroutines at once; may be nil
}

// A connection is what became of one sender.
type connection struct {
	from   net.Addr
	header header // zero for a raw one
	begun  bool   // the content has
	work   work
	answer trailer
	took   time.Duration
	err    error
}

// serve accepts and receives until ctx ends, closes l, and returns when all its goroutines have ended.
func (r *receiver) serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	var handlers sync.WaitGroup
	defer handlers.Wait()
	for {
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			time.Sleep(acceptPause)
		default:
			handlers.Go(func() { r.handle(ctx, c) })
		}
	}
}

// handle serves one connection and closes it. The end of ctx ends it at once.
func (r *receiver) handle(ctx context.Context, c net.Conn) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	conn := connection{from: c.RemoteAddr()}
	conn.err = r.receive(c.(*net.TCPConn), &conn)
	if ctx.Err() != nil && conn.err != nil {
		conn.err = cli.ErrInterrupted
	}
	if r.done != nil {
		r.done(conn)
	}
}

// receive takes one stream, from its header to its trailer.
func (r *receiver) receive(c *net.TCPConn, conn *connection) (err error) {
	if !r.raw {
		if err := conn.readHeader(c); err != nil {
			return err
		}
	}
	conn.begun = true
	conn.work = conn.header.Work
	if r.work != nil {
		conn.work = *r.work
	}
	start := time.Now()
	conn.answer, err = conn.work.do(c, conn.header.Region)
	conn.took = time.Since(start)
	if err != nil || r.raw {
		return err
	}
	return writeTrailer(c, conn.answer)
}

// readHeader reads what goes before the content. A sender has to say soon what
// it wants.
func (conn *connection) readHeader(c *net.TCPConn) (err error) {
	if err := c.SetReadDeadline(time.Now().Add(headerTimeout)); err != nil {
		return err
	}
	if conn.header, err = readHeader(c); err != nil {
		return err
	}
	return c.SetReadDeadline(time.Time{})
}

// do receives the content until the end of the stream, and returns the answer to it. It does so too if the stream
// ends by an error.
func (w work) do(c *net.TCPConn, region int64) (t trailer, err error) {
	switch w {
	case workVerify:
		check := checker{region: region}
		err = receive(c, check.check)
		return trailer{Received: check.pos, Checked: true, Wrong: check.wrong, First: check.first}, err
	case workDiscard:
		t.Received, err = perf.Discard(c)
		return t, err
	}
	err = receive(c, func(b []byte) { t.Received += int64(len(b)) })
	return t, err
}

// receive calls f with what arrives until the end of the stream.
func receive(c *net.TCPConn, f func(b []byte)) error {
	buf := make([]byte, receiveBuffer)
	for {
		n, err := c.Read(buf)
		f(buf[:n])
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// String describes the connection in one line.
func (c connection) String() string {
	if !c.begun {
		return fmt.Sprintf("%v: %v", c.from, c.err)
	}
	text := fmt.Sprintf("%v: %v, in %.3f s, %.2f GB/s", c.from, c.answer, c.took.Seconds(), gbPerS(c.answer.Received, c.took))
	switch {
	case c.err != nil:
		return fmt.Sprintf("%s; ended early: %v", text, c.err)
	case c.answer.Received < c.header.Total:
		return fmt.Sprintf("%s; cut short by the sender, of %d bytes", text, c.header.Total)
	}
	return text
}

// String tells what was received.
func (t trailer) String() string {
	switch {
	case !t.Checked:
		return fmt.Sprintf("%d bytes, not checked", t.Received)
	case t.Wrong > 0:
		return fmt.Sprintf("%d bytes, %d of them WRONG, the first at position %d", t.Received, t.Wrong, t.First)
	}
	return fmt.Sprintf("%d bytes, all checked and right", t.Received)
}
