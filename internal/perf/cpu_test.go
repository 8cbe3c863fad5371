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
