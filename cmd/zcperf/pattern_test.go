package main

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// stream returns n bytes of the stream that a sender with such a region sends.
func stream(t *testing.T, region, n int) []byte {
	t.Helper()
	pattern := make([]byte, region)
	if err := fill(t.Context(), pattern); err != nil {
		t.Fatal(err)
	}
	var b []byte
	for len(b) < n {
		b = append(b, pattern...)
	}
	return b[:n]
}

// checkInPieces checks b as it may arrive: cut anywhere.
func checkInPieces(region int, b []byte) checker {
	c := checker{region: int64(region)}
	random := rand.New(rand.NewPCG(1, uint64(len(b))))
	for len(b) > 0 {
		n := 1 + random.IntN(min(len(b), 1+random.IntN(5000)))
		c.check(b[:n])
		b = b[n:]
	}
	return c
}

func TestRightStream(t *testing.T) {
	for _, region := range []int{1, 3, 7, 8, 9, 4096, 4097, 65536 - 5} {
		for _, n := range []int{0, 1, 7, 8, 1000, 3*region + 1} {
			b := stream(t, region, n)
			if c := checkInPieces(region, b); c.wrong != 0 || c.pos != int64(n) {
				t.Errorf("region %d: %d of %d bytes wrong, the first at %d; want 0 of %d", region, c.wrong, c.pos, c.first, n)
			}
		}
	}
}

func TestEachFlippedByteIsFound(t *testing.T) {
	const region, n = 67, 200
	for i := range n {
		b := stream(t, region, n)
		b[i] ^= 0x10
		if c := checkInPieces(region, b); c.wrong != 1 || c.first != int64(i) {
			t.Errorf("byte %d flipped: %d wrong, the first at %d; want 1 at %d", i, c.wrong, c.first, i)
		}
	}
}

func TestMisplacedChunksAreFound(t *testing.T) {
	const region, chunk = 1 << 20, 4096
	at := func(b []byte, i int) []byte { return b[i*chunk : (i+1)*chunk] }
	for name, spoil := range map[string]func(b []byte) []byte{
		"two chunks swapped": func(b []byte) []byte {
			kept := slices.Clone(at(b, 3))
			copy(at(b, 3), at(b, 8))
			copy(at(b, 8), kept)
			return b
		},
		"two words swapped": func(b []byte) []byte {
			kept := slices.Clone(b[800:808])
			copy(b[800:], b[1600:1608])
			copy(b[1600:], kept)
			return b
		},
		"a chunk repeated instead of the next": func(b []byte) []byte {
			copy(at(b, 4), at(b, 3))
			return b
		},
		"a chunk missing": func(b []byte) []byte {
			return slices.Delete(b, 3*chunk, 4*chunk)
		},
		"a byte missing": func(b []byte) []byte {
			return slices.Delete(b, 100, 101)
		},
		"a chunk of zeros": func(b []byte) []byte {
			clear(at(b, 3))
			return b
		},
	} {
		b := spoil(stream(t, region, 16*chunk))
		if c := checkInPieces(region, b); c.wrong < 8 {
			t.Errorf("%s: %d bytes wrong, want at least a word", name, c.wrong)
		}
	}
}

func TestPatternNeverRepeats(t *testing.T) {
	seen := make(map[uint64]uint64)
	for i := range uint64(1 << 18) {
		if j, ok := seen[word(i)]; ok {
			t.Fatalf("words %d and %d are equal", i, j)
		}
		seen[word(i)] = i
	}
}
