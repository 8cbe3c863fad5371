package perf

import (
	"errors"
	"runtime"
	"testing"
	"time"
)

// readSide skips a test where the machine's time is not told.
func readSide(t *testing.T, c *SideClock) SideTimes {
	t.Helper()
	times, err := c.Read()
	if err != nil && runtime.GOOS != "linux" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return times
}

// The side is the machine without what is apart from it.
func TestSideClockLeavesOutWhatIsApart(t *testing.T) {
	var first, second time.Duration
	c := SideClock{Apart: []Clock{
		func() (time.Duration, error) { return first, nil },
		func() (time.Duration, error) { return second, nil },
	}}
	before := readSide(t, &c)
	first, second = 3*time.Second, 500*time.Millisecond
	spent := readSide(t, &c).Sub(before)
	if got, want := spent.Machine-spent.Side, 3500*time.Millisecond; got != want {
		t.Errorf("of the machine's time %v are apart, want %v", got, want)
	}
}

// What this process works between two readings is in both times.
func TestSideClockCountsWork(t *testing.T) {
	var c SideClock
	before := readSide(t, &c)
	const work = 300 * time.Millisecond
	begun, err := ProcessTime()
	if err != nil {
		t.Fatal(err)
	}
	for spent := time.Duration(0); spent < work; {
		now, err := ProcessTime()
		if err != nil {
			t.Fatal(err)
		}
		spent = now - begun
	}
	// The clocks differ by a hundredth of a second at most.
	if spent := readSide(t, &c).Sub(before); spent.Machine < work*9/10 || spent.Side != spent.Machine {
		t.Errorf("while this process worked for %v, the machine did for %v and the side for %v; want as long, and the same", work, spent.Machine, spent.Side)
	}
}

func TestSideClockFailsWithItsClocks(t *testing.T) {
	broken := errors.New("the process has ended")
	c := SideClock{Apart: []Clock{func() (time.Duration, error) { return 0, broken }}}
	if got, err := c.Read(); runtime.GOOS == "linux" && !errors.Is(err, broken) {
		t.Errorf("got %v, %v; want %v", got, err, broken)
	}
}
