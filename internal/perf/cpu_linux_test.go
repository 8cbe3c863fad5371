package perf

import (
	"os"
	"testing"
	"time"
)

// The time of a process by its number is finer than /proc tells, and the same.
func TestProcessTimeOf(t *testing.T) {
	before, err := processStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	got, err := ProcessTimeOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	after, err := ProcessTime()
	if err != nil {
		t.Fatal(err)
	}
	// Either rounds in its own way.
	if got < before-2*tick || got > after+2*tick {
		t.Errorf("this process has used %v, and %v before and %v after by other clocks", got, before, after)
	}
	if got%time.Microsecond == 0 {
		again, _ := ProcessTimeOf(os.Getpid())
		if again%time.Microsecond == 0 {
			t.Errorf("this process has used %v, then %v: want nanoseconds", got, again)
		}
	}
	if got, err := ProcessTimeOf(1<<22 + 1); err == nil {
		t.Errorf("a process whose number is too high has used %v, want an error", got)
	}
}
