package perf

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// RunOn restricts all threads of this process, and those they will start, to
// some processors, as a sender belongs on those of its host. restore lets them
// run again where the calling thread could before. Threads that had been
// restricted for themselves lose that.
func RunOn(cpus []int) (restore func(), err error) {
	var before, set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return nil, os.NewSyscallError("sched_getaffinity", err)
	}
	for _, cpu := range cpus {
		set.Set(cpu)
	}
	if err := moveThreads(&set); err != nil {
		_ = moveThreads(&before)
		return nil, err
	}
	return func() { _ = moveThreads(&before) }, nil
}

// moveThreads restricts all threads. One that is new inherits what the thread
// that started it had then, so it takes looks until there are no new ones.
func moveThreads(set *unix.CPUSet) error {
	moved := make(map[int]bool)
	for {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		before := len(moved)
		for _, thread := range threads {
			tid, err := strconv.Atoi(thread.Name())
			if err != nil || moved[tid] {
				continue
			}
			moved[tid] = true
			if err := unix.SchedSetaffinity(tid, set); err != nil && err != unix.ESRCH {
				return os.NewSyscallError("sched_setaffinity", err)
			}
		}
		if len(moved) == before {
			return nil
		}
	}
}
