package zcnet

import (
	"bytes"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file is what happens in the fake kernel after a send: the network, the error queue, the poller, and the end of
// the socket.

// The network, the device and the peer.

// transmit sends the next n segments, and so reads their memory.
func (k *fakeKernel) transmit(n int) {
	for _, g := range k.segments {
		if n == 0 {
			return
		}
		if !g.transmitted {
			g.transmitted = true
			k.read(g)
			n--
		}
	}
}

// retransmit sends everything again that was sent, and what devices hold.
func (k *fakeKernel) retransmit() {
	for _, g := range k.segments {
		if g.transmitted {
			k.read(g)
		}
	}
	for _, g := range k.held {
		k.read(g)
	}
}

// read compares what goes out with what the caller wrote.
func (k *fakeKernel) read(g *segment) {
	if g.u != nil && !g.op.lent() {
		k.fail("write %d: its memory is not lent any more, and the kernel sends from it", g.op.number)
		return
	}
	if !bytes.Equal(g.mem, g.want) {
		k.fail("write %d: the wire carries other bytes than were written", g.op.number)
	}
}

// acknowledge takes the first n segments off the queue, as far as they were sent.
func (k *fakeKernel) acknowledge(n int) {
	for ; n > 0 && len(k.segments) > 0 && k.segments[0].transmitted; n-- {
		g := k.segments[0]
		k.segments = k.segments[1:]
		k.used -= len(g.mem)
		if g.u != nil {
			g.op.unacked -= len(g.mem)
		}
		k.drop(g)
	}
	k.changed()
}

// hold has a device keep a reference to the n-th transmitted segment.
func (k *fakeKernel) hold(n int) {
	if n < len(k.segments) && k.segments[n].transmitted {
		k.segments[n].held = true
	}
}

// drop ends the socket's use of g. A device may still have one.
func (k *fakeKernel) drop(g *segment) {
	if g.held {
		k.held = append(k.held, g)
		return
	}
	k.release(g)
}

// releaseHeld has the device give up the n-th segment that it holds.
func (k *fakeKernel) releaseHeld(n int) {
	if len(k.held) == 0 {
		return
	}
	n %= len(k.held)
	g := k.held[n]
	k.held = slices.Delete(k.held, n, n+1)
	k.release(g)
}

// release ends the last use of g, and with it, perhaps, that of its notification.
func (k *fakeKernel) release(g *segment) {
	if g.u == nil {
		return
	}
	if g.u.refs--; g.u.refs > 0 {
		return
	}
	k.uargs = slices.DeleteFunc(k.uargs, func(u *uarg) bool { return u == g.u })
	k.notify(g.u)
}

// notify queues a completion, or adds it to the last unread one (__msg_zerocopy_callback).
func (k *fakeKernel) notify(u *uarg) {
	if len(k.open) == 0 {
		return
	}
	if n := len(k.queue); n > 0 {
		if last := &k.queue[n-1]; !last.foreign && last.n > 0 && last.hi+1 == u.lo {
			last.hi += u.n
			last.n += u.n
			k.changing = true // sk_error_report is called all the same
			return
		}
	}
	k.changing = true
	k.queue = append(k.queue, errorMessage{completion: completion{lo: u.lo, hi: u.lo + u.n - 1, copied: u.copied}, n: u.n})
}

// reset is the peer's, or a timeout: it purges the queues, and the state comes a moment later.
func (k *fakeKernel) reset() {
	if k.dead || k.resetNow {
		return
	}
	k.sockErr = unix.ECONNRESET
	k.lost += k.used
	k.purge()
	k.resetNow, k.changing = true, true
	k.changed()
}

func (k *fakeKernel) purge() {
	segments := k.segments
	k.segments, k.used = nil, 0
	for _, g := range segments {
		k.drop(g)
	}
}

// settleReset ends a reset in progress: whoever takes the socket's lock has waited for that.
func (k *fakeKernel) settleReset() {
	if k.resetNow {
		k.resetNow, k.dead, k.changing = false, true, true
	}
}

// peerCloses ends a connection of which everything was acknowledged, in order.
func (k *fakeKernel) peerCloses() {
	if k.ended && len(k.segments) == 0 && !k.dead && !k.resetNow {
		k.dead, k.changing = true, true
	}
}

// The error queue.

func (k *fakeKernel) events() (ev int16) {
	if len(k.queue) > 0 || k.sockErr != 0 {
		ev |= unix.POLLERR
	}
	if k.dead {
		ev |= unix.POLLHUP
	}
	return ev
}

func (k *fakeKernel) poll(fd uintptr, p *[1]unix.PollFd) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.check(fd, "poll")
	p[0] = unix.PollFd{Fd: int32(fd)}
	if len(k.receives) > 0 && k.receives[0] == faultEAGAIN {
		k.receives = k.receives[1:]
		return unix.EINTR
	}
	p[0].Revents = k.events()
	return nil
}

