package zcnet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// bubbleUses are uses of a connection that make, or meet, what the process
// shares.
var bubbleUses = []struct {
	name    string
	use     func(t *testing.T, c *Conn)
	blocked func(c *Conn) bool // when the peer begins to read; nil: when use has returned
	greeted bool               // the peer begins with a greeting
}{
	{name: "Wait", blocked: hasWaiter, use: func(t *testing.T, c *Conn) {
		check(t, lend(t, c).Wait(anHour(t)))
	}},
	{name: "Done", blocked: hasWaiter, use: func(t *testing.T, c *Conn) {
		select {
		case <-lend(t, c).Done():
		case <-anHour(t).Done():
			t.Error("the clock went on while memory was in flight")
		}
	}},
	{name: "Flush", blocked: hasWaiter, use: func(t *testing.T, c *Conn) {
		lend(t, c)
		check(t, c.Flush(anHour(t)))
	}},
	{name: "FlushAll", blocked: hasWaiter, use: func(t *testing.T, c *Conn) {
		lend(t, c)
		check(t, FlushAll(anHour(t), c))
	}},
	{name: "Acknowledged", blocked: hasWaiter, use: func(t *testing.T, c *Conn) {
		lend(t, c)
		check(t, c.Acknowledged(anHour(t)))
	}},
	{name: "Acknowledged of copied bytes", blocked: hasCopied, use: func(t *testing.T, c *Conn) {
		for range bubbleBytes / 1000 {
			_, err := c.WritePinned(Pin(make([]byte, 1000)))
			check(t, err)
		}
		begin := time.Now()
		check(t, c.Acknowledged(anHour(t)))
		if took := time.Since(begin); bubbled() && took > 0 {
			t.Errorf("the clock went on by %v", took)
		}
	}},
	{name: "io.Copy", use: func(t *testing.T, c *Conn) {
		_, err := io.Copy(c, onlyReader{bytes.NewReader(make([]byte, bubbleBytes))})
		check(t, err)
	}},
	{name: "Close", use: func(t *testing.T, c *Conn) {
		lend(t, c)
		check(t, c.Close())
		if bubbled() {
			time.Sleep(time.Hour)
		}
	}},
	{name: "Close that waits", blocked: hasClosed, use: func(t *testing.T, c *Conn) {
		ticket := lend(t, c)
		check(t, c.SetLinger(3600))
		check(t, c.Close())
		if !ticket.Ready() {
			t.Error("the clock went on while Close waited for memory in flight")
		}
	}},
	{name: "slow Read", blocked: hasReader, greeted: true, use: func(t *testing.T, c *Conn) {
		check(t, c.SetReadDeadline(inAnHour()))
		expect(t, slowConn{c}, []byte(greeting))
	}},
	{name: "slow Read up to its deadline", use: func(t *testing.T, c *Conn) {
		check(t, c.SetReadDeadline(time.Now().Add(time.Millisecond)))
		if _, err := (slowConn{c}).Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the read ended with %v, want the deadline", err)
		}
	}},
	{name: "Pool", blocked: func(*Conn) bool { return waitsForMemory.Load() > 0 }, use: func(t *testing.T, c *Conn) {
		pool, err := NewPool(bubbleBytes/4, 2)
		check(t, err)
		for range 4 {
			p, err := pool.Get(anHour(t))
			check(t, err)
			_, err = c.WritePinned(p)
			check(t, err)
			p.Release()
		}
		check(t, pool.Close())
	}},
}

const (
	// bubbleBytes is what a narrowPair holds, and more than its peer takes unread.
	bubbleBytes = 192 << 10
	greeting    = "hello"
)

// lend makes a write that is in flight until the peer reads.
func lend(t *testing.T, c *Conn) Ticket {
	t.Helper()
	ticket, err := c.WritePinned(Pin(make([]byte, bubbleBytes)))
	check(t, err)
	if ticket.Ready() {
		t.Error("nothing is in flight")
	}
	return ticket
}

