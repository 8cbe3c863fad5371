package main

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/zcnet-go/zcnet"
	"github.com/zcnet-go/zcnet/internal/perf"
)

// loopbackPath returns a path over loopback.
func loopbackPath(t *testing.T) *path {
	t.Helper()
	p, _, err := openPath(linkKind{"loopback", openLoopback})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.close() })
	return p
}

// testRegion returns memory with the pattern in it.
func testRegion(t *testing.T, n int64) region {
	t.Helper()
	region, err := newRegion(t.Context(), memoryKinds()[0], n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(region.free)
	return region
}

// skipMissing skips a test of a mode that cannot work here.
func skipMissing(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, errNoMode) || errors.Is(err, perf.ErrNoCompiler) {
		t.Skip(err)
	}
}

func TestEachModeDeliversEachByte(t *testing.T) {
	p := loopbackPath(t)
	region := testRegion(t, 4<<20)
	for _, m := range allModes(nil) {
		for _, test := range []struct{ write, total size }{
			{1, 100},
			{1, 1},
			{100, 7},            // one write, and a shorter one than asked for
			{4097, 10 << 20},    // the region is no multiple of it
			{64 << 10, 9 << 20}, // several times through the region
			{1 << 20, 9<<20 + 5},
			{3 << 20, 20 << 20}, // once through the region is one write
		} {
			t.Run(m.name+"/"+test.write.String()+"/"+test.total.String(), func(t *testing.T) {
				tr := newTransfer(region, test.write, test.total)
				tr.work = workVerify
				r, err := p.transfer(t.Context(), m, tr)
				skipMissing(t, err)
				if err != nil {
					t.Fatal(err)
				}
				total := int64(test.total)
				if r.Bytes != total || r.Checked != total || r.Wrong != 0 || r.CutShort {
					t.Errorf("got %+v, want %d bytes, all checked and right", r, total)
				}
				if sum := r.ZeroCopied + r.MaybeCopied + r.Copied; sum != total {
					t.Errorf("%d zero-copied and %d perhaps copied and %d copied bytes are %d, want %d",
						r.ZeroCopied, r.MaybeCopied, r.Copied, sum, total)
				}
				if want := (total + int64(test.write) - 1) / int64(test.write); r.Writes != want {
					t.Errorf("%d writes, want %d", r.Writes, want)
				}
			})
		}
	}
}

// A time limit or an interrupt ends a transfer, but not its accounts.
func TestTransferCutShort(t *testing.T) {
	p := loopbackPath(t)
	region := testRegion(t, 4<<20)
	for _, m := range goModes() {
		for name, cut := range map[string]func(sender, context.CancelFunc){
			"by time":         func(s sender, _ context.CancelFunc) { s.SetWriteDeadline(time.Now()) },
			"by an interrupt": func(_ sender, interrupt context.CancelFunc) { interrupt() },
		} {
			t.Run(m.name+"/"+name, func(t *testing.T) {
				ctx, interrupt := context.WithCancel(t.Context())
				defer interrupt()
				tr := newTransfer(region, 64<<10, 1<<50)
				tr.work = workVerify
				r, err := p.transfer(ctx, cutAfter(m, 100, func(s sender) { cut(s, interrupt) }), tr)
				skipMissing(t, err)
				if err != nil {
					t.Fatal(err)
				}
				if !r.CutShort || r.Bytes < 100*64<<10 || r.Checked != r.Bytes || r.Wrong != 0 {
					t.Errorf("got %+v, want a transfer that is cut short, all checked and right", r)
				}
				if sum := r.ZeroCopied + r.MaybeCopied + r.Copied; sum != r.Bytes {
					t.Errorf("the accounts are of %d bytes, want %d", sum, r.Bytes)
				}
			})
		}
	}
}

// cutAfter makes a mode call cut after a number of writes.
func cutAfter(m mode, writes int, cut func(sender)) mode {
	return mode{name: m.name, open: func(c *net.TCPConn) (sender, error) {
		s, err := m.open(c)
		return &cutter{s, writes, cut}, err
	}}
}

type cutter struct {
	sender
	left int
	cut  func(sender)
}

func (c *cutter) send(p zcnet.Pinned) (int64, error) {
	n, err := c.sender.send(p)
	if c.left--; c.left == 0 {
		c.cut(c.sender)
	}
	return n, err
}

func TestInterruptedWhileTheReceiverIsStuck(t *testing.T) {
	l, err := listenLoopback() // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() }) // after the parallel ones
	region := testRegion(t, 4<<20)
	for _, m := range goModes() {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			c, err := dialTCP(t.Context(), l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			s, err := openSender(m, c)
			skipMissing(t, err)
			if err != nil {
				t.Fatal(err)
			}
			if r, err := newTransfer(region, 1<<20, 1<<50).run(ctx, s); err == nil {
				t.Errorf("got %+v, want an error", r)
			}
		})
	}
}

func TestTransferToAStranger(t *testing.T) {
	l, err := listenLoopback()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		receive(c.(*net.TCPConn), func([]byte) {})
		c.Write(make([]byte, 100))
	}()
	c, err := dialTCP(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := openSender(usualModes(nil)[0], c)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := newTransfer(testRegion(t, 1000), 10, 1000).run(t.Context(), s); !errors.Is(err, errNotReceiver) {
		t.Errorf("got %+v, %v; want %v", r, err, errNotReceiver)
	}
}
