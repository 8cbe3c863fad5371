package zcnet

import (
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file write-protects pages of the library's own memory. The same page may be lent several times at once, and is
// writable again when the last loan of it has ended.

// guardedPages counts the guarded loans of each page of a region.
type guardedPages struct {
	mu    sync.Mutex
	first uintptr // the address of page 0
	loans []int32
}

// guardedPages returns the counts of r, which are made when they are first needed.
func (r *region) guardedPages() *guardedPages {
	if g := r.guarded.Load(); g != nil {
		return g
	}
	size := uintptr(os.Getpagesize())
	begin := uintptr(unsafe.Pointer(&r.mem[0])) &^ (size - 1)
	end := uintptr(unsafe.Pointer(&r.mem[0])) + uintptr(len(r.mem))
	r.guarded.CompareAndSwap(nil, &guardedPages{first: begin, loans: make([]int32, (end-begin+size-1)/size)})
	return r.guarded.Load()
}

// protect makes b, whole pages of r, read-only. It reports false, and changes nothing, if the system refuses, which it does
// when the process has too many mappings (vm.max_map_count).
func (r *region) protect(b []byte) bool {
	g := r.guardedPages()
	g.mu.Lock()
	defer g.mu.Unlock()
	ok := g.eachRun(b, 1, 1, func(run []byte) bool { return mprotect(run, unix.PROT_READ) == nil })
	if !ok {
		g.eachRun(b, -1, 0, func(run []byte) bool {
			r.makeWritable(run)
			return true
		})
	}
	return ok
}

// unprotect undoes protect.
func (r *region) unprotect(b []byte) {
	g := r.guardedPages()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.eachRun(b, -1, 0, func(run []byte) bool {
		r.makeWritable(run)
		return true
	})
}

// eachRun adds n to the count of each page of b, and calls f with each run of pages that have the count edge now, until f
// returns false. g.mu is held.
func (g *guardedPages) eachRun(b []byte, n, edge int32, f func(run []byte) bool) bool {
	size := os.Getpagesize()
	first := int((uintptr(unsafe.Pointer(&b[0])) - g.first) / uintptr(size))
	pages := g.loans[first : first+len(b)/size]
	for i := range pages {
		pages[i] += n
	}
	for i := 0; i < len(pages); {
		if pages[i] != edge {
			i++
			continue
		}
		from := i
		for i < len(pages) && pages[i] == edge {
			i++
		}
		if !f(b[from*size : i*size]) {
			return false
		}
	}
	return true
}

// makeWritable ends the protection of run. That may take one more mapping where the pages around it stay protected, and
// the process may have no more. Then all of the memory that run was mapped with becomes writable, which takes none: better
// a guard less than memory that faults when it is the caller's.
func (r *region) makeWritable(run []byte) {
	err := mprotect(run, unix.PROT_READ|unix.PROT_WRITE)
	if err != nil {
		all := r.mem
		if r.home != nil {
			all = r.home.memory
		}
		err = mprotect(all, unix.PROT_READ|unix.PROT_WRITE)
	}
	if err != nil {
		panic("zcnet: " + os.NewSyscallError("mprotect", err).Error())
	}
}

// mprotect can be made to fail by tests.
var mprotect = unix.Mprotect
