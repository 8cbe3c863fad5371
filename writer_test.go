package zcnet

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"
)

// writerKinds are all the ZeroCopyWriters there are, each as a pair of what is written to and what is read from.
var writerKinds = []struct {
	name string
	pair func(t *testing.T) (near, far net.Conn)
}{
	{"Conn", func(t *testing.T) (net.Conn, net.Conn) {
		c, s := loopbackPair(t)
		return wrap(t, c, insist), s
	}},
	{"Conn that has learned to copy", func(t *testing.T) (net.Conn, net.Conn) {
		c, s := loopbackPair(t)
		zc := wrap(t, c, &Config{Threshold: 1})
		for range copiesToSwitch {
			zc.s.path.learn(1, true, clock())
		}
		return zc, s
	}},
	{"Conn with small bounds", func(t *testing.T) (net.Conn, net.Conn) {
		c, s := loopbackPair(t)
		return wrap(t, c, &Config{Threshold: 1, MaxInFlight: 64 << 10, insist: true}), s
	}},
	{"Conn with Guard", func(t *testing.T) (net.Conn, net.Conn) {
		c, s := loopbackPair(t)
		return wrap(t, c, &Config{Threshold: 1, Guard: true, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}), s
	}},
	{"TCP", func(t *testing.T) (net.Conn, net.Conn) {
		c, s := loopbackPair(t)
		return c, s
	}},
	{"TLS", func(t *testing.T) (net.Conn, net.Conn) {
		c, s := loopbackPair(t)
		cfg := serverTLS(t)
		near := tls.Client(c, &tls.Config{RootCAs: cfg.RootCAs, ServerName: "zcnet.test"})
		return near, tls.Server(s, cfg)
	}},
	{"pipe", func(t *testing.T) (net.Conn, net.Conn) {
		near, far := net.Pipe()
		t.Cleanup(func() { near.Close(); far.Close() })
		return near, far
	}},
	{"unix socket", func(t *testing.T) (net.Conn, net.Conn) {
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Skip(err)
		}
		defer l.Close()
		near, err := net.Dial("unix", l.Addr().String())
		check(t, err)
		far, err := l.Accept()
		check(t, err)
		t.Cleanup(func() { near.Close(); far.Close() })
		return near, far
	}},
}

// serverTLS returns a server configuration with a certificate of its own, which it also trusts.
func serverTLS(t *testing.T) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	check(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"zcnet.test"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(crand.Reader, template, template, &key.PublicKey, key)
	check(t, err)
	cert, err := x509.ParseCertificate(der)
	check(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, RootCAs: roots}
}

func TestEveryWriterBehavesTheSame(t *testing.T) {
	for _, kind := range writerKinds {
		t.Run(kind.name, func(t *testing.T) {
			for _, b := range writerBehaviours {
				t.Run(b.name, func(t *testing.T) {
					near, far := kind.pair(t)
					b.test(t, near, NewWriter(near), far)
				})
			}
		})
	}
}

