package main

import (
	"errors"
	"slices"
	"strings"
)

// This file names the faults. Some are part of the plan of a connection (plan.go), others go on beside all of them
// (disturb.go).

// Names of faults.
const (
	faultReset    = "reset"    // one end resets the connection (SO_LINGER 0)
	faultClose    = "close"    // Close with writes in flight, beside a write, and with a short Config.CloseTimeout
	faultDeadline = "deadline" // read and write deadlines that pass in the middle
	faultStall    = "stall"    // receivers that stop reading for a while, so that the window closes
	faultLoss     = "loss"     // the link loses packets, in both directions
	faultReorder  = "reorder"  // packets overtake each other
	faultPacket   = "packet"   // packet sockets come and go, during which the kernel copies
	faultOptmem   = "optmem"   // net.core.optmem_max changes
	faultMemlock  = "memlock"  // RLIMIT_MEMLOCK changes
	faultGC       = "gc"       // garbage and collections
	faultProcs    = "procs"    // GOMAXPROCS changes
	faultExec     = "exec"     // children are started
)

// faultNames are all of them.
var faultNames = []string{
	faultReset, faultClose, faultDeadline, faultStall,
	faultLoss, faultReorder, faultPacket, faultOptmem,
	faultMemlock, faultGC, faultProcs, faultExec,
}

// faultSet is which faults are on.
type faultSet struct {
	on    map[string]bool
	named map[string]bool // asked for by name, and not by default
}

// defaultFaults returns all faults.
func defaultFaults() faultSet {
	s, _ := chosenFaults(faultNames)
	s.named = nil
	return s
}

// chosenFaults returns those that were asked for.
func chosenFaults(chosen []string) (faultSet, error) {
	s := faultSet{on: make(map[string]bool), named: make(map[string]bool)}
	if slices.Contains(chosen, "none") {
		if len(chosen) > 1 {
			return s, errors.New("none and other faults exclude each other")
		}
		return s, nil
	}
	for _, name := range chosen {
		s.on[name], s.named[name] = true, true
	}
	return s, nil
}

// String returns the set as the flag takes it.
func (s faultSet) String() string {
	var on []string
	for _, name := range faultNames {
		if s.on[name] {
			on = append(on, name)
		}
	}
	if len(on) == 0 {
		return "none"
	}
	return strings.Join(on, ",")
}
