package main

import (
	"bytes"
	"os"
	"strings"
)

// descriptors returns what each open descriptor refers to. The runtime's own epoll descriptor and its event descriptor
// are made once, on first use, and are left out; that of the library goes with its last connection.
func descriptors() map[string]string {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // without proc(5)
	}
	all := make(map[string]string)
	for _, e := range entries {
		target, err := os.Readlink(dir + "/" + e.Name())
		if err != nil || strings.Contains(target, "/fd") { // closed meanwhile; the directory itself
			continue
		}
		all[e.Name()] = target
	}
	return all
}

// mappings returns how many mappings the process has.
func mappings() int {
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return 0
	}
	return bytes.Count(b, []byte("\n"))
}

// threads returns how many threads the process has.
func threads() int {
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return 0
	}
	return len(entries)
}

// readMemory reads the process's own memory at an address at which there may be none.
func readMemory(addr uintptr, b []byte) bool {
	f, err := os.Open("/proc/self/mem")
	if err != nil {
		return false
	}
	defer f.Close()
	n, err := f.ReadAt(b, int64(addr))
	return err == nil && n == len(b)
}
