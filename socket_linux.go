package zcnet

import (
	"math"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file makes the socket's system calls, each without allocating where it lies on the path of a write.

// Flags of message.send.
const (
	msgZeroCopy = unix.MSG_ZEROCOPY
	msgMore     = unix.MSG_MORE
)

// setUserTimeout sets TCP_USER_TIMEOUT, in milliseconds.
func setUserTimeout(raw syscall.RawConn, ms int) (err error) {
	if ctlErr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, ms)
	}); ctlErr != nil {
		return ctlErr
	}
	return os.NewSyscallError("setsockopt TCP_USER_TIMEOUT", err)
}

// A message is the argument of one sendmsg.
type message struct {
	n    int // iovecs
	size int // bytes
	hdr  unix.Msghdr
	iovs [maxIovecs]unix.Iovec
}

func (m *message) clear() {
	clear(m.iovs[:m.n])
	m.n, m.size = 0, 0
}

func (m *message) add(b []byte) {
	m.iovs[m.n].Base = unsafe.SliceData(b)
	m.iovs[m.n].SetLen(len(b))
	m.n++
	m.size += len(b)
}

// send makes one call that does not block, and returns how many bytes it queued: at least one if err is nil.
func (m *message) send(fd uintptr, flags int) (int, error) {
	flags |= unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL
	var n uintptr
	var errno syscall.Errno
	if m.n == 1 { // sendto costs the kernel less
		n, _, errno = unix.Syscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(m.iovs[0].Base)), uintptr(m.size), uintptr(flags), 0, 0)
	} else {
		m.hdr.Iov = &m.iovs[0]
		m.hdr.SetIovlen(m.n)
		n, _, errno = unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&m.hdr)), uintptr(flags))
	}
	if flags&msgZeroCopy == 0 && rejected(errno) { // these calls, by a filter: Write takes others
		n, _, errno = unix.Syscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&m.iovs[0])), uintptr(m.n))
	}
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// receiveNow reads what is there into b. It returns EAGAIN if nothing is, and does
// not wait even where another owner of the socket has put it in blocking mode,
// as (*os.File).Fd does.
func receiveNow(fd uintptr, b []byte) (int, error) {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		case unix.EPERM, unix.EACCES, unix.ENOSYS: // this call, by a filter: Read takes another
			if n, err := unix.Read(int(fd), b); err != unix.EINTR {
				return max(n, 0), err
			}
		default:
			return 0, errno
		}
	}
}

// lostUnacknowledged reports whether the connection is dead and the peer has not acknowledged every byte.
//
// The state is read twice: getsockopt loads it before it takes the socket's lock (tcp_get_info in net/ipv4/tcp.c), so
// that the first call waits for a reset in progress and the second sees its result.
func lostUnacknowledged(fd uintptr) bool {
	_ = dead(fd)
	if !dead(fd) {
		return false
	}
	left, err := sendQueue(fd)
	return err == nil && left > 0
}

// sendQueue returns how many bytes the peer has not acknowledged (SIOCOUTQ,
// tcp(7)). A FIN counts as one.
func sendQueue(fd uintptr) (bytes int64, err error) {
	var n int32
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.SIOCOUTQ, uintptr(unsafe.Pointer(&n)))
	if errno != 0 {
		return 0, os.NewSyscallError("ioctl SIOCOUTQ", errno)
	}
	return int64(n), nil
}

// optionMemory returns sk_omem_alloc (SO_MEMINFO, sk_get_meminfo in
// net/core/sock.c; Linux 4.12).
func optionMemory(fd uintptr) (bytes int64, ok bool) {
	const skMeminfoOptmem, skMeminfoVars = 6, 9 // include/uapi/linux/sock_diag.h
	var info [skMeminfoVars]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	return int64(info[skMeminfoOptmem]), errno == 0 && size > skMeminfoOptmem*4
}

// dead reports whether the connection is in no state any more in which it could send or receive.
func dead(fd uintptr) bool { return stateOf(fd) == tcpClose }

// include/net/tcp_states.h
const (
	tcpSynSent  = 2
	tcpSynRecv  = 3
	tcpFinWait1 = 4
	tcpClose    = 7
	tcpLastAck  = 9
	tcpClosing  = 11
)

// stateOf returns the state of the connection, or 0 if the kernel does not tell.
func stateOf(fd uintptr) byte {
	state, err := unix.GetsockoptByte(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0
	}
	return state
}

// discardReceived drops what was received and not read, which would make the last close(2) reset the connection and lose
// what is still queued (tcp_close in net/ipv4/tcp.c). The caller has shut the socket down for reading, so that there is
// an end to it. With MSG_TRUNC no memory is touched (tcp(7)). It reports whether there was anything.
func discardReceived(fd uintptr) (some bool) {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, fd, 0, 1<<20, unix.MSG_TRUNC|unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR && (errno != 0 || n == 0) {
			return some
		}
		some = some || errno == 0
	}
}

