package perf

import (
	"net"
	"sync"
	"time"
)

// StartIdlers gives this process what every server has: a listener that waits
// in Accept, and a ticker that ticks. It returns what ends them.
//
// They belong to every measurement of a sender. As soon as one goroutine waits
// in the runtime's poller, or one timer runs, an idle thread of the runtime
// sleeps in epoll_wait, and each completion of each socket wakes it
// (findRunnable in runtime/proc.go). Without them the thread sleeps elsewhere,
// completions wake nothing, and a sender costs less than it does in a server.
func StartIdlers() (stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		if l, err = net.Listen("tcp", "[::1]:0"); err != nil {
			return nil, err
		}
	}
	quit := make(chan struct{})
	var idlers sync.WaitGroup
	idlers.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	})
	idlers.Go(func() { tickUntil(quit) })
	return func() {
		l.Close()
		close(quit)
		idlers.Wait()
	}, nil
}

// idlerTick is a usual pace of timers in servers: of caches, metrics, leases.
const idlerTick = 50 * time.Millisecond

func tickUntil(quit <-chan struct{}) {
	t := time.NewTicker(idlerTick)
	defer t.Stop()
	for {
		select {
		case <-quit:
			return
		case <-t.C:
		}
	}
}