var writerBehaviours = []struct {
	name string
	test func(t *testing.T, near net.Conn, w ZeroCopyWriter, far net.Conn)
}{
	{"sends what it was given", func(t *testing.T, _ net.Conn, w ZeroCopyWriter, far net.Conn) {
		var sent []byte
		for _, n := range []int{1, 100, page - 1, page, page + 1, 64 << 10, smallCall + 1, 1 << 20} {
			sent = append(sent, noise(n, uint64(n))...)
		}
		var reading sync.WaitGroup
		reading.Go(func() { expect(t, far, sent) })
		var tickets []Ticket
		rest := sent
		for _, n := range []int{1, 100, page - 1, page, page + 1, 64 << 10, smallCall + 1, 1 << 20} {
			ticket, err := w.WritePinned(Pin(rest[:n]))
			check(t, err)
			tickets = append(tickets, ticket)
			rest = rest[n:]
		}
		reading.Wait()
		for i, ticket := range tickets {
			if err := ticket.Wait(testContext(t)); err != nil {
				t.Errorf("ticket %d: %v", i, err)
			}
			if o := ticket.Outcome(); !ticket.Ready() || o == OutcomePending || o == OutcomeUnknown {
				t.Errorf("ticket %d: ready %v, outcome %v", i, ticket.Ready(), o)
			}
		}
		check(t, w.Flush(testContext(t)))
	}},
	{"sends many buffers as one write", func(t *testing.T, near net.Conn, w ZeroCopyWriter, far net.Conn) {
		var ps []Pinned
		var sent []byte
		for i := range 300 {
			n := []int{20, 0, 4096, 100000, 8192}[i%5]
			b := noise(n, uint64(i))
			sent = append(sent, b...)
			ps = append(ps, Pin(b))
		}
		sent = append(sent, "end"...)
		var reading sync.WaitGroup
		reading.Go(func() { expect(t, far, sent) })
		ticket, err := w.WritePinnedBuffers(ps)
		check(t, err)
		if _, err := near.Write([]byte("end")); err != nil {
			t.Fatal(err)
		}
		reading.Wait()
		check(t, ticket.Wait(testContext(t)))
	}},
	{"sends frames whose headers are the caller's again at once", func(t *testing.T, near net.Conn, w ZeroCopyWriter, far net.Conn) {
		frames := w.(FrameWriter)
		header := make([]byte, 8<<10) // long enough to be lent, if it were a body
		body := noise(300<<10, 1)
		const count = 20
		var reading sync.WaitGroup
		reading.Go(func() {
			for i := range count {
				expect(t, far, bytes.Repeat([]byte{byte(i)}, len(header)))
				expect(t, far, body)
			}
			expect(t, far, header[:10])
		})
		for i := range count {
			for j := range header {
				header[j] = byte(i)
			}
			_, err := frames.WriteFrame(header, Pin(body))
			check(t, err)
		}
		clear(header)
		ticket, err := frames.WriteFrame(header[:10], Pinned{}) // a frame without a body
		check(t, err)
		check(t, w.Flush(testContext(t)))
		if o := ticket.Outcome(); !ticket.Ready() || o != OutcomeCopied {
			t.Errorf("a header alone: ready %v, %v; want a done ticket that was copied", ticket.Ready(), o)
		}
		if ticket, err := frames.WriteFrame(nil, Pinned{}); err != nil || !ticket.Ready() {
			t.Errorf("an empty frame: error %v, ready %v", err, ticket.Ready())
		}
		reading.Wait()
	}},
	{"gives done tickets for nothing", func(t *testing.T, _ net.Conn, w ZeroCopyWriter, _ net.Conn) {
		for name, write := range map[string]func() (Ticket, error){
			"zero Pinned":   func() (Ticket, error) { return w.WritePinned(Pinned{}) },
			"Pin(nil)":      func() (Ticket, error) { return w.WritePinned(Pin(nil)) },
			"Pin(empty)":    func() (Ticket, error) { return w.WritePinned(Pin([]byte{})) },
			"no buffers":    func() (Ticket, error) { return w.WritePinnedBuffers(nil) },
			"empty buffers": func() (Ticket, error) { return w.WritePinnedBuffers([]Pinned{{}, Pin([]byte{})}) },
		} {
			ticket, err := write()
			if err != nil || !ticket.Ready() || ticket.Wait(context.Background()) != nil {
				t.Errorf("%s: error %v, ready %v", name, err, ticket.Ready())
			}
		}
		check(t, w.Flush(testContext(t)))
	}},
	{"refuses released memory and sends nothing", func(t *testing.T, near net.Conn, w ZeroCopyWriter, far net.Conn) {
		p, err := Alloc(10000)
		check(t, err)
		view := p.Slice(5000, 6000)
		p.Release()
		if ticket, err := w.WritePinned(view); !errors.Is(err, ErrReleased) || !ticket.Ready() {
			t.Errorf("WritePinned: %v, ready %v; want ErrReleased and a done ticket", err, ticket.Ready())
		}
		if _, err := w.WritePinnedBuffers([]Pinned{Pin([]byte("lost")), view}); !errors.Is(err, ErrReleased) {
			t.Errorf("WritePinnedBuffers: %v, want ErrReleased", err)
		}
		var reading sync.WaitGroup
		reading.Go(func() { expect(t, far, []byte("next")) })
		if _, err := near.Write([]byte("next")); err != nil {
			t.Error(err)
		}
		reading.Wait()
	}},
	{"lets memory be released during the write", func(t *testing.T, _ net.Conn, w ZeroCopyWriter, far net.Conn) {
		p, err := Alloc(3 << 20)
		check(t, err)
		want := noise(p.Len(), 7)
		copy(p.Bytes(), want)
		done := make(chan struct{})
		go func() {
			defer close(done)
			if _, err := w.WritePinned(p); err != nil {
				t.Error(err)
			}
		}()
		one := make([]byte, 1)
		if _, err := io.ReadFull(far, one); err != nil || one[0] != want[0] {
			t.Fatal(one, err)
		}
		p.Release()
		expect(t, far, want[1:])
		<-done
		check(t, w.Flush(testContext(t)))
		eventually(t, "every loan of the memory ends", func() bool { return p.r.state.Load()&regionUse == regionReleased })
	}},
	{"fails after Close", func(t *testing.T, near net.Conn, w ZeroCopyWriter, _ net.Conn) {
		check(t, near.Close())
		ticket, err := w.WritePinned(Pin(noise(100000, 1)))
		var we *WriteError
		if !errors.As(err, &we) || we.Queued != 0 || we.Total != 100000 {
			t.Errorf("%v, want a WriteError with 0 of 100000 bytes queued", err)
		}
		if !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("%v does not say that the connection is closed", err)
		}
		if !ticket.Ready() {
			t.Error("the ticket of nothing is pending")
		}
		check(t, w.Flush(testContext(t)))
	}},
	{"says how much was queued when the deadline passes", func(t *testing.T, near net.Conn, w ZeroCopyWriter, far net.Conn) {
		if _, ok := near.(*tls.Conn); ok {
			t.Skip("tls.Conn fails for good after a write timeout")
		}
		const total = 64 << 20
		data := noise(total, 3)
		check(t, near.SetWriteDeadline(time.Now().Add(50*time.Millisecond)))
		ticket, err := w.WritePinned(Pin(data))
		var we *WriteError
		if !errors.As(err, &we) || !we.Timeout() || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%v, want a WriteError that is a timeout", err)
		}
		if we.Queued >= total || we.Total != total {
			t.Fatalf("%d of %d bytes queued", we.Queued, we.Total)
		}
		check(t, near.SetWriteDeadline(time.Time{}))
		var reading sync.WaitGroup
		reading.Go(func() {
			expect(t, far, data[:we.Queued])
			expect(t, far, []byte("next"))
		})
		if _, err := near.Write([]byte("next")); err != nil {
			t.Error(err)
		}
		reading.Wait()
		check(t, ticket.Wait(testContext(t)))
	}},
	{"keeps concurrent writes whole", func(t *testing.T, _ net.Conn, w ZeroCopyWriter, far net.Conn) {
		const writers, each = 8, 10
		var writing sync.WaitGroup
		for id := range writers {
			writing.Go(func() {
				for seq := range each {
					body := bytes.Repeat([]byte{byte(id)}, 1+(id*7919+seq*104729)%200000)
					header := fmt.Appendf(nil, "%02d %06d\n", id, len(body))
					if _, err := w.WritePinnedBuffers([]Pinned{Pin(header), Pin(body)}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		for range writers * each {
			header := make([]byte, len("00 000000\n"))
			if _, err := io.ReadFull(far, header); err != nil {
				t.Fatal(err)
			}
			var id, n int
			if _, err := fmt.Sscanf(string(header), "%02d %06d\n", &id, &n); err != nil {
				t.Fatalf("header %q: %v", header, err)
			}
			expect(t, far, bytes.Repeat([]byte{byte(id)}, n))
		}
		writing.Wait()
		check(t, w.Flush(testContext(t)))
	}},
}

func TestNewWriterReturnsACapableConnectionItself(t *testing.T) {
	c, _ := loopbackPair(t)
	if w := NewWriter(c); w == ZeroCopyWriter(nil) || fmt.Sprintf("%T", w) != "*zcnet.copyWriter" {
		t.Errorf("NewWriter of a *net.TCPConn is a %T, want one that copies", w)
	}
	zc := wrap(t, c, nil)
	if w := NewWriter(zc); w != ZeroCopyWriter(zc) {
		t.Errorf("NewWriter of a *Conn is a %T, want the Conn itself", w)
	}
}

func TestMisuseOfPinnedIsLoud(t *testing.T) {
	mustPanic := func(name, want string, f func()) {
		t.Helper()
		defer func() {
			t.Helper()
			if got := fmt.Sprint(recover()); got != want {
				t.Errorf("%s: panic %q, want %q", name, got, want)
			}
		}()
		f()
	}
	p, err := Alloc(100)
	check(t, err)
	p.Release()
	mustPanic("second Release", "zcnet: Pinned released twice", p.Release)
	mustPanic("Release of a view", "zcnet: Pinned released twice", p.Slice(1, 2).Release)
	mustPanic("Bytes after Release", "zcnet: Pinned.Bytes after Release", func() { p.Bytes() })
	mustPanic("Slice out of range", "runtime error: slice bounds out of range [::101] with capacity 100", func() { p.Slice(0, 101) })
	Pin(make([]byte, 3)).Release() // nothing to give up
	Pinned{}.Release()
	if _, err := Alloc(-1); err == nil {
		t.Error("Alloc(-1) succeeded")
	}
	if p, err := Alloc(0); err != nil || p.Len() != 0 || len(p.Bytes()) != 0 {
		t.Errorf("Alloc(0): %v, %d bytes", err, p.Len())
	}
}

func TestPinnedIsAView(t *testing.T) {
	b := []byte("0123456789")
	p := Pin(b[:8])
	if got := string(p.Bytes()); got != "01234567" || p.Len() != 8 || cap(p.Bytes()) != 8 {
		t.Errorf("%q, length %d, capacity %d", got, p.Len(), cap(p.Bytes()))
	}
	q := p.Slice(2, 5).Slice(1, 3)
	if got := string(q.Bytes()); got != "34" || cap(q.Bytes()) != 2 {
		t.Errorf("%q, capacity %d, want 34 and 2", got, cap(q.Bytes()))
	}
	b[3] = 'x'
	if got := string(q.Bytes()); got != "x4" {
		t.Errorf("%q: a view does not show what its owner writes", got)
	}
}

func TestAllocatedMemoryIsZeroedAndWritable(t *testing.T) {
	for _, n := range []int{1, page, page + 1, 2<<20 - 1, 2 << 20, 5<<20 + 3} {
		p, err := Alloc(n)
		check(t, err)
		if p.Len() != n || len(p.Bytes()) != n || cap(p.Bytes()) != n {
			t.Errorf("Alloc(%d): length %d", n, p.Len())
		}
		for i, v := range p.Bytes() {
			if v != 0 {
				t.Fatalf("Alloc(%d): byte %d is %d", n, i, v)
			}
			p.Bytes()[i] = byte(i)
		}
		p.Release()
	}
}

// brokenWriter is a ZeroCopyWriter whose Flush fails.
type brokenWriter struct {
	ZeroCopyWriter
	err error
}

func (w brokenWriter) Flush(context.Context) error { return w.err }

func TestFlushAllReportsEveryFailure(t *testing.T) {
	c, s := loopbackPair(t)
	zc := wrap(t, c, insist)
	go io.Copy(io.Discard, s)
	if _, err := zc.WritePinned(Pin(noise(1<<20, 1))); err != nil {
		t.Fatal(err)
	}
	check(t, FlushAll(testContext(t)))
	check(t, FlushAll(testContext(t), zc, NewWriter(s)))
	first, second := errors.New("first"), errors.New("second")
	err := FlushAll(testContext(t), brokenWriter{err: first}, zc, brokenWriter{err: second})
	if !errors.Is(err, first) || !errors.Is(err, second) {
		t.Errorf("%v, want both failures", err)
	}
	if got := err.Error(); got != "first; second" {
		t.Errorf("text %q", got)
	}
	many := make([]error, 1000)
	for i := range many {
		many[i] = fmt.Errorf("failure %d", i)
	}
	if got := together(many).Error(); got != "failure 0; failure 1; failure 2; and 997 more" {
		t.Errorf("text of a thousand failures: %q", got)
	}
}

func TestWriterAndFallbackDoNotKeepTheBuffers(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("nothing is lent here")
	}
	c, s := loopbackPair(t)
	zc := wrap(t, c, insist)
	ps := []Pinned{Pin(noise(page, 1)), Pin(noise(page, 2))}
	want := append(bytes.Clone(ps[0].Bytes()), ps[1].Bytes()...)
	_, err := zc.WritePinnedBuffers(ps)
	check(t, err)
	clear(ps) // the slice is the caller's again, though the memory is not
	expect(t, s, want)
	check(t, zc.Flush(testContext(t)))
}

// On a path of which nothing is known calls are short; once a completion has
// told that it does not copy they are as long as their writes.
func TestCallsAreShortUntilThePathIsKnown(t *testing.T) {
	var p pathState
	for i, tt := range []struct {
		learn  bool
		copied bool
		want   int
	}{
		{false, false, smallCall},
		{true, false, plainCall},
		{true, true, smallCall},
		{true, true, smallCall},
		{true, false, plainCall},
	} {
		if tt.learn {
			p.learn(1, tt.copied, 0)
		}
		if got := p.longestCall(); got != tt.want {
			t.Errorf("after %d completions: calls of %d, want %d", i, got, tt.want)
		}
	}
}
