package main

import (
	"fmt"
	"slices"
)

// This file compares the rounds of two cells: what one costs as a ratio to the
// other.

// A spread is what several values come to: the one in the middle and the
// quartiles, between which half of them lie.
type spread struct{ low, median, high float64 }

// spreadOf returns the spread of values, and whether there are any.
func spreadOf(values []float64) (s spread, ok bool) {
	if len(values) == 0 {
		return s, false
	}
	sorted := slices.Sorted(slices.Values(values))
	return spread{quantile(sorted, 0.25), quantile(sorted, 0.5), quantile(sorted, 0.75)}, true
}

// quantile returns the value that is at a share of the way through sorted ones,
// between two of them if need be.
func quantile(sorted []float64, share float64) float64 {
	at := share * float64(len(sorted)-1)
	below := int(at)
	above := min(below+1, len(sorted)-1)
	return sorted[below] + (at-float64(below))*(sorted[above]-sorted[below])
}

// isLevel reports whether a ratio of this spread may as well be 1.
func (s spread) isLevel() bool { return s.low <= 1 && s.high >= 1 }

// String prints a ratio.
func (s spread) String() string {
	if s == (spread{1, 1, 1}) {
		return "1"
	}
	median := fmt.Sprintf("%.2f", s.median)
	if s.isLevel() {
		median = "level"
	}
	if s.low == s.high {
		return median
	}
	return fmt.Sprintf("%s (%.2f-%.2f)", median, s.low, s.high)
}

// A comparison is what one cell costs and brings as ratios to another: the
// medians and quartiles of the ratios of one round each. What is not known is
// null.
type comparison struct {
	Side           *float64 `json:"side_ratio"` // processor time of the sender's side, per byte
	SideLow        *float64 `json:"side_ratio_low"`
	SideHigh       *float64 `json:"side_ratio_high"`
	Proc           *float64 `json:"proc_ratio"` // processor time of the sending process, per byte
	ProcLow        *float64 `json:"proc_ratio_low"`
	ProcHigh       *float64 `json:"proc_ratio_high"`
	Throughput     *float64 `json:"throughput_ratio"`
	ThroughputLow  *float64 `json:"throughput_ratio_low"`
	ThroughputHigh *float64 `json:"throughput_ratio_high"`
}

// compare returns the ratios of results to those of a base in the same rounds.
func compare(results, base []result) (c comparison) {
	c.Side, c.SideLow, c.SideHigh = ratio(results, base, func(r result) *float64 { return r.SideCPU })
	c.Proc, c.ProcLow, c.ProcHigh = ratio(results, base, func(r result) *float64 { return r.ProcCPU })
	c.Throughput, c.ThroughputLow, c.ThroughputHigh = ratio(results, base, func(r result) *float64 { return &r.GBPerS })
	return c
}

// ratio returns the spread of the ratios of a field, nil if no round has any.
func ratio(results, base []result, field func(result) *float64) (median, low, high *float64) {
	bases := make(map[int]*float64)
	for _, r := range base {
		bases[r.round] = field(r)
	}
	var ratios []float64
	for _, r := range results {
		if v, b := field(r), bases[r.round]; v != nil && b != nil && *b > 0 {
			ratios = append(ratios, *v / *b)
		}
	}
	s, ok := spreadOf(ratios)
	if !ok {
		return nil, nil, nil
	}
	return &s.median, &s.low, &s.high
}

// side, proc and throughput return the spreads, and whether they are known.
func (c comparison) side() (spread, bool) { return known(c.SideLow, c.Side, c.SideHigh) }
func (c comparison) proc() (spread, bool) { return known(c.ProcLow, c.Proc, c.ProcHigh) }
func (c comparison) throughput() (spread, bool) {
	return known(c.ThroughputLow, c.Throughput, c.ThroughputHigh)
}

func known(low, median, high *float64) (spread, bool) {
	if low == nil || median == nil || high == nil {
		return spread{}, false
	}
	return spread{*low, *median, *high}, true
}
