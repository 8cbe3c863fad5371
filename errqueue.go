package zcnet

import (
	"net"
	"sync"
)

// This file hands on what is in a socket's error queue beside completions.

// ErrorQueueMessage is one message of a socket's error queue, as recvmsg(2) with MSG_ERRQUEUE gave it. The receiver
// owns the slices.
type ErrorQueueMessage struct {
	Control []byte // control messages, for example for unix.ParseSocketControlMessage
	Data    []byte // payload of the packet that caused the message, where the kernel returns it, cut to 4 KiB
	Flags   int    // MSG_TRUNC and MSG_CTRUNC say that Data or Control was cut
}

// foreignQueue keeps messages for Config.ErrorQueue until a goroutine can call
// it for which nothing waits.
type foreignQueue struct {
	mu         sync.Mutex
	pending    []ErrorQueueMessage
	delivering bool
}

func (q *foreignQueue) add(m ErrorQueueMessage) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.pending = append(q.pending, m)
}

// start has a goroutine deliver what there is, unless one is at it.
func (q *foreignQueue) start(c *net.TCPConn, hook func(*net.TCPConn, ErrorQueueMessage)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.pending) > 0 && !q.delivering {
		q.delivering = true
		outside(func() { go q.deliver(c, hook) })
	}
}

// deliver calls hook with each message in order, until there is none.
func (q *foreignQueue) deliver(c *net.TCPConn, hook func(*net.TCPConn, ErrorQueueMessage)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	defer func() { q.delivering = false }()
	for len(q.pending) > 0 {
		m := q.pending[0]
		q.pending = q.pending[1:]
		q.call(c, hook, m)
	}
	q.pending = nil
}

func (q *foreignQueue) call(c *net.TCPConn, hook func(*net.TCPConn, ErrorQueueMessage), m ErrorQueueMessage) {
	q.mu.Unlock()
	defer q.mu.Lock()
	hook(c, m)
}

// deliver hands foreign messages on.
func (s *socket) deliver() {
	if s.cfg.ErrorQueue != nil {
		s.foreign.start(s.tc, s.cfg.ErrorQueue)
	}
}
