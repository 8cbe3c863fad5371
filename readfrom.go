package zcnet

import (
	"errors"
	"io"
	"runtime"
	"sync"
	"syscall"
)

// This file sends what is read from any reader, without copying it again, out of buffers of the library's own.

// ReadFrom sends what it reads from r until end of file. Files are sent by sendfile(2), TCP and unix connections by
// splice(2), as by *net.TCPConn. Any other reader reads into buffers of the library's own, which are sent without
// copying where that pays, so that io.Copy to a Conn gains without any duty of the caller: r's memory is r's again when
// its Read returns. What one Read returns is sent at once.
//
// When ReadFrom returns, everything is queued in the kernel, as after Write; the buffers take care of themselves.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	if src, ok := r.(*Conn); ok {
		return src.spliceTo(c.TCPConn)
	}
	if kernelCanMove(r) {
		return c.TCPConn.ReadFrom(r)
	}
	return c.sendFrom(r)
}

const (
	readBufferSize  = 256 << 10 // each comes back by itself when it was sent
	readBufferCount = 64        // of the process: 16 MiB of address space, touched as needed
	// longestReadBuffer is the longest threshold for which a connection gets buffers of its own. Longer ones it copies.
	longestReadBuffer = 4 << 20
)

// readBuffers is the pool for ReadFrom of all connections; nil where there is no memory for it.
var readBuffers = sync.OnceValue(func() *Pool {
	p, err := NewPool(readBufferSize, readBufferCount)
	if err != nil {
		return nil
	}
	return p
})

// readBuffer returns a buffer to read into, of which a full one is worth sending without a copy if any is. When all of the
// pool are in flight, which peers that do not read can bring about, it is one on the Go heap: nobody waits for somebody else's
// peer.
func (s *socket) readBuffer() Pinned {
	if s.cfg.Threshold > readBufferSize && s.cfg.Threshold <= longestReadBuffer {
		return Pin(make([]byte, s.cfg.Threshold))
	}
	if pool := readBuffers(); pool != nil {
		if p, ok := pool.tryGet(); ok {
			return p
		}
	}
	return Pin(make([]byte, readBufferSize))
}

// kernelCanMove reports whether r may be something that sendfile or splice takes, perhaps limited: it has a
// descriptor. So do the wrappers by which packages net and os hide methods of their types from io.Copy.
func kernelCanMove(r io.Reader) bool {
	if limited, ok := r.(*io.LimitedReader); ok {
		r = limited.R
	}
	if _, ok := r.(*Conn); ok {
		return false // its Read survives completions, a splice from it does not
	}
	_, ok := r.(syscall.Conn)
	return ok
}

// sendFrom sends what it reads from r until end of file.
func (c *Conn) sendFrom(r io.Reader) (total int64, err error) {
	defer runtime.KeepAlive(c)
	for err == nil {
		var n int64
		n, err = c.sendThrough(c.s.readBuffer(), r)
		total += n
	}
	if err == io.EOF {
		err = nil
	}
	return total, err
}

// sendThrough sends what it reads from r through p, from front to back, until the rest of p is too short to be worth
// lending, and releases p. What was copied after all leaves its place free for the next Read, which finds it in the
// cache.
func (c *Conn) sendThrough(p Pinned, r io.Reader) (total int64, err error) {
	defer p.Release()
	for at := 0; err == nil && at <= p.Len()-min(c.s.cfg.Threshold, p.Len()); {
		var n int
		n, err = r.Read(p.Slice(at, p.Len()).Bytes())
		ticket, writeErr := c.WritePinned(p.Slice(at, at+n))
		if writeErr != nil {
			return total + queuedOf(writeErr), writeErr
		}
		total += int64(n)
		if ticket.pending() {
			at += n
		}
	}
	return total, err
}

// queuedOf returns how much of a failed write is in the stream.
func queuedOf(err error) int64 {
	if we, ok := errors.AsType[*WriteError](err); ok {
		return we.Queued
	}
	return 0
}
