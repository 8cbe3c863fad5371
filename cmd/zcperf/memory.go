package main

import (
	"context"

	"github.com/zcnet-go/zcnet"
	"github.com/zcnet-go/zcnet/internal/cli"
)

// This file is about the memory that is sent.

// A memoryKind is a kind of memory that can be asked for.
type memoryKind struct {
	name string
	// allocate returns memory and what gives it back.
	allocate func(n int) (p zcnet.Pinned, free func(), err error)
}

func (k memoryKind) String() string { return k.name }

// memoryKinds returns all kinds. The first is the usual one.
func memoryKinds() []memoryKind {
	return []memoryKind{{"huge", allocateHuge}, {"small", allocateSmall}, {"heap", allocateHeap}}
}

// allocateHuge returns the library's own memory, of huge pages where the system
// gives them: what a program should send from.
func allocateHuge(n int) (zcnet.Pinned, func(), error) {
	p, err := zcnet.Alloc(n)
	return p, p.Release, err
}

// allocateHeap returns memory of Go's heap: what a program has that knows
// nothing of all this.
func allocateHeap(n int) (zcnet.Pinned, func(), error) {
	p := zcnet.Pin(make([]byte, n))
	return p, p.Release, nil
}

// A region is the memory that is sent.
type region struct {
	zcnet.Pinned
	kind memoryKind
	free func() // gives it back
}

// newRegion returns memory of n bytes with the pattern in it.
func newRegion(ctx context.Context, kind memoryKind, n int64) (region, error) {
	p, free, err := kind.allocate(int(n))
	if err != nil {
		return region{}, err
	}
	if err := fill(ctx, p.Bytes()); err != nil {
		free()
		return region{}, cli.ErrInterrupted
	}
	return region{Pinned: p, kind: kind, free: free}, nil
}

// part returns the first n bytes.
func (r region) part(n int) region {
	r.Pinned = r.Slice(0, n)
	return r
}

// regionFor returns how much of a region of limit bytes is needed to send total bytes in writes of n.
func regionFor(limit, total, n size) int64 {
	return int64(min(max(limit, n), total))
}
