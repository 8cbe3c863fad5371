package perf

import (
	"os"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// threadsOutside returns how many threads of this process may run elsewhere
// than on one processor.
func threadsOutside(t *testing.T, cpu int) (outside int) {
	t.Helper()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		tid, err := strconv.Atoi(thread.Name())
		if err != nil {
			t.Fatal(err)
		}
		var set unix.CPUSet
		if unix.SchedGetaffinity(tid, &set) == nil && (set.Count() != 1 || !set.IsSet(cpu)) {
			outside++
		}
	}
	return outside
}

// startThread has a thread started that lasts until the test is over.
func startThread(t *testing.T) {
	t.Helper()
	started, quit := make(chan struct{}), make(chan struct{})
	go func() {
		runtime.LockOSThread() // and the runtime needs another one for others
		close(started)
		<-quit
	}()
	<-started
	t.Cleanup(func() { close(quit) })
}

func TestRunOnMovesAllThreads(t *testing.T) {
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	if before.Count() < 2 {
		t.Skip("this process may use one processor only")
	}
	last := 0
	for cpu := range 1024 {
		if before.IsSet(cpu) {
			last = cpu
		}
	}
	startThread(t)
	restore, err := RunOn([]int{last})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		startThread(t)
	}
	if n := threadsOutside(t, last); n > 0 {
		t.Errorf("%d threads may run elsewhere than on processor %d, want none", n, last)
	}
	restore()
	var after unix.CPUSet
	if err := unix.SchedGetaffinity(0, &after); err != nil {
		t.Fatal(err)
	}
	if after != before || threadsOutside(t, last) == 0 {
		t.Errorf("restored to %d processors, want %d", after.Count(), before.Count())
	}
}

func TestRunOnNoProcessor(t *testing.T) {
	if _, err := RunOn([]int{1023}); err == nil && runtime.NumCPU() < 1000 {
		t.Error("RunOn a processor that does not exist succeeds, want an error")
	}
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil || set.Count() != runtime.NumCPU() {
		t.Errorf("after that the thread has %d processors (%v), want %d", set.Count(), err, runtime.NumCPU())
	}
}
