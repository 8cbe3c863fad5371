package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/zcnet-go/zcnet"
	"github.com/zcnet-go/zcnet/internal/cli"
)

// This file is the command bench: which transfers it makes, in which order, and in how much time.

const benchSynopsis = "[-link loopback,lab] [-mode copy,naive,zcnet] [-size 64KiB,1MiB] [-total 1GiB] [-rounds 3] [-region 256MiB] [-budget 25s] [-congestion NAME] [-json]"

const (
	defaultTotal       = 1 << 30
	defaultBenchRegion = 256 << 20
	defaultRounds      = 3
	// defaultBudget leaves some of half a minute for what a time limit does not end at once.
	defaultBudget = 25 * time.Second
	// verifyTotal is how much each combination of link, mode and size sends to be compared byte by byte.
	verifyTotal = 64 << 20
	// verifyRegion is how much of the region that goes through: several times, to see the beginning again.
	verifyRegion = 24 << 20
	// verifyShare is the part of the budget that is for it.
	verifyShare = 4
	// shortestTransfer is the least time that a transfer is given: a result should come of it.
	shortestTransfer = 50 * time.Millisecond
)

// benchConfig is what the flags of bench say.
type benchConfig struct {
	links         []linkKind // nil for all that are possible here
	modes         []mode
	anyModes      bool // none were asked for: those that cannot be measured here are left out
	sizes         []size
	total, region size
	rounds        int
	congestion    string        // control of all connections; empty for the system's
	budget        time.Duration // 0 for no limit
	json          bool
}

func parseBench(args []string) (benchConfig, error) {
	defaults := benchConfig{
		modes:  modes(),
		sizes:  []size{64 << 10, 1 << 20},
		total:  defaultTotal,
		rounds: defaultRounds,
		budget: defaultBudget,
	}
	var cfg benchConfig
	fs := cli.NewFlags("bench")
	fs.Func("link", "`links` to send over: loopback, lab (default: both if the lab can be built)", many(&cfg.links, named("link", linkKinds())))
	cfg.addFlags(fs, defaults)
	if err := cli.Parse(fs, args, 0); err != nil {
		return cfg, err
	}
	cfg.complete(defaults)
	return cfg, checkRegion(fs.Name(), cfg.region, slices.Max(cfg.sizes))
}

// addFlags adds the flags that bench and sweep share. Those that are not given leave cfg as complete expects it.
func (cfg *benchConfig) addFlags(fs *flag.FlagSet, defaults benchConfig) {
	cfg.budget = notGiven
	fs.Func("mode", "`modes` to compare: copy, naive, zcnet (default: all)", many(&cfg.modes, named("mode", defaults.modes)))
	fs.Func("size", fmt.Sprintf("`sizes` of one write (default %s)", listed(defaults.sizes)), many(&cfg.sizes, parseMemorySize))
	fs.Func("total", fmt.Sprintf("`size` of one transfer (default %v)", defaults.total), one(&cfg.total, parseSize))
	fs.Func("region", fmt.Sprintf("`size` of the memory to send from (default %v)", size(defaultBenchRegion)), one(&cfg.region, parseMemorySize))
	fs.Func("rounds", fmt.Sprintf("`number` of transfers of which the median is printed (default %d)", defaults.rounds), one(&cfg.rounds, parseCount))
	fs.Func("budget", fmt.Sprintf("`time` that all may take, 0 for no limit: fewer rounds and shorter transfers keep it\n(default %v, or no limit with -total or -rounds)", defaults.budget), one(&cfg.budget, parseBudget))
	fs.StringVar(&cfg.congestion, "congestion", "", congestionUsage)
	fs.BoolFunc("json", "print one JSON object a line", yes(&cfg.json))
}

const congestionUsage = "congestion control by `name`, such as cubic or bbr (default: the system's)"

// notGiven is the budget before a flag has set it: 0 means no limit.
const notGiven = -1

// complete fills in what no flag has set.
func (cfg *benchConfig) complete(defaults benchConfig) {
	if cfg.budget == notGiven {
		cfg.budget = defaults.budget
		if cfg.total > 0 || cfg.rounds > 0 {
			cfg.budget = 0
		}
	}
	if cfg.modes == nil {
		cfg.modes, cfg.anyModes = defaults.modes, true
	}
	if cfg.sizes == nil {
		cfg.sizes = defaults.sizes
	}
	largest := slices.Max(cfg.sizes)
	if cfg.total == 0 {
		cfg.total = max(defaults.total, largest)
	}
	if cfg.region == 0 {
		cfg.region = max(defaultBenchRegion, largest)
	}
	if cfg.rounds == 0 {
		cfg.rounds = defaults.rounds
	}
}