// anHour returns a context that ends after an hour, which in a bubble is at once
// where all of its goroutines are durably blocked.
func anHour(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	t.Cleanup(cancel)
	return ctx
}

func hasWaiter(c *Conn) bool { return c.s.ledger().waited.Load() > 0 }
func hasClosed(c *Conn) bool { return c.s.ledger().isClosed() }

// hasCopied gives c a moment to begin to wait, which no count tells of.
func hasCopied(c *Conn) bool {
	defer time.Sleep(10 * time.Millisecond)
	return c.Stats().CopiedBytes == bubbleBytes/1000*1000
}

func hasReader(c *Conn) bool {
	c.s.watch.mu.Lock()
	defer c.s.watch.mu.Unlock()
	return c.s.watch.ready != nil
}

// TestUsesInsideAndOutsideOfBubbles has each use be first in a bubble, then
// outside, where what the bubble has started may be met, then in another one.
func TestUsesInsideAndOutsideOfBubbles(t *testing.T) {
	skipWithoutZeroCopy(t)
	inBubble := func(t *testing.T, f func(*testing.T)) { synctest.Test(t, f) }
	outside := func(t *testing.T, f func(*testing.T)) { f(t) }
	for _, u := range bubbleUses {
		t.Run(u.name, func(t *testing.T) {
			for _, where := range []func(*testing.T, func(*testing.T)){inBubble, outside, inBubble} {
				begin := time.Now()
				near, far := narrowPair(t)
				c := wrap(t, near, insist)
				used := make(chan struct{})
				var received int64
				var peer sync.WaitGroup
				peer.Go(func() {
					waitUntil(used, func() bool { return u.blocked != nil && u.blocked(c) })
					if u.greeted {
						send(t, far, greeting)
					}
					received, _ = io.Copy(io.Discard, far)
				})
				where(t, func(t *testing.T) { u.use(t, c) })
				close(used)
				check(t, c.Flush(testContext(t)))
				c.Close()
				peer.Wait()
				st := c.Stats()
				if sent := st.ZeroCopiedBytes + st.MaybeCopiedBytes + st.CopiedBytes; received != sent {
					t.Errorf("the peer received %d bytes of %d", received, sent)
				}
				if took := time.Since(begin); st.ReleaseMax > took {
					t.Errorf("a ticket took %v of %v", st.ReleaseMax, took)
				}
			}
		})
	}
}

// TestCloseInABubbleWaitsInVain is about the clock by which Close waits.
func TestCloseInABubbleWaitsInVain(t *testing.T) {
	near, far := narrowPair(t)
	c := wrap(t, near, &Config{Threshold: 1, insist: true})
	synctest.Test(t, func(t *testing.T) {
		ticket := lend(t, c)
		check(t, c.SetLinger(1))
		check(t, c.Close()) // the peer reads after that
		if ticket.Ready() {
			t.Error("nothing was in flight while Close waited")
		}
	})
	if n, err := io.Copy(io.Discard, far); n != bubbleBytes || err != nil {
		t.Errorf("the peer received %d bytes and %v", n, err)
	}
}

func TestGuardTellsTheRealTimeInABubble(t *testing.T) {
	near, far := narrowPair(t)
	c := wrap(t, near, &Config{Threshold: 1, Guard: true, Logger: slog.New(slog.DiscardHandler)})
	synctest.Test(t, func(t *testing.T) {
		ticket := lend(t, c)
		memory := ticket.c.loan.guard.parts[0].b
		memory[0]++
		go func() { _, _ = io.Copy(io.Discard, far) }()
		fakeYear := time.Now().Format("2006-")
		if err := ticket.Wait(anHour(t)); !errors.Is(err, ErrChangedInFlight) || strings.Contains(err.Error(), fakeYear) {
			t.Errorf("the ticket reports %v, want a change and the real times", err)
		}
		c.Close()
	})
}

