package main

import (
	"context"
	"encoding/binary"
	"math/bits"
)

// This file is the content that is sent, and the check that it arrives.
//
// A sender goes through its region again and again, so that the byte at position p of the stream is the byte at
// p modulo the region's length in the region. Every aligned word of the region is a mix of its own number, and no two
// are equal: a chunk that is swapped, repeated, lost or stale is as wrong as a flipped bit.

const wordBytes = 8

// word returns the i-th word of the pattern. Each step can be undone, so that different numbers give different words.
func word(i uint64) uint64 {
	x := (i + 1) * 0x9e3779b97f4a7c15
	x ^= x >> 32
	return x * 0xd6e8feb86659fd93
}

// byteAt returns the byte of the pattern at off.
func byteAt(off int64) byte {
	return byte(word(uint64(off/wordBytes)) >> (8 * (off % wordBytes)))
}

// fill writes the pattern into a region, until ctx ends.
func fill(ctx context.Context, region []byte) error {
	const step = 16 << 20
	for off := 0; off < len(region); off += step {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		fillAt(region[off:min(off+step, len(region))], int64(off))
	}
	return nil
}

// fillAt writes the part of the pattern that begins at off, a multiple of a word.
func fillAt(b []byte, off int64) {
	i := uint64(off / wordBytes)
	for ; len(b) >= wordBytes; i++ {
		binary.LittleEndian.PutUint64(b, word(i))
		b = b[wordBytes:]
		off += wordBytes
	}
	for i := range b {
		b[i] = byteAt(off + int64(i))
	}
}

// A checker compares a stream with the pattern.
type checker struct {
	region int64 // the length after which the pattern begins again
	pos    int64 // of the next byte
	wrong  int64 // bytes so far
	first  int64 // position of the first wrong byte, if there is one
}

// check takes the next bytes of the stream, however it was cut.
func (c *checker) check(b []byte) {
	for len(b) > 0 {
		off := c.pos % c.region
		n := int(min(int64(len(b)), c.region-off))
		c.checkAt(b[:n], off)
		b = b[n:]
	}
}

// checkAt compares b with the pattern at off: its whole words, and the bytes before and behind them.
func (c *checker) checkAt(b []byte, off int64) {
	lead := min(int(-off&(wordBytes-1)), len(b))
	c.checkBytes(b[:lead], off)
	b, off = b[lead:], off+int64(lead)
	whole := len(b) &^ (wordBytes - 1)
	c.checkWords(b[:whole], off)
	c.checkBytes(b[whole:], off+int64(whole))
}

func (c *checker) checkBytes(b []byte, off int64) {
	for i := range b {
		if b[i] != byteAt(off+int64(i)) {
			c.found(c.pos + int64(i))
		}
	}
	c.pos += int64(len(b))
}

func (c *checker) checkWords(b []byte, off int64) {
	i := uint64(off / wordBytes)
	for at := 0; at < len(b); at += wordBytes {
		for diff := binary.LittleEndian.Uint64(b[at:]) ^ word(i); diff != 0; {
			n := bits.TrailingZeros64(diff) / 8
			c.found(c.pos + int64(at+n))
			diff &^= 0xff << (8 * n)
		}
		i++
	}
	c.pos += int64(len(b))
}

// found books a wrong byte.
func (c *checker) found(pos int64) {
	if c.wrong == 0 {
		c.first = pos
	}
	c.wrong++
}
