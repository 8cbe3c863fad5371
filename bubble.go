package zcnet

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Within a bubble of testing/synctest the clock is a fake one, goroutines and
// timers belong to the bubble of the goroutine that starts them, and a channel
// that was made there may be used there only: to close it from elsewhere ends
// the process (closechan in runtime/chan.go). What goroutines of several bubbles
// share, or share with the poller, must therefore be made outside of any bubble.
//
// A goroutine of a bubble may wait for a channel that was made outside. It is
// not durably blocked then, and the clock of its bubble stands still, as while a
// *net.TCPConn reads.

// bubbled reports whether the caller is in a bubble. A time that is read there
// has no monotonic part (time_now in runtime/time.go). Elsewhere only a time
// before 1885 or after 2157 has none, and what follows is slow then, but right.
func bubbled() bool { return fake(time.Now()) }

// fake reports whether now was read from the clock of a bubble.
func fake(now time.Time) bool { return now == now.Round(0) && !kernelInBubble.Load() }

// kernelInBubble is set by tests that put a kernel of their own below
// connections: then all that connections deal with is in the bubble.
var kernelInBubble atomic.Bool

// unbubbled returns what create returns outside of any bubble.
func unbubbled[T any](create func() T) T {
	if !bubbled() {
		return create()
	}
	var v T
	outside(func() { v = create() })
	return v
}

// newSignal returns a channel that any goroutine may close and wait for.
func newSignal() chan struct{} {
	return unbubbled(func() chan struct{} { return make(chan struct{}) })
}

// newTimer is time.NewTimer by the real clock. In a bubble the timer may be
// stopped, but not reset.
func newTimer(d time.Duration) *time.Timer {
	return unbubbled(func() *time.Timer { return time.NewTimer(d) })
}

// realTime is time.Now by the real clock.
func realTime() time.Time {
	if now := time.Now(); !fake(now) {
		return now
	}
	return unbubbled(time.Now)
}

// outer is a goroutine that is in no bubble. It exists while goroutines of
// bubbles need it, and outerIdle longer.
var outer = struct {
	mu      sync.Mutex // held by the goroutine that has a function run
	started atomic.Bool
	run     chan func()
	ran     chan struct{}
}{run: make(chan func()), ran: make(chan struct{})}

// outerIdle spares those that follow soon the garbage collection that starts
// the goroutine. It is shorter than what leak checkers allow to what is ending.
const outerIdle = 100 * time.Millisecond

// outside runs f outside of any bubble, and waits for it. f must not block. The
// caller may hold any lock of this package that f does not take.
func outside(f func()) {
	if !bubbled() {
		f()
		return
	}
	outer.mu.Lock()
	defer outer.mu.Unlock()
	if !outer.started.Load() {
		startOuter()
	}
	outer.run <- f
	<-outer.ran
}

// startOuter starts the goroutine from a cleanup, because the garbage collector
// runs these outside of any bubble (see the documentation of testing/synctest).
// So no cleanup of this package may wait for a lock under which outside is
// called: this one might have to wait for that cleanup.
func startOuter() {
	addOuterCleanup()
	for !outer.started.Load() {
		runtime.GC()
		for range 100 {
			runtime.Gosched()
		}
	}
}

// addOuterCleanup leaves nothing on the caller's stack that would keep the
// object alive.
//
//go:noinline
func addOuterCleanup() {
	object := new([1]*byte)
	runtime.AddCleanup(object, func(struct{}) {
		outer.started.Store(true)
		go runOutside()
	}, struct{}{})
}

func runOutside() {
	for {
		select {
		case f := <-outer.run:
			f()
			outer.ran <- struct{}{}
		case <-time.After(outerIdle):
			if outer.mu.TryLock() {
				outer.started.Store(false)
				outer.mu.Unlock()
				return
			}
		}
	}
}

// poolWaits is how the goroutines of a bubble wait for a buffer of a Pool that
// was made there. While only they hold its buffers they are durably blocked, so
// that the clock of the bubble goes on, and sleeps and timeouts end. While a
// buffer is on its way back from the kernel, they are not.
type poolWaits struct {
	mu      sync.Mutex
	waiting int           // goroutines
	coming  int           // buffers that are released, and still lent
	own     chan struct{} // closed when a goroutine of the bubble has released a buffer or closed the pool
	kernel  chan struct{} // closed when a buffer that was coming is back
}

// get is Get of p, which has no free buffer.
func (w *poolWaits) get(ctx context.Context, p *Pool) (Pinned, error) {
	w.count(1)
	defer w.count(-1)
	for {
		own, kernel := w.channels()
		select {
		case <-p.closed:
			return Pinned{}, errPoolClosed
		case <-p.free:
			return p.pop().view(p.size), nil
		default:
		}
		select {
		case <-own:
		case <-kernel:
		case <-ctx.Done():
			return Pinned{}, ctx.Err()
		}
	}
}

// count counts the goroutines that wait. The channels go with the last, so that
// the pool may be used outside of the bubble while none waits.
func (w *poolWaits) count(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.waiting += n; w.waiting == 0 {
		w.own, w.kernel = nil, nil
	}
}

// channels returns what to wait for; kernel is nil if no buffer is coming.
func (w *poolWaits) channels() (own, kernel <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.own == nil {
		w.own = make(chan struct{})
	}
	if w.coming <= 0 {
		return w.own, nil
	}
	if w.kernel == nil {
		w.kernel = newSignal()
	}
	return w.own, w.kernel
}

// released is called by a goroutine that has released a buffer, which is coming
// if it is lent, or closed the pool.
func (w *poolWaits) released(lent bool) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if lent {
		w.coming++
	}
	wakeAll(&w.own)
}

// returned is called by any goroutine when a buffer that was coming is back.
func (w *poolWaits) returned() {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.coming--
	wakeAll(&w.kernel)
}

// wakeAll wakes the goroutines that wait for signal.
func wakeAll(signal *chan struct{}) {
	if *signal != nil {
		close(*signal)
		*signal = nil
	}
}
