package zcnet

import (
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// After close(2) the kernel goes on sending from memory in flight, and no
// goroutine can read any more when it has finished. So Close keeps the socket
// open until the last completion has come: by a second descriptor or, where
// there is none to be had, by a call that does not return.

// A lingering close is a connection that was closed with memory in flight. One
// goroutine, run, owns it.
type lingeringClose struct {
	keeper
	s       *socket
	option  unix.Linger   // SO_LINGER of the connection
	idle    chan struct{} // closed when nothing is in flight any more
	done    chan struct{} // closed when the socket is
	shared  bool          // File has made another owner: the stream is left alone
	aborted bool          // the connection was reset
	failed  bool          // the kernel refused to reset it
	dropped bool          // received bytes were dropped
}

// A keeper keeps a socket open after its connection has closed its descriptor.
type keeper interface {
	// Control calls f with a descriptor of the socket, and fails after Close.
	Control(f func(fd uintptr)) error
	Close() error
}

// control calls f with a descriptor of the socket, before and after Close.
func (s *socket) control(f func(fd uintptr)) error {
	if l := s.lingering.Load(); l != nil {
		return l.Control(f)
	}
	return s.raw.Control(f)
}

// close is Conn.Close.
func (s *socket) close() error {
	l, err := s.closeDescriptor()
	if !s.shared.Load() {
		forget(s.cookie)
	}
	s.deliver()
	if l == nil {
		return err
	}
	l.begin()
	outside(func() { go l.run() })
	if l.shared || l.option.Onoff == 0 || l.option.Linger <= 0 {
		return err
	}
	linger := newTimer(time.Duration(l.option.Linger) * time.Second)
	defer linger.Stop()
	select {
	case <-l.done:
		if failure := s.ledger().failure(); failure != nil {
			return s.opError("close", failure)
		}
	case <-linger.C:
	}
	return err
}

// closeDescriptor closes the connection's own descriptor, and returns the
// lingering close that is to go on, if memory is in flight. A second Close must
// not come in between: it would close what is about to be kept.
func (s *socket) closeDescriptor() (*lingeringClose, error) {
	s.closeMu.Lock()
	defer s.closeMu.Unlock()
	// First of all: a flagged call is in flight by now, or will not be made.
	idle, again := s.ledger().close()
	if idle == nil || again {
		if s.lingering.Load() == nil {
			s.detachOwn()
		}
		return nil, s.kernel.close()
	}
	l := s.linger(idle)
	if l == nil { // it was closed behind the library's back
		s.detach(noDescriptor)
		err := s.kernel.close()
		s.abandon()
		return nil, err
	}
	return l, l.closeOwn()
}

// ending reports whether Close has ended the stream, or is about to. A call that
// it does not wait for may then meet the end of the stream (io.EOF, EPIPE), or
// received bytes of which others have been dropped.
func (s *socket) ending() bool {
	l := s.lingering.Load()
	return l != nil && !l.shared
}

// detachOwn takes the connection's own descriptor from the poller.
func (s *socket) detachOwn() {
	if s.raw.Control(s.detach) != nil {
		s.detach(noDescriptor) // it was closed behind the library's back
	}
}

// noDescriptor is the number of no descriptor.
const noDescriptor = ^uintptr(0)

// linger has the socket stay open, and the poller leave the connection's own
// descriptor. It returns nil if that is closed already.
func (s *socket) linger(idle chan struct{}) *lingeringClose {
	l := &lingeringClose{s: s, idle: idle, done: newSignal(), shared: s.shared.Load()}
	var err error
	if s.raw.Control(func(fd uintptr) {
		l.option = s.kernel.linger(fd)
		if l.keeper, err = s.kernel.duplicate(fd); err == nil {
			s.detach(fd)
		}
	}) != nil {
		return nil
	}
	if err != nil {
		s.log(slog.LevelDebug, "there is no second descriptor: Close keeps the first", "error", err)
		h := s.hold()
		if h == nil {
			return nil
		}
		l.keeper = h
		s.detach(h.fd)
	}
	s.lingering.Store(l)
	inProcess.lingering.conns.Add(1)
	return l
}

// A heldDescriptor is the connection's own. A call of RawConn.Control that has
// not returned keeps it open, beyond the Close of the *net.TCPConn.
type heldDescriptor struct {
	fd     uintptr
	mu     sync.RWMutex
	closed chan struct{} // ends the call
	gone   bool
}

// hold returns nil if the descriptor is closed already.
func (s *socket) hold() *heldDescriptor {
	h := &heldDescriptor{closed: newSignal()}
	held := unbubbled(func() chan bool { return make(chan bool, 2) })
	outside(func() {
		go func() {
			held <- s.raw.Control(func(fd uintptr) {
				h.fd = fd
				held <- true
				<-h.closed
			}) == nil
		}()
	})
	if !<-held {
		return nil
	}
	return h
}

func (h *heldDescriptor) Control(f func(fd uintptr)) error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.gone {
		return net.ErrClosed
	}
	f(h.fd)
	return nil
}

