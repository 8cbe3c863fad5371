package zcnet

import (
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// This file is the poller: one goroutine and one epoll descriptor for all connections of the process, which hear of
// completions, and of readability where the runtime's own poller refuses to. Both exist while there is a connection
// that has been watched and is open.

// thePoller waits in the runtime's poller for its epoll descriptor to become readable, and so costs no thread but while
// somebody sends in bulk; see eventWaiter.wait.
var thePoller poller

type poller struct {
	mu      sync.Mutex
	file    *os.File // the epoll descriptor; nil while there are no sockets
	epfd    int
	sockets map[int32]*socket    // by descriptor
	resting map[*socket]struct{} // those of them whose watch is not to be set for a while
	left    map[*socket]struct{} // their completions are left to their writers
	work    chan struct{}        // tells the goroutine that not all are resting any more
}

// interest is what to watch a socket for beside errors and hang-ups, and how.
type interest struct {
	read bool // for readability, too
	news bool // report each event that comes, for good, and not one and no more before rewatch
}

// watch has the poller report errors and hang-ups of fd to s, and if read is set also readability: once, and not again
// before rewatch. Every call also reports what is the case already.
func (p *poller) watch(fd int, s *socket, read bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.start(); err != nil {
		return err
	}
	ev := event(fd, interest{read: read})
	op := unix.EPOLL_CTL_ADD
	if p.sockets[ev.Fd] == s {
		op = unix.EPOLL_CTL_MOD
	}
	if err := unix.EpollCtl(p.epfd, op, fd, &ev); err != nil {
		p.stopIfUnused()
		return os.NewSyscallError("epoll_ctl", err)
	}
	p.sockets[ev.Fd] = s
	p.wake(s)
	return nil
}

// rewatch sets the watch of fd again, and reports whether it is still there.
func (p *poller) rewatch(fd int, s *socket, in interest) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sockets[int32(fd)] != s {
		return false
	}
	ev := event(fd, in)
	_ = unix.EpollCtl(p.epfd, unix.EPOLL_CTL_MOD, fd, &ev) // there is no way for it to fail: fd is watched
	p.wake(s)
	return true
}

// rest leaves the watch of s unset, for a while: until it is set again there may be nothing to wait for.
func (p *poller) rest(s *socket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.resting != nil {
		p.resting[s] = struct{}{}
	}
}

// wake ends the rest of s. p.mu is held.
func (p *poller) wake(s *socket) {
	delete(p.resting, s)
	p.haveGoroutineLook()
}

func (p *poller) haveGoroutineLook() {
	select {
	case p.work <- struct{}{}:
	default: // it has been told already
	}
}

// awaitWork returns when a socket does not rest, or file is not served any more. A goroutine that waits in the runtime's
// poller makes every wait of every other one there end in another thread; one that waits here does not.
func (p *poller) awaitWork(file *os.File, work <-chan struct{}) {
	for p.allRest(file) {
		<-work
	}
}

func (p *poller) allRest(file *os.File) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.file == file && len(p.resting) == len(p.sockets)
}

// event describes what to watch fd for. Errors and hang-ups are always reported.
func event(fd int, in interest) unix.EpollEvent {
	ev := unix.EpollEvent{Events: unix.EPOLLONESHOT, Fd: int32(fd)}
	if in.news {
		ev.Events = unix.EPOLLET
	}
	if in.read {
		ev.Events |= unix.EPOLLIN | unix.EPOLLRDHUP
	}
	return ev
}

// unwatch ends it, while fd is still open.
func (p *poller) unwatch(fd int, s *socket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sockets[int32(fd)] != s {
		return
	}
	delete(p.sockets, int32(fd))
	delete(p.resting, s)
	_ = unix.EpollCtl(p.epfd, unix.EPOLL_CTL_DEL, fd, &unix.EpollEvent{})
	p.stopIfUnused()
}

