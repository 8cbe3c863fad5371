package main

import (
	"runtime"
	"strings"
)

// This file takes stock of what a process has, to find what it has more of later.

// A stocktaking is what there is at one time.
type stocktaking struct {
	goroutines  []string // their stacks
	descriptors map[string]string
	mappings    int
	threads     int
}

// leaks are what there is too much of.
type leaks struct{ goroutines, descriptors []string }

func (l leaks) none() bool { return len(l.goroutines)+len(l.descriptors) == 0 }

func takeStock() stocktaking {
	return stocktaking{goroutines: goroutines(), descriptors: descriptors(), mappings: mappings(), threads: threads()}
}

// leaked returns what there was not before. Goroutines are told by their number, descriptors by number and by what they
// refer to, which names a socket or pipe for its life.
func (now stocktaking) leaked(before stocktaking) (l leaks) {
	known := make(map[string]bool)
	for _, g := range before.goroutines {
		known[goroutineID(g)] = true
	}
	for _, g := range now.goroutines {
		if !known[goroutineID(g)] {
			l.goroutines = append(l.goroutines, g)
		}
	}
	for fd, target := range now.descriptors {
		if before.descriptors[fd] != target {
			l.descriptors = append(l.descriptors, fd+" "+target)
		}
	}
	return l
}

// What the runtime may map between two stocktakings: for the stack and the allocator of each new thread, and for its heap.
const (
	mappingsOfThread = 4
	mappingsOfHeap   = 128
)

// mappingsLeft returns how many mappings there are more than the runtime accounts for. That finds what is left behind again and
// again only; a single piece of memory is found by its mark.
func (now stocktaking) mappingsLeft(before stocktaking) int {
	allowed := mappingsOfHeap + mappingsOfThread*max(0, now.threads-before.threads)
	return max(0, now.mappings-before.mappings-allowed)
}

func goroutineID(stack string) string {
	id, _, _ := strings.Cut(stack, " [")
	return id
}

// goroutines returns the stacks of all goroutines, but of those that the runtime starts when it sees fit.
func goroutines() (all []string) {
	buf := make([]byte, 64<<10)
	n := runtime.Stack(buf, true)
	for ; n == len(buf); n = runtime.Stack(buf, true) {
		buf = make([]byte, 2*len(buf))
	}
	for g := range strings.SplitSeq(string(buf[:n]), "\n\n") {
		if !strings.Contains(g, "runtime.runCleanups") && !strings.Contains(g, "runtime.runFinalizers") && !strings.Contains(g, "os/signal.") {
			all = append(all, strings.TrimSpace(g))
		}
	}
	return all
}
