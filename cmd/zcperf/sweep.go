package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/zcnet-go/zcnet"
	"github.com/zcnet-go/zcnet/internal/cli"
)

// This file is the command sweep: a bench of one link at many sizes of write, from which a threshold follows.

const sweepSynopsis = "[-to HOST:PORT | -link lab] [-mode copy,naive,zcnet] [-size 4KiB,8KiB,...,16MiB] [-total 128MiB] [-rounds 9] [-region 256MiB] [-budget 55s] [-congestion NAME] [-memory huge] [-read] [-busy] [-svg sweep.svg] [-json]"

const (
	smallestSweep = zcnetPage
	largestSweep  = 16 << 20
	sweepTotal    = 128 << 20
	sweepRounds   = 9
	// sweepBudget leaves some of a minute for what a time limit does not end at once.
	sweepBudget = 55 * time.Second
	// zcnetPage is the length below which zcnet copies, whatever its threshold.
	zcnetPage = 4 << 10
)

// sweepConfig is what the flags of sweep say.
type sweepConfig struct {
	benchConfig
	to  string // the address of a serve; empty for a link
	svg string // the name of the file to draw into; empty for none
}

// sweepModes returns all modes, zcnet such that it sends without a copy from the smallest size on.
func sweepModes() []mode { return usualModes(&zcnet.Config{Threshold: zcnetPage}) }

// sweepSizes returns the sizes that are measured if none are asked for.
func sweepSizes() (sizes []size) {
	for n := size(smallestSweep); n <= largestSweep; n *= 2 {
		sizes = append(sizes, n)
	}
	return sizes
}

func parseSweep(args []string) (sweepConfig, error) {
	defaults := benchConfig{
		modes:  sweepModes(),
		sizes:  sweepSizes(),
		total:  sweepTotal,
		rounds: sweepRounds,
		budget: sweepBudget,
	}
	cfg := sweepConfig{svg: "sweep.svg"}
	var kind linkKind
	var control string
	fs := cli.NewFlags("sweep")
	fs.Func("to", "`HOST:PORT` of a zcperf serve to send to, instead of over a link of this machine", one(&cfg.to, parseRemoteAddr))
	fs.Func("link", "`link` to send over: loopback, lab or lab-inline (default: lab if it can be built, or else loopback)", one(&kind, named("link", linkKinds())))
	fs.Func("congestion", congestionUsage, one(&control, parseName))
	cfg.addFlags(fs, defaults, allModes(&zcnet.Config{Threshold: zcnetPage}))
	fs.Func("budget", fmt.Sprintf("`time` that all may take, 0 for no limit: fewer rounds and shorter transfers keep it\n(default %v, or no limit with -total or -rounds)", defaults.budget), one(&cfg.budget, parseBudget))
	cfg.budget = notGiven
	fs.StringVar(&cfg.svg, "svg", cfg.svg, "`file` to draw the curve into; empty for none")
	if err := cli.Parse(fs, args, 0); err != nil {
		return cfg, err
	}
	if kind.name != "" {
		cfg.links = []linkKind{kind}
	}
	cfg.controls = []string{control}
	if cfg.total > 0 || cfg.rounds > 0 {
		defaults.budget = 0
	}
	cfg.complete(defaults)
	slices.Sort(cfg.sizes)
	return cfg, cfg.check()
}

// check refuses what no threshold would follow from.
func (cfg sweepConfig) check() error {
	largest := slices.Max(cfg.sizes)
	switch {
	case cfg.to != "" && cfg.links != nil:
		return cli.Usagef("sweep: -to and -link exclude each other: a link ends on this machine")
	case !cfg.hasMode(modeCopy) || !cfg.hasMode(modeZcnet):
		return cli.Usagef("sweep: -mode lacks copy or zcnet: the threshold follows from comparing these two")
	case largest > cfg.total:
		return cli.Usagef("sweep: a write of %v does not fit -total %v: it must not be larger", largest, cfg.total)
	}
	return checkRegion("sweep", cfg.region, largest)
}

func (cfg sweepConfig) hasMode(name string) bool {
	return slices.ContainsFunc(cfg.modes, func(m mode) bool { return m.name == name })
}

func runSweep(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	cfg, err := parseSweep(args)
	if err != nil {
		return err
	}
	if err := checkFile(cfg.svg); err != nil {
		return err
	}
	show := newProgress(stderr)
	s := &sweep{bench: newBench(cfg.benchConfig, show), to: cfg.to, svg: cfg.svg}
	err = s.run(ctx)
	show.close()
	return cmp.Or(err, s.report(stdout, stderr), s.draw(stderr))
}

// checkFile refuses a file that cannot be written before the time is spent on what is to be in it.
func checkFile(name string) error {
	if name == "" {
		return nil
	}
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		return fmt.Errorf("-svg %s is a directory: want the name of a file, or an empty one for none", name)
	}
	if _, err := os.Stat(filepath.Dir(name)); err != nil {
		return fmt.Errorf("-svg %s cannot be written: %w", name, err)
	}
	return nil
}

// A sweep is one execution of the command: a bench of one path.
type sweep struct {
	*bench
	to, svg string
}

// run makes all transfers. Whatever it returns, the results so far are kept.
func (s *sweep) run(ctx context.Context) error {
	defer s.close()
	if err := s.choosePath(); err != nil {
		return err
	}
	if err := s.prepare(ctx); err != nil {
		return err
	}
	return s.measure(ctx)
}

// choosePath opens the path that was asked for, or the best one there is.
func (s *sweep) choosePath() error {
	switch {
	case s.to != "":
		s.paths = []*path{remotePath(s.to)}
		return nil
	case s.cfg.links != nil:
		return s.openPath(s.cfg.links[0])
	}
	for _, kind := range slices.Backward(usualLinks()) {
		err := s.openPath(kind)
		if err == nil {
			return nil
		}
		s.show.note("without %s", cli.OneLine(err))
	}
	return errNoLink
}

// report prints what there is of the results, which may be nothing.
func (s *sweep) report(stdout, stderr io.Writer) error {
	return s.reportWith(stdout, stderr, []string{s.verdict()})
}

// verdict says in a line what to configure, if that can be told.
func (s *sweep) verdict() string {
	points := s.points()
	if len(points) == 0 || len(points) < len(s.groups) {
		return "Threshold: not known: not every size was measured."
	}
	return verdict(points)
}

// points returns the sizes at which zcnet was compared with copy, in their order.
func (s *sweep) points() (points []point) {
	for _, r := range s.rows() {
		if r.Mode == modeZcnet && r.Throughput != nil {
			points = append(points, point(r))
		}
	}
	return points
}

// draw draws what there is of the curve, which may be nothing.
func (s *sweep) draw(stderr io.Writer) error {
	rows := s.rows()
	if s.svg == "" || len(rows) == 0 {
		return nil
	}
	where := s.paths[0].where()
	if control := rows[0].Control; control != "" {
		where += " under " + control
	}
	picture, err := newCurves(where, rows).svg()
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.svg, picture, 0o666); err != nil {
		return err
	}
	_, err = fmt.Fprintln(stderr, "the curve is in", s.svg)
	return err
}
