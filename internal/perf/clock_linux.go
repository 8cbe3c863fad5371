package perf

import (
	"time"

	"golang.org/x/sys/unix"
)

// processTimeOf reads the process's own clock, in nanoseconds. Its number is
// made of the process's by a macro that golang.org/x/sys/unix lacks
// (make_process_cpuclock and CPUCLOCK_SCHED in include/linux/posix-timers.h and
// include/uapi/linux/time.h).
func processTimeOf(pid int) (time.Duration, error) {
	const cpuclockSched = 2
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid)<<3|cpuclockSched, &t); err != nil {
		return processStat(pid)
	}
	return time.Duration(t.Nano()), nil
}

// pause sleeps in the kernel, because the runtime's timers wake a thread that
// sleeps in epoll_wait, to the millisecond.
func pause(d time.Duration) {
	t := unix.NsecToTimespec(d.Nanoseconds())
	_ = unix.Nanosleep(&t, nil) // a signal may shorten it
}
