//go:build !race

package zcnet

import "testing"

// TestReleaseBeyondTheMapCountDoesNotPanic makes holes in one mapping until there may be no more. The race detector's
// runtime does not survive that itself.
func TestReleaseBeyondTheMapCountDoesNotPanic(t *testing.T) {
	var ps []Pinned
	for range 140_000 { // more than the default vm.max_map_count, in one mapping until holes come
		p, err := Alloc(page)
		if err != nil {
			break
		}
		ps = append(ps, p)
	}
	for first := range 2 {
		for i := first; i < len(ps); i += 2 {
			ps[i].Release()
		}
	}
}