// waitUntil returns when ok returns true or over is closed. It is for goroutines
// outside of bubbles.
func waitUntil(over <-chan struct{}, ok func() bool) {
	for !ok() {
		select {
		case <-over:
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// TestBuffersOfReadFromAreFirstNeededInABubble runs in a process of its own,
// because the process makes them once.
func TestBuffersOfReadFromAreFirstNeededInABubble(t *testing.T) {
	skipWithoutZeroCopy(t)
	cmd := exec.CommandContext(testContext(t), os.Args[0], "-test.run", "^TestUsesInsideAndOutsideOfBubbles$/^io.Copy$")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestTwoBubblesWaitForTheSameTicket(t *testing.T) {
	near, far := narrowPair(t)
	c := wrap(t, near, insist)
	ticket := lend(t, c)
	read := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		synctest.Test(t, func(t *testing.T) {
			if err := ticket.Wait(anHour(t)); err != nil {
				t.Error(err)
			}
		})
	})
	others.Go(func() {
		<-read
		_, _ = io.Copy(io.Discard, far)
	})
	eventually(t, "a goroutine waits", func() bool { return hasWaiter(c) })
	synctest.Test(t, func(t *testing.T) {
		select {
		case <-ticket.Done():
			t.Error("the ticket was done before the peer has read")
		default:
		}
		close(read)
		if err := ticket.Wait(anHour(t)); err != nil {
			t.Error(err)
		}
	})
	c.Close()
	others.Wait()
}

func TestPoolOfABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool, err := NewPool(4096, 1)
		check(t, err)
		held, err := pool.Get(anHour(t))
		check(t, err)
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := pool.Get(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Minute {
			t.Errorf("Get of an empty pool: %v after %v, want the context's error after a minute", err, time.Since(start))
		}
		time.AfterFunc(time.Minute, held.Release)
		again, err := pool.Get(anHour(t))
		if check(t, err); time.Since(start) != 2*time.Minute {
			t.Errorf("the buffer came back after %v, want 2 minutes", time.Since(start))
		}
		time.AfterFunc(time.Minute, func() { check(t, pool.Close()) })
		if _, err := pool.Get(anHour(t)); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Get of a closed pool: %v", err)
		}
		again.Release()
	})
}

// TestPoolOfABubbleMeetsTheKernel has two goroutines wait for a buffer while the
// bubble holds both. One buffer comes back from the kernel, for which the clock
// of the bubble waits, the other when an hour of that clock has passed.
func TestPoolOfABubbleMeetsTheKernel(t *testing.T) {
	near, far := narrowPair(t)
	c := wrap(t, near, insist)
	var ofBubble atomic.Pointer[Pool]
	var peer sync.WaitGroup
	peer.Go(func() {
		waitUntil(testContext(t).Done(), func() bool {
			pool := ofBubble.Load()
			return pool != nil && pool.awaitsKernel()
		})
		_, _ = io.Copy(io.Discard, far)
	})
	synctest.Test(t, func(t *testing.T) {
		pool, err := NewPool(bubbleBytes, 2)
		check(t, err)
		lent, err := pool.Get(anHour(t))
		check(t, err)
		held, err := pool.Get(anHour(t))
		check(t, err)
		start := time.Now()
		got := make(chan Pinned)
		for range 2 {
			go func() {
				p, err := pool.Get(t.Context())
				if err != nil {
					t.Error(err)
				}
				got <- p
			}()
		}
		synctest.Wait()
		_, err = c.WritePinned(lent)
		check(t, err)
		lent.Release()
		ofBubble.Store(pool)
		first := <-got
		if took := time.Since(start); took != 0 {
			t.Errorf("the clock went on for %v while a buffer was in flight", took)
		}
		time.Sleep(time.Hour)
		held.Release()
		second := <-got
		if took := time.Since(start); took != time.Hour {
			t.Errorf("the second buffer came after %v, want an hour", took)
		}
		first.Release()
		second.Release()
		check(t, pool.Close())
	})
	c.Close()
	peer.Wait()
}

func (p *Pool) awaitsKernel() bool {
	p.waits.mu.Lock()
	defer p.waits.mu.Unlock()
	return p.waits.kernel != nil
}

