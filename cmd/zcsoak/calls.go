package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"

	"github.com/zcnet-go/zcnet"
)

// This file is the ways to write. Each fills memory with the content of the stream's next bytes, and hands it to one call.

// A call is a way to write.
type call int

const (
	callWrite call = iota
	callPinned
	callPinnedBuffers
	callFrame
	callNetBuffers
	callReadFrom
	callCopyN
	callFile
)

// calls are all of them, the more often the more there is in them.
var calls = []call{
	callWrite, callWrite, callPinned, callPinned, callPinned, callPinned, callPinned, callPinnedBuffers, callPinnedBuffers, callPinnedBuffers,
	callFrame, callFrame, callFrame, callNetBuffers, callReadFrom, callReadFrom, callCopyN, callFile,
}

func (c call) String() string {
	return [...]string{"Write", "WritePinned", "WritePinnedBuffers", "WriteFrame", "net.Buffers", "ReadFrom", "io.CopyN", "sendfile"}[c]
}

// most returns how much one call may send.
func (c call) most() int {
	if c == callFile {
		return 256 << 10 // it goes through the file system
	}
	return maxWrite
}

// lends reports whether the call returns a ticket for memory that is lent.
func (c call) lends() bool { return c == callPinned || c == callPinnedBuffers || c == callFrame }

// do makes the step's call. It returns how much was queued.
func (e *end) do(s step) (n int64, err error) {
	rng := rand.New(rand.NewPCG(s.seed, 1))
	if s.call.lends() {
		return e.writeLent(s, rng)
	}
	e.arm(s)
	switch s.call {
	case callWrite:
		b := e.scratchFor(s.size)
		e.out.fill(b, e.sent.Load())
		k, err := e.conn.Write(b)
		poison(b)
		return int64(k), err
	case callNetBuffers:
		return e.writeNetBuffers(s, rng)
	case callReadFrom:
		n, err = io.Copy(e.conn, e.source(s.size, rng))
	case callCopyN:
		n, err = io.CopyN(e.conn, e.source(s.size, rng), int64(s.size))
	case callFile:
		return e.sendFile(s)
	}
	if e.zc != nil {
		e.own += n
	}
	return n, err
}

// scratchFor returns memory for what is copied before a call returns.
func (e *end) scratchFor(n int) []byte {
	if cap(e.scratch) < n {
		e.scratch = make([]byte, n)
	}
	return e.scratch[:n]
}

// writeNetBuffers writes pieces by one writev.
func (e *end) writeNetBuffers(s step, rng *rand.Rand) (int64, error) {
	b := e.scratchFor(s.size)
	e.out.fill(b, e.sent.Load())
	var bufs net.Buffers
	for _, piece := range cut(s.size, rng) {
		bufs = append(bufs, b[piece.lo:piece.hi])
	}
	n, err := bufs.WriteTo(e.conn)
	poison(b)
	return n, err
}

