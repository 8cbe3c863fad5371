package zcnet

import (
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"
)

// After close(2) the kernel goes on sending from memory in flight, and no
// goroutine can read any more when it has finished. So Close keeps a second
// descriptor of the socket until the last completion has come.

// A lingering close is a connection that was closed with memory in flight. One
// goroutine, run, owns it.
type lingeringClose struct {
	duplicate
	s       *socket
	option  unix.Linger   // SO_LINGER of the connection
	idle    chan struct{} // closed when nothing is in flight any more
	done    chan struct{} // closed when the second descriptor is
	shared  bool          // File has made another owner: the stream is left alone
	aborted bool          // the connection was reset
	dropped bool          // received bytes were dropped
}

// control calls f with a descriptor of the socket, before and after Close.
func (s *socket) control(f func(fd uintptr)) error {
	if l := s.lingering.Load(); l != nil {
		return l.raw.Control(f)
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
	if !l.shared && l.option.Onoff != 0 && l.option.Linger > 0 {
		linger := newTimer(time.Duration(l.option.Linger) * time.Second)
		defer linger.Stop()
		select {
		case <-l.done:
		case <-linger.C:
		}
	}
	return err
}

// closeDescriptor closes the connection's own descriptor, and returns the
// lingering close that is to go on, if memory is in flight. A second Close must
// not come in between: it would close what is about to be duplicated.
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
	l, err := s.linger(idle)
	if err != nil {
		return nil, s.closeUnheld(err)
	}
	return l, s.kernel.close()
}

// detachOwn takes the connection's own descriptor from the poller.
func (s *socket) detachOwn() {
	if s.raw.Control(s.detach) != nil {
		s.detach(noDescriptor) // it was closed behind the library's back
	}
}

// noDescriptor is the number of no descriptor.
const noDescriptor = ^uintptr(0)

// linger makes the second descriptor, and takes the first from the poller.
func (s *socket) linger(idle chan struct{}) (l *lingeringClose, err error) {
	l = &lingeringClose{s: s, idle: idle, done: newSignal(), shared: s.shared.Load()}
	if ctlErr := s.raw.Control(func(fd uintptr) {
		if l.duplicate, l.option, err = s.kernel.duplicate(fd); err == nil {
			s.detach(fd)
		}
	}); ctlErr != nil {
		return nil, cause(ctlErr)
	}
	if err != nil {
		return nil, err
	}
	s.lingering.Store(l)
	return l, nil
}

// begin ends the stream as close(2) would have, or resets the connection. Of a
// socket with another owner close(2) does neither, whatever its SO_LINGER says.
func (l *lingeringClose) begin() {
	if l.shared {
		_ = l.s.attach() // if it fails, run reads the completions at the timeout
		return
	}
	if err := l.s.attach(); err != nil || l.resets() {
		l.abort("reset by Close") // without events: have the completions come now
		return
	}
	_ = l.raw.Control(func(fd uintptr) { l.dropped = l.s.kernel.endStream(fd) })
}

// run waits for the last completion, and closes the second descriptor.
func (l *lingeringClose) run() {
	s, timeout := l.s, l.s.cfg.CloseTimeout
	defer close(l.done)
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	s.askKernel()
	released := l.awaitRelease(deadline.C)
	if !released && !l.aborted && !l.shared {
		l.abort(fmt.Sprintf("reset %v after Close", timeout))
		deadline.Reset(timeout)
		released = l.awaitRelease(deadline.C)
	}
	if !released {
		s.reap()
		s.abandon()
	}
	if l.dropped && !l.aborted {
		l.resetWhenAcknowledged(deadline.C)
	}
	_ = l.raw.Control(s.detach)
	_ = l.file.Close()
}

// resets reports whether Close is to reset the connection at once, which
// SetLinger(0) asks for.
func (l *lingeringClose) resets() bool { return l.option.Onoff != 0 && l.option.Linger == 0 }

// awaitRelease waits until nothing is in flight, and reports whether that was so
// before the timeout.
func (l *lingeringClose) awaitRelease(timeout <-chan time.Time) bool {
	l.s.reap()
	select {
	case <-l.idle:
		return true
	case <-timeout:
		return false
	}
}

// abort resets the connection, which purges the queues of the socket and so
// frees all memory but what a device holds.
func (l *lingeringClose) abort(why string) {
	s := l.s
	l.aborted = true
	s.ledger().fail(fmt.Errorf("%w: %s", ErrConnFailed, why))
	_ = l.raw.Control(func(fd uintptr) {
		if err := s.kernel.disconnect(fd); err != nil {
			s.log(slog.LevelWarn, "could not reset a closed connection", "error", err)
		}
	})
}

// resetWhenAcknowledged prepares a connection of which received bytes were
// dropped for its end: a reset, as close(2) with unread bytes makes one at once.
// Without it a peer that is blocked in Write, our window having been full, would
// probe it for minutes: after shutdown(2) nothing opens the window
// (__tcp_cleanup_rbuf in net/ipv4/tcp.c). But the reset would overtake the end
// of the stream, so first the peer has to acknowledge that.
func (l *lingeringClose) resetWhenAcknowledged(timeout <-chan time.Time) {
	poll := time.NewTicker(acknowledgedEvery)
	defer poll.Stop()
	for {
		acknowledged := true
		_ = l.raw.Control(func(fd uintptr) {
			if acknowledged = l.s.kernel.acknowledged(fd); acknowledged {
				l.s.kernel.resetAtClose(fd)
			}
		})
		if acknowledged {
			return
		}
		select {
		case <-poll.C:
		case <-timeout:
			_ = l.raw.Control(l.s.kernel.resetAtClose)
			return
		}
	}
}

// acknowledgedEvery is the time between two looks whether the end of the stream
// has been acknowledged, which no event tells.
const acknowledgedEvery = 10 * time.Millisecond

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

// closeUnheld closes a connection whose descriptor could not be held, for want
// of another. A reset frees all but what a device holds, but no completion will
// tell of that. Where there is another owner it would be its stream's, too.
func (s *socket) closeUnheld(why error) error {
	s.log(slog.LevelWarn, "closing with memory in flight", "error", why)
	shared := s.shared.Load()
	if !shared {
		s.ledger().fail(fmt.Errorf("%w: reset by Close: %v", ErrConnFailed, why))
	}
	if s.raw.Control(func(fd uintptr) {
		if !shared {
			_ = s.kernel.disconnect(fd)
		}
		s.drain(fd)
		s.detach(fd)
	}) != nil {
		s.detach(noDescriptor)
	}
	err := s.kernel.close()
	s.abandon()
	return err
}
