package zcnet

import (
	"context"
	"errors"
	"math"
	"os"
	"sync"
	"testing"
	"time"
)

func TestPoolWaitsForABufferToComeBack(t *testing.T) {
	pool, err := NewPool(5000, 2)
	check(t, err)
	defer pool.Close()
	first, err := pool.Get(testContext(t))
	check(t, err)
	second, err := pool.Get(testContext(t))
	check(t, err)
	if first.Len() != 5000 || &first.Bytes()[0] == &second.Bytes()[0] {
		t.Fatalf("%d bytes, or the same buffer twice", first.Len())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := pool.Get(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Get of an empty pool: %v, want the context's error", err)
	}
	var getting sync.WaitGroup
	getting.Go(func() {
		if _, err := pool.Get(testContext(t)); err != nil {
			t.Error(err)
		}
	})
	first.Release()
	getting.Wait()
}

func TestBufferInFlightIsNotHandedOut(t *testing.T) {
	c, s := loopbackPair(t)
	zc := wrap(t, c, insist)
	const size, count, rounds = 1 << 20, 3, 60
	pool, err := NewPool(size, count)
	check(t, err)
	var reading sync.WaitGroup
	reading.Go(func() {
		want := make([]byte, size)
		for round := range rounds {
			for i := range want {
				want[i] = byte(round)
			}
			expect(t, s, want)
		}
	})
	for round := range rounds { // get, fill, write, release, forget
		p, err := pool.Get(testContext(t))
		check(t, err)
		b := p.Bytes()
		for i := range b {
			b[i] = byte(round)
		}
		_, err = zc.WritePinned(p)
		check(t, err)
		p.Release()
	}
	reading.Wait()
	check(t, zc.Flush(testContext(t)))
	for range count {
		_, err := pool.Get(testContext(t))
		check(t, err)
	}
}

func TestMisuseOfAPoolIsLoud(t *testing.T) {
	pool, err := NewPool(100, 1)
	check(t, err)
	stale, err := pool.Get(context.Background())
	check(t, err)
	stale.Release()
	again, err := pool.Get(context.Background())
	check(t, err)
	copy(again.Bytes(), "new holder")

	near, _ := loopbackPair(t)
	if _, err := NewWriter(near).WritePinned(stale); !errors.Is(err, ErrReleased) {
		t.Errorf("a write through the old holder's view: %v, want ErrReleased", err)
	}
	for name, f := range map[string]func(){"Release": stale.Release, "Bytes": func() { stale.Bytes() }} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s through the old holder's view did not panic", name)
				}
			}()
			f()
		}()
	}
	if got := string(again.Bytes()[:10]); got != "new holder" {
		t.Errorf("the new holder's buffer says %q", got)
	}
	for _, bad := range [][2]int{{0, 1}, {1, 0}, {-1, 1}, {math.MaxInt / 4, 8}} {
		if _, err := NewPool(bad[0], bad[1]); err == nil {
			t.Errorf("NewPool(%d, %d) succeeded", bad[0], bad[1])
		}
	}
}

func TestClosedPoolUnmapsWithItsLastBuffer(t *testing.T) {
	pool, err := NewPool(1000, 2)
	check(t, err)
	p, err := pool.Get(context.Background())
	check(t, err)
	var getting sync.WaitGroup
	blocked, err := pool.Get(context.Background())
	check(t, err)
	getting.Go(func() {
		if _, err := pool.Get(testContext(t)); !errors.Is(err, os.ErrClosed) {
			t.Errorf("a Get that waits: %v, want os.ErrClosed", err)
		}
	})
	time.Sleep(10 * time.Millisecond)
	check(t, pool.Close())
	getting.Wait()
	if _, err := pool.Get(context.Background()); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Get after Close: %v, want os.ErrClosed", err)
	}
	if err := pool.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("second Close: %v, want os.ErrClosed", err)
	}
	p.Bytes()[999] = 1 // still valid
	p.Release()
	if pool.left != 1 {
		t.Errorf("%d buffers left, want 1", pool.left)
	}
	blocked.Release()
	if pool.left != 0 {
		t.Errorf("%d buffers left, want 0", pool.left)
	}
}

func TestPoolDoesNotAllocate(t *testing.T) {
	pool, err := NewPool(page, 4)
	check(t, err)
	defer pool.Close()
	ctx := context.Background()
	if n := testing.AllocsPerRun(1000, func() {
		p, err := pool.Get(ctx)
		check(t, err)
		p.Release()
	}); n != 0 {
		t.Errorf("%v allocations for Get and Release, want 0", n)
	}
}
