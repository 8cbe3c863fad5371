package main

import (
	"bytes"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zcnet-go/zcnet/internal/cli"
	"github.com/zcnet-go/zcnet/internal/lab"
)

func TestSweep(t *testing.T) {
	svg := filepath.Join(t.TempDir(), "curve.svg")
	got := execute(t, zcperf(t, "sweep", "-link", "loopback", "-size", "64KiB,256KiB", "-total", "4MiB", "-rounds", "1", "-svg", svg))
	if got.status != cli.OK {
		t.Fatalf("status %d, stderr %q; want 0", got.status, got.stderr)
	}
	for _, want := range []string{"On loopback ", "\ncontrol  writes of  mode ", " 64KiB      zcnet ", " 256KiB     zcnet ", " next to nothing is sent without a copy", "\nThreshold: none: zero-copy never pays here"} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("want %q in:\n%s", want, got.stdout)
		}
	}
	if !strings.Contains(got.stderr, "\nthe curve is in "+svg+"\n") {
		t.Errorf("stderr says %q, want where the curve is", got.stderr)
	}
	texts := parseSVG(t, svg)
	names := []string{"copy: plain Write", "naive: MSG_ZEROCOPY loop", "zcnet"}
	if strings.Contains(got.stderr, "without mode naive") {
		names = slices.Delete(names, 1, 2)
	}
	for _, want := range append(names, "64KiB", "256KiB") {
		if !slices.Contains(texts, want) {
			t.Errorf("the picture lacks %q, it has %q", want, texts)
		}
	}
	for _, want := range []string{"Processor time of the sender's side by size of write, on loopback", "Throughput by size of write, on loopback"} {
		if !slices.ContainsFunc(texts, func(s string) bool { return strings.HasPrefix(s, want) }) {
			t.Errorf("the picture lacks a title that begins with %q, it has %q", want, texts)
		}
	}
}

// With an empty name there is no picture, and nothing is written into the directory.
func TestSweepWithoutAPicture(t *testing.T) {
	cmd := zcperf(t, "sweep", "-link", "loopback", "-size", "64KiB", "-total", "1MiB", "-rounds", "1", "-svg", "")
	cmd.Dir = t.TempDir()
	got := execute(t, cmd)
	files, err := filepath.Glob(filepath.Join(cmd.Dir, "*"))
	if got.status != cli.OK || err != nil || len(files) != 0 || strings.Contains(got.stderr, "curve") {
		t.Errorf("status %d, stderr %q, files %q; want 0 and no picture", got.status, got.stderr, files)
	}
}

// On the lab's link zcnet sends without a copy from the smallest size on.
func TestSweepLab(t *testing.T) {
	lab.ForTest(t)
	cmd := zcperf(t, "sweep", "-size", "16KiB,4KiB,2KiB", "-total", "8MiB", "-rounds", "1", "-json")
	cmd.Dir = t.TempDir()
	got := execute(t, cmd)
	if got.status != cli.OK {
		t.Fatalf("status %d, stderr %q; want 0", got.status, got.stderr)
	}
	var sizes []size
	for _, r := range parseJSON(t, got.stdout) {
		if r.Mode != "zcnet" {
			continue
		}
		sizes = append(sizes, r.Size)
		want := r.Bytes
		if r.Size < zcnetPage {
			want = 0
		}
		if r.Link != "lab" || r.ZeroCopied != want {
			t.Errorf("got %+v, want %d bytes sent over the lab without a copy", r, want)
		}
	}
	if want := []size{2 << 10, 4 << 10, 16 << 10}; !slices.Equal(sizes, want) {
		t.Errorf("got the sizes %v, want %v", sizes, want)
	}
	parseSVG(t, filepath.Join(cmd.Dir, "sweep.svg"))
}

func TestSweepDefaults(t *testing.T) {
	for _, test := range []struct {
		args   string
		sizes  string
		total  size
		region size
		rounds int
		budget time.Duration
	}{
		{"", "4KiB,8KiB,...,16MiB", 128 << 20, 256 << 20, 9, sweepBudget},
		{"-size 1MiB,4KiB", "4KiB,1MiB", 128 << 20, 256 << 20, 9, sweepBudget},
		{"-size 1GiB", "1GiB", 1 << 30, 1 << 30, 9, sweepBudget},
		{"-total 1GiB", "4KiB,8KiB,...,16MiB", 1 << 30, 256 << 20, 9, 0},
		{"-rounds 9 -region 16MiB", "4KiB,8KiB,...,16MiB", 128 << 20, 16 << 20, 9, 0},
		{"-rounds 9 -budget 10s", "4KiB,8KiB,...,16MiB", 128 << 20, 256 << 20, 9, 10 * time.Second},
	} {
		cfg, err := parseSweep(strings.Fields(test.args))
		if err != nil {
			t.Errorf("sweep %s: %v", test.args, err)
			continue
		}
		if listed(cfg.sizes) != test.sizes || cfg.total != test.total || cfg.region != test.region || cfg.rounds != test.rounds || cfg.budget != test.budget {
			t.Errorf("sweep %s: got %+v, want %+v", test.args, cfg, test)
		}
	}
	if sizes := sweepSizes(); len(sizes) != 13 {
		t.Errorf("the default sizes are %v, want 13 from 4KiB to 16MiB", sizes)
	}
}

// What was not measured has no threshold.
func TestSweepOfWhichPartIsMissing(t *testing.T) {
	cfg := smallBench()
	s := &sweep{bench: newBench(cfg, nil)}
	p := loopbackPath(t)
	s.paths = []*path{p}
	s.groups = []*group{newGroup(p, "", 4<<10, cfg.modes), newGroup(p, "", 8<<10, cfg.modes)}
	for _, c := range s.groups[0].cells {
		c.results = []result{{Mode: c.mode.name, Size: 4 << 10, Bytes: 1, GBPerS: 1}}
	}
	var stdout, stderr bytes.Buffer
	if err := s.report(&stdout, &stderr); err != nil {
		t.Fatal(err)
	}
	if want := "Threshold: not known: not every size was measured.\n"; !strings.HasSuffix(stdout.String(), want) {
		t.Errorf("got\n%swant it to end in %q", &stdout, want)
	}
}
