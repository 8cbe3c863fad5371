package zcnet

import (
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file adds to the runtime's message of a fault in guarded memory who has lent it. The runtime has no hook for that,
// so a signal handler of a few instructions (guardtrap_linux_amd64.s) stands in front of its own: it looks the address up
// in a table, writes what it finds there to standard error, and goes on to the runtime's in every case. No Go code runs
// in it, and all that it reads lies off the Go heap.

// A trap is a guarded range and what is to be said when a write to it faults. The handler knows the layout.
type trap struct {
	begin, end atomic.Uintptr // end is 0 while the rest is not valid
	n          uintptr
	message    [trapSize - 24]byte
}

const (
	trapSize  = 512
	trapCount = 4096
)

// What the handler reads.
var (
	trapTable *[trapCount]trap // mapped
	trapsUsed uintptr          // the traps from this one on were never set
	trapNext  uintptr          // the handler that was there before; 0 until ours is
)

// traps says which of the table are free.
var traps struct {
	mu   sync.Mutex
	free []int
}

// setTrap has message written to standard error when a write to b faults. It returns the number of the trap; a negative one
// if it can have none.
func setTrap(b []byte, message string) int {
	traps.mu.Lock()
	defer traps.mu.Unlock()
	if trapNext == 0 {
		installTraps()
	}
	i := int(trapsUsed)
	switch n := len(traps.free); {
	case trapNext == 0:
		return -1
	case n > 0:
		i, traps.free = traps.free[n-1], traps.free[:n-1]
	case i == trapCount:
		return -1
	default:
		atomic.StoreUintptr(&trapsUsed, trapsUsed+1)
	}
	t := &trapTable[i]
	t.n = uintptr(copy(t.message[:], message))
	t.message[t.n-1] = '\n'
	begin := uintptr(unsafe.Pointer(&b[0]))
	t.begin.Store(begin)
	t.end.Store(begin + uintptr(len(b)))
	return i
}

// shortenTrap leaves b of what the trap was set for.
func shortenTrap(i int, b []byte) {
	if i >= 0 {
		trapTable[i].end.Store(uintptr(unsafe.Pointer(&b[0])) + uintptr(len(b)))
	}
}

func clearTrap(i int) {
	if i < 0 {
		return
	}
	traps.mu.Lock()
	defer traps.mu.Unlock()
	trapTable[i].end.Store(0)
	traps.free = append(traps.free, i)
}

// sigaction is the kernel's struct of that name (include/linux/signal_types.h).
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// installTraps makes the table and puts the handler in front of the one that is there, with the same mask, stack and
// flags. It leaves trapNext 0 if there is none to go on to.
func installTraps() {
	var act sigaction
	if !rtSigaction(nil, &act) || act.handler <= 1 { // SIG_DFL, SIG_IGN
		return
	}
	mem, err := mapAnonymous(int(unsafe.Sizeof(*trapTable)))
	if err != nil {
		return
	}
	trapTable = (*[trapCount]trap)(unsafe.Pointer(&mem[0]))
	trapNext = act.handler
	act.handler = trapHandler()
	if !rtSigaction(&act, nil) {
		trapTable, trapNext = nil, 0
		unmapMemory(mem)
	}
}

func rtSigaction(act, old *sigaction) bool {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGSEGV), uintptr(unsafe.Pointer(act)), uintptr(unsafe.Pointer(old)),
		unsafe.Sizeof(act.mask), 0, 0)
	return errno == 0
}

// trapHandler returns the address of the handler.
func trapHandler() uintptr
