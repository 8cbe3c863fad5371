package zcnet

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// This file is what happens to memory in flight when its connection is closed. After close(2) the kernel goes on
// sending from the memory, and nobody can hear any more when it has finished. So a second descriptor of the socket
// is kept until the last completion has come.

// holding is the descriptor that outlives Close, and the clock that ends its wait.
type holding struct {
	duplicate
	once  sync.Once
	done  chan struct{} // closed when the descriptor is
	begun atomic.Bool   // the poller watches it: from now on the last completion ends it
	cut   bool          // received bytes were discarded: the peer is to be told; set before begun
	mu    sync.Mutex
	timer *time.Timer
	ended bool

	looking atomic.Bool // whether the end of the stream has been acknowledged
}

// control calls f with a descriptor of the socket, before and after Close.
func (s *socket) control(f func(fd uintptr)) error {
	if h := s.held.Load(); h != nil {
		return h.raw.Control(f)
	}
	return s.raw.Control(f)
}

// close is Conn.Close.
func (s *socket) close() error {
	h, linger, err := s.closeOnce()
	if h != nil {
		h.begin(s, linger)
	}
	return err
}

// closeOnce closes the connection's own descriptor, and returns the one that outlives it, if one does. A second Close
// must not come between the two: it would close what is about to be duplicated.
func (s *socket) closeOnce() (h *holding, linger unix.Linger, err error) {
	s.closeMu.Lock()
	defer s.closeMu.Unlock()
	busy := s.ledger().close() // first of all: a flagged call is in flight by now, or will not be made
	if s.startClosing() {
		return nil, linger, s.kernel.close()
	}
	s.readers.wake()
	if !busy {
		_ = s.raw.Control(s.unwatch)
		return nil, linger, s.kernel.close()
	}
	if h, linger, err = s.hold(); err != nil {
		return nil, linger, s.closeUnheld(err)
	}
	return h, linger, s.kernel.close()
}

// startClosing says that the connection is being closed: under the lock that watching takes, so that no call will
// watch its descriptor again. It reports whether that was so before.
func (s *socket) startClosing() (again bool) {
	s.readers.mu.Lock()
	defer s.readers.mu.Unlock()
	return s.closing.Swap(true)
}

// hold makes a second descriptor and takes the first from the poller. It returns the socket's SO_LINGER.
func (s *socket) hold() (h *holding, linger unix.Linger, err error) {
	h = &holding{done: make(chan struct{})}
	ctlErr := s.raw.Control(func(fd uintptr) {
		if h.duplicate, linger, err = s.kernel.duplicate(fd); err == nil {
			s.unwatch(fd)
		}
	})
	if ctlErr != nil {
		return nil, linger, cause(ctlErr)
	}
	if err != nil {
		return nil, linger, err
	}
	s.held.Store(h)
	return h, linger, nil
}

// begin ends the stream as close(2) would have, and waits for completions in the background.
func (h *holding) begin(s *socket, linger unix.Linger) {
	abort := linger.Onoff != 0 && linger.Linger == 0
	_ = h.raw.Control(func(fd uintptr) {
		if !abort {
			h.cut = s.kernel.endStream(fd)
		}
		if err := s.watchHeld(fd); err != nil {
			abort = true // nobody would hear the completions: make them come now
		}
	})
	h.begun.Store(true)
	if abort {
		s.abort("reset by Close")
		return
	}
	h.after(s.cfg.CloseTimeout, func() { s.abort(fmt.Sprintf("reset %v after Close", s.cfg.CloseTimeout)) })
	s.drained()
	if linger.Onoff != 0 {
		select {
		case <-h.done:
		case <-time.After(time.Duration(linger.Linger) * time.Second):
		}
	}
}

// watchHeld has the poller watch the second descriptor, to which nothing leads that was said of the first.
func (s *socket) watchHeld(fd uintptr) error {
	s.readers.mu.Lock()
	defer s.readers.mu.Unlock()
	return s.setWatch(fd, false)
}

// after replaces what the clock will do, unless the wait has ended.
func (h *holding) after(d time.Duration, f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.timer != nil {
		h.timer.Stop()
	}
	if !h.ended {
		h.timer = time.AfterFunc(d, f)
	}
}

// abort resets the connection, which purges the queues of the socket and so frees all memory but what a device
// holds. It gives that as long again.
func (s *socket) abort(why string) {
	s.ledger().fail(fmt.Errorf("%w: %s", ErrConnFailed, why))
	_ = s.control(func(fd uintptr) {
		if err := s.kernel.disconnect(fd); err != nil {
			s.log(slog.LevelWarn, "could not reset a closed connection", "error", err)
		}
	})
	s.held.Load().after(s.cfg.CloseTimeout, s.giveUp)
	s.drained()
}

// giveUp ends the wait for completions that have not come.
func (s *socket) giveUp() {
	s.drained()
	s.abandon()
	s.finish(s.held.Load())
}

// abandon resolves what is in flight as unproven, and says so.
func (s *socket) abandon() {
	if n := s.ledger().abandon(); n > 0 {
		s.log(slog.LevelWarn, "memory in flight was never released and will not be used again", "bytes", n)
	}
}

// finishClose ends the wait if nothing is in flight any more.
func (s *socket) finishClose() {
	s.letGo()
	if h := s.held.Load(); h != nil && h.begun.Load() && s.ledger().idle() && h.mayCut(s) {
		s.finish(h)
	}
}

// mayCut prepares a connection of which received bytes were discarded for its end: a reset, as close(2) with unread bytes
// makes one at once. Without it a peer that is blocked in Write, our window having been full, would probe it for minutes:
// after shutdown(2) nothing opens it (__tcp_cleanup_rbuf in net/ipv4/tcp.c). But first the peer must have acknowledged the
// end of the stream, which the reset would overtake; as long as it has not, mayCut returns false and looks again soon.
func (h *holding) mayCut(s *socket) (ready bool) {
	if !h.cut {
		return true
	}
	_ = h.raw.Control(func(fd uintptr) {
		if ready = s.kernel.acknowledged(fd); ready {
			s.kernel.resetAtClose(fd)
		}
	})
	if !ready && !h.looking.Swap(true) {
		time.AfterFunc(untilAcknowledged, func() {
			h.looking.Store(false)
			s.finishClose()
		})
	}
	return ready
}

// untilAcknowledged is the time between two looks.
const untilAcknowledged = 10 * time.Millisecond

// finish closes the second descriptor, once.
func (s *socket) finish(h *holding) {
	h.once.Do(func() {
		h.mu.Lock()
		h.ended = true
		if h.timer != nil {
			h.timer.Stop()
		}
		h.mu.Unlock()
		_ = h.raw.Control(s.unwatch)
		_ = h.file.Close()
		close(h.done)
	})
}

// closeUnheld closes a connection whose descriptor could not be held, for want of another. A reset frees all but what
// a device holds, but nobody will hear of it.
func (s *socket) closeUnheld(why error) error {
	s.log(slog.LevelWarn, "closing with memory in flight", "error", why)
	s.ledger().fail(fmt.Errorf("%w: reset by Close: %v", ErrConnFailed, why))
	_ = s.raw.Control(func(fd uintptr) {
		_ = s.kernel.disconnect(fd)
		s.drain(fd)
		s.unwatch(fd)
	})
	err := s.kernel.close()
	s.abandon()
	s.deliver()
	return err
}
