package main

import (
	"bytes"
	"unsafe"
)

// This file finds memory that should have been unmapped and was not. The number of mappings of a process does not tell:
// the runtime maps what it likes for heap and threads, and the kernel merges neighbours. So each piece of memory is
// remembered by its address and what it held, which nothing else holds, and looked up there later.

// A mark is where memory was that has been given up, and its first bytes.
type mark struct {
	addr  uintptr
	bytes [2 * wordBytes]byte
	n     int
}

// markOf remembers b, which is about to be given up.
func markOf(b []byte) (m mark) {
	m.addr = uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	m.n = copy(m.bytes[:], b)
	return m
}

// mapped reports whether the memory is still there.
func (m mark) mapped() bool {
	if m.n < wordBytes {
		return false // too short to be told from chance
	}
	var now [len(m.bytes)]byte
	return readMemory(m.addr, now[:m.n]) && bytes.Equal(now[:m.n], m.bytes[:m.n])
}
