package plan

import "encoding/binary"

// This file is the content that is sent, and the check that it arrives.
//
// Each word is a mix of its own position in the stream, and no two are equal: a part that is swapped, repeated or lost,
// or that was written anew before it was sent, is as wrong as a flipped bit.

const wordBytes = 8

// word returns the i-th word of the stream. Each step can be undone, so that different numbers give different words.
func word(i uint64) uint64 {
	x := (i + 1) * 0x9e3779b97f4a7c15
	x ^= x >> 32
	return x * 0xd6e8feb86659fd93
}

// Fill writes the part of the stream that begins at pos into b. Both pos and the length are multiples of a word, or b
// is the end of the stream.
func Fill(b []byte, pos int64) {
	i := uint64(pos / wordBytes)
	for ; len(b) >= wordBytes; b = b[wordBytes:] {
		binary.LittleEndian.PutUint64(b, word(i))
		i++
	}
	var last [wordBytes]byte
	binary.LittleEndian.PutUint64(last[:], word(i))
	copy(b, last[:])
}

// A Checker compares a stream with what it should be. It is an io.Writer.
type Checker struct {
	Bytes int64 // so far
	Wrong int64 // of them
	First int64 // position of the first wrong one, if there is one
}

// Write takes the next bytes of the stream, however it was cut. It never fails.
func (c *Checker) Write(b []byte) (int, error) {
	for i := 0; i < len(b); {
		var want [wordBytes]byte
		binary.LittleEndian.PutUint64(want[:], word(uint64(c.Bytes/wordBytes)))
		n := min(wordBytes-int(c.Bytes%wordBytes), len(b)-i)
		c.compare(b[i:i+n], want[c.Bytes%wordBytes:])
		i += n
	}
	return len(b), nil
}

// compare takes bytes of one word.
func (c *Checker) compare(got, want []byte) {
	for i, b := range got {
		if b != want[i] {
			if c.Wrong == 0 {
				c.First = c.Bytes
			}
			c.Wrong++
		}
		c.Bytes++
	}
}
