package main

import (
	"runtime"
	"time"

	"github.com/zcnet-go/zcnet/internal/perf"
)

// This file reads the clocks: of the wall, and of the processor time of this
// process, of the whole machine and of the sender's side of a link.

// clocks are what a transfer is measured by.
type clocks struct {
	machine *perf.SideClock
	// apart tells whether the receiving end's work can be told from the sender's:
	// only then is there a time of the sender's side.
	apart bool
}

// clocksApart are for a link both of whose ends are on this machine. The clocks
// of what is not the sender's are given.
func clocksApart(apart []perf.Clock) clocks {
	return clocks{machine: &perf.SideClock{Apart: apart}, apart: true}
}

// clocksTogether are for all others.
func clocksTogether() clocks { return clocks{machine: &perf.SideClock{}} }

// setApart adds a clock of what is not the sender's.
func (c clocks) setApart(clock perf.Clock) { c.machine.Apart = append(c.machine.Apart, clock) }

// A reading is what the clocks say at one moment. A clock that this system does
// not have is nil.
type reading struct {
	wall    time.Time
	process *time.Duration // processor time of this process, in user and kernel mode
	system  *time.Duration // processor time of all processors that was not idle
	side    *time.Duration // processor time of the sender's side
	mallocs uint64         // heap objects allocated by this process
}

// start reads the clocks before what they are to measure, the wall last.
func (c clocks) start() reading {
	r := reading{mallocs: mallocs()}
	c.readMachine(&r)
	r.process = processTime()
	r.wall = time.Now()
	return r
}

// stop reads the clocks after what they are to measure, the wall first.
func (c clocks) stop() reading {
	r := reading{wall: time.Now(), process: processTime()}
	c.readMachine(&r)
	r.mallocs = mallocs()
	return r
}

func (c clocks) readMachine(r *reading) {
	t, err := c.machine.Read()
	if err != nil {
		return
	}
	r.system = &t.Machine
	if c.apart {
		r.side = &t.Side
	}
}

// processTime returns nil if this system does not tell.
func processTime() *time.Duration {
	t, err := perf.ProcessTime()
	if err != nil {
		return nil
	}
	return &t
}

func mallocs() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Mallocs
}

// perGB returns processor seconds per 10^9 bytes, or nil where there is no such
// clock.
func perGB(from, to *time.Duration, bytes int64) *float64 {
	if from == nil || to == nil || bytes == 0 {
		return nil
	}
	s := (*to - *from).Seconds() / (float64(bytes) / 1e9)
	return &s
}
