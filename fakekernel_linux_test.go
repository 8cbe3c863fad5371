package zcnet

import (
	"bytes"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file is a kernel for tests: one TCP socket of pure Go, without a clock or a descriptor. It does nothing by
// itself. The test says what happens, and which of the next calls goes wrong, so that every run can be repeated.
//
// It reads the memory of flagged sends as the real one does, late and more than once: when a segment is transmitted,
// and again when it is retransmitted. Memory that was written or given away too early shows as wrong bytes.

// fakeKernel is one socket.
type fakeKernel struct {
	fail func(format string, args ...any) // reports what a kernel or a caller must never do
	s    *socket                          // whose poller this is

	mu       sync.Mutex
	stateful // guarded by mu
}

type stateful struct {
	open     map[uintptr]bool // descriptors
	closing  map[uintptr]bool // those that are not to be used any more
	users    map[uintptr]int  // calls on them
	lingers  unix.Linger
	ended    bool // shut down for writing
	sndbuf   int
	used     int        // bytes not acknowledged
	tight    bool       // the system is short of memory: no room whatever the buffer
	segments []*segment // not acknowledged, in order of the stream; the transmitted ones first
	held     []*segment // dropped from the queue, but held by a device

	nextID    uint32
	uargs     []*uarg // outstanding
	queue     []errorMessage
	told      []errorMessage      // completions that were read, for duplicates
	foreign   []ErrorQueueMessage // that were read
	owner     map[uint32]*writeOp // of every ID
	copies    bool                // completions say that the kernel copied
	asked     bool                // whether all is acknowledged
	optmem    int                 // notifications, outstanding or unread
	memlock   int64               // bytes
	lim       limits              // what the library is told
	mute      bool                // it is told nothing else
	aborted   bool                // a call was charged, and then queued nothing
	elsewhere bool                // the limits are those of another network namespace
	charges   map[uint32]int64    // to RLIMIT_MEMLOCK by each ID
	sockErr   syscall.Errno
	resetNow  bool // a reset has purged the queues, and is about to set the state
	dead      bool // TCP_CLOSE
	lost      int  // bytes that the peer had not acknowledged when the queues were purged
	cut       bool // by disconnect
	uncut     bool // disconnect has failed

	sends    []fault // of the next calls, one each
	receives []fault
	others   []fault // of the next watch, duplicate or disconnect

	joined   bool // the poller knows the socket
	changing bool // there is a new event
	watched  int  // the descriptor in its epoll set; 0 if there is none
	deferred bool // its tick looks after the socket
	firing   int  // events that are being handled
	unarmed  bool // to arm it has failed

	arriving *writeOp // the operation that is about to take the write lock
	writer   *writeOp // that holds it
	waiting  []chan struct{}
	deadline time.Time
	change   chan struct{}   // closed when a blocked writer must look again
	parked   []chan struct{} // calls that are held inside of the kernel
	unused   chan struct{}   // closed when the last call on a descriptor that is being closed has returned
}

// A fault is what goes wrong, or happens meanwhile, in one call.
type fault byte

const (
	faultNone fault = iota
	faultPartial
	faultOneByte
	faultEAGAIN
	faultEINTR
	faultENOBUFS
	faultEFAULT
	faultEOPNOTSUPP
	faultParkBefore // the call stays in the kernel until the test lets it go on
	faultParkAfter  // the same, when it has already queued its bytes
	faultEarly      // its completion is read before it returns
	faultJoin       // it shares the notification of the call before
	faultCount
)

// A segment is a piece of the stream that the peer has not acknowledged.
type segment struct {
	mem         []byte // what is sent from: the caller's memory, or the kernel's copy
	want        []byte // what must be in it
	op          *writeOp
	u           *uarg // nil if it was copied
	transmitted bool
	held        bool // by a device, beyond the acknowledgement
}

// A uarg is the notification of one flagged call, or of several that were made before any of it was sent
// (struct ubuf_info_msgzc).
type uarg struct {
	lo     uint32
	n      uint32
	refs   int
	charge int64 // to RLIMIT_MEMLOCK
	joined int   // bytes of all calls that were charged
	copied bool
}

// errorMessage is a message of the error queue.
type errorMessage struct {
	completion
	n       uint32 // IDs; 0 if this is a foreign message, or an invention
	control []byte
	data    []byte
	foreign bool
}

const mainFD, dupFD = 3, 4

func newFakeKernel(start uint32, fail func(string, ...any)) *fakeKernel {
	return &fakeKernel{fail: fail, stateful: stateful{
		open:    map[uintptr]bool{mainFD: true},
		closing: map[uintptr]bool{},
		users:   map[uintptr]int{},
		owner:   map[uint32]*writeOp{},
		charges: map[uint32]int64{},
		sndbuf:  256 << 10,
		nextID:  start,
		optmem:  1 << 20, memlock: 1 << 40, lim: noLimits,
		change: make(chan struct{}),
	}}
}

// next takes the next fault of a list.
func next(faults *[]fault) fault {
	if len(*faults) == 0 {
		return faultNone
	}
	f := (*faults)[0]
	*faults = (*faults)[1:]
	return f
}

func (k *fakeKernel) check(fd uintptr, call string) {
	if !k.open[fd] {
		k.fail("%s on descriptor %d, which is closed", call, fd)
	}
}

// The write lock and the waits of a *net.TCPConn.

// enter takes the write lock in order of arrival.
func (k *fakeKernel) enter() (*writeOp, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	op := k.arriving
	k.arriving = nil
	if op == nil {
		k.fail("a write takes the lock twice")
		return nil, net.ErrClosed
	}
	if k.writer != nil && !k.closing[mainFD] {
		turn := make(chan struct{})
		k.waiting = append(k.waiting, turn)
		k.mu.Unlock()
		<-turn
		k.mu.Lock()
	}
	if k.closing[mainFD] {
		return nil, net.ErrClosed
	}
	k.users[mainFD]++
	k.writer = op
	return op, nil
}

// leave passes the lock on.
func (k *fakeKernel) leave() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.writer = nil
	k.unuse(mainFD)
	if len(k.waiting) > 0 {
		k.writer = &writeOp{} // nobody overtakes the one whose turn it is
		close(k.waiting[0])
		k.waiting = k.waiting[1:]
	}
}

