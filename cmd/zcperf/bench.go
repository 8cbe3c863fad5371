package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"runtime"
	"slices"
	"time"

	"github.com/zcnet-go/zcnet/internal/cli"
	"github.com/zcnet-go/zcnet/internal/perf"
)

// This file is the command bench: which transfers it makes, in which order, and in how much time.

const benchSynopsis = "[-link loopback,lab] [-mode copy,naive,zcnet] [-size 64KiB,1MiB] [-congestion cubic,bbr] [-memory huge] [-read] [-busy] [-total 512MiB] [-rounds 15] [-region 256MiB] [-budget 0] [-json]"

const (
	// defaultTotal is short, for many short rounds that take turns say more than
	// a few long ones: whatever else the machine does changes from one second to
	// the next.
	defaultTotal       = 512 << 20
	defaultRounds      = 15
	defaultBenchRegion = 256 << 20
	// briefTotal and briefBudget are for a bench of which nothing was asked for.
	// The budget leaves some of half a minute for what a time limit does not end
	// at once.
	briefTotal  = 128 << 20
	briefBudget = 25 * time.Second
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
	controls      []string // congestion controls; nil for the usual ones
	total, region size
	rounds        int
	budget        time.Duration // 0 for no limit
	memory        memoryKind
	read          bool // the receiver reads what arrives into memory
	busy          bool // a busy loop runs beside the sender
	json          bool
}

func parseBench(args []string) (benchConfig, error) {
	defaults := benchConfig{
		modes:  usualModes(nil),
		sizes:  []size{64 << 10, 1 << 20},
		total:  defaultTotal,
		rounds: defaultRounds,
	}
	var cfg benchConfig
	fs := cli.NewFlags("bench")
	fs.Func("link", "`links` to send over: loopback, lab, lab-inline (default: loopback, and lab if it can be built).\nOn lab the receiving end works on a processor of its own, as another host does; on lab-inline it\nworks inside the sender's calls, at the sender's expense. On loopback the kernel always copies, and\nsome of its work for the receiving end is charged to the sender", many(&cfg.links, named("link", linkKinds())))
	fs.Func("congestion", "congestion `controls`, such as cubic,bbr (default: the system's, and on the lab's link\ncubic or bbr beside it)", many(&cfg.controls, parseName))
	cfg.addFlags(fs, defaults, allModes(nil))
	fs.Func("budget", fmt.Sprintf("`time` that all may take, 0 for no limit: fewer rounds and shorter transfers keep it\n(default no limit, but %v and transfers of %v if nothing is asked for)", briefBudget, size(briefTotal)), one(&cfg.budget, parseBudget))
	cfg.budget = notGiven
	if err := cli.Parse(fs, args, 0); err != nil {
		return cfg, err
	}
	if isBrief(fs) {
		defaults.budget, defaults.total = briefBudget, briefTotal
	}
	cfg.complete(defaults)
	return cfg, checkRegion(fs.Name(), cfg.region, slices.Max(cfg.sizes))
}

// isBrief reports whether the flags ask for nothing that is to be measured.
func isBrief(fs *flag.FlagSet) bool {
	brief := true
	fs.Visit(func(f *flag.Flag) { brief = brief && f.Name == "json" })
	return brief
}

// addFlags adds the flags that bench and sweep share. Those that are not given leave cfg as complete expects it.
func (cfg *benchConfig) addFlags(fs *flag.FlagSet, defaults benchConfig, modes []mode) {
	fs.Func("mode", fmt.Sprintf("`modes` to compare: %s (default %s).\n%s", names(modes), names(defaults.modes), modeUsage), many(&cfg.modes, named("mode", modes)))
	fs.Func("size", fmt.Sprintf("`sizes` of one write (default %s)", listed(defaults.sizes)), many(&cfg.sizes, parseMemorySize))
	fs.Func("total", fmt.Sprintf("`size` of one transfer (default %v)", defaults.total), one(&cfg.total, parseSize))
	fs.Func("region", fmt.Sprintf("`size` of the memory to send from (default %v)", size(defaultBenchRegion)), one(&cfg.region, parseMemorySize))
	fs.Func("rounds", fmt.Sprintf("`number` of transfers of which the median is printed (default %d)", defaults.rounds), one(&cfg.rounds, parseCount))
	fs.Func("memory", memoryUsage, one(&cfg.memory, named("memory", memoryKinds())))
	fs.BoolFunc("read", "have the receiver read what arrives into memory, instead of dropping it unread", yes(&cfg.read))
	fs.BoolFunc("busy", "have a busy loop run beside the sender, on its processor if the link has one", yes(&cfg.busy))
	fs.BoolFunc("json", "print one JSON object a line", yes(&cfg.json))
}