// start opens the epoll descriptor and begins to serve it. p.mu is held.
func (p *poller) start() error {
	if p.file != nil {
		return nil
	}
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(epfd, true); err != nil {
		unix.Close(epfd)
		return os.NewSyscallError("fcntl", err)
	}
	file := os.NewFile(uintptr(epfd), "epoll") // non-blocking, so it joins the runtime's poller
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return err
	}
	p.file, p.epfd, p.work = file, epfd, make(chan struct{}, 1)
	p.sockets, p.resting, p.left = make(map[int32]*socket), make(map[*socket]struct{}), make(map[*socket]struct{})
	go p.serve(file, raw, p.work)
	return nil
}

// stopIfUnused tells the goroutine to end and to close its descriptor. p.mu is held.
func (p *poller) stopIfUnused() {
	if len(p.sockets) > 0 || p.file == nil {
		return
	}
	_ = p.file.SetReadDeadline(time.Unix(1, 0)) // it is pollable, or it would not be here
	p.haveGoroutineLook()
	p.file, p.sockets, p.resting, p.left = nil, nil, nil, nil
}

// serve reports events, and looks after what is left to writers, until it is told to end.
func (p *poller) serve(file *os.File, raw syscall.RawConn, work <-chan struct{}) {
	defer file.Close()
	w := newEventWaiter(raw)
	patience, looked := firstLook, time.Now()
	for looking := false; w.wait(looking, patience) == nil; looking = p.hasLeft(file) {
		for _, ev := range w.events[:w.n] {
			p.report(ev)
		}
		switch now := time.Now(); {
		case !looking:
			patience, looked = firstLook, now
		case now.Sub(looked) >= patience:
			p.lookAfter((*socket).look)
			patience, looked = min(patienceGrowth*patience, lastLook), now
		}
		p.awaitWork(file, work)
	}
}

// hasLeft reports whether there is something to look after for the goroutine that serves file.
func (p *poller) hasLeft(file *os.File) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.file == file && len(p.left) > 0
}

// lookAfter calls f with every socket of which completions are left, and forgets those of which they are not any more.
func (p *poller) lookAfter(f func(*socket)) {
	p.mu.Lock()
	left := slices.Collect(maps.Keys(p.left))
	p.mu.Unlock()
	for _, s := range left {
		f(s)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range left {
		if !s.drainer.left.Load() {
			delete(p.left, s)
		}
	}
}

// eventWaiter waits for events of an epoll descriptor.
type eventWaiter struct {
	raw    syscall.RawConn
	events []unix.EpollEvent
	n      int // how many of them have come

	patience time.Duration
	block    func(epfd uintptr)
	take     func(epfd uintptr) (done bool)
}

// wait returns when events have come, or after patience if there is something to look after. It fails when the poller is
// told to end.
//
// While there is, which is while somebody sends in bulk, it blocks a thread and does not wait in the runtime's poller:
// as long as a goroutine or a timer waits there, an idle thread of the runtime does, and each completion of each socket
// wakes it in vain, for the runtime has every socket registered for good (netpollopen in runtime/netpoll_epoll.go).
// It does so rarely: a thread that blocks holds its processor until the runtime takes it away.
func (w *eventWaiter) wait(looking bool, patience time.Duration) error {
	if looking {
		w.patience = patience
		return w.raw.Control(w.block)
	}
	return w.raw.Read(w.take)
}

// newEventWaiter binds its methods once, so that waiting does not allocate.
func newEventWaiter(raw syscall.RawConn) *eventWaiter {
	w := &eventWaiter{raw: raw, events: make([]unix.EpollEvent, 128)}
	w.block = func(epfd uintptr) { w.collect(epfd, w.patience) }
	w.take = func(epfd uintptr) bool { return w.collect(epfd, 0) }
	return w
}

// collect waits for events, and reports whether it need not be called again.
func (w *eventWaiter) collect(epfd uintptr, patience time.Duration) bool {
	n, err := unix.EpollWait(int(epfd), w.events, int(patience.Milliseconds()))
	w.n = max(n, 0)
	return n > 0 || err == unix.EINTR
}

// report hands one event to its socket. An event can outlive its registration, and then reach a newer connection
// with the same descriptor: it finds nothing there to do, which does no harm.
func (p *poller) report(ev unix.EpollEvent) {
	p.mu.Lock()
	s := p.sockets[ev.Fd]
	p.mu.Unlock()
	if s == nil {
		return
	}
	s.heard(ev.Events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP) != 0)
}