// changed has a blocked writer look again. k.mu is held.
func (k *fakeKernel) changed() {
	close(k.change)
	k.change = make(chan struct{})
}

// mayWrite is what package internal/poll asks before each try.
func (k *fakeKernel) mayWrite() error {
	switch {
	case k.closing[mainFD]:
		return net.ErrClosed
	case !k.deadline.IsZero() && !time.Now().Before(k.deadline):
		return os.ErrDeadlineExceeded
	}
	return nil
}

// await waits for a change, or for the deadline. k.mu is not held.
func (k *fakeKernel) await(change <-chan struct{}, deadline time.Time) {
	if deadline.IsZero() {
		<-change
		return
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-change:
	case <-timer.C:
	}
}

// until calls try with the write lock held until it is done.
func (k *fakeKernel) until(try func(*writeOp) bool) error {
	op, err := k.enter()
	if err != nil {
		return err
	}
	defer k.leave()
	for {
		k.mu.Lock()
		err, change, deadline := k.mayWrite(), k.change, k.deadline
		k.mu.Unlock()
		if err != nil {
			return err
		}
		if try(op) {
			return nil
		}
		k.await(change, deadline)
	}
}

// fakeRaw is the RawConn of one descriptor.
type fakeRaw struct {
	k  *fakeKernel
	fd uintptr
}

func (r fakeRaw) Control(f func(uintptr)) error {
	r.k.mu.Lock()
	defer r.k.mu.Unlock()
	if r.k.closing[r.fd] {
		return net.ErrClosed
	}
	r.k.users[r.fd]++
	defer r.k.unuse(r.fd)
	r.k.mu.Unlock()
	defer r.k.mu.Lock()
	f(r.fd)
	return nil
}