func (k *fakeKernel) receive(fd uintptr, hdr *unix.Msghdr) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.check(fd, "recvmsg")
	if next(&k.receives) != faultNone {
		return 0, unix.EINTR
	}
	if len(k.queue) == 0 {
		return 0, unix.EAGAIN
	}
	q := k.queue[0]
	k.queue = k.queue[1:]
	control := q.control
	whole := len(control) // from here on a completion begins
	if !q.foreign {
		code := byte(0)
		if q.copied {
			code = unix.SO_EE_CODE_ZEROCOPY_COPIED
		}
		control = append(slices.Clone(control), controlMessage(unix.SOL_IP, unix.IP_RECVERR, extendedErr(0, unix.SO_EE_ORIGIN_ZEROCOPY, code, q.lo, q.hi))...)
		whole = len(control)
	}
	room := unsafe.Slice(hdr.Control, int(hdr.Controllen))
	n := copy(room, control)
	hdr.SetControllen(n)
	hdr.Flags = 0
	if n < whole {
		hdr.Flags |= unix.MSG_CTRUNC
	}
	data := copy(unsafe.Slice(hdr.Iov.Base, int(hdr.Iov.Len)), q.data)
	if data < len(q.data) {
		hdr.Flags |= unix.MSG_TRUNC
	}
	if q.foreign || n < whole {
		k.foreign = append(k.foreign, ErrorQueueMessage{Control: slices.Clone(room[:n]), Data: slices.Clone(q.data[:data]), Flags: int(hdr.Flags)})
	}
	for i := range q.n {
		op := k.owner[q.lo+i]
		if n < whole {
			op.lost++ // nobody will ever hear of it
			continue
		}
		delete(op.ids, q.lo+i)
	}
	if q.n > 0 && n == whole {
		k.told = append(k.told, q)
	}
	return data, nil
}

func (k *fakeKernel) lostUnacknowledged(fd uintptr) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.check(fd, "getsockopt")
	k.settleReset()
	return k.dead && k.lost > 0
}

func (*fakeKernel) connecting(uintptr) bool { return false }

func (k *fakeKernel) unacknowledged(fd uintptr) (int64, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.check(fd, "ioctl")
	return int64(k.used + k.lost), true
}

func (k *fakeKernel) optionMemory(fd uintptr) (int64, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.check(fd, "getsockopt")
	return int64(k.notifications()) * notificationCharge, true
}

// duplicated queues a completion once more that was read before.
func (k *fakeKernel) duplicated(i int) {
	if len(k.told) > 0 && len(k.open) > 0 {
		q := k.told[i%len(k.told)]
		q.n = 0
		k.queue, k.changing = append(k.queue, q), true
	}
}

// invented queues a completion of IDs that were never issued.
func (k *fakeKernel) invented(ahead, n uint32) {
	if len(k.open) > 0 {
		lo := k.nextID + 1 + ahead // beyond the ID that a call under way may take
		k.changing = true
		k.queue = append(k.queue, errorMessage{completion: completion{lo: lo, hi: lo + n}})
	}
}

// stranger queues a message that is not a completion.
func (k *fakeKernel) stranger(control []byte, data int) {
	if len(k.open) > 0 {
		k.changing = true
		k.queue = append(k.queue, errorMessage{foreign: true, control: control, data: make([]byte, data)})
	}
}

// beside puts a control message into the same message as the next completion to be read, and before it.
func (k *fakeKernel) beside(control []byte) {
	if len(k.queue) > 0 && !k.queue[0].foreign {
		k.queue[0].control = control
	}
}

