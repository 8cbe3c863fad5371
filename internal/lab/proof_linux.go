package lab

// The proof that a link does not copy: a transfer with MSG_ZEROCOPY, and what
// the kernel reports of it on the socket's error queue
// (Documentation/networking/msg_zerocopy.rst). The proof that its receiving end
// works apart: the processor time of that end's thread, and the processors on
// which each end's last packet was handled.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	proofBytes = 1 << 20
	proofSend  = 64 << 10
)

var (
	// errCopied is the proof's answer on a link that copies.
	errCopied = errors.New("the kernel copied")

	// errIdle is its answer where the receiving end's thread did not work.
	errIdle = errors.New("the receiving end's thread used no processor time")

	// errElsewhere is its answer where packets were handled on a processor on
	// which they should not be.
	errElsewhere = errors.New("handled on the wrong processor")
)

// prove transfers data over IPv4 and over IPv6 and fails unless every send
// completed, none of them by a copy, and, unless the link is inline, the
// receiving end worked apart.
func (l *Link) prove() error {
	for _, to := range []netip.Addr{l.Receiver.IPv4(), l.Receiver.IPv6()} {
		o, err := l.transfer(to)
		if err == nil {
			err = l.judge(o)
		}
		if err != nil {
			return fmt.Errorf("send to %v: %w", to, err)
		}
	}
	return nil
}

// judge fails if the outcome of a transfer is not that of the link that l is
// said to be.
func (l *Link) judge(o outcome) error {
	switch {
	case o.copied > 0:
		return fmt.Errorf("%w %d of %d sends", errCopied, o.copied, o.sends)
	case l.inline != "":
		return nil
	case o.receivingTime <= 0:
		return errIdle
	case !slices.Contains(l.receivingCPUs, o.dataCPU):
		return fmt.Errorf("data were %w: %d, want %v", errElsewhere, o.dataCPU, l.receivingCPUs)
	case !slices.Contains(l.sendingCPUs, o.ackCPU):
		return fmt.Errorf("acknowledgements were %w: %d, want one of %v", errElsewhere, o.ackCPU, l.sendingCPUs)
	}
	return nil
}

// outcome is what is known of a transfer.
type outcome struct {
	sends  uint32 // How many sends it took.
	copied uint32 // How many of them the kernel copied.

	// receivingTime is how much processor time the receiving end's thread used.
	// That is more than nothing if it did the work: it has waited at least once,
	// for the sender's answer while the connection was made, and the kernel
	// brings the time up to date when a thread waits.
	receivingTime time.Duration

	dataCPU int // The processor that handled the receiver's last packet.
	ackCPU  int // The processor that handled the sender's last packet.
}

// transfer sends proofBytes from Sender to Receiver at address to.
func (l *Link) transfer(to netip.Addr) (o outcome, err error) {
	before, err := l.ReceivingTime()
	if err != nil {
		return o, err
	}
	deadline := time.Now().Add(patience)
	conns, err := l.connect(to, deadline)
	if err != nil {
		return o, err
	}
	hangUp := conns.discard()
	defer hangUp()
	if o.sends, o.copied, err = conns.sendProof(deadline); err != nil {
		return o, err
	}
	after, err := l.ReceivingTime()
	if err != nil {
		return o, err
	}
	o.receivingTime = after - before
	if o.dataCPU, err = socketOption(conns.accepted, unix.SO_INCOMING_CPU); err != nil {
		return o, err
	}
	o.ackCPU, err = socketOption(conns.dialed, unix.SO_INCOMING_CPU)
	return o, err
}

// sendProof sends proofBytes. It returns the number of sends and how many of
// them the kernel copied.
func (c connection) sendProof(deadline time.Time) (sends, copied uint32, err error) {
	raw, err := c.dialed.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	// On the heap for its size, hence in one place for the kernel to read.
	sends, err = sendZeroCopy(raw, make([]byte, proofBytes))
	if err != nil {
		return sends, 0, err
	}
	copied, err = awaitCompletions(raw, sends, deadline)
	return sends, copied, err
}

// socketOption returns the value of an option of a socket.
func socketOption(conn *net.TCPConn, option int) (value int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		value, serr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, option)
	})
	return value, errors.Join(err, os.NewSyscallError("getsockopt", serr))
}

// connection is both ends of a connection from Sender to Receiver.
type connection struct{ dialed, accepted *net.TCPConn }

// connect connects Sender to a socket of Receiver.
func (l *Link) connect(to netip.Addr, deadline time.Time) (connection, error) {
	listener, err := l.Receiver.ListenAddr("tcp", netip.AddrPortFrom(to, 0).String())
	if err != nil {
		return connection{}, err
	}
	defer listener.Close()
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	dialed, err := l.Sender.Dial(ctx, "tcp", listener.Addr().String())
	if err != nil {
		return connection{}, err
	}
	accepted, err := acceptBefore(listener, deadline)
	if err != nil {
		dialed.Close()
		return connection{}, err
	}
	dialed.SetDeadline(deadline)
	return connection{dialed.(*net.TCPConn), accepted.(*net.TCPConn)}, nil
}

