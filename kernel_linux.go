package zcnet

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// completionKernel is what completions and Close ask of the system.
type completionKernel interface {
	// poll fills in p's events without waiting.
	poll(fd uintptr, p *[1]unix.PollFd) error
	// receive reads one message of the error queue into hdr. It does not block.
	receive(fd uintptr, hdr *unix.Msghdr) (n int, err error)
	// lostUnacknowledged reports whether the connection is dead and the peer has not acknowledged every byte.
	lostUnacknowledged(fd uintptr) bool

	// connecting reports whether the connection is not established yet. Until
	// then unacknowledged counts nothing.
	connecting(fd uintptr) bool
	// unacknowledged returns how many bytes the peer has not acknowledged,
	// those not sent yet included. It reports false if the kernel does not
	// tell.
	unacknowledged(fd uintptr) (bytes int64, ok bool)

	// join, arm, disarm, setDeferred and remove are the poller's. again and added
	// tell whether the descriptor is in the epoll set already.
	join(s *socket) error
	arm(fd uintptr, s *socket, i interest, again bool) error
	disarm(fd uintptr, s *socket)
	setDeferred(s *socket, on bool)
	remove(fd uintptr, s *socket, added bool)

	// linger returns the socket's SO_LINGER.
	linger(fd uintptr) unix.Linger
	// duplicate makes a second descriptor.
	duplicate(fd uintptr) (keeper, error)
	// endStream shuts the socket down, has its last close(2) not block, drops
	// what was received, and reports whether there was anything.
	endStream(fd uintptr) (dropped bool)
	// backlog returns what the peer has not acknowledged.
	backlog(fd uintptr) backlog
	// resetAtClose has the last close(2) of the socket reset the connection.
	resetAtClose(fd uintptr)
	// disconnect resets the connection, and purges its queues, while
	// notifications can still be read. If it fails, the same happens when the
	// socket's next retransmission or probe is due.
	disconnect(fd uintptr) error
	// close closes the connection's own descriptor. It waits for writes to leave the kernel.
	close() error
}

// duplicate is a second descriptor of a socket.
type duplicate struct {
	*os.File
	raw syscall.RawConn
}

func (d duplicate) Control(f func(fd uintptr)) error { return d.raw.Control(f) }

func (system) poll(fd uintptr, p *[1]unix.PollFd) error {
	p[0] = unix.PollFd{Fd: int32(fd)}
	_, err := unix.Poll(p[:], 0)
	return err
}

func (system) receive(fd uintptr, hdr *unix.Msghdr) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(hdr)), unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func (system) lostUnacknowledged(fd uintptr) bool { return lostUnacknowledged(fd) }

func (system) connecting(fd uintptr) bool {
	state := stateOf(fd)
	return state == tcpSynSent || state == tcpSynRecv
}

func (system) unacknowledged(fd uintptr) (int64, bool) {
	n, err := sendQueue(fd)
	return n, err == nil
}

func (system) join(s *socket) error { return thePoller.join(s) }
func (system) arm(fd uintptr, s *socket, i interest, again bool) error {
	return thePoller.arm(int(fd), s, i, again)
}
func (system) disarm(fd uintptr, s *socket)             { thePoller.disarm(int(fd)) }
func (system) setDeferred(s *socket, on bool)           { thePoller.setDeferred(s, on) }
func (system) remove(fd uintptr, s *socket, added bool) { thePoller.remove(int(fd), s, added) }

func (system) linger(fd uintptr) unix.Linger {
	l, err := unix.GetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER)
	if err != nil {
		return unix.Linger{}
	}
	return *l
}

func (system) duplicate(fd uintptr) (keeper, error) {
	dup, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	file := os.NewFile(uintptr(dup), "tcp")
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	return duplicate{file, raw}, nil
}

func (system) endStream(fd uintptr) (dropped bool) {
	_ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{}) // with a time the last close(2) would block
	_ = unix.Shutdown(int(fd), unix.SHUT_RDWR)                                          // fails if the peer has reset: then nothing is left to end
	return discardReceived(fd)
}

func (system) backlog(fd uintptr) backlog { return backlogOf(fd) }

func (system) resetAtClose(fd uintptr) {
	_ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

func (system) disconnect(fd uintptr) error {
	err := disconnect(fd)
	if err != nil {
		expire(fd)
	}
	return err
}

func (k system) close() error { return k.tc.Close() }
