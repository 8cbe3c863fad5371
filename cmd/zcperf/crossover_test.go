package main

import "testing"

// onePoint returns the point of a size at which plain Write has 1 GB/s for 1 s of processor time per GB.
func onePoint(n size, rate, cpu float64) point {
	one := 1.0
	return point{
		size:   n,
		copied: result{Bytes: 1000, GBPerS: 1, ProcCPU: &one},
		zc:     result{Bytes: 1000, GBPerS: rate, ProcCPU: &cpu, counts: counts{ZeroCopied: 1000}},
	}
}

func TestPays(t *testing.T) {
	for _, test := range []struct {
		name      string
		rate, cpu float64 // as multiples of plain Write's
		want      bool
	}{
		{"clearly faster", 1.5, 0.5, true},
		{"clearly faster at a price", 1.04, 2, true},
		{"clearly slower", 0.5, 2, false},
		{"clearly slower but cheaper", 0.96, 0.1, false},
		{"level and cheaper", 1, 0.8, true},
		{"level, a little slower and cheaper", 0.98, 0.8, true},
		{"level and as cheap", 1, 1, true},
		{"level, a little faster and a little dearer", 1.01, 1.02, true},
		{"level, a little slower and as cheap", 0.99, 1, false},
		{"level, a little faster and clearly dearer", 1.02, 1.2, false},
		{"level and clearly dearer", 1, 1.2, false},
	} {
		if got := onePoint(1, test.rate, test.cpu).pays(); got != test.want {
			t.Errorf("%s (%v times the throughput, %v times the time): pays = %v, want %v", test.name, test.rate, test.cpu, got, test.want)
		}
	}
}

func TestPaysWithoutProcessorTime(t *testing.T) {
	for rate, want := range map[float64]bool{1.01: true, 1: true, 0.99: false} {
		p := onePoint(1, rate, 1)
		p.copied.ProcCPU, p.zc.ProcCPU = nil, nil
		if got := p.pays(); got != want {
			t.Errorf("%v times the throughput: pays = %v, want %v", rate, got, want)
		}
	}
}

// What the kernel or the library copied is no gain of zero-copy, however fast it was.
func TestCopyingDoesNotPay(t *testing.T) {
	p := onePoint(1, 2, 0.5)
	p.zc.ZeroCopied = 400
	if p.pays() {
		t.Errorf("%d of %d bytes sent without a copy pay, want not", p.zc.ZeroCopied, p.zc.Bytes)
	}
}

func TestVerdict(t *testing.T) {
	const k = 1 << 10
	yes := func(n size) point { return onePoint(n, 1.2, 0.8) }
	no := func(n size) point { return onePoint(n, 0.8, 1.2) }
	copied := func(n size) point {
		p := onePoint(n, 1.2, 0.8)
		p.zc.counts = counts{MaybeCopied: 1000, whyCopied: "the kernel copies"}
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