// backlogOf returns what the peer has not acknowledged: nothing if it never
// will, because what a reset has cut off stays unacknowledged for as long as
// the socket is open.
func backlogOf(fd uintptr) backlog {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil || info.State == tcpClose {
		return backlog{}
	}
	left, err := sendQueue(fd)
	if err != nil {
		return backlog{}
	}
	b := backlog{left: left, rtt: time.Duration(info.Rtt) * time.Microsecond}
	if info.Unacked == 0 {
		b.shut = time.Duration(info.Last_data_sent) * time.Millisecond
	}
	return b
}

// disconnect resets the connection and purges its queues, while the descriptor stays open and notifications can
// still be read (tcp_disconnect in net/ipv4/tcp.c).
func disconnect(fd uintptr) error {
	unspec := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&unspec)), unsafe.Sizeof(unspec))
	if errno != 0 {
		return os.NewSyscallError("connect AF_UNSPEC", errno)
	}
	return nil
}

// expire has the connection time out, with the same effect, when its
// retransmission or probe timer fires next. It is for processes that must not
// call connect(2), as under a seccomp filter. If the peer has acknowledged
// nothing for a time, the timer, which backs off, fires within about as long
// again (tcp_write_timeout and tcp_probe_timer in net/ipv4/tcp_timer.c).
func expire(fd uintptr) {
	const ms = 1
	_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, ms)
}

// readLimits asks for the limits.
func readLimits() *limits {
	l := noLimits
	if optmem, err := strconv.ParseUint(readSetting("/proc/sys/net/core/optmem_max"), 10, 64); err == nil {
		l.ids = optmem / notificationCharge
	}
	if memlock, limited := memlockLimit(); limited {
		l.pinned = int64(min(memlock, math.MaxInt64))
	}
	return &l
}

// memlockLimit returns RLIMIT_MEMLOCK, and whether it holds for this process.
func memlockLimit() (limit uint64, limited bool) {
	var rl unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &rl); err != nil {
		return math.MaxUint64, false
	}
	return rl.Cur, rl.Cur != unix.RLIM_INFINITY&math.MaxUint64 && !mayLockMemory()
}

// mayLockMemory reports whether the process has CAP_IPC_LOCK where the kernel
// looks for it.
func mayLockMemory() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err := unix.Capget(&hdr, &data[0])
	return err == nil && data[0].Effective&(1<<unix.CAP_IPC_LOCK) != 0 && capabilityCounts()
}

// capabilityCounts reports whether the kernel heeds this process's
// CAP_IPC_LOCK: in the initial user namespace only (capable in
// kernel/capability.c). A call of more than RLIMIT_MEMLOCK tells, or, where the
// kernel says nothing, the number that the initial namespace has (enum
// init_ns_ino in include/uapi/linux/nsfs.h).
var capabilityCounts = sync.OnceValue(func() bool {
	var rl unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &rl) == nil && rl.Cur < plainCall {
		if tryToPin(int64(rl.Cur)+1) == nil {
			return true
		}
		if tryToPin(1) == nil {
			return false
		}
	}
	const initialUserNamespace = 0xeffffffd
	var st unix.Stat_t
	return unix.Stat("/proc/self/ns/user", &st) == nil && st.Ino == initialUserNamespace
})

// tryToPin asks whether a call of size bytes may be flagged, by a socket that
// was charged nothing yet. The error is nil, ENOBUFS, or says that the kernel
// does not tell. Nothing is sent: the socket is not connected, which the kernel
// sees after it has charged the call (tcp_sendmsg_locked in net/ipv4/tcp.c;
// before, and so does not tell, in Linux 4.20 and earlier).
func tryToPin(size int64) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1); err != nil {
		return err
	}
	const flags = unix.MSG_ZEROCOPY | unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL
	_, _, errno := unix.Syscall6(unix.SYS_SENDTO, uintptr(fd), 0, uintptr(min(size, plainCall)), flags, 0, 0)
	if errno == unix.EPIPE {
		return nil
	}
	return errno
}

// roomToPin returns how much of size RLIMIT_MEMLOCK lets one call pin now,
// halving it until it knows, or unknown.
func roomToPin(size int64) int64 {
	var rl unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_MEMLOCK, &rl) != nil || rl.Cur == unix.RLIM_INFINITY&math.MaxUint64 {
		return unknown
	}
	for ; ; size /= 2 {
		switch err := tryToPin(size); {
		case err == nil:
			return size
		case err != unix.ENOBUFS:
			return unknown
		case size < page:
			return 0
		}
	}
}

// inOurNamespace reports whether the socket is of the calling thread's network
// namespace, or the namespace does not matter. It does since
// net.core.optmem_max is one's own in each (Linux 6.8), and can be told since
// 5.14, by a process that may make a socket.
func inOurNamespace(fd uintptr) bool {
	theirs, err := unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return err == unix.ENOPROTOOPT
	}
	own, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return true // most are
	}
	defer unix.Close(own)
	ours, err := unix.GetsockoptUint64(own, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	return err == nil && ours == theirs
}
