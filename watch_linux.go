package zcnet

import (
	"net"
	"time"
)

// step makes a transition of s's interest and carries out its actions, except
// for reading the error queue: it reports whether the caller has to do that.
// fd is the socket's descriptor where the transition may arm the poller.
// s.watch.mu is held.
func (s *socket) step(fd uintptr, t transition) (reap bool, err error) {
	w := &s.watch
	before := w.interest
	after, act := before.next(t)
	w.interest = after
	if act&actWake != 0 {
		w.wakeReaders()
	}
	if act&actRemove != 0 {
		s.kernel.remove(fd, s, before&inSet != 0)
	}
	if act&actDisarm != 0 {
		s.kernel.disarm(fd, s)
	}
	if act&actArm != 0 {
		if err = s.kernel.arm(fd, s, after, before&inSet != 0); err != nil {
			// The tick looks after what events cannot be had for, and readers
			// are told when they try again.
			w.interest = before.with(modeDeferred) &^ (wantsData | inSet | forData)
			if before&inSet != 0 {
				s.kernel.disarm(fd, s)
			}
			w.wakeReaders()
		}
	}
	if (before.mode() == modeDeferred) != (w.interest.mode() == modeDeferred) {
		s.kernel.setDeferred(s, w.interest.mode() == modeDeferred)
	}
	if after.mode() == modeDeferred && before.mode() != modeDeferred && waitsForMemory.Load() > 0 {
		// A goroutine that has begun to wait for memory since the transition was
		// made did not find s among the deferred: arm the poller after all.
		return s.step(fd, transition{event: evReap, awaited: true, inFlight: true})
	}
	return act&actReap != 0, err
}

// expectCompletion is called by a writer before a flagged call whose ID it has
// reserved, if nothing else is in flight. If it fails, the call must not be
// made: its completion would never be read.
func (s *socket) expectCompletion(fd uintptr) error {
	w := &s.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.interest.mode() == modeDetached {
		return nil // Close saw the reservation: it holds another descriptor
	}
	if err := s.kernel.join(s); err != nil {
		return err
	}
	_, _ = s.step(fd, transition{event: evSend, awaited: s.awaited()})
	return nil
}

// await is called by a goroutine that has begun to wait for a completion, or
// that asks whether one has come.
func (s *socket) await() {
	if s.control(func(uintptr) {}) != nil {
		s.controlFailed() // no event will come
	}
	s.stepAndReap(transition{event: evAwait})
}

// tick is called by the poller for each connection whose completions are left
// to the writer.
func (s *socket) tick() {
	s.watch.mu.Lock()
	reap, _ := s.step(noDescriptor, transition{event: evTick, sent: s.sent(), awaited: s.awaited()})
	s.watch.mu.Unlock()
	if reap {
		s.reap()
	}
}

// check is called by the poller from time to time, and reports whether anything is
// in flight. It finds out where no completion is to be expected any more.
func (s *socket) check() (busy bool) {
	l := s.books.Load()
	if l == nil {
		return false
	}
	e, busy := l.oldest()
	if s.stalled(e, true) == 0 {
		return busy
	}
	s.reap()
	s.examine()
	return !l.idle()
}

// examine looks at a connection whose oldest claim has been in flight for a while,
// and whose error queue was just read.
func (s *socket) examine() {
	l := s.ledger()
	provable := s.askKernel()
	e, _ := l.oldest()
	overdue := e.acked || e.mute && !provable || l.distrusted()
	if s.stalled(e, overdue) > s.cfg.patience {
		s.distrust(errNoCompletions)
		s.abandon()
	}
}

// stalled returns for how long the completion of e, the oldest claim, has been
// overdue: 0 if it is not, or another was the oldest at the last look.
func (s *socket) stalled(e elder, overdue bool) time.Duration {
	s.watch.mu.Lock()
	defer s.watch.mu.Unlock()
	st := &s.stall
	now := clock()
	if e.number == 0 || e.number != st.oldest || !overdue {
		*st = stall{e.number, now}
		return 0
	}
	return max(1, now-st.since)
}

// fire is called by the poller with an event of s.
func (s *socket) fire(readable bool) {
	s.stats.wakeups.Add(1)
	s.stepAndReap(transition{event: evFire, readable: readable})
}

// stepAndReap makes a transition that never arms the poller.
func (s *socket) stepAndReap(t transition) {
	s.watch.mu.Lock()
	reap, _ := s.step(noDescriptor, t)
	s.watch.mu.Unlock()
	if reap {
		s.reap()
	}
}

// reaped is called by a goroutine that has just read the error queue of fd until
// it was empty.
func (s *socket) reaped(fd uintptr) {
	s.watch.mu.Lock()
	defer s.watch.mu.Unlock()
	_, _ = s.step(fd, transition{
		event:    evReap,
		awaited:  s.awaited(),
		sent:     s.sent(),
		inFlight: !s.ledger().idle(),
		hooked:   s.cfg.ErrorQueue != nil,
	})
}

// awaitRead returns a channel that is closed when the socket may have become
// readable. It must be called before the read is tried.
func (s *socket) awaitRead() (ready <-chan struct{}, err error) {
	if ctlErr := s.raw.Control(func(fd uintptr) { ready, err = s.armForRead(fd) }); ctlErr != nil {
		return nil, cause(ctlErr)
	}
	return ready, err
}

func (s *socket) armForRead(fd uintptr) (<-chan struct{}, error) {
	w := &s.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.interest.mode() == modeDetached {
		return nil, net.ErrClosed
	}
	if err := s.kernel.join(s); err != nil {
		return nil, err
	}
	if _, err := s.step(fd, transition{event: evRead}); err != nil {
		return nil, err
	}
	if w.ready == nil {
		w.ready = newSignal()
	}
	return w.ready, nil
}

// detach takes fd, which is about to be closed, from the poller.
func (s *socket) detach(fd uintptr) {
	s.watch.mu.Lock()
	defer s.watch.mu.Unlock()
	_, _ = s.step(fd, transition{event: evDetach})
}

// attach gives the poller the descriptor that outlives Close.
func (s *socket) attach() error {
	s.watch.mu.Lock()
	defer s.watch.mu.Unlock()
	if err := s.kernel.join(s); err != nil {
		return err
	}
	_, err := s.step(noDescriptor, transition{event: evAttach})
	return err
}
