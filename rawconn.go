package zcnet

import (
	"runtime"
	"syscall"
)

// SyscallConn returns a raw connection, as that of *net.TCPConn does, whose
// Read survives completions and keeps the deadlines of the Conn. So a look at
// an idle connection, as pools of connections take it, finds a good one good.
//
// The function that is passed to Read, Write or Control must not send with
// MSG_ZEROCOPY, read the error queue or change SO_ZEROCOPY: the library counts
// all flagged calls of the socket and all of their completions.
//
// Package os knows the raw connections of package net, and moves bytes between
// a file and their sockets by itself. It does not know this one: it calls
// ReadFrom and Read of the Conn instead.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	raw, err := c.TCPConn.SyscallConn()
	if err != nil {
		return nil, err
	}
	return rawConn{RawConn: raw, c: c}, nil
}

// rawConn is the syscall.RawConn of a Conn. It hides the method PollFD of the
// embedded one, by which os.(*File).ReadFrom would read from the socket itself
// and fail when the runtime's poller refuses to (getPollFDAndNetwork in
// os/zero_copy_linux.go).
type rawConn struct {
	syscall.RawConn
	c *Conn
}

// Write and Control are those of the embedded one. A Conn in use is not dropped.
func (r rawConn) Write(f func(fd uintptr) (done bool)) error {
	defer runtime.KeepAlive(r.c)
	return r.RawConn.Write(f)
}

func (r rawConn) Control(f func(fd uintptr)) error {
	defer runtime.KeepAlive(r.c)
	return r.RawConn.Control(f)
}

// Read calls f until it returns true, as RawConn.Read does. Reads of every kind
// exclude one another, as those of *net.TCPConn do.
func (r rawConn) Read(f func(fd uintptr) (done bool)) error {
	defer runtime.KeepAlive(r.c)
	s := r.c.s
	s.readMu.Lock()
	defer s.readMu.Unlock()
	err := r.RawConn.Read(f)
	if !refused(err) {
		return err
	}
	return s.readWith("raw-read", f)
}
