package zcnet

import (
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

func TestForeignMessagesComeInOrderAndOneAtATime(t *testing.T) {
	var q foreignQueue
	var inside atomic.Int32
	var mu sync.Mutex
	var got []int
	hook := func(_ *net.TCPConn, m ErrorQueueMessage) {
		if inside.Add(1) != 1 {
			t.Error("the hook is called while it runs")
		}
		mu.Lock()
		got = append(got, m.Flags)
		mu.Unlock()
		if m.Flags%10 == 0 {
			q.start(nil, nil) // as a hook that writes to the connection: it must not wait for itself
		}
		inside.Add(-1)
	}
	const messages = 1000
	var want []int
	var delivering sync.WaitGroup
	for i := range messages {
		want = append(want, i)
		q.add(ErrorQueueMessage{Flags: i})
		delivering.Go(func() { q.start(nil, hook) })
	}
	delivering.Wait()
	eventually(t, "all have come", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(got) >= messages
	})
	if !slices.Equal(got, want) {
		t.Errorf("%d messages came, want %d in order", len(got), len(want))
	}
}
