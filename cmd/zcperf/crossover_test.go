package main

import "testing"

// onePoint returns the point of a size at which zcnet sends everything without a
// copy, with these ratios to plain Write.
func onePoint(n size, side, proc, throughput *spread) point {
	p := point{result: result{Size: n, Bytes: 1000, counts: counts{ZeroCopied: 1000}}}
	for _, ratio := range []struct {
		spread            *spread
		low, median, high **float64
	}{
		{side, &p.SideLow, &p.Side, &p.SideHigh},
		{proc, &p.ProcLow, &p.Proc, &p.ProcHigh},
		{throughput, &p.ThroughputLow, &p.Throughput, &p.ThroughputHigh},
	} {
		if ratio.spread != nil {
			*ratio.low, *ratio.median, *ratio.high = &ratio.spread.low, &ratio.spread.median, &ratio.spread.high
		}
	}
	return p
}

func TestPays(t *testing.T) {
	var (
		less    = &spread{0.6, 0.7, 0.8}
		level   = &spread{0.9, 0.98, 1.1}
		more    = &spread{1.1, 1.2, 1.3}
		unknown *spread
	)
	for _, test := range []struct {
		name                   string
		side, proc, throughput *spread
		want                   bool
	}{
		{"less CPU of the side", less, more, less, true},
		{"more CPU of the side", more, less, more, false},
		{"level, and faster", level, less, more, true},
		{"level, and as fast", level, less, level, false},
		{"level, and slower", level, less, less, false},
		{"side unknown, less CPU of the process", unknown, less, less, true},
		{"side unknown, more CPU of the process", unknown, more, more, false},
		{"side unknown, level and faster", unknown, level, more, true},
		{"no CPU known, faster", unknown, unknown, more, true},
		{"no CPU known, slower", unknown, unknown, less, false},
		{"no CPU known, as fast", unknown, unknown, level, false},
		{"nothing known", unknown, unknown, unknown, false},
	} {
		if got := onePoint(1, test.side, test.proc, test.throughput).pays(); got != test.want {
			t.Errorf("%s: pays = %v, want %v", test.name, got, test.want)
		}
	}
}

// What the kernel or the library copied is no gain of zero-copy, however little
// it cost.
func TestCopyingDoesNotPay(t *testing.T) {
	p := onePoint(1, &spread{0.5, 0.5, 0.5}, nil, nil)
	p.ZeroCopied = 400
	if p.pays() {
		t.Errorf("%d of %d bytes sent without a copy pay, want not", p.ZeroCopied, p.Bytes)
	}
}

func TestVerdict(t *testing.T) {
	const k = 1 << 10
	yes := func(n size) point { return onePoint(n, &spread{0.7, 0.8, 0.9}, nil, nil) }
	no := func(n size) point { return onePoint(n, &spread{1.1, 1.2, 1.3}, nil, nil) }
	copied := func(n size) point {
		p := yes(n)
		p.counts = counts{MaybeCopied: 1000, whyCopied: "the kernel copies"}
		return p
	}
	for _, test := range []struct {
		name   string
		points []point
		from   size // 0 for none
		want   string
	}{
		{"from some size on", []point{no(4 * k), no(16 * k), yes(32 * k), yes(64 * k)}, 32 * k, "Threshold: 32768 (zcnet.Config{Threshold: 32768})"},
		{"everywhere", []point{yes(4 * k), yes(8 * k)}, 4 * k, "Threshold: 4096 (zcnet.Config{Threshold: 4096})"},
		{"at the last size only", []point{no(4 * k), yes(8 * k)}, 8 * k, "Threshold: 8192 (zcnet.Config{Threshold: 8192})"},
		{"by chance at a small one", []point{yes(4 * k), no(8 * k), yes(16 * k)}, 16 * k, "Threshold: 16384 (zcnet.Config{Threshold: 16384})"},
		{"one size, and it pays", []point{yes(100000)}, 100000, "Threshold: 100000 (zcnet.Config{Threshold: 100000})"},
		{"nowhere", []point{no(4 * k), no(8 * k)}, 0, "Threshold: none: zero-copy never pays here."},
		{"not at the last", []point{yes(4 * k), yes(8 * k), no(16 * k)}, 0, "Threshold: none: zero-copy pays here at 4KiB, 8KiB, but not at 16KiB."},
		{"copied", []point{copied(4 * k), copied(8 * k)}, 0, "Threshold: none: zero-copy never pays here: the kernel copies."},
	} {
		from, ok := crossover(test.points)
		if from != test.from || ok != (test.from > 0) {
			t.Errorf("%s: crossover = %v, %v; want %v", test.name, from, ok, test.from)
		}
		if got := verdict(test.points); got != test.want {
			t.Errorf("%s:\ngot  %s\nwant %s", test.name, got, test.want)
		}
	}
}