func (h *heldDescriptor) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gone = true
	close(h.closed)
	return nil
}

// closeOwn closes the connection's own descriptor, and waits until the calls
// that are at work on it have left the kernel: they would be disturbed by what
// begin does. Some take long or never return, as a Read of a descriptor in
// blocking mode and the call of hold: it does not wait for those.
func (l *lingeringClose) closeOwn() error {
	s := l.s
	closed := unbubbled(func() chan error { return make(chan error, 1) })
	outside(func() { go func() { closed <- s.kernel.close() }() })
	for {
		timer := newTimer(l.callsEnd())
		select {
		case err := <-closed:
			timer.Stop()
			return err
		case <-timer.C:
		}
		if s.raw.Control(func(uintptr) {}) != nil { // no further call can begin
			return nil
		}
	}
}

// callsEnd is how long to wait for calls that do not block. That of hold is waited
// for in vain.
func (l *lingeringClose) callsEnd() time.Duration {
	if _, held := l.keeper.(*heldDescriptor); held {
		return 10 * time.Millisecond
	}
	return 200 * time.Millisecond
}

// begin ends the stream as close(2) would have, or resets the connection, which
// SetLinger(0) asks for. Of a socket with another owner close(2) does neither.
func (l *lingeringClose) begin() {
	_ = l.s.attach() // without the poller run reads the completions
	switch {
	case l.shared:
		return
	case l.option.Onoff != 0 && l.option.Linger == 0:
		l.abort("reset by Close")
		return
	}
	_ = l.Control(func(fd uintptr) { l.dropped = l.s.kernel.endStream(fd) })
}

// run waits for the last completion, and closes the socket.
func (l *lingeringClose) run() {
	s := l.s
	defer l.end()
	why := ""
	if !l.aborted {
		if why = s.givenUp; why == "" {
			why = s.awaitRelease(l.idle, l.firstGrace())
		}
		if why != "" && !l.shared {
			l.cut(why)
		}
	}
	if l.aborted {
		why = s.awaitRelease(l.idle, l.lastGrace())
	}
	if why != "" {
		s.abandon()
	}
	if l.dropped && !l.aborted {
		l.awaitEndOfStream()
	}
	if l.dropped || l.failed {
		_ = l.Control(s.kernel.resetAtClose)
	}
}

// end closes the socket.
func (l *lingeringClose) end() {
	_ = l.Control(l.s.detach)
	_ = l.Close()
	inProcess.lingering.conns.Add(-1)
	close(l.done)
}

// cut gives the peer up.
func (l *lingeringClose) cut(why string) {
	lent, _ := l.s.ledger().inFlight()
	l.s.log(slog.LevelWarn, "a closed connection is reset with data unsent", "why", why, "bytes", lent)
	inProcess.lingering.resets.Add(1)
	l.abort(why)
}

// abort resets the connection, which purges the queues of the socket and so
// frees all memory but what a device holds.
func (l *lingeringClose) abort(why string) {
	s := l.s
	l.aborted = true
	s.ledger().fail(fmt.Errorf("%w: %s", ErrConnFailed, why))
	_ = l.Control(func(fd uintptr) {
		if err := s.kernel.disconnect(fd); err != nil {
			l.failed = true
			s.log(slog.LevelWarn, "a closed connection cannot be reset at once: it is left to time out", "error", err)
		}
	})
}

// awaitEndOfStream waits, on a connection of which received bytes were dropped,
// until the peer has acknowledged the end of the stream. Then the connection is
// reset, as close(2) with unread bytes does at once: a peer that is blocked in
// Write, our window having been full, would probe it for minutes otherwise,
// because after shutdown(2) nothing opens the window (__tcp_cleanup_rbuf in
// net/ipv4/tcp.c). But the reset would overtake the end of the stream.
func (l *lingeringClose) awaitEndOfStream() {
	v := l.s.newVigil(l.s.grace())
	for d := firstLook; v.left > 0 && v.look() == ""; d = min(2*d, lookEvery) {
		pause(d, nil)
	}
}

// grace is how long a connection that is to be closed waits for its peer.
type grace struct {
	whole time.Duration // whatever happens
	stall time.Duration // without progress; 0 means as long
}

func (s *socket) grace() grace { return grace{s.cfg.CloseTimeout, s.cfg.StallTimeout} }

// firstGrace is for what is in flight at Close. Where it cannot be reset, to give
// up early would free nothing.
func (l *lingeringClose) firstGrace() grace {
	if l.shared {
		return grace{whole: l.s.cfg.CloseTimeout}
	}
	return l.s.grace()
}

