package perf

import (
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// discardCall is the most that one call drops.
const discardCall = 1 << 20

// Discard drops what arrives until the end of the stream, and returns how much that was. With MSG_TRUNC the kernel does not
// copy it to this process (tcp(7)), so that a measurement is one of the sender and the way.
func Discard(c *net.TCPConn) (received int64, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var iov unix.Iovec // of no memory: none is touched
	iov.SetLen(discardCall)
	hdr := unix.Msghdr{Iov: &iov}
	hdr.SetIovlen(1)
	var recvErr error
	err = raw.Read(func(fd uintptr) (done bool) {
		for {
			n, _, errno := unix.Syscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&hdr)), unix.MSG_TRUNC|unix.MSG_DONTWAIT)
			switch {
			case errno == unix.EAGAIN:
				return false
			case errno == unix.EINTR:
			case errno != 0:
				recvErr = os.NewSyscallError("recvmsg MSG_TRUNC", errno)
				return true
			case n == 0:
				return true
			default:
				received += int64(n)
			}
		}
	})
	if err != nil {
		return received, err
	}
	return received, recvErr
}