// TestPoolOfABubbleIsClosedOutside is about what a Get that has ended leaves
// behind.
func TestPoolOfABubbleIsClosedOutside(t *testing.T) {
	var pool *Pool
	var held Pinned
	synctest.Test(t, func(t *testing.T) {
		var err error
		pool, err = NewPool(4096, 1)
		check(t, err)
		held, err = pool.Get(anHour(t))
		check(t, err)
		if _, err := pool.Get(anHour(t)); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
	held.Release()
	check(t, pool.Close())
}

// TestBubbleNeedsNoLockOfADroppedConn holds the lock that the end of a dropped
// Conn takes while something is started outside of the bubble, which the same
// goroutine of the runtime does.
func TestBubbleNeedsNoLockOfADroppedConn(t *testing.T) {
	near, _ := loopbackPair(t)
	c, err := NewConn(near, nil)
	if err != nil {
		t.Skip(err)
	}
	l := c.s.ledger()
	before := droppedSoFar().Conns
	eventually(t, "nothing runs outside for bubbles", func() bool { return !outer.started.Load() })
	l.mu.Lock()
	c = nil
	wantOutside(t, &l.mu, "a dropped Conn waits for its lock")
	eventually(t, "the Conn counts as dropped", func() bool { runtime.GC(); return droppedSoFar().Conns > before })
}

// wantOutside starts something outside of a bubble after a garbage collection,
// while mu is held, which it unlocks.
func wantOutside(t *testing.T, mu *sync.Mutex, meanwhile string) {
	t.Helper()
	runtime.GC()
	done := make(chan struct{})
	go func() {
		defer close(done)
		synctest.Test(t, func(*testing.T) { newSignal() })
	}()
	select {
	case <-done:
	case <-time.After(testTimeout):
		t.Errorf("nothing is started outside of a bubble while %s", meanwhile)
	}
	mu.Unlock()
	<-done
}

// TestBubbleNeedsNoLockOfADroppedBuffer is the same about the lock of a pool,
// whose Close may have to wait for a Get that starts something outside.
func TestBubbleNeedsNoLockOfADroppedBuffer(t *testing.T) {
	pool, err := NewPool(4096, 1)
	check(t, err)
	before := droppedSoFar().Buffers
	eventually(t, "nothing runs outside for bubbles", func() bool { return !outer.started.Load() })
	_, ok := pool.tryGet()
	if !ok {
		t.Fatal("the pool is empty")
	}
	pool.mu.Lock()
	wantOutside(t, &pool.mu, "a dropped buffer waits for its pool's lock")
	eventually(t, "the buffer counts as dropped", func() bool { runtime.GC(); return droppedSoFar().Buffers > before })
	check(t, pool.Close())
}

// TestBubbleDoesNotWaitForAHook has a write of a bubble find a message for
// Config.ErrorQueue.
func TestBubbleDoesNotWaitForAHook(t *testing.T) {
	leave, left := make(chan struct{}), make(chan struct{})
	near, _ := loopbackPair(t)
	c := wrap(t, near, &Config{Threshold: 1, ErrorQueue: func(*net.TCPConn, ErrorQueueMessage) { <-leave; close(left) }})
	done := make(chan struct{})
	go func() {
		defer close(done)
		synctest.Test(t, func(t *testing.T) {
			c.s.foreign.add(ErrorQueueMessage{})
			_, err := c.WritePinned(Pin(make([]byte, 4096)))
			check(t, err)
		})
	}()
	select {
	case <-done:
	case <-time.After(testTimeout):
		t.Error("the bubble does not end before the hook does")
	}
	close(leave)
	<-left
	<-done
}

func TestClockIsNotThatOfTheBubble(t *testing.T) {
	if bubbled() {
		t.Error("an ordinary goroutine counts as one of a bubble")
	}
	before := clock()
	synctest.Test(t, func(t *testing.T) {
		if !bubbled() {
			t.Error("a goroutine of a bubble is not recognised")
		}
		time.Sleep(100 * 365 * 24 * time.Hour)
		if now := clock(); now < before || now-before > time.Minute {
			t.Errorf("it is %v, and was %v", now, before)
		}
	})
}