// checkRegion refuses writes that do not fit the memory to send from.
func checkRegion(command string, region, largest size) error {
	if largest > region {
		return cli.Usagef("%s: a write of %v does not fit -region %v: it must not be larger", command, largest, region)
	}
	return nil
}

func runBench(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	cfg, err := parseBench(args)
	if err != nil {
		return err
	}
	show := newProgress(stderr)
	b := newBench(cfg, show)
	err = b.run(ctx)
	show.close()
	if reportErr := b.report(stdout, stderr); err == nil {
		err = reportErr
	}
	return err
}

// A bench is one execution of the command.
type bench struct {
	cfg   benchConfig
	show  *progress
	start time.Time

	paths  []*path
	region zcnet.Pinned
	groups []*group

	rounds   int             // completed
	cutShort bool            // a transfer was
	told     map[string]bool // what the user was told of modes that cannot be measured
}

// A group is the transfers that are compared with each other.
type group struct {
	path  *path
	size  size
	cells []*cell // by mode
}

// A cell is one line of the table.
type cell struct {
	mode    mode
	checked int64    // bytes compared by the receiver, and right
	results []result // of the rounds
	missing bool     // the mode cannot be measured on this path
}

func newBench(cfg benchConfig, show *progress) *bench {
	return &bench{cfg: cfg, show: show, start: time.Now(), told: make(map[string]bool)}
}

// run makes all transfers. Whatever it returns, the results so far are kept.
func (b *bench) run(ctx context.Context) error {
	defer b.close()
	if err := b.openPaths(ctx); err != nil {
		return err
	}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	if err := b.verify(ctx); err != nil {
		return err
	}
	return b.measure(ctx)
}

// prepare fills the memory, and lists what is to be compared.
func (b *bench) prepare(ctx context.Context) (err error) {
	n := regionFor(b.cfg.region, b.cfg.total, slices.Max(b.cfg.sizes))
	b.show.begin("filling %v of memory", size(n))
	b.region, err = newRegion(ctx, n)
	if err != nil {
		return err
	}
	for _, p := range b.paths {
		for _, n := range b.cfg.sizes {
			b.groups = append(b.groups, newGroup(p, n, b.cfg.modes))
		}
	}
	return nil
}

func newGroup(p *path, n size, modes []mode) *group {
	g := &group{path: p, size: n}
	for _, m := range modes {
		g.cells = append(g.cells, &cell{mode: m})
	}
	return g
}

// openPaths opens the links that were asked for, or those that are possible.
func (b *bench) openPaths(ctx context.Context) error {
	links := b.cfg.links
	if links == nil {
		links = linkKinds()
	}
	for _, kind := range links {
		if ctx.Err() != nil {
			return cli.ErrInterrupted
		}
		err := b.openPath(kind)
		switch {
		case err == nil:
		case b.cfg.links != nil:
			return err
		default:
			b.show.note("without %s", cli.OneLine(err))
		}
	}
	if len(b.paths) == 0 {
		return errNoLink
	}
	return nil
}

// errNoLink is the error of a machine on which not even loopback works.
var errNoLink = errors.New("no link can be opened here")

// openPath opens a link to send over.
func (b *bench) openPath(kind linkKind) error {
	b.show.begin("opening the %s link", kind.name)
	p, why, err := openPath(kind)
	if err != nil {
		return fmt.Errorf("link %s: %w", kind.name, err)
	}
	if why != nil {
		b.show.note("the receiver is in the sender's process: %s", cli.OneLine(why))
	}
	b.paths = append(b.paths, p)
	return nil
}

// close gives up the memory and the links.
func (b *bench) close() {
	b.region.Release()
	for _, p := range b.paths {
		p.close()
	}
}