// heard is called by the poller with an event of s: it is readable or has hung up, or else has an error or a completion.
func (s *socket) heard(readable bool) {
	s.stats.wakeups.Add(1)
	if readable {
		s.readable()
	} else if s.leave() {
		return
	}
	s.drained()
}

// keepLeft has the poller look after s, whose completions have just been left.
func (p *poller) keepLeft(s *socket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left != nil {
		p.left[s] = struct{}{}
	}
}

// keepLeft is what the drainer needs of the poller, and so is readAllLeft.
func (s *socket) keepLeft() { s.kernel.keepLeft(s) }

// readAllLeft reads what is left to writers, of all connections.
func readAllLeft() { thePoller.lookAfter((*socket).readLeft) }

// unwatch ends it for good: s is being closed, and whatever would watch again looks at that first.
func (s *socket) unwatch(fd uintptr) {
	s.readers.mu.Lock()
	defer s.readers.mu.Unlock()
	s.kernel.unwatch(fd, s)
}

// awaitRead returns a channel that is closed when the socket may have become readable. It must be called before the
// read is tried.
func (s *socket) awaitRead() (<-chan struct{}, error) {
	r := &s.readers
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.closing.Load() {
		return nil, net.ErrClosed
	}
	ready := r.next()
	if r.armed {
		return ready, nil
	}
	var err error
	if ctlErr := s.raw.Control(func(fd uintptr) { err = s.setWatch(fd, true) }); ctlErr != nil {
		return nil, cause(ctlErr)
	}
	if r.armed = err == nil; r.armed {
		s.watched.Store(true)
	}
	return ready, err
}

// readable wakes those who wait to read, and stops looking for readability once nobody does.
func (s *socket) readable() {
	r := &s.readers
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.wakeAll() {
		r.armed = false
	}
}

// rewatch sets the watch again, of whatever is waited for now.
//
// Setting it reports what is the case already. A connection that has ended, whether by a reset, by Close or by both its
// ends, shows that until its descriptor is closed, which may be long after: to report it again and again would keep a
// processor busy. So from there on it is watched for news, and once that is set it stays.
func (s *socket) rewatch(fd uintptr, ended bool) {
	r := &s.readers
	r.mu.Lock()
	defer r.mu.Unlock()
	if ended && r.news || s.rest(fd) {
		return
	}
	s.stats.syscalls.Add(1)
	if s.kernel.rewatch(fd, s, interest{read: r.armed, news: ended}) {
		r.news = ended
	}
}

// rest leaves the watch of a connection unset that has nothing to hear of for a while, because it sends plainly and all
// that it sent otherwise has come back. It reports whether it has. s.readers.mu is held.
//
// Who makes a flagged call says so first and then looks whether it is watched, and here it is the other way round, so
// that one of them sees the other.
func (s *socket) rest(fd uintptr) bool {
	if !s.watched.Load() || !s.pathCopies() || s.readers.armed || s.cfg.ErrorQueue != nil {
		return false
	}
	s.watched.Store(false)
	if !s.ledger().idle() || !s.kernel.rest(fd, s) {
		s.watched.Store(true)
		return false
	}
	return true
}

// setWatch sets the watch of a descriptor that may have none yet. s.readers.mu is held.
func (s *socket) setWatch(fd uintptr, read bool) error {
	s.stats.syscalls.Add(1)
	err := s.kernel.watch(fd, s, read)
	if err == nil {
		s.readers.news = false
	}
	return err
}

// watch has completions heard from before a flagged call on, whose ID is reserved. For a connection that is being closed
// Close sees to it: it saw the reservation, holds another descriptor, waits for the call, and then watches that one.
func (s *socket) watch(fd uintptr) error {
	if s.watched.Load() {
		return nil
	}
	r := &s.readers
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.closing.Load() {
		return nil
	}
	if err := s.setWatch(fd, r.armed); err != nil { // a reader may have come first
		return err
	}
	s.watched.Store(true)
	return nil
}
