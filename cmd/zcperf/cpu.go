package main

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
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
	if d, err := processTime(); err == nil {
		r.process = &d
	}
	if d, err := systemTime(); err == nil {
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

// systemTime reads the whole system's processor time. Only Linux has the file.
func systemTime() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return parseStat(string(b))
}

// parseStat adds up the busy time in the first line of /proc/stat (proc_stat(5)). The kernel counts there in
// hundredths of a second, so that a run of less than a second is known only roughly.
func parseStat(stat string) (time.Duration, error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	// cpu user nice system idle iowait irq softirq ...
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, errNoStat
	}
	var ticks int64
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, errNoStat
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100), nil
}

var errNoStat = errors.New("/proc/stat does not begin with the time of all processors")
