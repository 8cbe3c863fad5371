package main

import (
	"math"
	"strings"
	"testing"
)

func TestParseSize(t *testing.T) {
	for _, test := range []struct {
		text string
		want size
	}{
		{"1", 1},
		{"4096", 4096},
		{"007", 7},
		{"12B", 12},
		{"64K", 64 << 10},
		{"64k", 64 << 10},
		{"64KiB", 64 << 10},
		{"64kib", 64 << 10},
		{"64KB", 64000},
		{"1M", 1 << 20},
		{"1MiB", 1 << 20},
		{"1MB", 1000000},
		{"2GiB", 2 << 30},
		{"3GB", 3000000000},
		{"1T", 1 << 40},
		{"1TB", 1e12},
		{"9223372036854775807", math.MaxInt64},
	} {
		got, err := parseSize(test.text)
		if err != nil || got != test.want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", test.text, got, err, test.want)
		}
		again, err := parseSize(got.String())
		if err != nil || again != got {
			t.Errorf("parseSize(%q), of the text for %d, = %d, %v", got, got, again, err)
		}
	}
}

func TestParseSizeSaysWhatIsWrong(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"", "whole number"},
		{"K", "whole number"},
		{"-1", "whole number"},
		{"+1", "whole number"},
		{"1.5M", "whole number"},
		{"64Kx", "whole number"},
		{"64 KiB", "whole number"},
		{"1e6", "whole number"},
		{"0x10", "whole number"},
		{"0", "more than 0"},
		{"0KiB", "more than 0"},
		{"9223372036854775808", "too large"},
		{"9223372036854775807K", "too large"},
		{"99999999999999999999T", "too large"},
	} {
		n, err := parseSize(test.text)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("parseSize(%q) = %d, %v; want an error with %q", test.text, n, err, test.want)
		}
	}
}

func TestSizeString(t *testing.T) {
	for n, want := range map[size]string{
		1: "1", 1000: "1KB", 1024: "1KiB", 4096: "4KiB", 4097: "4097", 1 << 20: "1MiB", 3 << 30: "3GiB", 5e6: "5MB",
	} {
		if got := n.String(); got != want {
			t.Errorf("size(%d).String() = %q, want %q", int64(n), got, want)
		}
	}
}
