package main

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"weak"

	"github.com/zcnet-go/zcnet"
)

// This file is the memory that calls with a ticket send from.

// A memory is a kind of it, and a way to treat it.
type memory int

const (
	memorySlab    memory = iota // of Alloc, used again when its ticket is done
	memoryHeap                  // on the Go heap, used again when its ticket is done
	memoryPool                  // of a pool that all connections share: released after the write
	memoryThrown                // of Alloc: released after the write, and so unmapped when it is sent
	memoryGarbage               // on the Go heap: dropped after the write, and so garbage when it is sent
)

var memories = []memory{memorySlab, memorySlab, memoryHeap, memoryHeap, memoryPool, memoryThrown, memoryGarbage}

func (m memory) String() string {
	return [...]string{"alloc", "heap", "pool", "alloc thrown away", "heap thrown away"}[m]
}

// Sizes of the shared pool.
const (
	poolBuffer  = 256 << 10
	poolBuffers = 24
)

// most returns how much can be sent from one piece of memory.
func (m memory) most(e *endPlan) int {
	switch m {
	case memorySlab, memoryHeap:
		return e.slabSize
	case memoryPool:
		return poolBuffer
	}
	return maxWrite
}

// A slab is memory that is used again.
type slab struct {
	pinned zcnet.Pinned
	home   chan *slab // where it is when nobody uses it
}

// A stock is the slabs of one end, of which half are on the heap. It lives until the end has settled.
type stock struct {
	alloc, heap chan *slab
	all         []*slab
}

func newStock(n, size int) (*stock, error) {
	st := &stock{alloc: make(chan *slab, n), heap: make(chan *slab, n)}
	for range n {
		p, err := zcnet.Alloc(size)
		if err != nil {
			return nil, err
		}
		for _, s := range []*slab{{p, st.alloc}, {zcnet.Pin(make([]byte, size)), st.heap}} {
			poison(s.pinned.Bytes())
			st.all = append(st.all, s)
			s.home <- s
		}
	}
	return st, nil
}

// back takes a slab back whose ticket is done. What the kernel would still send from it would be poison.
func (s *slab) back() {
	poison(s.pinned.Bytes())
	s.home <- s
}

// release gives the slabs up that are at home. It returns the memory that must be gone now.
func (st *stock) release() (gone []mark) {
	for {
		select {
		case s := <-st.alloc:
			gone = append(gone, markOf(s.pinned.Bytes()))
			s.pinned.Release()
		default:
			return gone
		}
	}
}

// litter is buffers on the heap that were dropped while they were being sent: each must be collected in the end.
//
// They are looked at through weak pointers. Cleanups (runtime.AddCleanup) do not do here: those that are due on a processor
// that a smaller GOMAXPROCS takes away do not run until it comes back (p.destroy in runtime/proc.go leaves p.cleanups).
type litter struct {
	mu      sync.Mutex
	dropped []weak.Pointer[byte]
	tidyAt  int // as many as this
}

const (
	smallestGarbage = 64   // is large enough for a buffer to be an object of its own
	leastToTidy     = 1024 // so many buffers are remembered without looking for those that are gone
)

// new returns n bytes on the heap that are to be dropped.
func (l *litter) new(n int) []byte {
	b := make([]byte, max(n, smallestGarbage))
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.dropped) >= l.tidyAt {
		l.tidy()
		l.tidyAt = max(leastToTidy, 2*len(l.dropped))
	}
	l.dropped = append(l.dropped, weak.Make(&b[0]))
	return b[:n]
}

// tidy forgets those that have been collected.
func (l *litter) tidy() {
	l.dropped = slices.DeleteFunc(l.dropped, func(p weak.Pointer[byte]) bool { return p.Value() == nil })
}

// left collects garbage and returns how many buffers are left.
func (l *litter) left() int {
	runtime.GC()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tidy()
	return len(l.dropped)
}

// sharedPool is the pool that all connections use.
type sharedPool struct {
	*zcnet.Pool
	gone mark // of a buffer, for when the pool is closed
}

func newSharedPool() (*sharedPool, error) {
	p, err := zcnet.NewPool(poolBuffer, poolBuffers)
	if err != nil {
		return nil, err
	}
	return &sharedPool{Pool: p}, nil
}

// missing returns how many buffers have not come back when ctx ends, and releases the others.
func (p *sharedPool) missing(ctx context.Context) (n int64) {
	var back []zcnet.Pinned
	for range poolBuffers {
		b, err := p.Get(ctx)
		if err != nil {
			n++
			continue
		}
		back = append(back, b)
	}
	for _, b := range back {
		poison(b.Bytes())
		p.gone = markOf(b.Bytes())
		b.Release()
	}
	return n
}
