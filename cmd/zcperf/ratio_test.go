package main

import (
	"math"
	"testing"
)

func TestSpread(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   spread
	}{
		{[]float64{3}, spread{3, 3, 3}},
		{[]float64{3, 1}, spread{1.5, 2, 2.5}},
		{[]float64{5, 1, 3, 2, 4}, spread{2, 3, 4}},
		{[]float64{4, 1, 3, 2}, spread{1.75, 2.5, 3.25}},
		{[]float64{1, 1, 1, 9}, spread{1, 1, 3}},
	} {
		got, ok := spreadOf(test.values)
		if !ok || got != test.want {
			t.Errorf("%v: low, median and high are %+v, %v; want %+v", test.values, got, ok, test.want)
		}
	}
	if got, ok := spreadOf(nil); ok {
		t.Errorf("the spread of nothing is %+v, want none", got)
	}
}

func TestSpreadText(t *testing.T) {
	for _, test := range []struct {
		s     spread
		level bool
		want  string
	}{
		{spread{0.51, 0.56, 0.604}, false, "0.56 (0.51-0.60)"},
		{spread{1.01, 1.2, 1.3}, false, "1.20 (1.01-1.30)"},
		{spread{0.9, 0.97, 1.04}, true, "level (0.90-1.04)"},
		{spread{1, 1.1, 1.2}, true, "level (1.00-1.20)"},
		{spread{0.8, 0.9, 1}, true, "level (0.80-1.00)"},
		{spread{0.7, 0.7, 0.7}, false, "0.70"}, // one round
		{spread{1, 1, 1}, true, "1"},           // to itself
	} {
		if got := test.s.isLevel(); got != test.level {
			t.Errorf("%+v: level = %v, want %v", test.s, got, test.level)
		}
		if got := test.s.String(); got != test.want {
			t.Errorf("%+v: %q, want %q", test.s, got, test.want)
		}
	}
}

// Each round is compared with the same round of the base: what disturbs both
// alike is no difference.
func TestCompare(t *testing.T) {
	round := func(n int, side, proc *float64, rate float64) result {
		return result{round: n, SideCPU: side, ProcCPU: proc, GBPerS: rate}
	}
	base := []result{
		round(0, new(1.0), new(1.0), 4),
		round(1, new(10.0), nil, 2),
		round(2, new(2.0), new(0.0), 2),
		round(4, new(8.0), new(4.0), 1),
	}
	results := []result{
		round(0, new(0.5), new(0.25), 2),
		round(1, new(6.0), new(9.0), 3),
		round(2, new(0.8), new(9.0), 2),
		round(3, new(100.0), new(100.0), 100), // the base has no such round
	}
	got := compare(results, base)
	for _, test := range []struct {
		what      string
		ratio     func() (spread, bool)
		want      spread
		wantKnown bool
	}{
		{"side", got.side, spread{0.45, 0.5, 0.55}, true},
		{"process", got.proc, spread{0.25, 0.25, 0.25}, true},
		{"throughput", got.throughput, spread{0.75, 1, 1.25}, true},
	} {
		s, ok := test.ratio()
		if ok != test.wantKnown || math.Abs(s.low-test.want.low)+math.Abs(s.median-test.want.median)+math.Abs(s.high-test.want.high) > 1e-9 {
			t.Errorf("%s: %+v, %v; want %+v, %v", test.what, s, ok, test.want, test.wantKnown)
		}
	}
	none := compare(results, nil)
	if _, ok := none.side(); ok || none.Side != nil || none.Throughput != nil {
		t.Errorf("without a base: %+v, want nothing known", none)
	}
	for i := range results {
		results[i].SideCPU = nil
	}
	if c := compare(results, base); c.Side != nil || c.SideLow != nil || c.SideHigh != nil || c.Throughput == nil {
		t.Errorf("without the side's time: %+v, want throughput and no side", c)
	}
}
