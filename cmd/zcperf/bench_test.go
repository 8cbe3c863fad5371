package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/zcnet-go/zcnet"
	"github.com/zcnet-go/zcnet/internal/cli"
)

// smallBench is a bench that takes no time to speak of.
func smallBench() benchConfig {
	return benchConfig{
		links:    linkKinds()[:1],
		modes:    usualModes(nil),
		anyModes: true,
		sizes:    []size{64 << 10},
		total:    4 << 20,
		region:   1 << 20,
		rounds:   2,
		memory:   memoryKinds()[0],
	}
}

// corrupter flips a byte of one write.
type corrupter struct {
	sender
	write int
}

func (c *corrupter) send(p zcnet.Pinned) (int64, error) {
	if c.write++; c.write != 3 {
		return c.sender.send(p)
	}
	b := append([]byte(nil), p.Bytes()...)
	b[1000] ^= 0x80
	return c.sender.send(zcnet.Pin(b))
}

func TestBenchReportsAWrongByte(t *testing.T) {
	cfg := smallBench()
	cfg.modes = []mode{usualModes(nil)[0], {name: "broken", open: func(c *net.TCPConn) (sender, error) {
		s, err := openCopy(c)
		return &corrupter{sender: s}, err
	}}}
	err := newBench(cfg, nil).run(t.Context())
	const want = "loopback, writes of 64KiB, mode broken: the receiver got 4194304 bytes, 1 of them WRONG, the first at position 132072"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestBenchLeavesOutModesThatCannotWork(t *testing.T) {
	cfg := smallBench()
	cfg.modes = []mode{{name: "impossible", open: func(*net.TCPConn) (sender, error) { return nil, errNoMode }}}
	cfg.anyModes = false
	if err := newBench(cfg, nil).run(t.Context()); !errors.Is(err, errNoMode) {
		t.Errorf("asked for: %v, want an error", err)
	}
	b := newBench(cfg, nil)
	b.groups = []*group{newGroup(loopbackPath(t), "", 1, cfg.modes)}
	b.cfg.anyModes = true
	g := b.groups[0]
	if r, err := b.transfer(t.Context(), g, g.cells[0], transfer{}); err != nil || r.Bytes != 0 {
		t.Errorf("not asked for: %+v, %v; want nothing", r, err)
	}
	if rows := b.rows(); len(rows) != 0 {
		t.Errorf("the table has %+v, want nothing", rows)
	}
}

func TestBenchKeepsItsBudget(t *testing.T) {
	cfg := smallBench()
	cfg.total, cfg.rounds, cfg.budget = 1<<50, 3, time.Nanosecond
	b := newBench(cfg, nil)
	if err := b.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b.rounds != 1 || !b.cutShort {
		t.Errorf("%d rounds, cut short: %v; want 1 that is", b.rounds, b.cutShort)
	}
	got := strings.Join(b.shortfalls(), "\n")
	for _, want := range []string{"Of 3 rounds 1 were completed.", "Transfers were cut short.", "-budget"} {
		if !strings.Contains(got, want) {
			t.Errorf("the report lacks %q:\n%s", want, got)
		}
	}
}

func TestInterruptedBenchReportsWhatItHas(t *testing.T) {
	cfg := smallBench()
	cfg.json = true
	cfg.modes = usualModes(nil)[:1]
	ctx, cancel := context.WithCancel(t.Context())
	const transfers = 3 // one to verify, two rounds
	opened := 0
	open := cfg.modes[0].open
	cfg.rounds = 100
	cfg.modes = []mode{{name: modeCopy, open: func(c *net.TCPConn) (sender, error) {
		if opened++; opened > transfers {
			cancel()
		}
		return open(c)
	}}}
	b := newBench(cfg, nil)
	if err := b.run(ctx); !errors.Is(err, cli.ErrInterrupted) {
		t.Fatalf("got %v, want %v", err, cli.ErrInterrupted)
	}
	var stdout, stderr bytes.Buffer
	if err := b.report(&stdout, &stderr); err != nil {
		t.Fatal(err)
	}
	var r result
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil || r.Rounds != 2 {
		t.Errorf("printed %s (%v), want one object of 2 rounds", &stdout, err)
	}
	if !strings.Contains(stderr.String(), "Of 100 rounds 2") {
		t.Errorf("stderr says %q, want how many rounds there were", &stderr)
	}
}

// A bench of which nothing is asked for is brief; any other takes the time that
// good figures take.
func TestBriefBench(t *testing.T) {
	for _, test := range []struct {
		args   string
		budget time.Duration
		total  size
	}{
		{"", briefBudget, briefTotal},
		{"-json", briefBudget, briefTotal},
		{"-size 1MiB", 0, defaultTotal},
		{"-link lab -json", 0, defaultTotal},
		{"-rounds 3", 0, defaultTotal},
		{"-busy", 0, defaultTotal},
		{"-total 1GiB", 0, 1 << 30},
		{"-budget 3s", 3 * time.Second, defaultTotal},
		{"-rounds 9 -budget 1m", time.Minute, defaultTotal},
		{"-budget 0", 0, defaultTotal},
	} {
		cfg, err := parseBench(strings.Fields(test.args))
		if err != nil || cfg.budget != test.budget || cfg.total != test.total {
			t.Errorf("bench %s: %v for transfers of %v (%v), want %v for %v", test.args, cfg.budget, cfg.total, err, test.budget, test.total)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, test := range []struct {
		rates []float64
		want  float64
	}{
		{[]float64{3}, 3},
		{[]float64{3, 1}, 1},
		{[]float64{3, 1, 2}, 2},
		{[]float64{4, 3, 1, 2}, 2},
	} {
		c := cell{checked: 7}
		for _, rate := range test.rates {
			c.results = append(c.results, result{GBPerS: rate, Rounds: 1})
		}
		r, ok := c.median()
		if !ok || r.GBPerS != test.want || r.Rounds != len(test.rates) || r.Checked != 7 {
			t.Errorf("the median of %v is %+v, want %v GB/s", test.rates, r, test.want)
		}
	}
	if r, ok := (&cell{}).median(); ok {
		t.Errorf("the median of nothing is %+v, want none", r)
	}
}

// Processor times have medians of their own: that of the round in the middle by
// throughput may be anything.
func TestMedianOfProcessorTimes(t *testing.T) {
	c := cell{results: []result{
		{GBPerS: 1, SideCPU: new(0.3), ProcCPU: new(7.0)},
		{GBPerS: 2, SideCPU: new(0.9), SysCPU: nil},
		{GBPerS: 3, SideCPU: new(0.1)},
	}}
	r, _ := c.median()
	if r.GBPerS != 2 || *r.SideCPU != 0.3 || *r.ProcCPU != 7 || r.SysCPU != nil {
		t.Errorf("got %v GB/s, side %v, process %v, system %v; want 2, 0.3, 7, none", r.GBPerS, *r.SideCPU, *r.ProcCPU, r.SysCPU)
	}
	if *c.results[1].SideCPU != 0.9 {
		t.Errorf("a round's own time has become %v, want it as it was", *c.results[1].SideCPU)
	}
}

// ratioRow returns a row of a size that sent everything without a copy, with
// ratios to copy whose quartiles are a tenth away.
func ratioRow(m string, side, proc, throughput float64) row {
	around := func(ratio float64) (median, low, high *float64) { return &ratio, new(0.9 * ratio), new(1.1 * ratio) }
	r := row{result: result{Mode: m, Control: "cubic", Size: 1, Bytes: 1000, counts: counts{ZeroCopied: 1000}}}
	r.Side, r.SideLow, r.SideHigh = around(side)
	r.Proc, r.ProcLow, r.ProcHigh = around(proc)
	r.Throughput, r.ThroughputLow, r.ThroughputHigh = around(throughput)
	return r
}

func TestMeaning(t *testing.T) {
	copied := func(n int64, why string) row {
		r := ratioRow(modeZcnet, 0.5, 0.3, 1.3)
		r.counts = counts{ZeroCopied: 1000 - n, Copied: n, whyCopied: why}
		return r
	}
	woken := func(often, calls *float64) row {
		r := ratioRow(modeZcnet, 1, 1, 1)
		r.Wakeups, r.Syscalls = often, calls
		return r
	}
	alone := ratioRow(modeZcnet, 1, 1, 1)
	alone.comparison = comparison{}
	noSide := ratioRow(modeZcnet, 1, 0.5, 1.2)
	noSide.Side = nil
	const level = " Its ratios to Write: side's CPU level, process's CPU level, throughput level."
	for _, test := range []struct {
		name      string
		naive, zc []row
		want      string
	}{
		{
			"two sizes",
			[]row{ratioRow("naive", 0.6, 0.4, 0.8), ratioRow("naive", 1.2, 0.4, 1.01)},
			[]row{ratioRow(modeZcnet, 0.5, 0.3, 1.02), ratioRow(modeZcnet, 0.7, 0.3, 1.3)},
			"zcnet sends everything without a copy. Its ratios to Write: side's CPU 0.50 to 0.70, process's CPU 0.30, throughput level to 1.30." +
				" The naive loop's: side's CPU 0.60 to 1.20, process's CPU 0.40, throughput 0.80 to level.",
		},
		{"copied", nil, []row{copied(999, "of the path")}, "next to nothing is sent without a copy: of the path. Its ratios to Write: side's CPU 0.50, process's CPU 0.30, throughput 1.30."},
		{"some copied", nil, []row{copied(800, ""), copied(1, "")}, "zcnet sends 20.0% to 99.9% without a copy, depending on the size of a write. Its ratios to Write: side's CPU 0.50, process's CPU 0.30, throughput 1.30."},
		{"a few copied", nil, []row{copied(10, "")}, "zcnet sends at least 99.0% without a copy. Its ratios to Write: side's CPU 0.50, process's CPU 0.30, throughput 1.30."},
		{"nothing to compare with", nil, []row{alone}, "zcnet sends everything without a copy."},
		{"no side", nil, []row{noSide}, "zcnet sends everything without a copy. Its ratios to Write: process's CPU 0.50, throughput 1.20."},
		{"wake-ups", nil, []row{woken(new(300.4), nil), woken(new(12.0), nil)}, "zcnet sends everything without a copy." + level + " zcnet's poller is woken 12 to 300 times per GB."},
		{"wake-ups and calls", nil, []row{woken(new(12.0), new(9000.2))}, "zcnet sends everything without a copy." + level + " zcnet's poller is woken 12 times per GB, and it makes 9000 system calls."},
	} {
		if got := meaning(test.naive, test.zc); got != test.want {
			t.Errorf("%s:\ngot  %s\nwant %s", test.name, got, test.want)
		}
	}
}

// There is a line for each congestion control.
func TestMeanings(t *testing.T) {
	bbr := ratioRow(modeZcnet, 0.9, 0.8, 1.2)
	bbr.Control = "bbr"
	unknown := ratioRow(modeZcnet, 0.9, 0.8, 1.2)
	unknown.Control = ""
	got := meanings([]row{ratioRow(modeCopy, 1, 1, 1), ratioRow(modeZcnet, 0.5, 0.3, 1.2), bbr, unknown, ratioRow(modeZcnet, 0.6, 0.3, 1.2)})
	want := []string{"Under cubic zcnet sends ", "Under bbr zcnet sends ", "Here zcnet sends "}
	if len(got) != len(want) {
		t.Fatalf("got %q, want %d lines", got, len(want))
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("line %d is %q, want it to begin with %q", i, got[i], want[i])
		}
	}
	if !strings.Contains(got[0], "side's CPU 0.50 to 0.60") {
		t.Errorf("the first line is %q, want both sizes in it", got[0])
	}
}

func TestSetting(t *testing.T) {
	apart := func() (time.Duration, error) { return 0, nil }
	listen := func() (net.Listener, error) { return nil, nil }
	for want, l := range map[string]*link{
		"On lab the receiving end works on a processor of its own":                       {name: "lab", listen: listen, receiving: apart},
		"On lab the receiving end works INLINE, inside the sender's calls (one of them)": {name: "lab", listen: listen, inline: "one of them"},
		"On loopback the kernel copies":                                                  {name: "loopback", listen: listen},
		"To 192.0.2.1:9: the receiving end is somewhere else":                            {name: "192.0.2.1:9"},
	} {
		if got := (&path{link: l}).setting(); !strings.HasPrefix(got, want) {
			t.Errorf("got %q, want it to begin with %q", got, want)
		}
	}
}

// Modes that were asked for beside the usual ones bring a second table.
func TestPeers(t *testing.T) {
	cells := func(names ...string) (rows []row) {
		g := &group{path: &path{link: localLink("here")}, size: 4096}
		for i, name := range names {
			g.cells = append(g.cells, &cell{mode: mode{name: name}, results: []result{{Mode: name, Size: 4096, GBPerS: float64(i + 1), SideCPU: new(float64(i + 1))}}})
		}
		return g.rows()
	}
	var text strings.Builder
	printPeers(&text, cells("copy", "naive", "zcnet"))
	if text.Len() > 0 {
		t.Errorf("the usual modes have a second table:\n%s", &text)
	}
	printPeers(&text, cells("copy", "naive", "least", "zcnet", "c"))
	const want = `control  writes of  zcnet to  side's CPU  process's CPU  throughput
-        4KiB       naive     2.00        -              2.00
-        4KiB       least     1.33        -              1.33
-        4KiB       c         0.80        -              0.80

`
	if text.String() != want {
		t.Errorf("got\n%swant\n%s", &text, want)
	}
}

func TestDisturbance(t *testing.T) {
	b := newBench(smallBench(), nil)
	if got := b.disturbance(); len(got) != 0 {
		t.Errorf("on a quiet machine: %q, want nothing", got)
	}
	b.others = 0.25
	if got := b.disturbance(); len(got) != 1 || !strings.Contains(got[0], "25% of the processors") {
		t.Errorf("got %q, want a line with 25%%", got)
	}
}

func TestUncopied(t *testing.T) {
	for _, test := range []struct {
		zeroCopied int64
		want       string
	}{
		{0, "0%"}, {1, "0.1%"}, {500000, "50.0%"}, {999999, "99.9%"}, {1000000, "100%"},
	} {
		r := result{Bytes: 1000000, counts: counts{ZeroCopied: test.zeroCopied}}
		if got := r.uncopied(); got != test.want {
			t.Errorf("%d of a million: %q, want %q", test.zeroCopied, got, test.want)
		}
	}
}

func TestProgressWithoutATerminal(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out)
	p.begin("one %d", 1)
	p.beginTransfer("copy", 100)
	p.add(50)
	p.note("by the way")
	p.begin("two")
	p.close()
	if got, want := out.String(), "one 1\nby the way\ntwo\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestProgressOnATerminal(t *testing.T) {
	var out bytes.Buffer
	p := &progress{w: &out, live: true, quit: make(chan struct{})}
	p.begin("checking")
	p.beginTransfer("copy", 200)
	p.add(50)
	p.draw()
	p.note("by the way")
	p.begin("next")
	p.close()
	const want = "\rchecking\rchecking: copy 25%\r                  \rby the way\n\rnext\r    \r"
	if got := out.String(); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
