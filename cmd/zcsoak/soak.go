package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/zcnet-go/zcnet/internal/cli"
)

// This file is the run: links and faults are set up, conversations go on until time is over, and then it is looked at
// what is left.

// soaking is a run in progress.
type soaking struct {
	cfg    *config
	tally  *tally
	links  []*link
	faults map[string]bool // that are on and can be had
	pool   *sharedPool
	litter litter
	next   atomic.Int64    // the number of the next conversation
	stop   context.Context // ends when no further step is to be taken
	live   live
}

// soak makes a run and returns its figures. Its error is for a run that could not be made.
func soak(ctx context.Context, cfg *config, stderr io.Writer) (*figures, error) {
	p := newProgress(stderr)
	defer p.close()
	s := &soaking{cfg: cfg, tally: newTally(cfg.seed, p.note), faults: maps.Clone(cfg.faults.on), live: live{all: make(map[*conversation]struct{})}}
	p.note("seed %d: zcsoak %s", cfg.seed, cfg.commandLine())
	if err := s.openLinks(p.note); err != nil {
		return nil, err
	}
	defer s.closeLinks(p.note)
	var err error
	if s.pool, err = newSharedPool(); err != nil {
		return nil, err
	}
	s.warmUp(p)
	before := takeStock()
	start := time.Now()
	s.runFor(ctx, start, p)
	s.lookForLeaks(before)
	return s.tally.finish(time.Since(start)), nil
}

// openLinks opens the links that can be had, and says which cannot.
func (s *soaking) openLinks(say func(string, ...any)) error {
	var errs []error
	for _, name := range s.cfg.links {
		l, err := openLink(name, s.faults)
		if err != nil && s.cfg.insist {
			s.closeLinks(say)
			return fmt.Errorf("-link %s: %w", name, err)
		}
		if err != nil {
			errs = append(errs, err)
			say("without link %s: %s", name, cli.OneLine(err))
			continue
		}
		s.links = append(s.links, l)
	}
	if len(s.links) == 0 {
		return fmt.Errorf("there is no link to send over: %w", errors.Join(errs...))
	}
	return nil
}

func (s *soaking) closeLinks(say func(string, ...any)) {
	for _, l := range s.links {
		if err := l.close(); err != nil {
			say("closing link %s: %s", l.name, cli.OneLine(err))
		}
	}
}

// warmUp brings about what stays for the life of a process, such as the library's pool for ReadFrom and the runtime's
// poller, by a conversation over each link, undisturbed.
func (s *soaking) warmUp(p *progress) {
	s.stop = context.Background()
	for i, l := range s.links {
		p.step("warming up over %s", l.name)
		c := newPlan(s.cfg.seed, -1-int64(i), nil)
		c.ending = endInOrder
		for j := range c.ends {
			e := &c.ends[j]
			e.wrapped, e.steps = true, nil
			for _, call := range calls {
				e.steps = append(e.steps, step{call: call, memory: memorySlab, size: min(e.slabSize, call.most())})
			}
		}
		s.converse(l, c)
	}
}

// runFor keeps conversations going until time is over or ctx ends, with disturbances beside them.
func (s *soaking) runFor(ctx context.Context, start time.Time, p *progress) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.duration)
	defer cancel()
	s.stop = ctx
	quit := make(chan struct{})
	var showing sync.WaitGroup
	showing.Go(func() { s.show(start, p, quit) })
	var disturbing, talking sync.WaitGroup
	for _, d := range s.disturbances(p.note) {
		rng := rand.New(rand.NewPCG(s.cfg.seed, uint64(len(d.fault))<<32|uint64(d.fault[0])))
		disturbing.Go(func() { d.run(ctx, rng, s.tally) })
	}
	for range s.cfg.conns {
		talking.Go(func() {
			for ctx.Err() == nil {
				id := s.next.Add(1) - 1
				s.converse(s.links[id%int64(len(s.links))], newPlan(s.cfg.seed, id, s.faults))
			}
		})
	}
	disturbing.Wait()
	talking.Wait()
	close(quit)
	showing.Wait()
}

// show keeps the progress line up to date.
func (s *soaking) show(start time.Time, p *progress, quit <-chan struct{}) {
	tick := time.NewTicker(p.every())
	defer tick.Stop()
	for {
		select {
		case <-quit:
			return
		case <-tick.C:
			state := ""
			if s.stop.Err() != nil {
				state = ", ending"
			}
			p.step("%v of %v: %s%s", time.Since(start).Round(time.Second), s.cfg.duration, s.tally.soFar(), state)
		}
	}
}

// disturbances returns those that are on, of the process and of the links.
func (s *soaking) disturbances(say func(string, ...any)) (ds []disturbance) {
	all := processDisturbances()
	for _, l := range s.links {
		all = append(all, l.disturbances...)
	}
	for _, d := range all {
		if s.faults[d.fault] {
			ds = append(ds, d)
		}
	}
	for _, fault := range faultNames {
		if s.faults[fault] && !s.canHave(fault, ds) {
			say("without fault %s: %s", fault, s.whyNot(fault))
		}
	}
	return ds
}

// canHave reports whether a fault is part of plans or one of ds.
func (s *soaking) canHave(fault string, ds []disturbance) bool {
	switch fault {
	case faultReset, faultClose, faultDeadline, faultStall:
		return true
	}
	for _, d := range ds {
		if d.fault == fault {
			return true
		}
	}
	return false
}

// whyNot returns why there is no such fault.
func (s *soaking) whyNot(fault string) string {
	for _, l := range s.links {
		if err := l.without[fault]; err != nil {
			return cli.OneLine(err)
		}
	}
	if err := processWithout()[fault]; err != nil {
		return cli.OneLine(err)
	}
	return "it needs the lab's link"
}

// lookForLeaks waits for what is ending and counts what is not.
func (s *soaking) lookForLeaks(before stocktaking) {
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.patience)
	defer cancel()
	if n := s.pool.missing(ctx); n > 0 {
		s.tally.add(func(f *figures) { f.LostTickets += n })
		s.tally.problem("%d of %d buffers have not come back to the pool", n, poolBuffers)
	}
	_ = s.pool.Close() // it is closed once
	mapped := func() bool { return s.pool.gone.mapped() }
	if !eventually(ctx, func() bool { return !mapped() }) {
		s.tally.add(func(f *figures) { f.LeakedMappings++ })
		s.tally.problem("the memory of a closed pool is still mapped")
	}
	eventually(ctx, func() bool { return s.litter.left() == 0 })
	var after stocktaking
	eventually(ctx, func() bool { after = takeStock(); return after.leaked(before).none() })
	l := after.leaked(before)
	s.tally.add(func(f *figures) {
		f.LeakedBuffers = int64(s.litter.left())
		f.LeakedGoroutines, f.LeakedDescriptors = int64(len(l.goroutines)), int64(len(l.descriptors))
		f.LeakedMappings += int64(after.mappingsLeft(before))
		f.MappingsBefore, f.MappingsAfter = before.mappings, after.mappings
		f.ThreadsBefore, f.ThreadsAfter = before.threads, after.threads
	})
	for _, g := range l.goroutines {
		s.tally.problem("a goroutine is left:\n%s", g)
	}
	for _, d := range l.descriptors {
		s.tally.problem("a descriptor is left: %s", d)
	}
}

// eventually waits for something to become true until ctx ends, and reports whether it did.
func eventually(ctx context.Context, ok func() bool) bool {
	for !ok() {
		select {
		case <-ctx.Done():
			return ok()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return true
}
