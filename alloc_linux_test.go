//go:build !race

package zcnet

import (
	"context"
	"io"
	"testing"
)

// The steady paths do not allocate. The race detector allocates on its own account, so these run without it.

func TestSteadyPathsDoNotAllocate(t *testing.T) {
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		near, far := pair(t)
		c := wrap(t, near, insist)
		go io.Copy(io.Discard, far)
		plain, sink := pair(t)
		short := wrap(t, plain, nil)
		go io.Copy(io.Discard, sink)
		p, err := Alloc(1 << 20)
		check(t, err)
		defer p.Release()
		ctx := context.Background()
		header := make([]byte, 16)
		ps := []Pinned{p.Slice(0, 100), p.Slice(page, 200<<10)}
		done, err := c.WritePinned(p)
		check(t, err)
		check(t, done.Wait(testContext(t)))
		idle := func() { eventually(t, "nothing is in flight", c.s.ledger().idle) }

		for _, tt := range []struct {
			name string
			f    func()
		}{
			{"WritePinned", func() { c.WritePinned(p) }},
			{"WritePinned of little, which is copied", func() { short.WritePinned(p.Slice(0, page)) }},
			{"WritePinnedBuffers", func() { c.WritePinnedBuffers(ps) }},
			{"WriteFrame", func() { c.WriteFrame(header, p) }},
			{"a completed Wait", func() { done.Wait(ctx) }},
			{"Ready", func() { done.Ready() }},
			{"Outcome", func() { done.Outcome() }},
		} {
			for range 200 {
				tt.f() // until all that is used again has been made
			}
			if n := testing.AllocsPerRun(500, tt.f); n != 0 {
				t.Errorf("%s: %v allocations, want 0", tt.name, n)
			}
		}
		idle()
		if n := testing.AllocsPerRun(500, func() { c.Flush(ctx) }); n != 0 {
			t.Errorf("Flush with nothing in flight: %v allocations, want 0", n)
		}
		check(t, c.Close())
		check(t, short.Close())
	})
}

// A ReadFrom makes what it needs once, however much it sends and in whatever pieces.
func TestReadFromDoesNotAllocateForEachPiece(t *testing.T) {
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		near, far := pair(t)
		c := wrap(t, near, &Config{insist: true})
		go io.Copy(io.Discard, far)
		for _, piece := range []int{1 << 20, 100 << 10, 16 << 10, 1000} {
			const pieces = 60
			var r script
			lens := make([]int, pieces)
			n := testing.AllocsPerRun(3, func() {
				for i := range lens {
					lens[i] = piece
				}
				r = script{pieces: lens, before: func(int) {}}
				if _, err := c.ReadFrom(&r); err != nil {
					t.Fatal(err)
				}
			})
			if n > pieces/3 { // tickets, when more are in flight than ever before, and what the collector has taken
				t.Errorf("%d pieces of %d bytes: %v allocations", pieces, piece, n)
			}
		}
		check(t, c.Close())
	})
}

func TestReadDoesNotAllocate(t *testing.T) {
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		near, far := pair(t)
		c := wrap(t, near, insist)
		b := make([]byte, 1000)
		if n := testing.AllocsPerRun(200, func() {
			if _, err := far.Write(b[:10]); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, b[:10]); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("Read: %v allocations, want 0", n)
		}
	})
}
