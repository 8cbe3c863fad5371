package perf

import (
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	const stat = "cpu  100 20 3000 700 80 400 50 6 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\ncpu3 1 2 3 4 5 6 7 8 9 10\nintr 5 6\ncpu9 1\n"
	got, err := parseStat(stat)
	want := machineStat{processors: 2, idle: 7 * time.Second, waiting: 800 * time.Millisecond}
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	got.at = 10 * time.Second
	if busy := got.busy(); busy != 12200*time.Millisecond {
		t.Errorf("of 2 processors in 10s, %v idle, %v waiting: busy %v, want 12.2s", got.idle, got.waiting, busy)
	}
	for _, stat := range []string{
		"", "cpu", "cpu 1 2 3 4\ncpu0", "cpu0 1 2 3 4 5 6 7 8\ncpu0", "cpu 1 2 3 x 5 6 7 8\ncpu0",
		"cpu 1 2 3 4 5 6 7 8\nintr 5",
	} {
		if got, err := parseStat(stat); err == nil {
			t.Errorf("parseStat(%q) = %+v, want an error", stat, got)
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
