package main

import (
	"fmt"
	"slices"
	"strings"
)

// This file decides from which size of write on zero-copy pays.

// levelWithin is the difference of throughput, as a share, that may be all noise.
const levelWithin = 0.03

// A point is what plain Write and zcnet have come to at one size of write.
type point struct {
	size       size
	copied, zc result
}

// pays reports whether sending without a copy is worth it: it is faster, or as fast and takes less processor time.
// Where noise may be all the difference in throughput, as on a link that is the limit, a throughput that is not lower
// does as well, unless it takes clearly more processor time. What was copied after all is no gain of zero-copy.
func (p point) pays() bool {
	if p.zc.share() < 0.5 {
		return false
	}
	rate := p.zc.GBPerS / p.copied.GBPerS
	cost, known := p.cost()
	switch {
	case rate > 1+levelWithin:
		return true
	case rate < 1-levelWithin:
		return false
	case !known:
		return rate >= 1
	}
	return cost < 1 || rate >= 1 && cost <= 1+levelWithin
}

// cost returns zcnet's processor time per byte as a multiple of plain Write's, and whether it is known.
func (p point) cost() (ratio float64, known bool) {
	zc, copied := p.zc.ProcCPU, p.copied.ProcCPU
	if zc == nil || copied == nil || *copied == 0 {
		return 0, false
	}
	return *zc / *copied, true
}

// crossover returns the smallest size from which on zero-copy pays at every size, and whether there is one. The points
// are in the order of their sizes.
func crossover(points []point) (from size, ok bool) {
	for _, p := range slices.Backward(points) {
		if !p.pays() {
			break
		}
		from, ok = p.size, true
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
			paying = append(paying, p.size.String())
		}
	}
	last := points[len(points)-1]
	switch {
	case len(paying) > 0:
		return fmt.Sprintf("Threshold: none: zero-copy pays here at %s, but not at %v.", strings.Join(paying, ", "), last.size)
	case last.zc.whyCopied != "":
		return fmt.Sprintf("Threshold: none: zero-copy never pays here: %s.", last.zc.whyCopied)
	}
	return "Threshold: none: zero-copy never pays here."
}