const (
	modeUsage = "copy is plain Write, which the others are compared with; naive is a MSG_ZEROCOPY loop that reads the\nerror queue after every write, least one that reads it after every 32, the least that Go can do;\nc is a MSG_ZEROCOPY loop in C, c-write plain sends in C, both in a process of their own (they need gcc)"

	memoryUsage = "`kind` of memory to send: huge pages, small pages, or Go's heap (default huge)"

	congestionUsage = "congestion `control`, such as cubic or bbr (default: the system's)"
)

// notGiven is the budget before a flag has set it: 0 means no limit.
const notGiven = -1

// complete fills in what no flag has set.
func (cfg *benchConfig) complete(defaults benchConfig) {
	if cfg.budget == notGiven {
		cfg.budget = defaults.budget
	}
	if cfg.modes == nil {
		cfg.modes, cfg.anyModes = defaults.modes, true
	}
	if cfg.sizes == nil {
		cfg.sizes = defaults.sizes
	}
	if cfg.memory.name == "" {
		cfg.memory = memoryKinds()[0]
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
	region region
	groups []*group

	others   float64         // share of the processors that others took before the rounds or after them
	rounds   int             // completed
	cutShort bool            // a transfer was
	told     map[string]bool // what the user was told of modes that cannot be measured
}

// A group is the transfers that are compared with each other.
type group struct {
	path    *path
	control string // congestion control; empty for the system's
	size    size
	cells   []*cell // by mode
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
	b.region, err = newRegion(ctx, b.cfg.memory, n)
	if err != nil {
		return err
	}
	for _, p := range b.paths {
		for _, control := range b.controlsOn(p) {
			for _, n := range b.cfg.sizes {
				b.groups = append(b.groups, newGroup(p, control, n, b.cfg.modes))
			}
		}
	}
	return nil
}

// controlsOn returns the congestion controls that are measured on a path. If
// none were asked for, loopback has the system's only, as it differs little
// there, and so has the way to another machine, which no test should change.
func (b *bench) controlsOn(p *path) []string {
	switch {
	case b.cfg.controls != nil:
		return b.cfg.controls
	case p.isRemote() || p.name == "loopback":
		return []string{""}
	}
	return usualControls()
}

func newGroup(p *path, control string, n size, modes []mode) *group {
	g := &group{path: p, control: control, size: n}
	for _, m := range modes {
		g.cells = append(g.cells, &cell{mode: m})
	}
	return g
}

// String says in words what the group is.
func (g *group) String() string {
	if g.control == "" {
		return fmt.Sprintf("%s, writes of %v", g.path.name, g.size)
	}
	return fmt.Sprintf("%s, %s, writes of %v", g.path.name, g.control, g.size)
}

// openPaths opens the links that were asked for, or those that are possible.
func (b *bench) openPaths(ctx context.Context) error {
	links := b.cfg.links
	if links == nil {
		links = usualLinks()
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
	if p.inline != "" {
		b.show.note("%s is inline, the receiving end works inside the sender's calls: %s", p.name, p.inline)
	}
	if b.cfg.busy {
		return p.keepBusy()
	}
	return nil
}

// close gives up the memory and the links.
func (b *bench) close() {
	if b.region.free != nil {
		b.region.free()
	}
	for _, p := range b.paths {
		p.close()
	}
}

// verify has every byte of a short transfer of each cell compared by the receiver.
func (b *bench) verify(ctx context.Context) error {
	end := b.start.Add(b.cfg.budget / verifyShare)
	left := len(b.groups) * len(b.cfg.modes)
	part := b.region.part(min(b.region.Len(), max(verifyRegion, int(slices.Max(b.cfg.sizes)))))
	for _, g := range b.groups {
		b.show.begin("checking %v", g)
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
	stop, err := perf.StartIdlers()
	if err != nil {
		return err
	}
	defer stop()
	b.others = othersShare()
	defer func() { b.others = max(b.others, othersShare()) }()
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

// othersWindow is how long othersShare looks.
const othersWindow = 100 * time.Millisecond

// othersShare returns which share of the processors is busy although this
// program does nothing.
func othersShare() float64 {
	var machine perf.SideClock
	begun := time.Now()
	before, err := machine.Read()
	if err != nil {
		return 0
	}
	time.Sleep(othersWindow)
	after, err := machine.Read()
	if err != nil {
		return 0
	}
	return after.Sub(before).Machine.Seconds() / (time.Since(begun).Seconds() * float64(runtime.NumCPU()))
}

// measureRound makes one round. The modes take turns at being the first.
func (b *bench) measureRound(ctx context.Context, round int) error {
	end := b.start.Add(b.cfg.budget)
	left := len(b.groups) * len(b.cfg.modes)
	for _, g := range b.groups {
		b.show.begin("round %d of %d: %v", round+1, b.cfg.rounds, g)
		for i := range g.cells {
			c := g.cells[(i+round)%len(g.cells)]
			t := newTransfer(b.region, g.size, b.cfg.total)
			t.work, t.until = b.cfg.work(), b.until(end, left)
			left--
			r, err := b.transfer(ctx, g, c, t)
			if err != nil {
				return err
			}
			b.cutShort = b.cutShort || r.CutShort
			if r.Bytes > 0 {
				r.round = round
				c.results = append(c.results, r)
			}
		}
	}
	return nil
}

// work returns what the receiver does while it is measured.
func (cfg benchConfig) work() work {
	if cfg.read {
		return workRead
	}
	return workDiscard
}

// until returns when the next of several transfers has to stop, so that all of them have the same time until end.
func (b *bench) until(end time.Time, transfers int) time.Time {
	if b.cfg.budget == 0 {
		return time.Time{}
	}
	now := time.Now()
	return now.Add(max(end.Sub(now)/time.Duration(transfers), shortestTransfer))
}

// transfer makes one transfer of a cell. A cell whose mode cannot be measured
// yields nothing, unless it was asked for. One in C yields nothing either way
// where there is no compiler.
func (b *bench) transfer(ctx context.Context, g *group, c *cell, t transfer) (result, error) {
	if c.missing {
		return result{}, nil
	}
	b.show.beginTransfer(c.mode.name, t.total)
	t.show, t.congestion = b.show, g.control
	r, err := g.path.transfer(ctx, c.mode, t)
	switch {
	case ctx.Err() != nil:
		return result{}, cli.ErrInterrupted
	case errors.Is(err, perf.ErrNoCompiler), errors.Is(err, errNoMode) && b.cfg.anyModes:
		c.missing = true
		b.tellOnce(fmt.Sprintf("without mode %s: %s", c.mode.name, cli.OneLine(err)))
		return result{}, nil
	case err != nil:
		return result{}, fmt.Errorf("%v, mode %s: %w", g, c.mode.name, err)
	case r.Wrong > 0:
		return result{}, fmt.Errorf("%v, mode %s: the receiver got %v", g, c.mode.name, r.answer)
	}
	r.Link, r.Inline, r.Mode, r.Size, r.Busy = g.path.name, g.path.inline, c.mode.name, g.size, b.cfg.busy
	return r, nil
}

func (b *bench) tellOnce(text string) {
	if !b.told[text] {
		b.told[text] = true
		b.show.note("%s", text)
	}
}

// median returns the result in the middle by throughput, the slower of two, with
// medians of their own for the processor times, and whether there is one.
func (c *cell) median() (r result, ok bool) {
	if len(c.results) == 0 {
		return r, false
	}
	sorted := slices.SortedFunc(slices.Values(c.results), byThroughput)
	r = sorted[(len(sorted)-1)/2]
	r.Rounds, r.Checked = len(sorted), c.checked
	for _, field := range []func(*result) **float64{sideCPU, procCPU, sysCPU} {
		*field(&r) = medianOf(c.results, field)
	}
	return r, true
}

func sideCPU(r *result) **float64 { return &r.SideCPU }
func procCPU(r *result) **float64 { return &r.ProcCPU }
func sysCPU(r *result) **float64  { return &r.SysCPU }

// medianOf returns the median of a field, nil if no result has it.
func medianOf(results []result, field func(*result) **float64) *float64 {
	var values []float64
	for i := range results {
		if v := *field(&results[i]); v != nil {
			values = append(values, *v)
		}
	}
	s, ok := spreadOf(values)
	if !ok {
		return nil
	}
	return &s.median
}

func byThroughput(a, b result) int { return cmp.Compare(a.GBPerS, b.GBPerS) }
