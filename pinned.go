package zcnet

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
)

// This file says who owns memory: the caller, the kernel, or nobody any more.

// ErrReleased is returned for a write of memory that was given up by [Pinned.Release].
var ErrReleased = errors.New("zcnet: Pinned used after Release")

// Pinned is a view of memory that may be lent to the kernel. It is a small value: pass it and slice it freely. The
// zero Pinned is empty.
//
// From a successful [ZeroCopyWriter.WritePinned] until its [Ticket] is done the
// memory belongs to the kernel, which sends from it and sends again from it
// what the network lost. It may be read and it may be sent again meanwhile, but
// a write to it may change what the peer receives. Callers who accept that, as
// live migration does for a running guest's memory, may write to memory made by
// [Pin]: of each byte the old or the new value travels. That holds for bytes
// only. Of a word of several bytes the peer may receive a part of each value.
type Pinned struct {
	b   []byte
	r   *region // nil for memory of Pin
	gen uint32  // which use of r this is: a Pool hands its regions out again and again
}

// Pin makes a view of the caller's memory, on the Go heap or mapped. It does not copy, and has nothing to undo:
// while a write of it is in flight the memory is kept from the garbage collector, and mapped memory must not be
// unmapped. Changing the length or capacity of b afterwards does not affect the view.
func Pin(b []byte) Pinned { return Pinned{b: b[:len(b):len(b)]} }

// Alloc returns n bytes of zeroed memory of its own. On Linux it lies off the Go heap, begins on a page, and from
// 2 MiB on begins on a huge page and asks for huge pages (madvise(2), MADV_HUGEPAGE): the kernel sends those with
// fewer, larger fragments. It must be given up with [Pinned.Release]. If it is dropped instead, it is unmapped once the
// garbage collector finds no Pinned of it any more and nothing of it is in flight; see [LogDropped].
func Alloc(n int) (Pinned, error) {
	switch {
	case n < 0:
		return Pinned{}, fmt.Errorf("zcnet: Alloc of %d bytes: the size must not be negative", n)
	case n == 0:
		return Pinned{}, nil
	}
	mem, err := mapMemory(n)
	if err != nil {
		return Pinned{}, fmt.Errorf("zcnet: Alloc of %d bytes: %w", n, err)
	}
	r := &region{mem: mem}
	r.watchDrop()
	return r.view(n), nil
}

// Bytes returns the memory. It panics after Release, when the memory may already be gone; a slice taken before
// Release must not be used after it either. The slice alone does not keep memory of Alloc or of a Pool: keep the Pinned
// as well, up to its Release.
func (p Pinned) Bytes() []byte {
	if p.r != nil && !p.r.held(p.gen) {
		panic("zcnet: Pinned.Bytes after Release")
	}
	return p.b
}

// Len returns the length in bytes.
func (p Pinned) Len() int { return len(p.b) }

// Slice returns the view of the bytes from lo up to hi. Like a slice expression it panics if they are out of
// range, but hi may not exceed Len. The new view shares the owner of the memory: there is one hold, and one
// Release, for all views of an Alloc or a Get.
func (p Pinned) Slice(lo, hi int) Pinned {
	return Pinned{b: p.b[:len(p.b):len(p.b)][lo:hi:hi], r: p.r, gen: p.gen}
}

// Release gives up the caller's hold on memory of [Alloc] or of a [Pool], through any of its views. The memory is
// unmapped, or goes back to its pool, when the last write of it that is in flight has completed, at once if there is
// none. A second Release panics, also if the memory has been handed out again meanwhile. Memory of
// [Pin] is the caller's own: its Release does nothing, and neither does that of an empty Pinned.
func (p Pinned) Release() {
	if p.r != nil {
		p.r.release(p.gen)
	}
}

// A region is memory of the library's own. It is reclaimed when its holder has released it and no loan of it is out.
type region struct {
	mem   []byte
	home  *Pool         // where it goes then; nil if it is unmapped
	lost  atomic.Bool   // its release was not proven: it never goes there
	alone bool          // it is a buffer of a Pool with a mapping of its own
	state atomic.Uint64 // generation<<regionGen | loans*regionLoan | regionReleased

	cleanup runtime.Cleanup // for the case that it is dropped

	guarded atomic.Pointer[guardedPages] // nil if it was never guarded
}

// The parts of region.state.
const (
	regionReleased = 1
	regionLoan     = 2
	regionGen      = 32
	regionUse      = 1<<regionGen - 1 // the loans, and whether it is released
)

