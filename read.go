package zcnet

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"
)

// This file is reading: as *net.TCPConn does, and through what completions do to the runtime's poller.

// Read reads as *net.TCPConn does, and goes on doing so while completions arrive.
func (c *Conn) Read(b []byte) (int, error) {
	defer runtime.KeepAlive(c) // a Conn in use is not dropped
	c.s.readMu.Lock()
	defer c.s.readMu.Unlock()
	n, err := c.TCPConn.Read(b)
	if refused(err) {
		n, err = c.s.read(b)
	}
	if c.s.ending() { // what it has met may be the work of Close
		return 0, c.s.opError("read", net.ErrClosed)
	}
	return n, err
}

// refused reports whether the runtime's poller refused a read before its system call. It does so ("not pollable")
// after a completion has arrived while the socket was neither readable nor writable, which is normal under bulk
// sending: epoll then reports a bare EPOLLERR, the poller marks the descriptor as broken for reading
// (netpollcheckerr in runtime/netpoll.go), and takes the mark back only at another kind of event. The error is not
// exported, so it is told by what it is not.
func refused(err error) bool {
	op, ok := err.(*net.OpError)
	if !ok || op.Timeout() || errors.Is(op.Err, net.ErrClosed) {
		return false
	}
	var errno syscall.Errno
	return !errors.As(op.Err, &errno) && !errors.Is(op.Err, os.ErrClosed)
}

// read reads without the runtime's poller.
func (s *socket) read(b []byte) (n int, err error) {
	if waitErr := s.readWith("read", func(fd uintptr) bool {
		n, err = receiveNow(fd, b)
		return err != syscall.EAGAIN
	}); waitErr != nil {
		return 0, waitErr
	}
	switch {
	case err != nil:
		return 0, s.opError("read", err)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// readWith calls try, as RawConn.Read does, until it reports true: at once, and
// each time the library's poller tells that there may be something to read. A
// look at the socket that does not wait leaves the poller alone.
func (s *socket) readWith(op string, try func(fd uintptr) (done bool)) error {
	s.stats.slowReads.Add(1)
	var ready <-chan struct{}
	blind := false // there is no event to be had now
	patience := firstDeadlineCheck
	for {
		if s.readDeadlinePassed() {
			return s.opError(op, os.ErrDeadlineExceeded)
		}
		done := false
		if err := s.raw.Control(func(fd uintptr) { done = try(fd) }); err != nil {
			return s.opError(op, cause(err))
		}
		if done {
			return nil
		}
		if ready != nil || blind {
			s.watch.wait(ready, patience)
			patience = min(2*patience, lastDeadlineCheck)
		}
		var err error
		if ready, err = s.awaitRead(); errors.Is(err, net.ErrClosed) {
			return s.opError(op, err)
		}
		if blind = err != nil; blind {
			patience = firstDeadlineCheck
		}
	}
}

// A blocked read asks the runtime for a deadline that was set before the connection was wrapped, less and less often:
// it is noticed at the latest when twice its time has passed.
const (
	firstDeadlineCheck = 10 * time.Millisecond
	lastDeadlineCheck  = time.Minute
)

// readDeadlinePassed reports whether a read must fail. The runtime looks at deadlines before it refuses to poll
// (netpollcheckerr in runtime/netpoll.go).
func (s *socket) readDeadlinePassed() bool {
	if deadline, known := s.watch.readDeadline(); known {
		return clock() >= deadline
	}
	err := s.raw.Read(func(uintptr) bool { return true })
	return errors.Is(err, os.ErrDeadlineExceeded)
}

// wait returns when ready is closed, or when it is time to look again: at the
// deadline, or after patience if there is none or it is not known, or no event.
// Nothing else tells that the descriptor was closed other than by Close.
func (w *watch) wait(ready <-chan struct{}, patience time.Duration) {
	if deadline, known := w.readDeadline(); known && deadline != noDeadline {
		left := deadline - clock()
		if ready == nil {
			left = min(left, patience)
		}
		patience = left
	}
	timer := newTimer(patience)
	defer timer.Stop()
	select {
	case <-ready:
	case <-timer.C:
	}
}

// WriteTo copies what is read to w until end of file, as *net.TCPConn does: by splice(2) to TCP and unix connections and
// to files.
func (c *Conn) WriteTo(w io.Writer) (int64, error) {
	switch w := w.(type) {
	case *Conn:
		return c.spliceTo(w.TCPConn)
	case *net.TCPConn, *net.UnixConn, *os.File:
		return c.spliceTo(w)
	}
	return io.Copy(w, onlyReader{c})
}

// spliceTo lets the kernel move the bytes. When the runtime's poller refuses the source, what can be read is
// carried over by hand; then the kernel goes on.
func (c *Conn) spliceTo(w io.Writer) (written int64, err error) {
	defer runtime.KeepAlive(c)
	var buf []byte
	for {
		n, err := c.TCPConn.WriteTo(w)
		written += n
		if !refused(err) {
			return written, err
		}
		if buf == nil {
			buf = make([]byte, 64<<10)
		}
		m, err := c.readRefused(buf)
		if err == io.EOF {
			return written, nil
		}
		if err != nil {
			return written, err
		}
		k, err := w.Write(buf[:m])
		written += int64(k)
		if err != nil {
			return written, err
		}
	}
}

// readRefused is Read after the runtime's poller has refused it.
func (c *Conn) readRefused(b []byte) (int, error) {
	c.s.readMu.Lock()
	defer c.s.readMu.Unlock()
	return c.s.read(b)
}

// onlyReader hides every other method.
type onlyReader struct{ io.Reader }