// unuse ends a call on fd. k.mu is held.
func (k *fakeKernel) unuse(fd uintptr) {
	if k.users[fd]--; k.users[fd] == 0 && k.closing[fd] {
		close(k.unused)
	}
}

func (r fakeRaw) Read(func(uintptr) bool) error { return syscall.ENOTSUP }

func (r fakeRaw) Write(f func(uintptr) bool) error {
	return r.k.until(func(*writeOp) bool { return f(r.fd) })
}

// Close closes the second descriptor.
func (r fakeRaw) Close() error {
	r.k.mu.Lock()
	defer r.k.mu.Unlock()
	r.k.shut(r.fd)
	return nil
}

// shut closes fd, when the last call on it has returned. k.mu is held, but not meanwhile.
func (k *fakeKernel) shut(fd uintptr) {
	k.check(fd, "close")
	k.closing[fd] = true
	if k.users[fd] > 0 {
		k.unused = make(chan struct{})
		unused := k.unused
		k.mu.Unlock()
		<-unused
		k.mu.Lock()
	}
	delete(k.open, fd)
	if k.watched == int(fd) {
		k.fail("descriptor %d is closed while it is watched", fd)
	}
	if len(k.open) == 0 {
		k.queue = nil // nobody can read it any more
	}
}

func (k *fakeKernel) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closing[mainFD] {
		return net.ErrClosed
	}
	k.closing[mainFD] = true
	k.changed()
	for _, turn := range k.waiting {
		close(turn)
	}
	k.waiting = nil
	k.shut(mainFD)
	return nil
}

// Sending.

// write is the Write of a *net.TCPConn: it takes the lock, and waits for room.
func (k *fakeKernel) write(b []byte) (n int, err error) {
	var refusal error
	err = k.until(func(op *writeOp) bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		for n < len(b) {
			if refusal = k.refusal(); refusal != nil {
				return true
			}
			room := min(k.room(), len(b)-n)
			if room == 0 {
				return false
			}
			k.take(op, b[n:n+room], nil)
			n += room
		}
		return true
	})
	if err == nil {
		err = refusal
	}
	return n, err
}

// room is how much the send buffer takes.
func (k *fakeKernel) room() int {
	if k.tight {
		return 0
	}
	return max(0, k.sndbuf-k.used)
}

// refusal is the error of a socket that sends no more.
func (k *fakeKernel) refusal() error {
	k.settleReset()
	if err := k.sockErr; err != 0 {
		k.sockErr = 0
		return err
	}
	if k.dead || k.ended {
		return syscall.EPIPE
	}
	return nil
}

// take queues b, which is copied if there is no u.
func (k *fakeKernel) take(op *writeOp, b []byte, u *uarg) {
	want := op.expect(len(b))
	if u == nil {
		if !bytes.Equal(b, want) {
			k.fail("write %d: the library copied other bytes than it was given", op.number)
		}
		b = want
	} else {
		u.refs++
		op.unacked += len(b)
	}
	op.queued += len(b)
	k.used += len(b)
	k.segments = append(k.segments, &segment{mem: b, want: want, op: op, u: u})
}

func (k *fakeKernel) send(fd uintptr, m *message, flags int) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.check(fd, "send")
	zero := flags&msgZeroCopy != 0
	if zero && !k.deferred && k.watched == 0 && k.firing == 0 && !k.s.ledger().isClosed() {
		k.fail("a flagged call whose completion nobody would read")
	}
	f := next(&k.sends)
	if f == faultParkBefore {
		k.park()
	}
	op := k.writer
	if err := k.sendError(f, m, zero); err != nil {
		if zero && err != unix.ENOBUFS {
			k.abort(m.size)
		}
		return 0, err
	}
	room := min(k.room(), m.size)
	switch f {
	case faultPartial:
		room = (room + 1) / 2
	case faultOneByte:
		room = 1
	}
	var u *uarg
	if zero {
		u = k.number(op, f == faultJoin)
		u.charge += pinnedBy(int64(m.size))
		u.joined += m.size
		k.charges[u.lo+u.n-1] = pinnedBy(int64(m.size))
	}
	n := 0
	for i := 0; i < m.n && n < room; i++ {
		b := unsafe.Slice(m.iovs[i].Base, int(m.iovs[i].Len))
		b = b[:min(len(b), room-n)]
		k.take(op, b, u)
		n += len(b)
	}
	if n == 0 {
		k.fail("a call with nothing to send")
	}
	switch {
	case f == faultParkAfter:
		if zero {
			op.uncommitted++
		}
		k.park()
		if zero {
			op.uncommitted--
		}
	case f == faultEarly && zero:
		k.transmit(len(k.segments))
		k.acknowledge(len(k.segments))
		k.mu.Unlock()
		k.s.reap() // as another thread would
		k.mu.Lock()
	}
	return n, nil
}

