package zcnet

import (
	"testing"
	"time"
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
