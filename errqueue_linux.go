package zcnet

import (
	"encoding/binary"
	"log/slog"
	"math"
	"slices"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file reads the error queue: recvmsg -> parse -> ledger.

// A completion is one range of notification IDs, both ends included, modulo 2^32.
type completion struct {
	lo, hi uint32
	copied bool
}

// parseCompletions appends the completions among the control messages of one error-queue message to cs. It walks all
// of them: timestamps and packet information may stand beside or before.
func parseCompletions(control []byte, cs []completion) []completion {
	for len(control) >= unix.SizeofCmsghdr {
		hdr, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			break
		}
		if c, ok := parseExtendedErr(hdr.Level, hdr.Type, data); ok {
			cs = append(cs, c)
		}
		control = rest
	}
	return cs
}

// parseExtendedErr reads a struct sock_extended_err (include/uapi/linux/errqueue.h) that reports a zero-copy
// completion. The level is that of the socket's family, also where the connection is IPv4 on an IPv6 socket.
func parseExtendedErr(level, typ int32, data []byte) (c completion, ok bool) {
	switch {
	case level == unix.SOL_IP && typ == unix.IP_RECVERR:
	case level == unix.SOL_IPV6 && typ == unix.IPV6_RECVERR:
	default:
		return c, false
	}
	if len(data) < int(unsafe.Sizeof(unix.SockExtendedErr{})) {
		return c, false
	}
	errno, origin, code := binary.NativeEndian.Uint32(data), data[4], data[6]
	if errno != 0 || origin != unix.SO_EE_ORIGIN_ZEROCOPY {
		return c, false
	}
	return completion{
		lo:     binary.NativeEndian.Uint32(data[8:]),
		hi:     binary.NativeEndian.Uint32(data[12:]),
		copied: code&unix.SO_EE_CODE_ZEROCOPY_COPIED != 0,
	}, true
}

// errorQueue is what reading the error queue takes. A completion needs 48 bytes of control messages; the rest is for
// the largest other message there is, a transmit timestamp with SOF_TIMESTAMPING_OPT_STATS.
type errorQueue struct {
	hdr     unix.Msghdr
	iov     unix.Iovec
	poll    [1]unix.PollFd
	news    []completion
	control [2048]byte
	data    [4096]byte
	calls   uint64 // system calls

	s    *socket
	reap func(fd uintptr) // e.reapSocket, bound once
}

var errorQueues = sync.Pool{New: func() any {
	e := &errorQueue{news: make([]completion, 0, 64)}
	e.reap = e.reapSocket
	return e
}}

// reap reads the error queue until it is empty, and sets up who reads it next. It
// blocks for the lock of another reader of the same queue only.
func (s *socket) reap() {
	e := errorQueues.Get().(*errorQueue)
	e.s = s
	err := s.control(e.reap)
	e.s = nil
	errorQueues.Put(e)
	if err != nil {
		s.controlFailed()
	}
	s.deliver()
}

func (e *errorQueue) reapSocket(fd uintptr) {
	e.drainAll(e.s, fd)
	e.s.reaped(fd)
}

// drain reads the error queue until it is empty, and returns how many IDs came back. It does not block, and nothing
// in it waits for the reader of another connection.
func (s *socket) drain(fd uintptr) (ids uint64) {
	e := errorQueues.Get().(*errorQueue)
	defer errorQueues.Put(e)
	return e.drainAll(s, fd)
}

func (e *errorQueue) drainAll(s *socket, fd uintptr) (ids uint64) {
	s.drainMu.Lock()
	defer s.drainMu.Unlock()
	s.stats.drains.Add(1)
	e.calls = 0
	defer func() { s.stats.syscalls.Add(e.calls) }()
	for more := true; more; {
		var ended bool
		more, ended = e.fill(s, fd)
		// Completions of a purged queue look like all others: ask before they are booked. A dead socket sets its
		// error before it purges (tcp_reset, tcp_done_with_error in net/ipv4/tcp_input.c).
		if ended {
			s.suspect(fd)
		}
		if len(e.news) > 0 || s.ledger().held.Load() > 0 {
			s.prove(fd)
		}
		ids += s.book(e.news)
	}
	if s.ledger().doubtful() {
		s.proveReleased(fd)
	}
	return ids
}

// prove asks what the peer has acknowledged, and reports whether the kernel tells.
func (s *socket) prove(fd uintptr) bool {
	l := s.ledger()
	if !s.connected.Load() {
		if s.kernel.connecting(fd) { // TCP Fast Open: SIOCOUTQ tells 0 (tcp_ioctl in net/ipv4/tcp.c)
			return true
		}
		s.connected.Store(true)
	}
	at := l.mark()
	unacked, ok := s.kernel.unacknowledged(fd)
	if !ok {
		l.acknowledged(math.MaxInt64) // completions have to do
		return false
	}
	if unacked == 0 {
		l.acknowledgedAll(at)
	}
	l.acknowledged(at.sent - unacked)
	return true
}

