package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// systemDisturbances returns those of Linux.
func systemDisturbances() (ds []disturbance) {
	if processWithout()[faultMemlock] == nil {
		ds = append(ds, disturbance{faultMemlock, changeMemlock})
	}
	return ds
}

// processWithout returns the faults that there cannot be, and why.
func processWithout() map[string]error {
	without := make(map[string]error)
	if mayLock() {
		without[faultMemlock] = errors.New("RLIMIT_MEMLOCK means nothing with CAP_IPC_LOCK; -fault memlock, named, gives that up")
	}
	return without
}

// changeMemlock lowers the limit of locked memory, which pages in flight count for, and raises it again.
func changeMemlock(ctx context.Context, rng *rand.Rand, t *tally) {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &before); err != nil {
		t.problem("getrlimit RLIMIT_MEMLOCK: %v", err)
		return
	}
	set := func(cur uint64) {
		if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: min(cur, before.Max), Max: before.Max}); err != nil {
			t.problem("setrlimit RLIMIT_MEMLOCK %d: %v", cur, err)
		}
	}
	defer set(before.Cur)
	for between(ctx, rng, 50*time.Millisecond, time.Second) {
		set([]uint64{0, 4 << 10, 64 << 10, 256 << 10, 1 << 20}[rng.IntN(5)])
		t.fault(faultMemlock, 1)
		between(ctx, rng, 10*time.Millisecond, 500*time.Millisecond)
		set(before.Max)
	}
}

// mayLock reports whether the calling thread has CAP_IPC_LOCK.
func mayLock() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err := unix.Capget(&hdr, &data[0])
	return err == nil && data[0].Effective&(1<<unix.CAP_IPC_LOCK) != 0
}

// giveUpLockRight makes the process one without CAP_IPC_LOCK, if it has it. A capability belongs to a thread, and of
// those the runtime has many; but the program that execve(2) begins has one, and what is not in the bounding set of
// the calling thread, not even root gets back by it (capabilities(7)). So the process executes itself once more.
func giveUpLockRight() error {
	if !mayLock() {
		return nil
	}
	runtime.LockOSThread() // until the end of the thread, which is soon
	bound, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_IPC_LOCK, 0, 0, 0)
	if err != nil {
		return fmt.Errorf("looking for CAP_IPC_LOCK: %w", os.NewSyscallError("prctl PR_CAPBSET_READ", err))
	}
	if bound == 0 {
		return errors.New("CAP_IPC_LOCK cannot be given up: it is not in the bounding set, and came back nevertheless; run without it, as a user who is not root")
	}
	if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_IPC_LOCK, 0, 0, 0); err != nil {
		return fmt.Errorf("giving up CAP_IPC_LOCK: %w", os.NewSyscallError("prctl PR_CAPBSET_DROP", err))
	}
	return os.NewSyscallError("execve", syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
}