// sendFile sends a file, which package net does by sendfile(2).
func (e *end) sendFile(s step) (int64, error) {
	f, err := os.CreateTemp("", "zcsoak")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	b := e.scratchFor(s.size)
	e.out.fill(b, e.sent.Load())
	if _, err := f.Write(b); err != nil {
		return 0, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	return io.Copy(e.conn, f)
}

// source returns a reader of the next n bytes of the stream.
func (e *end) source(n int, rng *rand.Rand) io.Reader {
	return &source{out: e.out, pos: e.sent.Load(), left: n, chunk: 1 + rng.IntN(512<<10)}
}

// A source is a reader that no system call can replace.
type source struct {
	out   stream
	pos   int64
	left  int
	chunk int // that it returns at most
}

func (s *source) Read(b []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n := min(len(b), s.left, s.chunk)
	s.out.fill(b[:n], s.pos)
	s.pos += int64(n)
	s.left -= n
	return n, nil
}

// A piece is a part of a write.
type piece struct{ lo, hi int }

// cut cuts n bytes in pieces, some of which may be empty: mostly few, sometimes more than one system call takes.
func cut(n int, rng *rand.Rand) []piece {
	count := 1 + rng.IntN(6)
	if rng.IntN(8) == 0 {
		count = 1 + rng.IntN(150)
	}
	pieces := make([]piece, 0, count)
	lo := 0
	for i := range count {
		hi := n
		if i < count-1 {
			hi = lo + rng.IntN(2*(n-lo)/(count-i)+1)
			hi = min(hi, n)
		}
		pieces = append(pieces, piece{lo, hi})
		lo = hi
	}
	return pieces
}

// lent is memory on its way to a call with a ticket.
type lent struct {
	pinned zcnet.Pinned
	slab   *slab  // nil if the memory takes care of itself
	done   func() // gives up the memory if it does
}

// writeLent makes a call with a ticket.
func (e *end) writeLent(s step, rng *rand.Rand) (int64, error) {
	m, err := e.lend(s)
	if err != nil {
		return 0, err
	}
	e.arm(s) // not before there is memory, which can take long
	var ticket zcnet.Ticket
	switch s.call {
	case callPinned:
		e.out.fill(m.pinned.Bytes(), e.sent.Load())
		ticket, err = e.w.WritePinned(m.pinned)
	case callPinnedBuffers:
		e.out.fill(m.pinned.Bytes(), e.sent.Load())
		var ps []zcnet.Pinned
		for _, piece := range cut(s.size, rng) {
			ps = append(ps, m.pinned.Slice(piece.lo, piece.hi))
		}
		ticket, err = e.w.WritePinnedBuffers(ps)
		clear(ps)
	case callFrame:
		ticket, err = e.writeFrame(m.pinned, rng)
	}
	n := int64(s.size)
	if err != nil {
		n = queuedOf(err)
	}
	if e.zc != nil {
		e.own += n
	}
	e.c.s.tally.add(func(f *figures) { f.Memory[s.memory.String()]++ })
	if m.slab == nil {
		m.done()
		e.c.s.tally.add(func(f *figures) { f.Forgotten++ })
		return n, err
	}
	e.watch(s.watch, m.slab, ticket)
	return n, err
}

// writeFrame sends the first bytes as a header, which is overwritten at once, and the rest as the body.
func (e *end) writeFrame(p zcnet.Pinned, rng *rand.Rand) (zcnet.Ticket, error) {
	header := e.scratchFor(min(rng.IntN(64), p.Len()))
	body := p.Slice(len(header), p.Len())
	poison(p.Slice(0, len(header)).Bytes()) // is not sent
	e.out.fill(header, e.sent.Load())
	e.out.fill(body.Bytes(), e.sent.Load()+int64(len(header)))
	ticket, err := e.w.(zcnet.FrameWriter).WriteFrame(header, body)
	poison(header)
	return ticket, err
}

// queuedOf returns how much of a write that failed is in the stream.
func queuedOf(err error) int64 {
	var we *zcnet.WriteError
	if errors.As(err, &we) {
		return we.Queued
	}
	return 0
}

// lend finds memory for a step.
func (e *end) lend(s step) (m lent, err error) {
	switch s.memory {
	case memorySlab, memoryHeap:
		if m.slab, err = e.take(s.memory); err != nil {
			return m, err
		}
		m.pinned = m.slab.pinned.Slice(0, s.size)
	case memoryPool:
		p, err := e.c.s.pool.Get(e.c.patience)
		if err != nil {
			return m, fmt.Errorf("%w: no buffer has come back to the pool: %w", errStarved, err)
		}
		m.pinned, m.done = p.Slice(0, s.size), p.Release
	case memoryThrown:
		p, err := zcnet.Alloc(s.size)
		if err != nil {
			return m, err
		}
		m.pinned = p
		m.done = func() {
			e.thrown = append(e.thrown, markOf(p.Bytes()))
			p.Release()
		}
	case memoryGarbage:
		m.pinned, m.done = zcnet.Pin(e.c.s.litter.new(s.size)), func() {}
	}
	return m, nil
}

// errStarved is the error of a sender that waited in vain for memory.
var errStarved = errors.New("waited in vain for memory that is being sent")

// take returns a slab that nobody uses, when there is one.
func (e *end) take(kind memory) (*slab, error) {
	home := e.stock.alloc
	if kind == memoryHeap {
		home = e.stock.heap
	}
	for {
		e.look()
		select {
		case s := <-home:
			return s, nil
		case <-e.lookAgain():
		case <-e.c.patience.Done():
			return nil, errStarved
		}
	}
}
