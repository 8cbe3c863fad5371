package main

import (
	"runtime"
	"time"

	"github.com/zcnet-go/zcnet/internal/perf"
)

// This file reads the clocks: of the wall, of this process's processor time and of the whole system's.

// A reading is what the clocks say at one moment. A clock that this system does not have is nil.
type reading struct {
	wall    time.Time
	process *time.Duration // processor time of this process, in user and kernel mode
	system  *time.Duration // processor time of all processors that was not idle
	mallocs uint64         // heap objects allocated by this process
}

// startClocks reads the clocks before what they are to measure, the wall last.
func startClocks() reading {
	r := reading{mallocs: mallocs()}
	r.readProcessors()
	r.wall = time.Now()
	return r
}

// stopClocks reads the clocks after what they are to measure, the wall first.
func stopClocks() reading {
	r := reading{wall: time.Now()}
	r.readProcessors()
	r.mallocs = mallocs()
	return r
}

func (r *reading) readProcessors() {
	if d, err := perf.ProcessTime(); err == nil {
		r.process = &d
	}
	if d, err := perf.SystemTime(); err == nil {
		r.system = &d
	}
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
