package zcnet

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// wrapped holds the sockets that a Conn has been made of, by SO_COOKIE. The
// kernel's notification IDs count all flagged calls of a socket, and each
// completion can be read once only, so that a socket has room for one ledger in
// its life. The lock also makes one step of reading and setting SO_ZEROCOPY.
var wrapped = struct {
	sync.Mutex
	cookies map[uint64]struct{}
}{cookies: map[uint64]struct{}{}}

// takeSocket sets SO_ZEROCOPY, without which the kernel ignores MSG_ZEROCOPY
// silently, and takes the socket. forget is to be called with cookie when its Conn
// is gone.
func takeSocket(raw syscall.RawConn) (cookie uint64, err error) {
	wrapped.Lock()
	defer wrapped.Unlock()
	if ctlErr := raw.Control(func(fd uintptr) {
		if cookie, err = available(int(fd)); err == nil {
			err = setZeroCopy(int(fd))
		}
	}); ctlErr != nil {
		return 0, fmt.Errorf("zcnet: %w", ctlErr)
	}
	if err != nil {
		return 0, unsupported(err.Error())
	}
	wrapped.cookies[cookie] = struct{}{}
	return cookie, nil
}

// forget is for a socket that is closed. There will not be another of its cookie.
func forget(cookie uint64) {
	wrapped.Lock()
	defer wrapped.Unlock()
	delete(wrapped.cookies, cookie)
}

// probeZeroCopy returns why takeSocket would fail, and changes nothing.
func probeZeroCopy(raw syscall.RawConn) (err error) {
	wrapped.Lock()
	defer wrapped.Unlock()
	if ctlErr := raw.Control(func(fd uintptr) {
		if _, err = available(int(fd)); err == nil {
			err = couldSetZeroCopy(int(fd))
		}
	}); ctlErr != nil {
		return fmt.Errorf("zcnet: %w", ctlErr)
	}
	if err != nil {
		return unsupported(err.Error())
	}
	return nil
}

// available returns the socket's cookie, or why its completions are not to be had.
// A socket that has SO_ZEROCOPY set, from its listener or its dialer, is to be had
// unless flagged calls have been made on it, as far as that can be seen.
// wrapped.Mutex is held.
func available(fd int) (cookie uint64, err error) {
	on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY)
	if err != nil {
		return 0, optionError("getsockopt", fd, err)
	}
	if cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE); err != nil {
		return 0, os.NewSyscallError("getsockopt SO_COOKIE", err)
	}
	if _, taken := wrapped.cookies[cookie]; taken {
		return 0, errTaken
	}
	if on != 0 && inUse(fd) {
		return 0, errInUse
	}
	return cookie, nil
}

// inUse reports whether flagged calls on the socket have not completed, or their
// completions were not read.
func inUse(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	if n, err := unix.Poll(p, 0); err == nil && n > 0 && p[0].Revents&unix.POLLERR != 0 {
		return true
	}
	unacked, err := sendQueue(uintptr(fd))
	notes, known := optionMemory(uintptr(fd)) // of socket filters, too
	return err == nil && known && unacked > 0 && notes > 0
}

// setZeroCopy sets the option and reads it back, because a sandbox may take any
// option and know none.
func setZeroCopy(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1); err != nil {
		return optionError("setsockopt", fd, err)
	}
	on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY)
	if err == nil && on != 1 {
		err = fmt.Errorf("the kernel has taken SO_ZEROCOPY, and says that it is %d", on)
	}
	return err
}

// couldSetZeroCopy tries the option on a socket of its own.
func couldSetZeroCopy(fd int) error {
	if protocolOf(fd) == unix.IPPROTO_MPTCP {
		return errMPTCP
	}
	other, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(other)
	return setZeroCopy(other)
}

// optionError explains what the kernel has answered about SO_ZEROCOPY.
func optionError(call string, fd int, err error) error {
	switch {
	case protocolOf(fd) == unix.IPPROTO_MPTCP:
		return errMPTCP
	case err == unix.EBUSY:
		return fmt.Errorf("%s takes SO_ZEROCOPY only before it is connected, as Linux did before 4.17: "+
			"set the option in net.ListenConfig.Control or net.Dialer.Control", kernelName())
	case err == unix.ENOPROTOOPT:
		return errors.New("the kernel has no SO_ZEROCOPY: it needs Linux 4.14 or later, and not a sandbox that stands in for it")
	}
	return os.NewSyscallError(call+" SO_ZEROCOPY", err)
}

var (
	errMPTCP = errors.New("it is Multipath TCP (see net.ListenConfig.SetMultipathTCP and net.Dialer.SetMultipathTCP)")
	errTaken = errors.New("SO_ZEROCOPY is set already: a Conn has been made of this socket, and its completions can be counted once only")
	errInUse = errors.New("SO_ZEROCOPY is set already, and another program sends with MSG_ZEROCOPY on this socket, so that its completions cannot be counted")
)

func protocolOf(fd int) int {
	proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return 0
	}
	return proto
}
