package zcnet

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// thePoller is one goroutine and one epoll descriptor for all connections of
// the process. Both exist while there is an open connection that has sent
// without copying or has been read through the poller.
//
// The goroutine waits in the runtime's poller for the epoll descriptor to
// become readable, and so takes no thread.
var thePoller poller

type poller struct {
	mu       sync.Mutex
	file     *os.File // the epoll descriptor; nil while there are no sockets
	epfd     int
	sockets  map[uint64]*socket   // by watch.token
	deferred map[*socket]struct{} // those that the tick looks after
	tokens   uint64               // the last token
	tickAt   time.Duration        // by clock: the next tick; 0 if there is no deferred socket
	checkAt  time.Duration        // by clock: the next check; 0 if nothing is in flight
	checking atomic.Bool          // a check is due; written with mu held
	round    []*socket            // those that the check has yet to look at
	busy     bool                 // it has found one with memory in flight
}

// tickEvery is the time between two ticks, while there are deferred
// connections. A completion for which no goroutine waits is read at the latest
// after two of them when its connection has stopped sending.
const tickEvery = 50 * time.Millisecond

// checkEvery is the time between two looks whether connections with memory in
// flight have made progress.
const checkEvery = 500 * time.Millisecond

// A check looks at roundPart connections at a time, and lets events be served for
// roundPause then.
const (
	roundPart  = 256
	roundPause = time.Millisecond
)

// join makes s, which may be about to send without copying, known to the poller.
// s.watch.mu is held.
func (p *poller) join(s *socket) error {
	w := &s.watch
	if w.token != 0 && p.checking.Load() {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.start(); err != nil {
		return err
	}
	if w.token == 0 {
		p.tokens++
		w.token = p.tokens
		p.sockets[w.token] = s
	}
	if p.checking.Load() {
		return nil
	}
	p.checking.Store(true)
	now := clock()
	p.checkAt = now + checkEvery
	p.setTimer(now)
	return nil
}

// remove makes the poller forget s. fd is the descriptor that it was armed for,
// and still open, if it was added to the epoll set. s.watch.mu is held.
func (p *poller) remove(fd int, s *socket, added bool) {
	w := &s.watch
	if w.token == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if added {
		p.disarm(fd)
	}
	delete(p.sockets, w.token)
	delete(p.deferred, s)
	w.token = 0
	if len(p.sockets) == 0 {
		p.stop()
	}
}

// arm has the poller report each new event of fd: errors and hang-ups always,
// and readability if it is waited for. What is the case already is reported
// too. again tells that fd is in the epoll set. s.watch.mu is held.
func (p *poller) arm(fd int, s *socket, i interest, again bool) error {
	ev := unix.EpollEvent{Events: unix.EPOLLET, Fd: int32(s.watch.token), Pad: int32(s.watch.token >> 32)}
	if i&forData != 0 {
		ev.Events |= unix.EPOLLIN | unix.EPOLLRDHUP
	}
	op := unix.EPOLL_CTL_ADD
	if again {
		op = unix.EPOLL_CTL_MOD
	}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.epfd, op, fd, &ev))
}

// disarm ends that. The socket that has fd has joined, so that epfd is open.
func (p *poller) disarm(fd int) {
	_ = unix.EpollCtl(p.epfd, unix.EPOLL_CTL_DEL, fd, &unix.EpollEvent{})
}

// setDeferred puts s into the care of the tick, or takes it out. s.watch.mu is
// held.
func (p *poller) setDeferred(s *socket, on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !on {
		delete(p.deferred, s)
		return
	}
	p.deferred[s] = struct{}{}
	if p.tickAt == 0 {
		now := clock()
		p.tickAt = now + tickEvery
		p.setTimer(now)
	}
}

