package zcnet

import (
	"io"
	"testing"
	"testing/synctest"
	"time"
)

// TestPollerGoesByTheRealClockInABubble has goroutines of bubbles, whose clocks
// are behind and ahead of the real one, set the poller's timer.
func TestPollerGoesByTheRealClockInABubble(t *testing.T) {
	nextCheck := func() (at time.Duration, running bool) {
		thePoller.mu.Lock()
		defer thePoller.mu.Unlock()
		return thePoller.checkAt, thePoller.file != nil
	}
	for _, sleep := range []time.Duration{0, 100 * 365 * 24 * time.Hour} {
		near, far := narrowPair(t)
		c := wrap(t, near, insist)
		eventually(t, "the poller has ended", func() bool {
			_, running := nextCheck()
			return !running
		})
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(sleep)
			lend(t, c)
		})
		first, _ := nextCheck()
		if left := first - clock(); left > checkEvery {
			t.Errorf("the next check is due in %v", left)
		}
		eventually(t, "the check comes", func() bool {
			next, _ := nextCheck()
			return next != first
		})
		c.Close()
		_, _ = io.Copy(io.Discard, far)
	}
}
