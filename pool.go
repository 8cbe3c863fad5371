package zcnet

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
)

// This file is the pool: a fixed number of buffers that come back by themselves.

// A Pool has a fixed number of buffers of its own memory, of one size. A buffer
// comes back by itself when it has been released and the last write of it has
// completed: get, fill, write, release, forget. One whose write has ended with
// [ErrReleaseUnproven] never does, and the pool maps another in its place. A
// pool is back-pressure, too: [Pool.Get] waits for a buffer. All methods may be
// called by many goroutines at once.
type Pool struct {
	size   int
	memory []byte        // of all buffers
	free   chan struct{} // as many as there are free buffers

	closed chan struct{}

	waiting atomic.Int32 // goroutines in Get that wait
	owed    atomic.Int32 // buffers that replace found no memory for

	mu    sync.Mutex
	stack []*region // the free buffers: the last that came back goes first, for it is in the caches
	left  int       // buffers that are not back for good; the memory is unmapped when there are none

	waits   *poolWaits      // of a pool that was made in a bubble of testing/synctest; nil otherwise
	cleanup runtime.Cleanup // for the case that it is dropped
}

// NewPool maps n buffers of size bytes each, as [Alloc] maps memory, each
// beginning on a page. Memory that was never touched takes no room. Close gives
// it back. A pool that is made in a bubble of testing/synctest belongs to it;
// see docs/synctest.md.
func NewPool(size, n int) (*Pool, error) {
	if size <= 0 || n <= 0 {
		return nil, fmt.Errorf("zcnet: NewPool of %d buffers of %d bytes: both must be positive", n, size)
	}
	p := &Pool{size: size, left: n}
	stride := p.stride()
	if stride < size || stride*n/n != stride {
		return nil, fmt.Errorf("zcnet: NewPool of %d buffers of %d bytes: that is too much", n, size)
	}
	memory, err := mapMemory(stride * n)
	if err != nil {
		return nil, fmt.Errorf("zcnet: NewPool of %d buffers of %d bytes: %w", n, size, err)
	}
	p.memory = memory
	outside(func() { p.free, p.closed = make(chan struct{}, n), make(chan struct{}) })
	if bubbled() {
		p.waits = &poolWaits{}
	}
	for i := range n {
		p.push(p.newRegion(memory[i*stride:(i+1)*stride:(i+1)*stride], false))
	}
	p.watchSelf()
	return p, nil
}

// stride is from one buffer to the next.
func (p *Pool) stride() int { return (p.size + page - 1) &^ (page - 1) }

func (p *Pool) newRegion(mem []byte, alone bool) *region {
	r := &region{mem: mem, home: p, alone: alone}
	p.watchDrop(r)
	return r
}

// Get returns a buffer, whose content is whatever its last user left. If all are in use it waits until one comes back, or
// until ctx ends, and then returns ctx.Err(). After Close it returns an error that matches os.ErrClosed.
//
// While it waits, connections that were closed with released buffers of p in
// flight, and whose peers take nothing, are reset without further delay; see
// Config.StallTimeout.
func (p *Pool) Get(ctx context.Context) (Pinned, error) {
	select {
	case <-p.closed:
		return Pinned{}, errPoolClosed
	case <-p.free:
		return p.pop().view(p.size), nil
	default:
	}
	for n := p.owed.Swap(0); n > 0; n-- {
		p.replace()
	}
	p.waiting.Add(1)
	defer p.waiting.Add(-1)
	defer awaitMemory()()
	if p.waits != nil {
		return p.waits.get(ctx, p)
	}
	select {
	case <-p.closed:
		return Pinned{}, errPoolClosed
	case <-ctx.Done():
		return Pinned{}, ctx.Err()
	case <-p.free:
		return p.pop().view(p.size), nil
	}
}

// push puts r on the stack. p.mu is held, or p is new.
func (p *Pool) push(r *region) {
	p.stack = append(p.stack, r)
	p.free <- struct{}{} // there is room for each buffer
}

// pop is called by who has taken one from p.free.
func (p *Pool) pop() *region {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := len(p.stack) - 1
	r := p.stack[last]
	p.stack[last] = nil
	p.stack = p.stack[:last]
	return r
}

// errPoolClosed is what Get returns after Close.
var errPoolClosed = fmt.Errorf("zcnet: Pool.Get after Close: %w", os.ErrClosed)

// put takes a buffer back that nobody holds and the kernel has released.
func (p *Pool) put(r *region) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.closed:
		p.retireRegion(r)
	default:
		p.push(r)
	}
}

// replace maps a buffer in the place of one that will never come back, because its
// release was not proven. Without memory for it the next Get that has to wait
// tries again.
func (p *Pool) replace() {
	mem, err := mapMemory(p.stride())
	if err != nil {
		p.owed.Add(1)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.closed:
		unmapMemory(mem)
	default:
		p.push(p.newRegion(mem, true))
		p.waits.returned()
	}
}

// retireRegion has the memory of r, which will not be handed out again, go away
// with the last of its mapping. p.mu is held.
func (p *Pool) retireRegion(r *region) {
	r.cleanup.Stop()
	runtime.KeepAlive(r) // or its cleanup could run meanwhile: see runtime.Cleanup.Stop
	if r.alone {
		unmapMemory(r.mem)
		return
	}
	p.retire(1)
}

// Close ends the pool: a Get that waits, and every later one, fails. Buffers that are in use stay valid until they are
// released and their last write has completed; with the last of them the memory is unmapped. A second Close returns
// an error that matches os.ErrClosed.
func (p *Pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.closed:
		return fmt.Errorf("zcnet: second Close of a Pool: %w", os.ErrClosed)
	default:
	}
	close(p.closed)
	p.waits.released(false)
	back := 0
	for {
		select {
		case <-p.free:
			back++
			continue
		default:
		}
		break
	}
	// Whoever else has taken one from p.free takes its buffer from the bottom of the stack after this.
	for _, r := range p.stack[len(p.stack)-back:] {
		p.retireRegion(r)
	}
	p.stack = p.stack[:len(p.stack)-back]
	return nil
}

// retire counts buffers that will not be handed out again. p.mu is held.
func (p *Pool) retire(n int) {
	if p.left -= n; p.left == 0 {
		p.cleanup.Stop()
		unmapMemory(p.memory)
	}
}

// tryGet is Get without waiting.
func (p *Pool) tryGet() (Pinned, bool) {
	select {
	case <-p.free:
		return p.pop().view(p.size), true
	default:
		return Pinned{}, false
	}
}
