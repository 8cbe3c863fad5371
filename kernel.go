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

	// optionMemory returns the bytes of kernel memory that the socket's
	// notifications take, read ones excluded, and its other options. It reports
	// false if the kernel does not tell.
	optionMemory(fd uintptr) (bytes int64, ok bool)

	// What follows is asked when the kernel has refused a call for want of buffers.

	// inOurNamespace reports whether the limits are about the socket's network
	// namespace.
	inOurNamespace(fd uintptr) bool
	// roomToPin returns how much of size RLIMIT_MEMLOCK lets one call pin now,
	// by whichever socket, or unknown. It halves the size until it knows.
	roomToPin(size int64) int64

	completionKernel // the way back, which is different on each system
}

// system is the real kernel. As it is one pointer, an interface holds it without allocating.
type system struct{ tc *net.TCPConn }

var _ kernel = system{}

func (k system) write(b []byte) (int, error) { return k.tc.Write(b) }

func (system) send(fd uintptr, m *message, flags int) (int, error) { return m.send(fd, flags) }

func (system) currentLimits(now time.Duration) *limits { return currentLimits(now) }
func (system) renewLimits(now time.Duration) *limits   { return renewLimits(now) }

func (system) optionMemory(fd uintptr) (int64, bool) { return optionMemory(fd) }
func (system) inOurNamespace(fd uintptr) bool        { return inOurNamespace(fd) }
func (system) roomToPin(size int64) int64            { return roomToPin(size) }
