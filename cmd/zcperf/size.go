package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// This file reads and writes sizes.

// A size is a number of bytes, more than none.
type size int64

// units are the units of a size, in the order in which String prefers them. K, M, G and T alone are binary, as in dd.
var units = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3},
	{"", 1}, {"B", 1},
	{"T", 1 << 40}, {"G", 1 << 30}, {"M", 1 << 20}, {"K", 1 << 10},
}

// parseSize parses a whole number with an optional unit. Case does not matter.
func parseSize(s string) (size, error) {
	digits := len(s) - len(strings.TrimLeft(s, "0123456789"))
	n, err := strconv.ParseInt(s[:digits], 10, 64)
	if digits == 0 || err != nil && !errors.Is(err, strconv.ErrRange) {
		return 0, notASize(s)
	}
	for _, u := range units {
		if !strings.EqualFold(u.name, s[digits:]) {
			continue
		}
		switch {
		case err != nil || n > math.MaxInt64/u.bytes:
			return 0, fmt.Errorf("%q is too large", s)
		case n == 0:
			return 0, fmt.Errorf("%q is not a size: it must be more than 0", s)
		}
		return size(n * u.bytes), nil
	}
	return 0, notASize(s)
}

// parseMemorySize parses a size of memory, which a system with 32 bits has less of.
func parseMemorySize(s string) (size, error) {
	n, err := parseSize(s)
	if err == nil && n > math.MaxInt {
		return 0, fmt.Errorf("%q is too large", s)
	}
	return n, err
}

func notASize(s string) error {
	return fmt.Errorf("%q is not a size: want a whole number and perhaps a unit: K or KiB is 1024, KB is 1000, and so on with M, G, T", s)
}

// String returns a text that parseSize makes the same size of.
func (n size) String() string {
	for _, u := range units {
		if n > 0 && int64(n)%u.bytes == 0 {
			return strconv.FormatInt(int64(n)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(n), 10)
}

// listed returns sizes as a flag takes them, the middle of a long list left out.
func listed(sizes []size) string {
	var parts []string
	for _, n := range sizes {
		parts = append(parts, n.String())
	}
	if len(parts) > 4 {
		parts = slices.Concat(parts[:2], []string{"..."}, parts[len(parts)-1:])
	}
	return strings.Join(parts, ",")
}
