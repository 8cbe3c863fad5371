package zcnet

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestCallsAreASmallPartOfTheWindow(t *testing.T) {
	for _, test := range []struct {
		window int64
		want   int
	}{
		{0, flaggedCall},               // it cannot be read
		{10 * 1448, flaggedCall},       // a connection that has just begun
		{16 * 65483, 124 << 10},        // 1 MB
		{60 * 65483, 476 << 10},        // 4 MB: whole pages
		{1 << 40, longestCall},         // more than any
		{-1 << 62, flaggedCall},        // nonsense
		{8 * flaggedCall, flaggedCall}, // just so
	} {
		if got := callFor(test.window); got != test.want {
			t.Errorf("callFor(%d) = %d, want %d", test.window, got, test.want)
		}
	}
}

// windowKernel is a kernel of which the window alone is asked.
type windowKernel struct {
	kernel
	bytes int64
	asked int
}

func (k *windowKernel) window(uintptr) int64 {
	k.asked++
	return k.bytes
}

func TestTheWindowIsLookedAtSeldom(t *testing.T) {
	r := rhythm{last: -beat} // long ago, however young the program is
	k := &windowKernel{bytes: 1 << 40}
	if got, looked := r.longest(flaggedCall, k, 0); got != flaggedCall || looked || k.asked != 0 {
		t.Errorf("for a short write calls of %d, after %d looks; want no look", got, k.asked)
	}
	for i := range 100 {
		if got, looked := r.longest(flaggedCall+1, k, 0); got != longestCall || looked != (i == 0) {
			t.Fatalf("calls of %d, looked: %v; want %d, and one look", got, looked, longestCall)
		}
	}
	if k.asked != 1 {
		t.Errorf("the window was looked at %d times, want once before the next beat", k.asked)
	}
	if r.after(lookAtClock-1) || !r.after(1) {
		t.Error("the first beat is after the first MiB")
	}
	k.bytes = 0
	if got, _ := r.longest(flaggedCall+1, k, 0); got != flaggedCall || k.asked != 2 {
		t.Errorf("after a beat calls of %d and %d looks, want %d and 2", got, k.asked, flaggedCall)
	}
	r.last += time.Hour
	if r.after(lookAtClock) {
		t.Error("a beat before its time")
	}
}

// Where bounds are narrow, calls are short enough for several to find room, and what ENOBUFS has told holds.
func TestCallsAreASmallPartOfTheBounds(t *testing.T) {
	for _, test := range []struct {
		maxInFlight, pinned int64
		most                int
		want                int
	}{
		{0, noLimits.pinned, 0, longestCall},
		{1 << 20, noLimits.pinned, 0, 128 << 10},
		{100 << 10, noLimits.pinned, 0, flaggedCall},
		{0, 2 << 20, 0, 256 << 10},
		{1 << 20, 2 << 20, 0, 128 << 10},
		{0, noLimits.pinned, 20 << 10, 20 << 10},
	} {
		s := &socket{kernel: &windowKernel{bytes: 1 << 40}, cfg: (&Config{MaxInFlight: test.maxInFlight}).withDefaults()}
		w := write{progress: progress{s: s, total: 1 << 30, limits: &limits{pinned: test.pinned}, most: test.most}}
		if got := w.longestCall(0); got != test.want {
			t.Errorf("MaxInFlight %d, memlock %d, after ENOBUFS at %d: calls of %d, want %d", test.maxInFlight, test.pinned, 2*test.most, got, test.want)
		}
	}
}

// In a long write the window is looked at again at each beat, and what ENOBUFS has told is not forgotten by that.
func TestALongWriteLooksAtTheWindowAgain(t *testing.T) {
	s := &socket{kernel: &windowKernel{bytes: 1 << 40}, cfg: (&Config{}).withDefaults()}
	s.rhythm.last = -beat
	b := Pin(make([]byte, 2*lookAtClock))
	w := write{bufs: []Pinned{b}, progress: progress{s: s, total: int64(b.Len()), limits: &noLimits, flag: true}}
	if !w.withinBounds(0) || w.size != longestCall {
		t.Fatalf("calls of %d, want %d", w.size, longestCall)
	}
	s.kernel.(*windowKernel).bytes = 0
	w.sent(lookAtClock)
	if !w.withinBounds(0) || w.size != flaggedCall {
		t.Fatalf("after a beat calls of %d, want %d", w.size, flaggedCall)
	}
	w.noBuffers(0)
	s.rhythm.last -= time.Hour
	w.sent(lookAtClock / 2)
	w.sent(lookAtClock / 4)
	w.sent(lookAtClock / 4)
	w.queued = 0
	if !w.withinBounds(0) || w.size > flaggedCall/2 {
		t.Errorf("after ENOBUFS and a beat calls of %d, want at most %d", w.size, flaggedCall/2)
	}
}

// poll finds nothing.
func (k *windowKernel) poll(_ uintptr, p *[1]unix.PollFd) error {
	p[0].Revents = 0
	return nil
}

// renewLimits finds that RLIMIT_MEMLOCK bounds.
func (k *windowKernel) renewLimits(time.Time) *limits { return &limits{ids: 1 << 20, pinned: 1 << 30} }
