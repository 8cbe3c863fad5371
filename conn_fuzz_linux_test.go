package zcnet

import (
	"flag"
	"math/rand/v2"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

// This file runs histories: those that have a name, thousands made from seeds, and what the fuzzer thinks of.

var historySeed = flag.Uint64("history", 0, "in TestConnHistories, run the history of this seed only")

// runHistory runs a history from its bytes, and then calls each of after with it.
func runHistory(t *testing.T, b []byte, after ...func(*history)) {
	if len(b) < settingsLen {
		return
	}
	kernelInBubble.Store(true)
	defer kernelInBubble.Store(false)
	synctest.Test(t, func(t *testing.T) {
		h := newHistory(t, settings{b[0], b[1], b[2], b[3], b[4], b[5]})
		defer h.end()
		for b = b[settingsLen:]; len(b) >= 2; b = b[2:] {
			h.step(b[0], b[1])
			h.check()
		}
		h.finish()
		for _, f := range after {
			f(h)
		}
	})
}

// historyOf makes a history from a seed.
func historyOf(seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, settingsLen+2*(5+r.IntN(60)))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// histories is how many TestConnHistories runs.
const histories = 2000

func TestNamedHistories(t *testing.T) {
	for _, n := range namedHistories {
		t.Run(n.name, func(t *testing.T) {
			runHistory(t, n.bytes(), func(h *history) {
				s := h.c.Stats()
				h.assert(n.saw(s, h), "it is not what it is called: %+v", s)
			})
		})
	}
}

func TestConnHistories(t *testing.T) {
	first, last := uint64(1), uint64(histories)
	if *historySeed != 0 {
		first, last = *historySeed, *historySeed
	}
	for seed := first; seed <= last; seed++ {
		runSeed(t, seed)
	}
}

// runSeed names the seed of a history that fails, however it does.
func runSeed(t *testing.T, seed uint64) {
	well := false
	defer func() {
		if !well {
			t.Logf("to run it again: go test -run TestConnHistories -args -history=%d", seed)
		}
	}()
	runHistory(t, historyOf(seed))
	well = true
}

func TestAHistoryCanBeRepeated(t *testing.T) {
	for seed := range uint64(100) {
		var first, second Stats
		runHistory(t, historyOf(seed), func(h *history) { first = h.c.Stats() })
		runHistory(t, historyOf(seed), func(h *history) { second = h.c.Stats() })
		if diff := cmp.Diff(first, second); diff != "" {
			t.Errorf("seed %d, run twice (-first +second):\n%s", seed, diff)
		}
	}
}

// FuzzConn drives connections through histories. The model says what must be true after every step.
func FuzzConn(f *testing.F) {
	for _, n := range namedHistories {
		f.Add(n.bytes())
	}
	for seed := range uint64(20) {
		f.Add(historyOf(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) { runHistory(t, b) })
}
