package main

import (
	"context"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"time"
)

// This file is the faults of the process: what goes on beside all connections.

// A disturbance goes on until its context ends, and then leaves everything as it was.
type disturbance struct {
	fault string
	run   func(ctx context.Context, rng *rand.Rand, t *tally)
}

// processDisturbances returns all that this system has.
func processDisturbances() []disturbance {
	ds := []disturbance{
		{faultGC, collect},
		{faultProcs, changeProcs},
	}
	if path, err := exec.LookPath(childName); err == nil {
		ds = append(ds, disturbance{faultExec, func(ctx context.Context, rng *rand.Rand, t *tally) { startChildren(ctx, rng, t, path) }})
	}
	return append(ds, systemDisturbances()...)
}

// childName is a program that ends at once.
const childName = "true"

// between pauses for a time from lo to hi. It reports false when ctx has ended.
func between(ctx context.Context, rng *rand.Rand, lo, hi time.Duration) bool {
	pauseFor(ctx, lo+time.Duration(rng.Int64N(int64(hi-lo))))
	return ctx.Err() == nil
}

// collect makes garbage, fills it, drops it and collects it.
func collect(ctx context.Context, rng *rand.Rand, t *tally) {
	for between(ctx, rng, 5*time.Millisecond, 200*time.Millisecond) {
		var heap [][]byte
		for range rng.IntN(32) {
			b := make([]byte, 1+rng.IntN(512<<10))
			poison(b)
			heap = append(heap, b)
		}
		clear(heap)
		runtime.GC()
		t.fault(faultGC, 1)
	}
}

// changeProcs changes GOMAXPROCS, to one and to more than there are processors.
func changeProcs(ctx context.Context, rng *rand.Rand, t *tally) {
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	for between(ctx, rng, 50*time.Millisecond, 2*time.Second) {
		runtime.GOMAXPROCS(1 + rng.IntN(2*runtime.NumCPU()))
		t.fault(faultProcs, 1)
	}
}

// startChildren starts a child now and then, while memory is in flight, and waits for its end.
func startChildren(ctx context.Context, rng *rand.Rand, t *tally, path string) {
	for between(ctx, rng, 20*time.Millisecond, 500*time.Millisecond) {
		if err := exec.CommandContext(ctx, path).Run(); err != nil && ctx.Err() == nil {
			t.problem("starting %s: %v", path, err)
			return
		}
		t.fault(faultExec, 1)
	}
}