// verify has every byte of a short transfer of each cell compared by the receiver.
func (b *bench) verify(ctx context.Context) error {
	end := b.start.Add(b.cfg.budget / verifyShare)
	left := len(b.groups) * len(b.cfg.modes)
	part := b.region.Slice(0, min(b.region.Len(), max(verifyRegion, int(slices.Max(b.cfg.sizes)))))
	for _, g := range b.groups {
		b.show.begin("checking %s, writes of %v", g.path.name, g.size)
		for _, c := range g.cells {
			t := newTransfer(part, g.size, min(b.cfg.total, verifyTotal))
			t.work, t.until = workVerify, b.until(end, left)
			left--
			r, err := b.transfer(ctx, g, c, t)
			if err != nil {
				return err
			}
			c.checked = r.Checked
		}
	}
	return nil
}

// measure makes the timed rounds. Each has one transfer of every cell, so that whatever else happens on the machine
// meanwhile falls on all of them alike.
func (b *bench) measure(ctx context.Context) error {
	var took time.Duration
	for round := range b.cfg.rounds {
		begun := time.Now()
		if round > 0 && b.cfg.budget > 0 && begun.Add(took).After(b.start.Add(b.cfg.budget)) {
			return nil
		}
		if err := b.measureRound(ctx, round); err != nil {
			return err
		}
		b.rounds++
		took = time.Since(begun)
	}
	return nil
}

// measureRound makes one round. The modes take turns at being the first.
func (b *bench) measureRound(ctx context.Context, round int) error {
	end := b.start.Add(b.cfg.budget)
	left := len(b.groups) * len(b.cfg.modes)
	for _, g := range b.groups {
		b.show.begin("round %d of %d: %s, writes of %v", round+1, b.cfg.rounds, g.path.name, g.size)
		for i := range g.cells {
			c := g.cells[(i+round)%len(g.cells)]
			t := newTransfer(b.region, g.size, b.cfg.total)
			t.work, t.until = workDiscard, b.until(end, left)
			left--
			r, err := b.transfer(ctx, g, c, t)
			if err != nil {
				return err
			}
			b.cutShort = b.cutShort || r.CutShort
			if r.Bytes > 0 {
				c.results = append(c.results, r)
			}
		}
	}
	return nil
}

// until returns when the next of several transfers has to stop, so that all of them have the same time until end.
func (b *bench) until(end time.Time, transfers int) time.Time {
	if b.cfg.budget == 0 {
		return time.Time{}
	}
	now := time.Now()
	return now.Add(max(end.Sub(now)/time.Duration(transfers), shortestTransfer))
}

// transfer makes one transfer of a cell. A cell whose mode cannot be measured yields nothing, unless it was asked for.
func (b *bench) transfer(ctx context.Context, g *group, c *cell, t transfer) (result, error) {
	if c.missing {
		return result{}, nil
	}
	b.show.beginTransfer(c.mode.name, t.total)
	t.show, t.congestion = b.show, b.cfg.congestion
	r, err := g.path.transfer(ctx, c.mode, t)
	switch {
	case ctx.Err() != nil:
		return result{}, cli.ErrInterrupted
	case errors.Is(err, errNoMode) && b.cfg.anyModes:
		c.missing = true
		b.tellOnce(fmt.Sprintf("without mode %s: %s", c.mode.name, cli.OneLine(err)))
		return result{}, nil
	case err != nil:
		return result{}, fmt.Errorf("%s, mode %s, writes of %v: %w", g.path.name, c.mode.name, g.size, err)
	case r.Wrong > 0:
		return result{}, fmt.Errorf("%s, mode %s, writes of %v: the receiver got %v", g.path.name, c.mode.name, g.size, r.answer)
	}
	r.Link, r.Mode, r.Size = g.path.name, c.mode.name, g.size
	return r, nil
}

func (b *bench) tellOnce(text string) {
	if !b.told[text] {
		b.told[text] = true
		b.show.note("%s", text)
	}
}

// median returns the result in the middle by throughput, the slower of two, and whether there is one.
func (c *cell) median() (r result, ok bool) {
	if len(c.results) == 0 {
		return r, false
	}
	sorted := slices.SortedFunc(slices.Values(c.results), byThroughput)
	r = sorted[(len(sorted)-1)/2]
	r.Rounds, r.Checked = len(sorted), c.checked
	return r, true
}

func byThroughput(a, b result) int {
	switch {
	case a.GBPerS < b.GBPerS:
		return -1
	case a.GBPerS > b.GBPerS:
		return 1
	}
	return 0
}
