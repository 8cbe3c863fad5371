package perf

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file has two senders without any layer: MSG_ZEROCOPY as one writes it
// after reading the kernel's document
// (https://docs.kernel.org/networking/msg_zerocopy.html). Each write is one
// flagged call, as large as it comes. They learn nothing: they go on flagging
// where the kernel copies. They differ in how often the error queue is read.

// errStuck is ENOBUFS of a loop that has nothing to wait for: no completion will ever make room.
var errStuck = fmt.Errorf("ENOBUFS with nothing in flight, as when one write is larger than RLIMIT_MEMLOCK: %w", ErrUnavailable)

const (
	// leastDrain is the number of calls after which the least sender reads the
	// error queue. There is room in it for a multiple of that.
	leastDrain = 32
	// naiveInFlight is the most calls whose lengths are remembered. Long before, net.core.optmem_max ends it.
	naiveInFlight = 1 << 16
	// naivePoll is how long one wait for a completion lasts before deadlines are looked at.
	naivePoll = 20 // milliseconds
)

// A Naive is a connection that sends in this way. One goroutine uses it.
type Naive struct {
	*net.TCPConn
	raw    syscall.RawConn
	readBy atomic.Pointer[time.Time] // read deadline, nil for none
	every  uint32                    // calls after which the error queue is read

	issued    uint32 // flagged calls that queued something: the next notification ID, modulo 2^32
	completed uint32 // of them
	lengths   [naiveInFlight]int32
	n         NaiveCounts

	step func(fd uintptr) bool // s.trySend, bound once
	buf  []byte                // its argument
	sent int                   // its results
	err  error

	control [128]byte
	data    [1]byte // spares Recvmsg a getsockopt, which it makes if there is nothing to receive into
}

// OpenNaive makes c a naive sender, which reads the error queue after every
// call until it is empty.
func OpenNaive(c *net.TCPConn) (*Naive, error) { return openNaive(c, 1) }

// OpenLeast makes c a sender that does the least a Go program can do: it reads
// the error queue after every 32 calls only. Nothing that is written in Go and
// sends by MSG_ZEROCOPY is likely to cost less.
func OpenLeast(c *net.TCPConn) (*Naive, error) { return openNaive(c, leastDrain) }

func openNaive(c *net.TCPConn, every uint32) (*Naive, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &Naive{TCPConn: c, raw: raw, every: every}
	s.step = s.trySend
	var optErr error
	if err := raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1)
	}); err != nil {
		return nil, err
	}
	if optErr != nil {
		return nil, fmt.Errorf("setsockopt SO_ZEROCOPY: %w: %w", optErr, ErrUnavailable)
	}
	return s, nil
}

// Send sends b by one call, and by more if the socket has no room for all of
// it, and returns how much of it is in the stream. The memory may be the
// kernel's until Flush returns: it must neither be collected before nor lie on
// a goroutine's stack.
func (s *Naive) Send(b []byte) (total int64, err error) {
	s.buf = b
	for len(s.buf) > 0 && err == nil {
		if err := s.raw.Write(s.step); err != nil {
			return total, err
		}
		switch s.err {
		case nil:
			total += int64(s.sent)
			if s.book(); s.issued%s.every == 0 {
				err = s.drain()
			}
		case unix.ENOBUFS:
			err = s.noBuffers()
		default:
			err = os.NewSyscallError("send MSG_ZEROCOPY", s.err)
		}
	}
	return total, err
}

// noBuffers waits for a completion to make room.
func (s *Naive) noBuffers() error {
	s.n.Enobufs++
	if s.inFlight() == 0 {
		return errStuck
	}
	return s.pollAndDrain(0)
}

// trySend makes one call. It is called by RawConn.Write, again each time the socket has become writable.
func (s *Naive) trySend(fd uintptr) (done bool) {
	for {
		s.sent, s.err = sendZeroCopy(fd, s.buf)
		if s.err != unix.EINTR {
			return s.err != unix.EAGAIN
		}
	}
}

// sendZeroCopy is send(2), which golang.org/x/sys/unix has only without the
// number of bytes.
func sendZeroCopy(fd uintptr, b []byte) (int, error) {
	const flags = unix.MSG_ZEROCOPY | unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL
	n, _, errno := unix.Syscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), flags, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// book remembers a call that queued something.