// sendError is what the kernel has against a call, in the order in which it looks.
func (k *fakeKernel) sendError(f fault, m *message, zero bool) error {
	switch {
	case f == faultEINTR:
		return unix.EINTR
	case f == faultEFAULT && zero:
		return unix.EFAULT
	case f == faultEOPNOTSUPP && zero:
		return unix.EOPNOTSUPP
	}
	if err := k.refusal(); err != nil {
		return err
	}
	if zero && (f == faultENOBUFS || !k.affords(m.size)) {
		return unix.ENOBUFS
	}
	if f == faultEAGAIN {
		k.tight = true
	}
	if k.room() == 0 {
		return unix.EAGAIN
	}
	return nil
}

// abort leaves what a call was charged with the notification that it was to share.
func (k *fakeKernel) abort(size int) {
	k.aborted = true
	if n := len(k.uargs); n > 0 && k.uargs[n-1].refs > 0 && k.uargs[n-1].joined+size <= mostJoined {
		u := k.uargs[n-1]
		u.joined += size
		u.charge += pinnedBy(int64(size))
		k.charges[u.lo+u.n-1] += pinnedBy(int64(size))
	}
}

// affords looks at net.core.optmem_max and at RLIMIT_MEMLOCK.
func (k *fakeKernel) affords(size int) bool {
	return k.notifications() < k.optmem && k.mayPin(int64(size))
}

// mayPin reports whether the user may pin so much more.
func (k *fakeKernel) mayPin(size int64) bool {
	pinned := pinnedBy(size)
	for _, u := range k.uargs {
		pinned += u.charge
	}
	return pinned <= k.memlock
}

// notifications counts those that are outstanding or unread.
func (k *fakeKernel) notifications() int {
	n := len(k.uargs)
	for _, q := range k.queue {
		if q.n > 0 {
			n++
		}
	}
	return n
}

// number gives a call its ID.
func (k *fakeKernel) number(op *writeOp, join bool) *uarg {
	id := k.nextID
	k.nextID++
	op.ids[id] = true
	k.owner[id] = op
	op.flagged++
	if n := len(k.uargs); n > 0 && join {
		if u := k.uargs[n-1]; u.lo+u.n == id && u.refs > 0 {
			u.n++
			return u
		}
	}
	u := &uarg{lo: id, n: 1, copied: k.copies}
	k.uargs = append(k.uargs, u)
	return u
}

// park keeps the calling goroutine inside of the kernel. k.mu is held, but not meanwhile.
func (k *fakeKernel) park() {
	ch := make(chan struct{})
	k.parked = append(k.parked, ch)
	k.mu.Unlock()
	<-ch
	k.mu.Lock()
}

// unpark lets all parked calls go on.
func (k *fakeKernel) unpark() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, ch := range k.parked {
		close(ch)
	}
	k.parked = nil
}

func (k *fakeKernel) currentLimits(time.Duration) *limits { return k.renewLimits(0) }

func (k *fakeKernel) renewLimits(time.Duration) *limits {
	k.mu.Lock()
	defer k.mu.Unlock()
	l := k.lim
	return &l
}

func (k *fakeKernel) inOurNamespace(uintptr) bool { return !k.elsewhere }

func (k *fakeKernel) roomToPin(size int64) int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.mute {
		return unknown
	}
	for ; !k.mayPin(size); size /= 2 {
		if size < page {
			return 0
		}
	}
	return size
}
