package zcnet

import (
	"context"
	"io"
	"math/bits"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// This file is about copying: the writer for connections that can do nothing else, the reasons for which a capable
// connection copies all the same, and how a connection learns that its path copies behind its back.

// NewWriter returns c itself if it is a [ZeroCopyWriter], such as a [*Conn]. For every other connection (tls.Conn,
// net.Pipe, unix sockets, TCP on other systems) it returns a writer that means the same and copies: each write
// blocks as a Write of c does, and its ticket is done when it returns. So callers need one code path only.
//
// A struct that embeds a *Conn is a ZeroCopyWriter, too, by the Conn's methods:
// the writer sends past a Write that it overrides, as [Conn] says. One that
// embeds the interface net.Conn is written to by its Write.
//
// The writer does not own c: close c as before. It may be used by many goroutines at once if c may. A write of
// several buffers is one Write of c, of a joined copy of them where c cannot gather (writev).
func NewWriter(c net.Conn) ZeroCopyWriter {
	if w, ok := c.(ZeroCopyWriter); ok {
		return w
	}
	return &copyWriter{c: c}
}

var (
	_ ZeroCopyWriter = &copyWriter{}
	_ FrameWriter    = &copyWriter{}
)

// copyWriter gives any connection the write calls of a Conn. It has no state, and so nothing to flush.
type copyWriter struct{ c net.Conn }

func (w *copyWriter) WritePinned(p Pinned) (Ticket, error) { return w.write([]Pinned{p}) }

func (w *copyWriter) WritePinnedBuffers(ps []Pinned) (Ticket, error) { return w.write(ps) }

func (w *copyWriter) WriteFrame(header []byte, body Pinned) (Ticket, error) {
	return w.write([]Pinned{Pin(header), body})
}

func (w *copyWriter) Flush(context.Context) error { return nil }

func (w *copyWriter) write(ps []Pinned) (Ticket, error) {
	var ln loan
	if err := ln.take(ps); err != nil {
		return Ticket{}, err
	}
	defer ln.giveBack()
	total := totalLen(ps)
	if total == 0 {
		return Ticket{}, nil
	}
	n, err := w.send(ps, total)
	t := Ticket{}
	if n > 0 {
		t = copiedTicket
	}
	if err == nil && n < total {
		err = io.ErrShortWrite
	}
	if err != nil {
		return t, &WriteError{Queued: n, Total: total, Err: err}
	}
	return t, nil
}

// send writes ps contiguously, whoever else writes to the connection.
func (w *copyWriter) send(ps []Pinned, total int64) (int64, error) {
	if b, ok := onlyBuffer(ps); ok {
		n, err := w.c.Write(b)
		return int64(n), err
	}
	switch w.c.(type) {
	case *net.TCPConn, *net.UnixConn:
		bufs := make(net.Buffers, 0, len(ps))
		for _, p := range ps {
			bufs = append(bufs, p.b)
		}
		return bufs.WriteTo(w.c)
	}
	joined := make([]byte, 0, total)
	for _, p := range ps {
		joined = append(joined, p.b...)
	}
	n, err := w.c.Write(joined)
	return int64(n), err
}

// onlyBuffer returns the one buffer of ps that is not empty, if there is just one.
func onlyBuffer(ps []Pinned) (b []byte, ok bool) {
	for _, p := range ps {
		if len(p.b) == 0 {
			continue
		}
		if ok {
			return nil, false
		}
		b, ok = p.b, true
	}
	return b, ok
}

func totalLen(ps []Pinned) (n int64) {
	for i := range ps {
		n += int64(len(ps[i].b))
	}
	return n
}

// A reason is why a part of a write on a capable connection was copied by the library.
type reason uint8

const (
	reasonThreshold reason = iota
	reasonPath
	reasonInFlight
	reasonOptmem
	reasonMemlock
	reasonUnpinnable
	reasonRefused
	reasonCount
)

// reasons is a set of them.
type reasons uint8

func (rs *reasons) add(r reason) { *rs |= 1 << r }

// Fallbacks counts writes of which a part or the whole was copied by the library, by reason. A write with two
// reasons counts under both.
type Fallbacks struct {
	Threshold  uint64 // shorter than Config.Threshold, or a buffer of a longer write shorter than a page
	Path       uint64 // the kernel had been copying on this path
	InFlight   uint64 // Config.MaxInFlight was reached
	Optmem     uint64 // net.core.optmem_max was reached: the kernel has lately refused (ENOBUFS) what would exceed it
	Memlock    uint64 // RLIMIT_MEMLOCK was reached, by this process or together with other processes of this user
	Unpinnable uint64 // EFAULT: memory that can be read but not pinned, such as a device's
	Refused    uint64 // the kernel refused MSG_ZEROCOPY, completions could not be watched or did not come, File was called, or ENOBUFS by neither limit
}

// fallbackCounts are the live counters behind Fallbacks.
type fallbackCounts [reasonCount]atomic.Uint64

func (n *fallbackCounts) count(rs reasons) {
	for ; rs != 0; rs &= rs - 1 {
		n[bits.TrailingZeros8(uint8(rs))].Add(1)
	}
}

func (n *fallbackCounts) snapshot() Fallbacks {
	return Fallbacks{
		Threshold:  n[reasonThreshold].Load(),
		Path:       n[reasonPath].Load(),
		InFlight:   n[reasonInFlight].Load(),
		Optmem:     n[reasonOptmem].Load(),
		Memlock:    n[reasonMemlock].Load(),
		Unpinnable: n[reasonUnpinnable].Load(),
		Refused:    n[reasonRefused].Load(),
	}
}

// What a connection makes of completions that say "copied".
const (
	copiesToSwitch = 8                      // copied IDs in a row that turn it to plain sends
	firstProbe     = 100 * time.Millisecond // until it tries one flagged call again
	lastProbe      = 4 * time.Second        // that time doubles after each failed try, up to this
)

// pathState is what a connection has learned of its path. Loopback, tunnels, packet sockets and devices without
// scatter-gather make the kernel copy after all, late and with cold caches (skb_orphan_frags in
// include/linux/skbuff.h), so that a plain send would have been faster. Routes and listeners change, so a copying
// path is tried again from time to time, with one call.
type pathState struct {
	mu      sync.Mutex
	run     int           // copied IDs since the last uncopied one
	copying atomic.Bool   // plain sends from here on
	free    atomic.Bool   // the last completion told of no copy
	backoff time.Duration // between tries
	tryAt   time.Duration // when the next flagged call may go out, by clock
}

// pathCopies reports whether to send plainly because the kernel copies on this path anyway.
func (s *socket) pathCopies() bool { return s.path.copying.Load() && !s.cfg.insist }

// longestCall returns the most that one flagged call sends. Until a completion
// has told that the path does not copy, calls are short, because eight that are
// copied have to go out before the path counts as one that copies.
func (p *pathState) longestCall() int {
	if p.free.Load() {
		return plainCall
	}
	return smallCall
}

// try reports whether a path that copies is due for another flagged call, and takes the turn.
func (p *pathState) try(now time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now < p.tryAt {
		return false
	}
	p.backoff = min(2*p.backoff, lastProbe)
	p.tryAt = now + p.backoff
	return true
}

// learn takes what the completion of ids IDs said. It reports whether the connection has just changed its mind.
func (p *pathState) learn(ids uint64, copied bool, now time.Duration) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.free.Load() == copied {
		p.free.Store(!copied)
	}
	if !copied {
		p.run = 0
		return p.copying.Swap(false)
	}
	p.run = int(min(uint64(p.run)+ids, copiesToSwitch))
	if p.run < copiesToSwitch || p.copying.Load() {
		return false
	}
	p.backoff = firstProbe
	p.tryAt = now + firstProbe
	p.copying.Store(true)
	return true
}
