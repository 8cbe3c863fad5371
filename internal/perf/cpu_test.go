package perf

import (
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	const stat = "cpu  100 20 3000 99999 88888 400 50 77777 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n"
	if got, err := parseStat(stat); err != nil || got != 35700*time.Millisecond {
		t.Errorf("got %v, %v; want 35.7s", got, err)
	}
	for _, stat := range []string{"", "cpu", "cpu 1 2 3 4 5 6", "cpu0 1 2 3 4 5 6 7 8", "cpu 1 2 x 4 5 6 7 8"} {
		if got, err := parseStat(stat); err == nil {
			t.Errorf("parseStat(%q) = %v, want an error", stat, got)
		}
	}
}

func TestParseProcessStat(t *testing.T) {
	const stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 2 3 4 150 250 5 6 20 0 1 0 7 8 9"
	if got, err := parseProcessStat(stat); err != nil || got != 4*time.Second {
		t.Errorf("got %v, %v; want 4s", got, err)
	}
	for _, stat := range []string{"", "42 (a) S 1 42 42 0 -1 4194560 1 2 3 4 150", "42 (a) S 1 42 42 0 -1 4194560 1 2 3 4 x 250", "42 (a) S 1 42 42 0 -1 4194560 1 2 3 4 150 y"} {
		if got, err := parseProcessStat(stat); err == nil {
			t.Errorf("parseProcessStat(%q) = %v, want an error", stat, got)
		}
	}
}
