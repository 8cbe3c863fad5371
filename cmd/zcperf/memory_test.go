package main

import (
	"runtime"
	"testing"
	"unsafe"
)

func TestMemoryKinds(t *testing.T) {
	for _, kind := range memoryKinds() {
		if kind.name == "small" && runtime.GOOS != "linux" {
			continue
		}
		const n = 8<<20 + 5
		r, err := newRegion(t.Context(), kind, n)
		if err != nil {
			t.Errorf("memory %s: %v", kind, err)
			continue
		}
		check := checker{region: n}
		check.check(r.Bytes())
		if r.Len() != n || check.wrong > 0 || r.kind.name != kind.name {
			t.Errorf("memory %s: %d bytes, %d of them wrong, kind %s; want %d with the pattern", kind, r.Len(), check.wrong, r.kind, n)
		}
		if half := r.part(1 << 20); half.Len() != 1<<20 || unsafe.SliceData(half.Bytes()) != unsafe.SliceData(r.Bytes()) {
			t.Errorf("memory %s: a part of %d bytes, want the first 1 MiB", kind, half.Len())
		}
		r.free()
	}
}
