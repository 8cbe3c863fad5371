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
	var got []int
	hook := func(_ *net.TCPConn, m ErrorQueueMessage) {
		if inside.Add(1) != 1 {
			t.Error("the hook is called while it runs")
		}
		got = append(got, m.Flags)
		if m.Flags%10 == 0 {
			q.deliver(nil, nil) // as a hook that writes to the connection: it must not wait for itself
		}
		inside.Add(-1)
	}
	const messages = 1000
	var want []int
	var delivering sync.WaitGroup
	for i := range messages {
		want = append(want, i)
		q.add(ErrorQueueMessage{Flags: i})
		delivering.Go(func() { q.deliver(nil, hook) })
	}
	delivering.Wait()
	q.deliver(nil, hook)
	if !slices.Equal(got, want) {
		t.Errorf("%d messages came, want %d in order", len(got), len(want))
	}
}