// proveReleased asks whether the kernel holds any memory of flagged calls. The
// notification of a call is charged to the socket's option memory from the call
// until its completion is read (sock_omalloc, msg_zerocopy_alloc). So if none is
// in use, the completions of all calls have been read: by the library, or by
// another program. s.drainMu is held, so that none is read and not yet booked.
// It reports whether the kernel tells.
func (s *socket) proveReleased(fd uintptr) (told bool) {
	l := s.ledger()
	at := l.mark()
	n, ok := s.kernel.optionMemory(fd)
	if !ok || n > 0 {
		return ok
	}
	if l.missing(at) {
		s.distrust(errNoCompletions)
	}
	l.released(at)
	return true
}

// askKernel takes everything from the kernel's accounts that they tell of memory
// in flight. It reports whether they tell anything.
func (s *socket) askKernel() (provable bool) {
	l := s.ledger()
	_ = s.control(func(fd uintptr) {
		if provable = s.prove(fd); l.idle() {
			return
		}
		s.drainMu.Lock()
		defer s.drainMu.Unlock()
		told := s.proveReleased(fd)
		provable = provable || told
	})
	return provable
}

// suspect looks at a socket that shows signs of being dead.
func (s *socket) suspect(fd uintptr) {
	if s.kernel.lostUnacknowledged(fd) {
		s.ledger().fail(ErrConnFailed)
		s.ledger().acknowledged(math.MaxInt64) // there will be no acknowledgement
	}
	s.watch.wake() // the error, if it is one, is for those who wait for data
}

// fill reads completions into e.news, as many as fit. It reports whether there may be more, and whether the socket
// shows signs of being dead: a hang-up, or an error while the queue is empty.
func (e *errorQueue) fill(s *socket, fd uintptr) (more, suspect bool) {
	e.news = e.news[:0]
	for len(e.news) < cap(e.news) {
		events := e.pollNow(s, fd)
		suspect = suspect || events&unix.POLLHUP != 0
		if events&unix.POLLERR == 0 {
			return false, suspect
		}
		switch err := e.receive(s, fd); err {
		case nil, unix.EINTR:
		default:
			s.unreadable(err)
			return false, true
		}
	}
	return true, true // the rest of the queue is not seen yet: look at the socket rather than guess
}

// pollNow returns the socket's events, POLLERR and POLLHUP among them.
func (e *errorQueue) pollNow(s *socket, fd uintptr) int16 {
	for {
		e.calls++
		if err := s.kernel.poll(fd, &e.poll); err != unix.EINTR {
			s.unreadable(err)
			return e.poll[0].Revents
		}
	}
}

// unreadable is called with the error of a call that reads the error queue. If a
// filter forbids it, no completion will ever be read.
func (s *socket) unreadable(err error) {
	if errno, ok := err.(syscall.Errno); ok && rejected(errno) {
		s.distrust(errUnreadable)
	}
}

// receive reads one message of the error queue.
func (e *errorQueue) receive(s *socket, fd uintptr) error {
	e.iov.Base = &e.data[0]
	e.iov.SetLen(len(e.data))
	e.hdr = unix.Msghdr{Iov: &e.iov, Control: &e.control[0]}
	e.hdr.SetIovlen(1)
	e.hdr.SetControllen(len(e.control))
	e.calls++
	n, err := s.kernel.receive(fd, &e.hdr)
	if err != nil {
		return err
	}
	control := e.control[:e.hdr.Controllen]
	known := len(e.news)
	if e.news = parseCompletions(control, e.news); len(e.news) == known {
		s.foreignMessage(control, e.data[:n], int(e.hdr.Flags))
	}
	return nil
}

// foreignMessage keeps a message that is not a completion for Config.ErrorQueue.
func (s *socket) foreignMessage(control, data []byte, flags int) {
	s.stats.foreign.Add(1)
	if s.cfg.ErrorQueue == nil {
		s.log(slog.LevelDebug, "a message of the error queue was dropped, for there is no Config.ErrorQueue", "control", control)
		return
	}
	s.foreign.add(ErrorQueueMessage{
		Control: slices.Clone(control),
		Data:    slices.Clone(data),
		Flags:   flags & (unix.MSG_TRUNC | unix.MSG_CTRUNC),
	})
}

// book passes completions on to the ledger, and to what the connection learns of its path.
func (s *socket) book(news []completion) (ids uint64) {
	for _, c := range news {
		n, ok := s.ledger().completed(c.lo, c.hi, c.copied)
		if !ok {
			s.distrust(errMiscounted)
		}
		ids += n
		if n > 0 && s.path.learn(n, c.copied, clock()) {
			s.log(slog.LevelDebug, "the kernel's copying on this path has changed", "copies", c.copied)
		}
	}
	return ids
}
