package main

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// received checks b as the beginning of the stream, in random cuts.
func received(s stream, b []byte) *checker {
	c := &checker{stream: s}
	rng := rand.New(rand.NewPCG(1, uint64(len(b))))
	for len(b) > 0 {
		n := 1 + rng.IntN(min(len(b), 5000))
		c.check(b[:n])
		b = b[n:]
	}
	return c
}

// content returns the first n bytes of a stream, filled in random cuts.
func content(s stream, n int) []byte {
	b := make([]byte, n)
	rng := rand.New(rand.NewPCG(2, uint64(n)))
	for at := 0; at < n; {
		k := min(1+rng.IntN(5000), n-at)
		s.fill(b[at:at+k], int64(at))
		at += k
	}
	return b
}

func TestRightStreamIsRight(t *testing.T) {
	s := newStream(1, 2, 0)
	for _, n := range []int{0, 1, 7, 8, 9, 100_003} {
		if c := received(s, content(s, n)); c.wrong != 0 || c.pos != int64(n) {
			t.Errorf("of %d bytes %d are wrong, and %d were counted: %v", n, c.wrong, c.pos, c.first)
		}
	}
}

func TestStreamsDiffer(t *testing.T) {
	const n = 1 << 16
	this := newStream(1, 2, 0)
	for name, other := range map[string]stream{
		"another seed":           newStream(2, 2, 0),
		"another conversation":   newStream(1, 3, 0),
		"the opposite direction": newStream(1, 2, 1),
	} {
		if c := received(this, content(other, n)); c.wrong < n*9/10 {
			t.Errorf("%s: %d of %d bytes are wrong, want nearly all", name, c.wrong, n)
		}
	}
}

func TestOneWrongByteIsFound(t *testing.T) {
	s := newStream(1, 2, 0)
	const n = 10_001
	for at := range n {
		b := content(s, n)
		b[at] ^= 1 << (at % 8)
		c := received(s, b)
		if c.wrong != 1 || c.first.pos != int64(at) {
			t.Fatalf("byte %d is wrong: found %d, the first %v", at, c.wrong, c.first)
		}
	}
}

func TestChangedStreamsAreFound(t *testing.T) {
	s := newStream(1, 2, 0)
	const n, at = 100_000, 40_000
	right := content(s, n)
	for name, b := range map[string][]byte{
		"a byte is lost":                         slices.Delete(slices.Clone(right), at, at+1),
		"a word is lost":                         slices.Delete(slices.Clone(right), at, at+wordBytes),
		"a page is lost":                         slices.Delete(slices.Clone(right), at, at+4096),
		"a byte is repeated":                     slices.Insert(slices.Clone(right), at, right[at]),
		"a page is repeated":                     slices.Insert(slices.Clone(right), at, right[at-4096:at]...),
		"two pages have come in the wrong order": slices.Concat(right[:at], right[at+4096:at+8192], right[at:at+4096], right[at+8192:]),
	} {
		c := received(s, b)
		if c.wrong == 0 || c.first.pos < at || c.first.pos > at+wordBytes {
			t.Errorf("%s at %d: %d wrong bytes, the first %v", name, at, c.wrong, c.first)
		}
	}
}

func TestPoisonIsRecognized(t *testing.T) {
	s := newStream(1, 2, 0)
	b := content(s, 10_000)
	poison(b[4096:8192])
	c := received(s, b)
	if c.wrong < 4000 || c.first.pos > 4100 || !strings.Contains(c.first.String(), "after its ticket was done") {
		t.Errorf("%d wrong bytes: %v", c.wrong, c.first)
	}
}

func TestNoTwoPoisoningsAreEqual(t *testing.T) {
	var a, b [2 * wordBytes]byte
	poison(a[:])
	poison(b[:])
	if a == b {
		t.Error("they are")
	}
}

func BenchmarkFill(b *testing.B) {
	s, buf := newStream(1, 2, 0), make([]byte, 1<<20)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		s.fill(buf, 3)
	}
}

func BenchmarkCheck(b *testing.B) {
	s, buf := newStream(1, 2, 0), make([]byte, 1<<20)
	s.fill(buf, 0)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		c := checker{stream: s}
		c.check(buf)
	}
}