// reorder lets the last completion overtake all others.
func (k *fakeKernel) reorder() {
	if n := len(k.queue); n > 1 && !k.queue[n-1].foreign {
		last := k.queue[n-1]
		k.queue = slices.Insert(k.queue[:n-1], 0, last)
	}
}

// The poller.

func (k *fakeKernel) fault() fault { return next(&k.others) }

func (k *fakeKernel) join(*socket) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.joined && k.fault() != faultNone {
		return unix.EMFILE
	}
	k.joined = true
	return nil
}

func (k *fakeKernel) arm(fd uintptr, _ *socket, i interest, again bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.check(fd, "epoll_ctl")
	if again != (k.watched != 0) || again && k.watched != int(fd) {
		k.fail("descriptor %d is armed (again: %v), and %d is in the epoll set", fd, again, k.watched)
	}
	if k.fault() != faultNone {
		k.unarmed = true
		return unix.ENOSPC
	}
	k.watched, k.changing = int(fd), true
	return nil
}

func (k *fakeKernel) disarm(fd uintptr, _ *socket) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.check(fd, "epoll_ctl")
	if k.watched != int(fd) {
		k.fail("descriptor %d is disarmed, and %d is in the epoll set", fd, k.watched)
	}
	k.watched = 0
}

func (k *fakeKernel) setDeferred(_ *socket, on bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if on && !k.joined {
		k.fail("the tick is to look after a socket that the poller does not know")
	}
	k.deferred = on
}

func (k *fakeKernel) remove(fd uintptr, _ *socket, added bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if added != (k.watched != 0) {
		k.fail("the poller is to forget a socket (added: %v), and %d is in the epoll set", added, k.watched)
	}
	if k.watched != 0 {
		k.check(fd, "epoll_ctl")
	}
	k.joined, k.watched, k.deferred = false, 0, false
}

// reports says whether the poller has an event.
func (k *fakeKernel) reports() bool {
	return k.watched != 0 && k.events() != 0 && k.changing
}

// report does what the poller does with an event, if there is one.
func (k *fakeKernel) report() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	ev := k.events()
	if !k.reports() {
		return false
	}
	k.changing = false
	k.firing++
	defer func() { k.firing-- }()
	k.mu.Unlock()
	defer k.mu.Lock()
	k.s.fire(ev&unix.POLLHUP != 0)
	return true
}

// tick calls f as the poller does with its tick, if it looks after the socket.
func (k *fakeKernel) tick(f func(*socket)) bool {
	k.mu.Lock()
	on := k.deferred
	k.mu.Unlock()
	if on {
		f(k.s)
	}
	return on
}

// What Close asks for.

func (k *fakeKernel) linger(fd uintptr) unix.Linger {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.check(fd, "getsockopt")
	return k.lingers
}

func (k *fakeKernel) duplicate(fd uintptr) (keeper, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.check(fd, "dup")
	if k.fault() != faultNone {
		return nil, unix.EMFILE
	}
	k.open[dupFD] = true
	return fakeRaw{k, dupFD}, nil
}

// endStream drops something always, so that the end of the stream must be acknowledged before the connection is reset.
func (k *fakeKernel) endStream(fd uintptr) (dropped bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.check(fd, "shutdown")
	k.settleReset()
	k.ended = true
	return true
}

// backlog counts the end of the stream as unacknowledged when it is first asked.
func (k *fakeKernel) backlog(fd uintptr) (b backlog) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.check(fd, "ioctl")
	k.settleReset()
	if k.dead {
		return backlog{}
	}
	b = backlog{left: int64(k.used), rtt: time.Millisecond}
	if !k.asked {
		b.left++
	}
	k.asked = true
	return b
}

func (k *fakeKernel) resetAtClose(fd uintptr) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.check(fd, "setsockopt")
}

func (k *fakeKernel) disconnect(fd uintptr) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.check(fd, "connect")
	k.settleReset()
	if k.fault() != faultNone {
		k.uncut = true
		return unix.EINVAL
	}
	k.dead, k.cut, k.changing = true, true, true
	k.purge()
	return nil
}