// view returns the first n bytes of r, for its current holder.
func (r *region) view(n int) Pinned {
	return Pinned{b: r.mem[:n:n], r: r, gen: uint32(r.state.Load() >> regionGen)}
}

// held reports whether the holder of generation gen has not released r.
func (r *region) held(gen uint32) bool {
	s := r.state.Load()
	return uint32(s>>regionGen) == gen && s&regionReleased == 0
}

// lend adds a loan, unless the memory was released.
func (r *region) lend(gen uint32) bool {
	for {
		s := r.state.Load()
		if uint32(s>>regionGen) != gen || s&regionReleased != 0 {
			return false
		}
		if r.state.CompareAndSwap(s, s+regionLoan) {
			return true
		}
	}
}

func (r *region) giveBack() {
	if s := r.state.Add(^uint64(regionLoan - 1)); s&regionUse == regionReleased {
		r.reclaim(s)
		if r.home != nil {
			r.home.waits.returned()
		}
	}
}

func (r *region) release(gen uint32) {
	for {
		s := r.state.Load()
		if uint32(s>>regionGen) != gen || s&regionReleased != 0 {
			panic("zcnet: Pinned released twice")
		}
		if r.state.CompareAndSwap(s, s|regionReleased) {
			if s&regionUse == 0 {
				r.reclaim(s)
			}
			if r.home != nil {
				r.home.waits.released(s&regionUse != 0)
			}
			return
		}
	}
}

// reclaim begins the next generation of r, which nobody holds yet, and takes its memory back.
func (r *region) reclaim(state uint64) {
	if r.home == nil {
		r.cleanup.Stop()
		runtime.KeepAlive(r) // see runtime.Cleanup.Stop
		unmapMemory(r.mem)
		return
	}
	r.state.Store((state>>regionGen + 1) << regionGen)
	r.home.put(r)
}

// A loan is the memory of one write while it must not go away: from the start of the write to the completion of
// its last ID. The claim in the connection's ledger owns it, never the ticket, which the caller may drop.
type loan struct {
	regions []*region
	pinner  runtime.Pinner // for memory on the Go heap: neither moved nor collected while pinned
	guard   *guard         // of guard mode; nil otherwise
}

// take borrows the memory of all of ps, or none.
func (ln *loan) take(ps []Pinned) error {
	for i := range ps {
		r := ps[i].r
		if r == nil {
			continue
		}
		if !r.lend(ps[i].gen) {
			ln.giveBack()
			return ErrReleased
		}
		ln.regions = append(ln.regions, r)
	}
	return nil
}

// pass hands the memory of ps over to an empty loan that will outlast the write, and pins what the collector owns.
func (ln *loan) pass(to *loan, ps []Pinned) {
	ln.regions, to.regions = to.regions, ln.regions
	for i := range ps {
		if p := &ps[i]; p.r == nil && len(p.b) > 0 {
			to.pinner.Pin(&p.b[0])
		}
	}
}

// wanted reports whether a goroutine waits for memory of ln that its holder has
// released.
func (ln *loan) wanted() bool {
	for _, r := range ln.regions {
		if r.home != nil && r.home.waiting.Load() > 0 && r.state.Load()&regionReleased != 0 {
			return true
		}
	}
	return false
}

// endGuard ends the guard, if there is one, and adds to the ticket's error what it has found.
func (ln *loan) endGuard(err error) error {
	if ln.guard == nil {
		return err
	}
	g := ln.guard
	ln.guard = nil
	return g.lift(err)
}

// giveBack ends the loan and leaves it empty.
func (ln *loan) giveBack() {
	ln.pinner.Unpin()
	for i, r := range ln.regions {
		r.giveBack()
		ln.regions[i] = nil
	}
	ln.regions = ln.regions[:0]
	if cap(ln.regions) > keptBuffers {
		ln.regions = nil
	}
}

// unproven keeps the loans whose memory the kernel may still read after their descriptor is gone. Nothing ever
// leaves it: memory whose release was never proven is never used again, and never collected.
var unproven unprovenLoans

type unprovenLoans struct {
	mu    sync.Mutex
	loans []*loan
}

// keep keeps ln, and has its pools put other buffers in the place of those in it.
func (u *unprovenLoans) keep(ln *loan) {
	u.mu.Lock()
	u.loans = append(u.loans, ln)
	u.mu.Unlock()
	for _, r := range ln.regions {
		if r.home != nil && r.lost.CompareAndSwap(false, true) {
			r.home.replace()
		}
	}
}