// close closes both ends.
func (c connection) close() {
	c.dialed.Close()
	c.accepted.Close()
}

// discard reads and discards what arrives, until hangUp closes the connection.
func (c connection) discard() (hangUp func()) {
	var reader sync.WaitGroup
	reader.Go(func() { io.Copy(io.Discard, c.accepted) })
	return func() {
		c.close()
		reader.Wait()
	}
}

// acceptBefore accepts one connection, in bounded time.
func acceptBefore(listener net.Listener, deadline time.Time) (net.Conn, error) {
	if err := listener.(*net.TCPListener).SetDeadline(deadline); err != nil {
		return nil, err
	}
	return listener.Accept()
}

// sendZeroCopy sends b by MSG_ZEROCOPY and returns how many sends it took.
func sendZeroCopy(conn syscall.RawConn, b []byte) (sends uint32, err error) {
	var serr error
	err = conn.Control(func(fd uintptr) {
		serr = os.NewSyscallError("setsockopt SO_ZEROCOPY",
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1))
	})
	if err := errors.Join(err, serr); err != nil {
		return 0, err
	}
	for len(b) > 0 {
		n, err := sendOnce(conn, b[:min(len(b), proofSend)])
		if err != nil {
			return sends, err
		}
		b = b[n:]
		sends++
	}
	return sends, nil
}

// sendOnce makes one successful send, waiting for room in the socket's buffer.
func sendOnce(conn syscall.RawConn, b []byte) (n int, err error) {
	var serr error
	err = conn.Write(func(fd uintptr) bool {
		n, serr = unix.SendmsgN(int(fd), b, nil, nil, unix.MSG_ZEROCOPY)
		return serr != unix.EAGAIN
	})
	if err != nil {
		return 0, err
	}
	return n, os.NewSyscallError("sendmsg MSG_ZEROCOPY", serr)
}

// awaitCompletions waits until that many sends are complete and returns how
// many of them the kernel copied.
func awaitCompletions(conn syscall.RawConn, sends uint32, deadline time.Time) (copied uint32, err error) {
	for done := uint32(0); done < sends; {
		var c completions
		var cerr error
		err := conn.Control(func(fd uintptr) { c, cerr = readErrorQueue(int(fd), deadline) })
		if err := errors.Join(err, cerr); err != nil {
			return copied, fmt.Errorf("after %d of %d completions: %w", done, sends, err)
		}
		done += c.done
		copied += c.copied
	}
	return copied, nil
}

// completions is what a message of the error queue reports.
type completions struct {
	done   uint32 // Sends that are complete.
	copied uint32 // Those of them that the kernel copied.
}

// readErrorQueue waits for the next message of a socket's error queue.
func readErrorQueue(fd int, deadline time.Time) (completions, error) {
	if err := awaitError(fd, deadline); err != nil {
		return completions{}, err
	}
	control := make([]byte, 512)
	_, n, _, _, err := unix.Recvmsg(fd, nil, control, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if err != nil {
		return completions{}, os.NewSyscallError("recvmsg MSG_ERRQUEUE", err)
	}
	return parseCompletions(control[:n])
}

// awaitError waits until poll reports an error, which needs no asking for.
func awaitError(fd int, deadline time.Time) error {
	for {
		left := max(0, time.Until(deadline))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd)}}, int(left.Milliseconds()))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return os.NewSyscallError("poll", err)
		case n == 0:
			return os.ErrDeadlineExceeded
		default:
			return nil
		}
	}
}

// parseCompletions adds up the completions in a message's control data.
func parseCompletions(control []byte) (sum completions, err error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return sum, os.NewSyscallError("parse control message", err)
	}
	for _, m := range messages {
		if !isExtendedError(m.Header) {
			continue
		}
		var ee unix.SockExtendedErr
		if _, err := binary.Decode(m.Data, binary.NativeEndian, &ee); err != nil {
			return sum, err
		}
		sum.add(ee)
	}
	return sum, nil
}

// isExtendedError tells whether a control message holds a sock_extended_err.
func isExtendedError(h unix.Cmsghdr) bool {
	return h.Level == unix.SOL_IP && h.Type == unix.IP_RECVERR ||
		h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_RECVERR
}

// add counts the range of sends, both ends included, that ee says are complete.
func (c *completions) add(ee unix.SockExtendedErr) {
	if ee.Origin != unix.SO_EE_ORIGIN_ZEROCOPY || ee.Errno != 0 {
		return
	}
	n := ee.Data - ee.Info + 1
	c.done += n
	if ee.Code&unix.SO_EE_CODE_ZEROCOPY_COPIED != 0 {
		c.copied += n
	}
}