// lastGrace is for what a reset leaves in flight. A connection that could not
// be reset ends at the next tick of its retransmission or probe timer, which
// comes after TCP_RTO_MAX at the latest (include/net/tcp.h).
func (l *lingeringClose) lastGrace() grace {
	p := grace{whole: l.s.cfg.CloseTimeout}
	if l.failed {
		const rtoMax = 2 * time.Minute
		p.whole = max(p.whole, rtoMax+10*time.Second)
	}
	return p
}

const (
	// lookEvery is the time between two looks at a connection that waits for its
	// peer. Progress makes no event that could be waited for.
	lookEvery = 250 * time.Millisecond
	firstLook = 10 * time.Millisecond
	// wantedStall is how long a connection that holds memory for which a
	// goroutine waits may be without progress. TCP sends again after 200, 600 and
	// 1400 ms (TCP_RTO_MIN in include/net/tcp.h) what the network has lost, and a
	// peer that reads steadily opens its window only for a whole segment, or more
	// of a large buffer (__tcp_select_window in net/ipv4/tcp_output.c).
	wantedStall = 2 * time.Second
	// stallTrips is how many round trips a stall takes at least.
	stallTrips = 4
)

// awaitRelease waits until nothing is in flight any more. It returns why it gave
// up, or "" if it did not.
func (s *socket) awaitRelease(idle <-chan struct{}, p grace) (why string) {
	for v := s.newVigil(p); why == ""; why = v.look() {
		s.reap() // here, too, in case the poller cannot be had
		s.askKernel()
		if pause(min(lookEvery, v.end-v.last), idle) {
			return ""
		}
	}
	return why
}

// pause waits for d, or until ended is closed, and reports whether it is.
func pause(d time.Duration, ended <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ended:
		return true
	case <-timer.C:
		return false
	}
}

// A vigil finds out whether a connection makes progress: whether its peer
// acknowledges what was sent, or memory comes back.
type vigil struct {
	s       *socket
	p       grace
	end     time.Duration // by clock, as all times here
	last    time.Duration // the last look
	stalled time.Duration // how long there has been no progress
	before  time.Duration // how long there had been none at the first look
	backlog               // at the last look
	lent    int64         // bytes in flight at the last look
}

func (s *socket) newVigil(p grace) *vigil {
	v := &vigil{s: s, p: p, last: clock()}
	v.end = v.last + p.whole
	v.measure()
	v.before = v.shut
	return v
}

// A backlog is what the peer has not acknowledged of what was sent.
type backlog struct {
	left int64         // bytes, the end of the stream included; 0 if the peer never will
	shut time.Duration // for how long its window has been closed; 0 if packets are on their way
	rtt  time.Duration // of a round trip, smoothed
}

// measure takes note of how much there is to wait for.
func (v *vigil) measure() {
	_ = v.s.control(func(fd uintptr) { v.backlog = v.s.kernel.backlog(fd) })
	v.lent, _ = v.s.ledger().inFlight()
}

// look returns why it is of no use to wait any longer, or "".
func (v *vigil) look() (why string) {
	left, lent, now := v.left, v.lent, clock()
	v.measure()
	v.stalled += min(now-v.last, 2*lookEvery) // a process that was stopped has missed its peer's progress
	v.last = now
	if v.left != left || v.lent != lent {
		v.stalled, v.before = 0, 0
	}
	stalled := v.p.stall > 0 && v.left > 0 // what a device holds no reset frees
	switch {
	case now >= v.end:
		return fmt.Sprintf("reset %v after Close", v.p.whole)
	case stalled && v.stalled >= max(v.p.stall, stallTrips*v.rtt):
		return fmt.Sprintf("reset after Close, because the peer has acknowledged nothing for %v", v.stalled.Round(time.Millisecond))
	case stalled && v.stalled+v.before >= max(wantedStall, stallTrips*v.rtt) && v.s.ledger().wanted():
		return fmt.Sprintf("reset after Close, because Pool.Get waits for its memory and the peer has acknowledged nothing for %v", (v.stalled + v.before).Round(time.Millisecond))
	}
	return ""
}

// abandon resolves what is in flight as unproven, and says so.
func (s *socket) abandon() {
	if n := s.ledger().abandon(); n > 0 {
		s.log(slog.LevelWarn, "memory in flight was never released and will not be used again", "bytes", n)
	}
}

// controlFailed is called when there is no descriptor of s any more. If Close
// did not bring that about, as a Close of the embedded *net.TCPConn does not, the
// completions can never be read: it ends the tickets.
func (s *socket) controlFailed() {
	if s.ledger().isClosed() {
		return
	}
	s.detach(noDescriptor)
	s.abandon()
}
