package zcnet

import (
	"context"
	"log/slog"
	"runtime"
	"sync/atomic"
	"weak"
)

// This file is about what its owner has dropped without Close or Release. That is a mistake, but the garbage collector
// finds it out (runtime.AddCleanup): what was held is given back after the last completion, counted and told.

// Dropped counts what this process has dropped without Close or Release, and the garbage collector has found.
type Dropped struct {
	Conns   uint64 // a Conn without Close
	Allocs  uint64 // memory of Alloc without Release
	Buffers uint64 // a buffer of a Pool without Release
	Pools   uint64 // a Pool without Close
}

var droppedCounts struct{ conns, allocs, buffers, pools atomic.Uint64 }

func droppedSoFar() Dropped {
	n := &droppedCounts
	return Dropped{Conns: n.conns.Load(), Allocs: n.allocs.Load(), Buffers: n.buffers.Load(), Pools: n.pools.Load()}
}

var dropLog atomic.Pointer[slog.Logger]

// LogDropped has l hear, as a warning, of everything that this process drops without Close or Release; of a Conn its own
// Config.Logger hears too. nil, as at first, logs nothing. It may be called at any time.
func LogDropped(l *slog.Logger) { dropLog.Store(l) }

// drop counts and tells.
func drop(n *atomic.Uint64, what string, args ...any) {
	n.Add(1)
	if l := dropLog.Load(); l != nil {
		l.Log(context.Background(), slog.LevelWarn, "zcnet: "+what, args...)
	}
}

// watchDrop has the memory of an Alloc unmapped when nobody refers to it any more: no Pinned, and no write in flight.
func (r *region) watchDrop() {
	r.cleanup = runtime.AddCleanup(r, func(mem []byte) {
		drop(&droppedCounts.allocs, "memory of Alloc was dropped without Release", "bytes", len(mem))
		unmapMemory(mem)
	}, r.mem)
}

// A slot is the place of a buffer in its pool.
type slot struct {
	pool  weak.Pointer[Pool] // strong, it would keep the pool for ever
	mem   []byte
	alone bool // see region
}

// watchDrop puts a buffer in the place of r when nobody refers to r any more.
func (p *Pool) watchDrop(r *region) {
	r.cleanup = runtime.AddCleanup(r, func(s slot) { go s.refill() }, slot{weak.Make(p), r.mem, r.alone}) // see startOuter
}

func (s slot) refill() {
	p := s.pool.Value()
	switch {
	case p != nil:
	case s.alone:
		unmapMemory(s.mem)
		fallthrough
	default:
		return // it went with its pool
	}
	drop(&droppedCounts.buffers, "a buffer of a Pool was dropped without Release", "bytes", len(s.mem))
	p.put(p.newRegion(s.mem, s.alone))
}

// watchSelf unmaps the memory of a pool when nobody refers to it or to one of its buffers any more: to those that were
// still in use at its Close, if there was one.
func (p *Pool) watchSelf() {
	closed := p.closed // it cannot be reached from there
	p.cleanup = runtime.AddCleanup(p, func(mem []byte) {
		select {
		case <-closed:
			drop(&droppedCounts.buffers, "buffers of a closed Pool were dropped without Release", "bytes", len(mem))
		default:
			drop(&droppedCounts.pools, "a Pool was dropped without Close", "bytes", len(mem))
		}
		unmapMemory(mem)
	}, p.memory)
}

// dropped is called when nobody refers to the Conn of s any more. Once nothing
// is in flight the library lets go of the *net.TCPConn, which then closes
// itself, unless it is still in use. If that takes longer than Close would
// wait, the connection is closed.
func (s *socket) dropped() {
	if s.ledger().isClosed() {
		return
	}
	if !s.shared.Load() { // the kernel counts on where this connection has ended
		runtime.AddCleanup(s.tc, forget, s.cookie)
	}
	drop(&droppedCounts.conns, "a Conn was dropped without Close", "local", s.tc.LocalAddr(), "remote", s.tc.RemoteAddr())
	s.log(slog.LevelWarn, "the Conn was dropped without Close")
	idle := s.ledger().awaitIdle()
	if idle == nil {
		s.detachOwn()
		return
	}
	s.await()
	if s.givenUp = s.awaitRelease(idle, s.grace()); s.givenUp != "" {
		_ = s.close()
		return
	}
	s.detachOwn()
}
