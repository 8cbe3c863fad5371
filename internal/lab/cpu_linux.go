package lab

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// maxCPUs is the number of processors for which a kernel can be built at most,
// NR_CPUS.
const maxCPUs = 8192

// learnCPUs notes the processors that this process may use, all of them for
// sending.
func (l *Link) learnCPUs() (err error) {
	l.sendingCPUs, err = affinity(0)
	return err
}

// affinity returns the processors that a thread may use, 0 for the calling one.
func affinity(tid int) (cpus []int, err error) {
	set := unix.NewCPUSet(maxCPUs)
	if err := unix.SchedGetaffinityDynamic(tid, set); err != nil {
		return nil, os.NewSyscallError("sched_getaffinity", err)
	}
	for cpu := range maxCPUs {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}

// setAffinity restricts a thread to some processors.
func setAffinity(tid int, cpus []int) error {
	set := unix.NewCPUSet(maxCPUs)
	for _, cpu := range cpus {
		set.Set(cpu)
	}
	return os.NewSyscallError("sched_setaffinity", unix.SchedSetaffinityDynamic(tid, set))
}

// cpuMask writes a set of processors as the kernel reads it (bitmap_parse in
// lib/bitmap-str.c): words of 32 bits in hexadecimal, the highest first.
func cpuMask(cpus []int) string {
	var words []uint32
	for _, cpu := range cpus {
		for cpu/32 >= len(words) {
			words = append(words, 0)
		}
		words[cpu/32] |= 1 << (cpu % 32)
	}
	var mask strings.Builder
	for i := len(words) - 1; i >= 0; i-- {
		fmt.Fprintf(&mask, ",%08x", words[i])
	}
	return strings.TrimPrefix(mask.String(), ",")
}

// startOn starts cmd on some processors. A process inherits them from the
// thread that starts it, which meanwhile has to be restricted to them too.
//
// If the thread cannot be given its own processors back it stays locked, upon
// which the runtime ends it with the goroutine, and no other one is slowed down.
func startOn(cpus []int, cmd *exec.Cmd) error {
	runtime.LockOSThread()
	home, err := affinity(0)
	if err == nil {
		err = setAffinity(0, cpus)
	}
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("lab: start %s on processors %v: %w", cmd.Path, cpus, err)
	}
	defer func() {
		if setAffinity(0, home) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return cmd.Start()
}
