package perf

import "time"

// This file measures what a link costs the sending host, where both of its ends
// are on one machine.

// A Clock tells how much processor time something has used so far.
type Clock func() (time.Duration, error)

// A SideClock tells how much processor time the sender's side of a link has
// used: what the machine was busy, less what was not for the sender.
//
// The sending process's own time is less than that. It leaves out what the
// kernel does for the sender at other moments: sending from pacing timers, and
// when acknowledgements arrive.
//
// On loopback, and wherever the kernel delivers within the sender's calls, the
// receiving end's work in the kernel is charged to the sender too.
//
// One goroutine uses it, before and after what is to be measured. Whatever
// else the machine does meanwhile is measured too.
type SideClock struct {
	// Apart are the clocks of what works on this machine but not for the sender,
	// above all the receiving process and the kernel's receiving thread.
	Apart []Clock

	// polled is the processor time that Read itself has used.
	polled time.Duration
}

// SideTimes are processor times counted from some moment in the past.
type SideTimes struct {
	Machine time.Duration // All processors, less the SideClock's own reading.
	Side    time.Duration // That, less what is apart.
}

// Sub returns the times between two readings.
func (t SideTimes) Sub(earlier SideTimes) SideTimes {
	return SideTimes{t.Machine - earlier.Machine, t.Side - earlier.Side}
}

// Read returns the times so far. It takes up to a few hundredths of a second,
// whose cost to this process it leaves out.
func (c *SideClock) Read() (SideTimes, error) {
	begun, err := ProcessTime()
	if err != nil {
		return SideTimes{}, err
	}
	machine, err := nextTick()
	if err != nil {
		return SideTimes{}, err
	}
	var apart time.Duration
	for _, clock := range c.Apart {
		spent, err := clock()
		if err != nil {
			return SideTimes{}, err
		}
		apart += spent
	}
	ended, err := ProcessTime()
	if err != nil {
		return SideTimes{}, err
	}
	c.polled += ended - begun
	t := SideTimes{Machine: machine.busy() - c.polled}
	t.Side = t.Machine - apart
	return t, nil
}

const (
	// tickPoll is the pause between two looks at /proc/stat.
	tickPoll = 50 * time.Microsecond
	// tickPatience is the longest wait for a tick. The processors together are
	// idle for one of 10 ms much sooner, unless something keeps all of them busy.
	tickPatience = 25 * time.Millisecond
)

// nextTick reads /proc/stat when its idle time has just grown. The file has
// times in hundredths of a second, too coarse for a transfer of two tenths, but
// at the moment at which one is added it is exact.
func nextTick() (machineStat, error) {
	first, err := readStat()
	if err != nil {
		return first, err
	}
	for {
		pause(tickPoll)
		s, err := readStat()
		if err != nil || s.idle != first.idle || s.at > first.at+tickPatience {
			return s, err
		}
	}
}
