package zcnet

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// delivery asks the kernel.
func (s *socket) delivery() (d delivery, err error) {
	if ctlErr := s.raw.Control(func(fd uintptr) { d, err = deliveryOf(fd) }); ctlErr != nil {
		return d, ctlErr
	}
	return d, err
}

// steadyTries is how often deliveryOf asks while acknowledgements come in between.
const steadyTries = 100

// deliveryOf asks two questions, because no single one has an answer: what was
// acknowledged in all (TCP_INFO) and what was written and is not (SIOCOUTQ,
// tcp(7)). Their answers add up to what was written if nothing was acknowledged
// in between, which the first question, asked again, tells. If acknowledgements
// never pause for so long, the sum is too high by the last of them: a caller
// may then wait for a little of what was written later, but never for too
// little.
//
// The kernel loads the state before it takes the socket's lock, under which it
// loads the rest (tcp_get_info in net/ipv4/tcp.c): the rest is as new as the
// state, or newer.
func deliveryOf(fd uintptr) (d delivery, err error) {
	for range steadyTries {
		before, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return d, untold(os.NewSyscallError("getsockopt TCP_INFO", err))
		}
		unacked, err := sendQueue(fd)
		if err != nil {
			return d, untold(err)
		}
		after, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return d, untold(os.NewSyscallError("getsockopt TCP_INFO", err))
		}
		d = delivery{acked: after.Bytes_acked, written: after.Bytes_acked + uint64(unacked)}
		switch before.State {
		case tcpSynSent, tcpSynRecv: // by TCP Fast Open, data may have been written already
			d.opening = true
		case tcpFinWait1, tcpClosing, tcpLastAck: // the end of the stream counts as one byte
			d.written = max(d.written, 1) - 1
		}
		d.dead = after.State == tcpClose
		if before.Bytes_acked == after.Bytes_acked {
			break
		}
	}
	return d, nil
}

// untold makes the error of a system that does not answer, as some sandboxes do not.
func untold(err error) error {
	return fmt.Errorf("this system does not tell what the peer has acknowledged: %w: %w", err, errors.ErrUnsupported)
}
