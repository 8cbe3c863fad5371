package main

import (
	"runtime"
	"time"

	"github.com/zcnet-go/zcnet/internal/perf"
)

// This file reads the clocks: of the wall, and of the processor time of this process, of the receiver's and of the whole
// system.

// A reading is what the clocks say at one moment. A clock that this system does not have is nil.
type reading struct {
	wall     time.Time
	process  *time.Duration // processor time of this process, in user and kernel mode
	receiver *time.Duration // so too, if that is another process of this machine
	system   *time.Duration // processor time of all processors that was not idle
	mallocs  uint64         // heap objects allocated by this process
}

// startClocks reads the clocks before what they are to measure, the wall last.
func startClocks(receiver clock) reading {
	r := reading{mallocs: mallocs()}
	r.readProcessors(receiver)
	r.wall = time.Now()
	return r
}

// stopClocks reads the clocks after what they are to measure, the wall first.
func stopClocks(receiver clock) reading {
	r := reading{wall: time.Now()}
	r.readProcessors(receiver)
	r.mallocs = mallocs()
	return r
}

// A clock tells a processor time. A nil one is of something of which nothing is known.
type clock func() (time.Duration, error)

// ownClock is that of a receiver whose time need not be told apart: it is this process's, or another machine's.
func ownClock() (time.Duration, error) { return 0, nil }

func (r *reading) readProcessors(receiver clock) {
	r.process, r.receiver, r.system = read(perf.ProcessTime), read(receiver), read(perf.SystemTime)
}

// read returns nil if the clock does not tell.
func read(c clock) *time.Duration {
	if c == nil {
		return nil
	}
	d, err := c()
	if err != nil {
		return nil
	}
	return &d
}

func mallocs() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Mallocs
}

// perGB returns processor seconds per 10^9 bytes, or nil where there is no such clock.
func perGB(from, to *time.Duration, bytes int64) *float64 {
	if from == nil || to == nil || bytes == 0 {
		return nil
	}
	s := (*to - *from).Seconds() / (float64(bytes) / 1e9)
	return &s
}
