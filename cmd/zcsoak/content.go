package main

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"sync/atomic"
)

// This file is the content that is sent, the check that it arrives, and the poison that memory is filled with when it is
// not to be sent.

const wordBytes = 8

// A stream is the content of one direction of a connection. The byte at each position follows from the position alone,
// so that sender and receiver have nothing to tell each other. Every aligned word is a mix of its own number that can be
// undone: no two of a stream are equal, and what is shifted, repeated, lost or stale is as wrong as a flipped bit.
type stream struct{ key uint64 }

// newStream returns the content of a direction, 0 or 1, of a connection of a run.
func newStream(seed uint64, conversation int64, direction int) stream {
	return stream{key: mix(mix(seed)^mix(uint64(conversation)*2+uint64(direction)+1)) | 1}
}

// mix scatters the bits of x (the finalizer of SplitMix64).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// word returns the i-th word.
func (s stream) word(i uint64) uint64 {
	x := (i ^ s.key) * 0x9e3779b97f4a7c15
	x ^= x >> 32
	return (x ^ s.key>>17) * 0xd6e8feb86659fd93
}

func (s stream) byteAt(pos int64) byte {
	return byte(s.word(uint64(pos/wordBytes)) >> (8 * (pos % wordBytes)))
}

// fill writes the content from position pos on into b.
func (s stream) fill(b []byte, pos int64) {
	for ; len(b) > 0 && pos%wordBytes != 0; pos++ {
		b[0] = s.byteAt(pos)
		b = b[1:]
	}
	i := uint64(pos / wordBytes)
	for ; len(b) >= wordBytes; i++ {
		binary.LittleEndian.PutUint64(b, s.word(i))
		b = b[wordBytes:]
	}
	for n := range b {
		b[n] = s.byteAt(int64(i)*wordBytes + int64(n))
	}
}

// A checker compares what arrives with the content.
type checker struct {
	stream
	pos   int64     // of the next byte
	wrong int64     // bytes so far
	first *mismatch // the first of them
}

// A mismatch is where the wrong bytes begin.
type mismatch struct {
	pos       int64
	got, want []byte // from there on, a few
}

// shownBytes is how much of a mismatch is shown.
const shownBytes = 32

func (m *mismatch) String() string {
	return fmt.Sprintf("byte %d of the stream and what follows is % x, want % x%s", m.pos, m.got, m.want, m.meaning())
}

// meaning recognizes poison.
func (m *mismatch) meaning() string {
	off := int(m.pos % wordBytes)
	for at := (wordBytes - off) % wordBytes; at+wordBytes <= len(m.got); at += wordBytes {
		if isPoison(binary.LittleEndian.Uint64(m.got[at:])) {
			return ": the memory was written to after its ticket was done, and the kernel still sent from it"
		}
	}
	return ""
}

// check takes the next bytes of the stream, however it was cut.
func (c *checker) check(b []byte) {
	for len(b) > 0 && c.pos%wordBytes != 0 {
		c.checkByte(b)
		b = b[1:]
	}
	b = b[c.checkWords(b):]
	for len(b) > 0 {
		c.checkByte(b)
		b = b[1:]
	}
}

// checkWords checks the whole words of b, which begin on a word of the stream, and returns how many bytes that is.
func (c *checker) checkWords(b []byte) int {
	s, i, at := c.stream, uint64(c.pos/wordBytes), 0
	for ; len(b)-at >= wordBytes; at += wordBytes {
		if diff := binary.LittleEndian.Uint64(b[at:]) ^ s.word(i); diff != 0 {
			c.checkWord(b, at, diff)
		}
		i++
	}
	c.pos += int64(at)
	return at
}

// checkByte checks the first byte of b.
func (c *checker) checkByte(b []byte) {
	if b[0] != c.byteAt(c.pos) {
		c.found(b, 0)
	}
	c.pos++
}

// checkWord books the bytes of the word at b[at] that differ.
func (c *checker) checkWord(b []byte, at int, diff uint64) {
	for diff != 0 {
		n := bits.TrailingZeros64(diff) / 8
		c.found(b, at+n)
		diff &^= 0xff << (8 * n)
	}
}

// found books the byte at b[n], of which b[0] is at c.pos.
func (c *checker) found(b []byte, n int) {
	if c.wrong == 0 {
		m := &mismatch{pos: c.pos + int64(n), got: append([]byte(nil), b[n:min(len(b), n+shownBytes)]...)}
		m.want = make([]byte, len(m.got))
		c.fill(m.want, m.pos)
		c.first = m
	}
	c.wrong++
}

// Poison is what memory holds that must not be sent. Its words have an upper half of their own, and a lower half by
// which one poisoning is told from another.
const (
	poisonMark = 0xbadc0de5_00000000
	poisonMask = 0xffffffff_00000000
)

var poisonings atomic.Uint32

func isPoison(word uint64) bool { return word&poisonMask == poisonMark }

// poison overwrites b.
func poison(b []byte) {
	word := poisonMark | uint64(poisonings.Add(1))
	for len(b) >= wordBytes {
		binary.LittleEndian.PutUint64(b, word)
		b = b[wordBytes:]
	}
	for i := range b {
		b[i] = byte(word >> (8 * i))
	}
}