// setTimer has serve stop waiting when a tick or a check is due. The deadline is
// one of the clock by which package os counts, which may be that of a bubble.
// p.mu is held.
func (p *poller) setTimer(now time.Duration) {
	at := p.tickAt
	if at == 0 || p.checkAt != 0 && p.checkAt < at {
		at = p.checkAt
	}
	if len(p.round) > 0 {
		at = now + roundPause
	}
	deadline := time.Time{}
	if at != 0 {
		deadline = time.Now().Add(at - now)
	}
	_ = p.file.SetReadDeadline(deadline) // it worked in start
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
	if err == nil {
		err = file.SetReadDeadline(time.Time{}) // fails if it could not join
	}
	if err != nil {
		file.Close()
		return err
	}
	p.file, p.epfd, p.tickAt, p.checkAt, p.busy = file, epfd, 0, 0, false
	p.checking.Store(false)
	p.sockets, p.deferred = make(map[uint64]*socket), make(map[*socket]struct{})
	outside(func() { go p.serve(file, raw) })
	return nil
}

// stop ends the goroutine, which closes the descriptor. p.mu is held.
func (p *poller) stop() {
	_ = p.file.SetReadDeadline(time.Unix(1, 0))
	p.file, p.sockets, p.deferred, p.round = nil, nil, nil, nil
}

// serve reports events, ticks and checks until it is stopped.
func (p *poller) serve(file *os.File, raw syscall.RawConn) {
	defer file.Close()
	var events [128]unix.EpollEvent
	var due []*socket
	n := 0
	collect := func(epfd uintptr) (done bool) {
		var err error
		n, err = unix.EpollWait(int(epfd), events[:], 0)
		return n > 0 || err == unix.EINTR
	}
	for {
		n = 0
		err := raw.Read(collect)
		for _, ev := range events[:max(n, 0)] {
			p.report(ev)
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return // it cannot be: only this goroutine closes file
		}
		var ok bool
		if due, ok = p.onTimer(file, due[:0]); !ok {
			return
		}
	}
}

// onTimer makes the ticks and the checks that are due. It reports false if the
// goroutine that serves file is to end. It returns the slice that it was given,
// which it uses.
func (p *poller) onTimer(file *os.File, due []*socket) ([]*socket, bool) {
	now := clock()
	p.mu.Lock()
	if p.file != file {
		p.mu.Unlock()
		return due, false
	}
	if p.tickAt != 0 && now >= p.tickAt {
		for s := range p.deferred {
			due = append(due, s)
		}
	}
	ticks := len(due)
	if len(p.round) == 0 && p.checking.Load() && now >= p.checkAt {
		p.checking.Store(false) // before it is looked whether there is more to check; see join
		p.checkAt, p.busy = 0, false
		for _, s := range p.sockets {
			p.round = append(p.round, s)
		}
	}
	n := min(len(p.round), roundPart)
	due = append(due, p.round[:n]...)
	clear(p.round[:n])
	p.round = p.round[n:]
	p.mu.Unlock()
	for _, s := range due[:ticks] {
		s.tick()
	}
	busy := false
	for _, s := range due[ticks:] {
		busy = s.check() || busy
	}
	clear(due)
	return due, p.rearmTimer(file, busy)
}

// rearmTimer sets the next tick, if there are deferred sockets, and when a check
// is through the next one, if a socket was busy. It reports false if the goroutine
// that serves file is to end.
func (p *poller) rearmTimer(file *os.File, busy bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file != file {
		return false
	}
	now := clock()
	p.tickAt = 0
	if len(p.deferred) > 0 {
		p.tickAt = now + tickEvery
	}
	p.busy = p.busy || busy
	if len(p.round) == 0 && p.busy && !p.checking.Load() { // join may have set the next one
		p.checking.Store(true)
		p.checkAt = now + checkEvery
	}
	p.setTimer(now)
	return true
}

// report hands an event to its socket, if there still is one. Tokens are never
// used again, so an event that outlives its registration reaches nobody.
func (p *poller) report(ev unix.EpollEvent) {
	token := uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32
	p.mu.Lock()
	s := p.sockets[token]
	p.mu.Unlock()
	if s != nil {
		s.fire(ev.Events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP) != 0)
	}
}

// awaitMemory is called by a goroutine that begins to wait for memory to come
// back from any connection. It calls the function that is returned when it has
// stopped waiting.
func awaitMemory() (stop func()) {
	waitsForMemory.Add(1)
	for _, s := range thePoller.deferredNow(nil) {
		s.await()
	}
	return func() { waitsForMemory.Add(-1) }
}

// deferredNow appends the deferred sockets to all.
func (p *poller) deferredNow(all []*socket) []*socket {
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.deferred {
		all = append(all, s)
	}
	return all
}
