package main

import (
	"fmt"
	"slices"
	"strings"
)

// This file decides from which size of write on zero-copy pays.

// A point is how zcnet compares with plain Write at one size of write.
type point row

// pays reports whether sending without a copy is worth it: whether the sender's
// side takes less processor time for it. Where that is not known, the process's
// time decides, and where that is not known or level, throughput. What was
// copied after all is no gain of zero-copy.
func (p point) pays() bool {
	if p.share() < 0.5 {
		return false
	}
	cost, known := p.side()
	if !known {
		cost, known = p.proc()
	}
	if known && !cost.isLevel() {
		return cost.median < 1
	}
	throughput, known := p.throughput()
	return known && !throughput.isLevel() && throughput.median > 1
}

// crossover returns the smallest size from which on zero-copy pays at every size, and whether there is one. The points
// are in the order of their sizes.
func crossover(points []point) (from size, ok bool) {
	for _, p := range slices.Backward(points) {
		if !p.pays() {
			break
		}
		from, ok = p.Size, true
	}
	return from, ok
}

// verdict says in a line what to configure.
func verdict(points []point) string {
	if from, ok := crossover(points); ok {
		return fmt.Sprintf("Threshold: %d (zcnet.Config{Threshold: %d})", from, from)
	}
	var paying []string
	for _, p := range points {
		if p.pays() {
			paying = append(paying, p.Size.String())
		}
	}
	last := points[len(points)-1]
	switch {
	case len(paying) > 0:
		return fmt.Sprintf("Threshold: none: zero-copy pays here at %s, but not at %v.", strings.Join(paying, ", "), last.Size)
	case last.whyCopied != "":
		return fmt.Sprintf("Threshold: none: zero-copy never pays here: %s.", last.whyCopied)
	}
	return "Threshold: none: zero-copy never pays here."
}
