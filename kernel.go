package zcnet

import (
	"net"
	"time"
)

// This file is the seam between a connection and the system: what a write, its completions and Close ask for goes
// through it. Tests put a kernel below that does at once, and again at will, what the real one does seldom.

// A kernel carries out the system calls of one connection. None of them blocks. The descriptor is that of the
// RawConn inside of which a method is called.
type kernel interface {
	// write is Write of the *net.TCPConn.
	write(b []byte) (int, error)
	// send makes one call of m, and returns how many bytes it queued: at least one if err is nil.
	send(fd uintptr, m *message, flags int) (int, error)
	// currentLimits and renewLimits return what may be in flight.
	currentLimits(now time.Duration) *limits
	renewLimits(now time.Duration) *limits

	completionKernel // the way back, which is different on each system
}

// system is the real kernel. As it is one pointer, an interface holds it without allocating.
type system struct{ tc *net.TCPConn }

var _ kernel = system{}

func (k system) write(b []byte) (int, error) { return k.tc.Write(b) }

func (system) send(fd uintptr, m *message, flags int) (int, error) { return m.send(fd, flags) }

func (system) currentLimits(now time.Duration) *limits { return currentLimits(now) }
func (system) renewLimits(now time.Duration) *limits   { return renewLimits(now) }
