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
		modes:    modes(),
		anyModes: true,
		sizes:    []size{64 << 10},
		total:    4 << 20,
		region:   1 << 20,
		rounds:   2,
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
	cfg.modes = []mode{modes()[0], {"broken", func(c *net.TCPConn) (sender, error) {
		s, err := openCopy(c)
		return &corrupter{sender: s}, err
	}}}
	err := newBench(cfg, nil).run(t.Context())
	const want = "loopback, mode broken, writes of 64KiB: the receiver got 4194304 bytes, 1 of them WRONG, the first at position 132072"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestBenchLeavesOutModesThatCannotWork(t *testing.T) {
	cfg := smallBench()
	cfg.modes = []mode{{"impossible", func(*net.TCPConn) (sender, error) { return nil, errNoMode }}}
	cfg.anyModes = false
	if err := newBench(cfg, nil).run(t.Context()); !errors.Is(err, errNoMode) {
		t.Errorf("asked for: %v, want an error", err)
	}
	b := newBench(cfg, nil)
	b.groups = []*group{newGroup(loopbackPath(t), 1, cfg.modes)}
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
	cfg.modes = modes()[:1]
	ctx, cancel := context.WithCancel(t.Context())
	const transfers = 3 // one to verify, two rounds
	opened := 0
	open := cfg.modes[0].open
	cfg.rounds = 100
	cfg.modes = []mode{{"copy", func(c *net.TCPConn) (sender, error) {
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

func TestBudgetIsForDefaultsOnly(t *testing.T) {
	for args, want := range map[string]time.Duration{
		"":                       defaultBudget,
		"-size 1MiB":             defaultBudget,
		"-rounds 3":              0,
		"-total 1GiB":            0,
		"-budget 3s":             3 * time.Second,
		"-rounds 9 -budget 1m":   time.Minute,
		"-budget 0":              0,
		"-budget 0s -mode zcnet": 0,
	} {
		cfg, err := parseBench(strings.Fields(args))
		if err != nil || cfg.budget != want {
			t.Errorf("bench %s: the budget is %v (%v), want %v", args, cfg.budget, err, want)
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

func TestMeaning(t *testing.T) {
	seconds := func(s float64) *float64 { return &s }
	line := func(ofCopy, cpu float64, uncopied int64, why string) row {
		return row{ofCopy: ofCopy, result: result{Bytes: 1000, ProcCPU: seconds(cpu), counts: counts{ZeroCopied: uncopied, whyCopied: why}}}
	}
	woken := func(ofCopy float64, often float64) row {
		r := line(ofCopy, 1, 1000, "")
		r.Wakeups = &often
		return r
	}
	calling := func(ofCopy, often, calls float64) row {
		r := woken(ofCopy, often)
		r.Syscalls = &calls
		return r
	}
	unknown := line(1, 1, 0, "")
	unknown.ProcCPU = nil
	for _, test := range []struct {
		name              string
		copied, naive, zc []row
		want              string
	}{
		{
			"all uncopied",
			[]row{line(1, 0.4, 0, ""), line(1, 0.5, 0, "")},
			[]row{line(1.1, 1, 1000, ""), line(0.7, 1, 1000, "")},
			[]row{line(1.2, 0.3, 1000, ""), line(1.5, 0.3, 1000, "")},
			"zcnet sends everything without a copy. It has 1.20 to 1.50 times the throughput of plain Write and takes 0.60 to 0.75 times the processor time in the sender. The naive loop has 0.70 to 1.10 times the throughput.",
		},
		{
			"all copied",
			[]row{line(1, 0.4, 0, "")},
			nil,
			[]row{line(0.99, 0.4, 1, "of the path")},
			"next to nothing is sent without a copy: of the path. It has 0.99 times the throughput of plain Write and takes 1.00 times the processor time in the sender.",
		},
		{
			"no processor time",
			[]row{unknown},
			nil,
			[]row{unknown},
			"next to nothing is sent without a copy. It has 1.00 times the throughput of plain Write.",
		},
		{"wake-ups", nil, nil, []row{woken(1, 300.4), woken(1, 12)}, "zcnet sends everything without a copy. Its poller is woken 12 to 300 times per GB."},
		{"wake-ups and calls", nil, nil, []row{calling(1, 12, 9000.2)}, "zcnet sends everything without a copy. Its poller is woken 12 times per GB, and it makes 9000 system calls."},
		{"as many wake-ups", nil, nil, []row{woken(1, 12.4), woken(1, 12)}, "zcnet sends everything without a copy. Its poller is woken 12 times per GB."},
		{"some copied", nil, nil, []row{line(0, 1, 200, ""), line(0, 1, 999, "")}, "zcnet sends 20.0% to 99.9% without a copy, depending on the size of a write."},
		{"a few copied", nil, nil, []row{line(0, 1, 990, ""), line(0, 1, 1000, "")}, "zcnet sends at least 99.0% without a copy."},
	} {
		if got := meaning(test.copied, test.naive, test.zc); got != test.want {
			t.Errorf("%s:\ngot  %s\nwant %s", test.name, got, test.want)
		}
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