func (s *Naive) book() {
	s.lengths[s.issued%naiveInFlight] = int32(s.sent)
	s.issued++
	s.n.Sends++
	s.buf = s.buf[s.sent:]
}

func (s *Naive) inFlight() uint32 { return s.issued - s.completed }

// drain reads completions until there are no more.
func (s *Naive) drain() (err error) {
	if ctlErr := s.raw.Control(func(fd uintptr) { err = s.drainSocket(int(fd)) }); ctlErr != nil {
		return ctlErr
	}
	return err
}

func (s *Naive) drainSocket(fd int) error {
	for {
		_, n, _, _, err := unix.Recvmsg(fd, s.data[:], s.control[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		switch err {
		case nil:
			s.complete(s.control[:n])
		case unix.EINTR:
		case unix.EAGAIN:
			return nil
		default:
			return os.NewSyscallError("recvmsg MSG_ERRQUEUE", err)
		}
	}
}

// complete books the completions among the control messages of one message of the error queue.
func (s *Naive) complete(control []byte) {
	for len(control) > 0 {
		hdr, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return
		}
		v4 := hdr.Level == unix.SOL_IP && hdr.Type == unix.IP_RECVERR
		v6 := hdr.Level == unix.SOL_IPV6 && hdr.Type == unix.IPV6_RECVERR
		if (v4 || v6) && len(data) >= int(unsafe.Sizeof(unix.SockExtendedErr{})) {
			s.completeRange((*unix.SockExtendedErr)(unsafe.Pointer(&data[0])))
		}
		control = rest
	}
}

// completeRange books a range of notification IDs, both ends included.
func (s *Naive) completeRange(ee *unix.SockExtendedErr) {
	if ee.Errno != 0 || ee.Origin != unix.SO_EE_ORIGIN_ZEROCOPY {
		return
	}
	bytes := &s.n.ZeroCopied
	if ee.Code&unix.SO_EE_CODE_ZEROCOPY_COPIED != 0 {
		bytes = &s.n.MaybeCopied
	}
	for id := ee.Info; id != ee.Data+1 && s.inFlight() > 0; id++ {
		s.completed++
		*bytes += int64(s.lengths[id%naiveInFlight])
	}
}

// pollAndDrain waits for a completion or one of events, not for long, and reads the completions that are there.
func (s *Naive) pollAndDrain(events int16) (err error) {
	ctlErr := s.raw.Control(func(fd uintptr) {
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, naivePoll)
		if err != nil && err != unix.EINTR {
			err = os.NewSyscallError("poll", err)
			return
		}
		err = s.drainSocket(int(fd))
	})
	if ctlErr != nil {
		return ctlErr
	}
	return err
}

// SetReadDeadline sets the deadline of Read and Flush.
func (s *Naive) SetReadDeadline(t time.Time) error {
	s.readBy.Store(&t)
	return nil
}

// Read goes round the runtime's poller, which refuses to read ("not pollable") once a completion has come while the
// socket was neither readable nor writable. One finds that out later.
func (s *Naive) Read(b []byte) (n int, err error) {
	for {
		if ctlErr := s.raw.Control(func(fd uintptr) { n, err = unix.Read(int(fd), b) }); ctlErr != nil {
			return 0, ctlErr
		}
		switch {
		case err == unix.EAGAIN || err == unix.EINTR:
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
		if err := s.wait(unix.POLLIN); err != nil {
			return 0, err
		}
	}
}

// Flush waits until the kernel has given all memory back.
func (s *Naive) Flush(ctx context.Context) error {
	for s.inFlight() > 0 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := s.wait(0); err != nil {
			return err
		}
	}
	return nil
}

// wait is pollAndDrain with the read deadline.
func (s *Naive) wait(events int16) error {
	if t := s.readBy.Load(); t != nil && !t.IsZero() && time.Now().After(*t) {
		return os.ErrDeadlineExceeded
	}
	return s.pollAndDrain(events)
}

// Counts tells what has happened so far. After Flush nothing is missing.
func (s *Naive) Counts() NaiveCounts { return s.n }
