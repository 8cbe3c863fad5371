package zcnet

import (
	"runtime"
	"time"
)

// This file is the rhythm of a connection that sends in bulk: how much one call sends, and when its goroutine pauses.

const (
	// flaggedCall is the least that a flagged call is bounded to. From about 60 KiB on the cost of a call is spread well.
	flaggedCall = 116 << 10
	// longestCall is the most that one flagged call sends. Longer ones gain nothing more.
	longestCall = 504 << 10
	// callsInWindow is how many of the longest calls the congestion window holds, unless it is narrower than 1 MB.
	callsInWindow = 8

	// beat is the time from one pause to the next, and lookAtClock how many bytes are sent from one look at the clock to the
	// next.
	beat        = 8 * time.Millisecond
	lookAtClock = 1 << 20
)

// A rhythm belongs to the writer.
//
// A call holds the socket's lock, and acknowledgements, which let the next segments go, wait until it is released
// (tcp_release_cb and the backlog in net/ipv4/tcp.c). Where the congestion window is wide that does no harm, and long
// calls are cheap: by CUBIC, with 4 MB in flight, calls of 504 KiB beat those of 116 KiB by a tenth. Where it is narrow
// the link falls silent: by BBR, with 1 MB in flight on the same link, calls of 256 KiB have half the throughput of
// 116 KiB. So calls are a small part of the window where it has room for that; it is looked at at each beat.
//
// A goroutine that has not stopped for 10 ms is taken its processor away by the runtime in the middle of system calls,
// again and again, which wakes threads and costs a fifth of the throughput (retake in runtime/proc.go). A pause in time
// costs next to nothing, and is good for all other goroutines.
type rhythm struct {
	call  int32         // the longest flagged call; 0 if the window is to be looked at
	bytes int32         // sent since the clock was looked at, up to lookAtClock
	last  time.Duration // the last beat, since programBegan
}

// programBegan is the zero of a clock that takes little room, of which there may be a great many.
var programBegan = time.Now()

// longest returns the longest flagged call for the rest of a write, and whether it looked at the window.
func (r *rhythm) longest(rest int64, k kernel, fd uintptr) (n int, looked bool) {
	if rest <= flaggedCall {
		return flaggedCall, false
	}
	if looked = r.call == 0; looked {
		r.call = int32(callFor(k.window(fd)))
	}
	return int(r.call), looked
}

// callFor returns the longest call for a congestion window of so many bytes.
func callFor(window int64) int {
	call := min(max(window/callsInWindow, flaggedCall), longestCall)
	return int(call) &^ (page - 1)
}

// after is called after a call that sent n bytes. It pauses if it is time, and reports whether it was.
func (r *rhythm) after(n int) bool {
	if sent := int(r.bytes) + n; sent < lookAtClock {
		r.bytes = int32(sent)
		return false
	}
	r.bytes = 0
	now := time.Since(programBegan)
	if now-r.last < beat {
		return false
	}
	r.last, r.call = now, 0
	runtime.Gosched()
	return true
}
