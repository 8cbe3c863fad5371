package zcnet

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/nettest"
)

// Conn is a net.Conn: these tests hold it against what a *net.TCPConn does, side by side where that can be done.

func TestConnPassesNettest(t *testing.T) {
	for _, pipe := range []struct {
		name string
		make func(t *testing.T) (near, far net.Conn)
	}{
		{"wrapped to wrapped", func(t *testing.T) (net.Conn, net.Conn) {
			near, far := loopbackPair(t)
			return wrap(t, near, insist), wrap(t, far, insist)
		}},
		{"wrapped to plain", func(t *testing.T) (net.Conn, net.Conn) {
			near, far := loopbackPair(t)
			return wrap(t, near, insist), far
		}},
		{"plain to wrapped", func(t *testing.T) (net.Conn, net.Conn) {
			near, far := loopbackPair(t)
			return near, wrap(t, far, insist)
		}},
		{"every write without copy", func(t *testing.T) (net.Conn, net.Conn) {
			near, far := loopbackPair(t)
			return pinnedConn{wrap(t, near, insist)}, pinnedConn{wrap(t, far, insist)}
		}},
	} {
		t.Run(pipe.name, func(t *testing.T) {
			skipWithoutZeroCopy(t)
			nettest.TestConn(t, func() (near, far net.Conn, stop func(), err error) {
				near, far = pipe.make(t)
				return near, far, func() { near.Close(); far.Close() }, nil
			})
		})
	}
}

// TestConnPassesNettestUnderZeroCopyTraffic runs the suite while another goroutine keeps sending without copy on the
// connection that the suite examines.
//
// The suite owns both ends of the stream and allows no foreign byte in it, so the noise must be told from its own
// bytes: what goes from the first end to the second travels in frames, each of them sent by WritePinned, and the second
// end takes the noise out. The other direction carries the suite's bytes alone. That is the one in which the suite
// reads under deadlines, and there Read, the deadlines and Close are the Conn's own.
func TestConnPassesNettestUnderZeroCopyTraffic(t *testing.T) {
	skipWithoutZeroCopy(t)
	var sent, slow atomic.Uint64
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		a, b := narrowPair(t)
		near := &noisyConn{Conn: wrap(t, a, insist)}
		far := &quietConn{TCPConn: b}
		var noise sync.WaitGroup
		noise.Go(near.makeNoise)
		return near, far, func() {
			near.Close()
			far.TCPConn.Close()
			noise.Wait()
			sent.Add(near.Stats().Sends)
			slow.Add(near.Stats().SlowReads)
		}, nil
	})
	if sent.Load() == 0 {
		t.Error("nothing was sent without copy")
	}
	t.Logf("%d sends without copy, %d reads that the runtime's poller refused", sent.Load(), slow.Load())
}

// A pinnedConn sends everything without copying it in the kernel. Write may not keep its argument, so a short one is
// copied first and lent to the kernel for as long as it likes, and a long one is lent itself and waited for.
type pinnedConn struct{ *Conn }

const pinnedConnWaits = 512 << 10

func (c pinnedConn) Write(b []byte) (int, error) {
	long := len(b) >= pinnedConnWaits
	if !long {
		b = bytes.Clone(b)
	}
	ticket, err := c.WritePinned(Pin(b))
	if long {
		<-ticket.Done()
	}
	var we *WriteError
	if errors.As(err, &we) {
		return int(we.Queued), err
	}
	return len(b), err
}

// Frames of noisyConn: a kind, a length of four bytes, and the content.
const (
	frameHeader  = 5
	frameOfSuite = 's'
	frameOfNoise = 'n'
)

// A noisyConn sends what it is given to Write in frames, with frames of noise between them.
type noisyConn struct {
	*Conn
	mu   sync.Mutex
	rest []byte // of a frame that a deadline has cut
}

func (c *noisyConn) Write(b []byte) (int, error) {
	if err := c.send(frameOfSuite, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// makeNoise sends noise until the connection ends.
func (c *noisyConn) makeNoise() {
	content := noise(8<<10, 1)
	for {
		switch err := c.send(frameOfNoise, content); {
		case errors.Is(err, os.ErrDeadlineExceeded):
			time.Sleep(time.Millisecond)
		case err != nil:
			return
		}
	}
}

// send sends one frame. One of which a part is in the stream counts as sent: its rest will go out before any other.
func (c *noisyConn) send(kind byte, content []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.sendRest(); err != nil {
		return err
	}
	frame := append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(content))), content...)
	c.rest = frame
	if err := c.sendRest(); err != nil && len(c.rest) == len(frame) {
		c.rest = nil
		return err
	}
	return nil
}

func (c *noisyConn) sendRest() error {
	_, err := c.WritePinned(Pin(c.rest))
	var we *WriteError
	if errors.As(err, &we) {
		c.rest = c.rest[we.Queued:]
		return err
	}
	c.rest = nil
	return err
}

// A quietConn takes the noise out of what a noisyConn sends.
type quietConn struct {
	*net.TCPConn
	mu     sync.Mutex
	header []byte // as much of it as has come
	left   int    // bytes of the frame that are still to come
}

func (c *quietConn) Read(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var dump [4096]byte
	for {
		if err := c.readHeader(); err != nil {
			return 0, err
		}
		into := b
		if c.header[0] == frameOfNoise {
			into = dump[:]
		}
		n, err := c.TCPConn.Read(into[:min(len(into), c.left)])
		if c.left -= n; c.left == 0 {
			c.header = c.header[:0]
		}
		if err != nil || (n > 0 && &into[0] == &b[0]) {
			return n, err
		}
	}
}

func (c *quietConn) readHeader() error {
	for len(c.header) < frameHeader {
		if c.header == nil {
			c.header = make([]byte, 0, frameHeader)
		}
		n, err := c.TCPConn.Read(c.header[len(c.header):frameHeader])
		c.header = c.header[:len(c.header)+n]
		if err != nil {
			return err
		}
		if len(c.header) == frameHeader {
			c.left = int(binary.BigEndian.Uint32(c.header[1:]))
		}
	}
	return nil
}

// Close ends the stream, and reads what noise is left: TCP would answer it by a reset, which may overtake the end of
// the stream.
func (c *quietConn) Close() error {
	err := c.CloseWrite()
	go io.Copy(io.Discard, c.TCPConn) // until the end of the test closes the connection
	return err
}

// skipWithoutZeroCopy skips the test on systems that cannot wrap.
func skipWithoutZeroCopy(t testing.TB) {
	t.Helper()
	c, s := loopbackPair(t)
	wrap(t, c, nil)
	c.Close()
	s.Close()
}

// families are the ways in which the addresses of a TCP connection can come.
var families = []struct{ name, listen, dial string }{
	{"IPv4", "127.0.0.1:0", "127.0.0.1"},
	{"IPv6", "[::1]:0", "::1"},
	{"IPv4 in IPv6", "[::]:0", "127.0.0.1"},
}

func TestBothEndsSendWithoutCopyInEveryFamily(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			skipWithout(t, f.listen)
			dialed, accepted := tcpPair(t, f.listen, f.dial)
			a, b := wrap(t, dialed, insist), wrap(t, accepted, insist)
			if got := Probe(b).Family; got != f.name {
				t.Errorf("the accepted end's family is %q, want %q", got, f.name)
			}
			var both sync.WaitGroup
			for i, c := range []*Conn{a, b} {
				check(t, c.SetDeadline(time.Now().Add(testTimeout)))
				content, other := noise(1<<20, uint64(i)), noise(1<<20, uint64(1-i))
				both.Go(func() { sendWithoutCopy(t, c, content) })
				both.Go(func() {
					if err := receive(c, other); err != nil {
						t.Errorf("%v received: %v", c.LocalAddr(), err)
					}
				})
			}
			both.Wait()
		})
	}
}

// skipWithout skips the test if nothing can listen on addr.
func skipWithout(t *testing.T, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Skip(err)
	}
	l.Close()
}

// sendWithoutCopy sends content and waits for its completion, and complains unless every byte was flagged. It may be
// called from any goroutine.
func sendWithoutCopy(t *testing.T, c *Conn, content []byte) {
	ticket, err := c.WritePinned(Pin(content))
	if err != nil {
		t.Errorf("%v: %v", c.LocalAddr(), err)
		return
	}
	if err := ticket.Wait(testContext(t)); err != nil {
		t.Errorf("%v: the ticket: %v", c.LocalAddr(), err)
	}
	if s := c.Stats(); s.ZeroCopiedBytes+s.MaybeCopiedBytes != int64(len(content)) || s.CopiedBytes != 0 {
		t.Errorf("%v: of %d bytes %d were flagged and %d copied by the library, want all and none",
			c.LocalAddr(), len(content), s.ZeroCopiedBytes+s.MaybeCopiedBytes, s.CopiedBytes)
	}
}

// receive reads exactly want from r, like expect, but from any goroutine.
func receive(r io.Reader, want []byte) error {
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", n, len(want), err)
	}
	return sameBytes(got, want)
}

func sameBytes(got, want []byte) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d bytes, want %d", len(got), len(want))
	}
	if bytes.Equal(got, want) {
		return nil
	}
	i := 0
	for got[i] == want[i] {
		i++
	}
	return fmt.Errorf("byte %d of %d is %#x, want %#x", i, len(want), got[i], want[i])
}

func TestListenerWrapsWhatItAccepts(t *testing.T) {
	skipWithoutZeroCopy(t)
	// This listener speaks Multipath TCP where the kernel does; a connection from a plain TCP peer is plain TCP.
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	l := NewListener(inner, insist)
	if l.Addr() != inner.Addr() {
		t.Errorf("the address is %v, want %v", l.Addr(), inner.Addr())
	}
	far, err := net.Dial("tcp", l.Addr().String())
	check(t, err)
	defer far.Close()
	near, err := l.Accept()
	check(t, err)
	defer near.Close()
	c, ok := near.(*Conn)
	if !ok {
		t.Fatalf("accepted a %T, want a *Conn: %v", near, Probe(near).Reason)
	}
	content := noise(100<<10, 1)
	sending := make(chan struct{})
	go func() {
		defer close(sending)
		sendWithoutCopy(t, c, content)
	}()
	expect(t, far, content)
	<-sending
	check(t, l.Close())
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v, want net.ErrClosed", err)
	}
}

func TestListenerPassesOnWhatItCannotWrap(t *testing.T) {
	inner := listenUnix(t)
	if l := NewListener(inner, nil); l != inner {
		t.Errorf("NewListener of a %T returned a %T", inner, l)
	}
	l := NewListener(struct{ net.Listener }{inner}, nil)
	far, err := net.Dial("unix", l.Addr().String())
	check(t, err)
	defer far.Close()
	near, err := l.Accept()
	check(t, err)
	defer near.Close()
	if _, ok := near.(*net.UnixConn); !ok {
		t.Errorf("accepted a %T, want a *net.UnixConn", near)
	}
}

// embedsListener is what programs make to have an Accept of their own.
type embedsListener struct {
	*net.TCPListener
	accepted *int
}

func (l embedsListener) Accept() (net.Conn, error) {
	*l.accepted++
	return l.TCPListener.Accept()
}

// Programs ask a listener by type assertion for what is not in net.Listener: to
// accept for a while only, to hand it over to a successor, to set options.
func TestListenerKeepsTheMethodsOfWhatItWraps(t *testing.T) {
	skipWithoutZeroCopy(t)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer inner.Close()
	accepted := 0
	for name, l := range map[string]net.Listener{
		"*net.TCPListener":      NewListener(inner, nil),
		"a struct that has one": NewListener(embedsListener{inner.(*net.TCPListener), &accepted}, nil),
		"wrapped twice":         NewListener(NewListener(inner, nil), nil),
	} {
		t.Run(name, func(t *testing.T) {
			l := l.(systemListener)
			check(t, l.SetDeadline(longAgo))
			if _, err := l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Accept after the deadline: %v", err)
			}
			check(t, l.SetDeadline(never))
			raw, err := l.SyscallConn()
			check(t, err)
			check(t, raw.Control(func(uintptr) {}))
			f, err := l.File()
			check(t, err)
			defer f.Close()
			successor, err := net.FileListener(f)
			check(t, err)
			defer successor.Close()
			if successor.Addr().String() != l.Addr().String() {
				t.Errorf("File is of a listener on %v, want %v", successor.Addr(), l.Addr())
			}
			far, err := net.Dial("tcp", l.Addr().String())
			check(t, err)
			defer far.Close()
			near, err := l.Accept()
			check(t, err)
			defer near.Close()
			if _, ok := near.(*Conn); !ok {
				t.Errorf("accepted a %T, want a *Conn", near)
			}
		})
	}
	if accepted != 2 {
		t.Errorf("the Accept of the struct was called %d times, want 2", accepted)
	}
	far, err := net.Dial("tcp", inner.Addr().String())
	check(t, err)
	defer far.Close()
	plain, err := NewListener(inner, nil).(interface{ AcceptTCP() (*net.TCPConn, error) }).AcceptTCP()
	check(t, err)
	check(t, plain.Close())
}

func listenUnix(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestWrapReturnsWhatItCannotWrapUnchanged(t *testing.T) {
	for _, other := range []struct {
		name string
		make func(t *testing.T) net.Conn
	}{
		{"nil", func(*testing.T) net.Conn { return nil }},
		{"net.Pipe", func(t *testing.T) net.Conn {
			a, b := net.Pipe()
			t.Cleanup(func() { a.Close(); b.Close() })
			return a
		}},
		{"unix socket", func(t *testing.T) net.Conn {
			c, err := net.Dial("unix", listenUnix(t).Addr().String())
			check(t, err)
			t.Cleanup(func() { c.Close() })
			return c
		}},
		{"tls.Conn", func(t *testing.T) net.Conn {
			c, _ := loopbackPair(t)
			return tls.Client(c, &tls.Config{})
		}},
		{"Conn", func(t *testing.T) net.Conn {
			c, _ := loopbackPair(t)
			return wrap(t, c, nil)
		}},
		{"closed TCP connection", func(t *testing.T) net.Conn {
			c, _ := loopbackPair(t)
			check(t, c.Close())
			return c
		}},
		{"Multipath TCP", func(t *testing.T) net.Conn { return multipath(t) }},
	} {
		t.Run(other.name, func(t *testing.T) {
			c := other.make(t)
			if got := Wrap(c, nil); got != c {
				t.Errorf("Wrap of a %T returned another: a %T", c, got)
			}
		})
	}
}

// multipath returns a connection that speaks Multipath TCP, and skips the test where the system does not.
func multipath(t *testing.T) *net.TCPConn {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(true)
	l, err := lc.Listen(testContext(t), "tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	var d net.Dialer
	d.SetMultipathTCP(true)
	near, err := d.DialContext(testContext(t), "tcp", l.Addr().String())
	check(t, err)
	far, err := l.Accept()
	check(t, err)
	t.Cleanup(func() { near.Close(); far.Close() })
	for _, c := range []net.Conn{near, far} {
		if on, err := c.(*net.TCPConn).MultipathTCP(); !on {
			t.Skipf("this system has no Multipath TCP: in use %v, %v", on, err)
		}
	}
	return near.(*net.TCPConn)
}

func TestNewConnSaysWhyNot(t *testing.T) {
	check := func(t *testing.T, c *net.TCPConn, cause error, why string) {
		t.Helper()
		zc, err := NewConn(c, nil)
		if zc != nil || !errors.Is(err, cause) || !strings.Contains(err.Error(), why) {
			t.Errorf("NewConn returned %v and %v; want nil and an error that is %v and says %q", zc, err, cause, why)
		}
	}
	t.Run("another system", func(t *testing.T) {
		if runtime.GOOS == "linux" {
			t.Skip("this is Linux")
		}
		c, _ := loopbackPair(t)
		check(t, c, errors.ErrUnsupported, runtime.GOOS)
	})
	t.Run("Multipath TCP", func(t *testing.T) {
		check(t, multipath(t), errors.ErrUnsupported, "Multipath TCP")
	})
	t.Run("turned off", func(t *testing.T) {
		t.Setenv("ZCNET_DISABLE", "1")
		c, _ := loopbackPair(t)
		check(t, c, errors.ErrUnsupported, "ZCNET_DISABLE=1")
	})
	t.Run("closed", func(t *testing.T) {
		skipWithoutZeroCopy(t)
		c, _ := loopbackPair(t)
		c.Close()
		check(t, c, net.ErrClosed, "closed")
	})
	t.Run("nil", func(t *testing.T) {
		if _, err := NewConn(nil, nil); err == nil {
			t.Error("NewConn of nil succeeded")
		}
	})
}

func TestEnvironmentTurnsZeroCopyOff(t *testing.T) {
	skipWithoutZeroCopy(t)
	for _, tt := range []struct {
		value string
		off   bool
	}{{"1", true}, {"0", false}, {"", false}} {
		t.Run("ZCNET_DISABLE="+tt.value, func(t *testing.T) {
			t.Setenv("ZCNET_DISABLE", tt.value)
			inner, err := net.Listen("tcp", "127.0.0.1:0")
			check(t, err)
			l := NewListener(inner, nil)
			defer l.Close()
			dialed, err := net.Dial("tcp", l.Addr().String())
			check(t, err)
			defer dialed.Close()
			accepted, err := l.Accept()
			check(t, err)
			defer accepted.Close()
			if got := Wrap(dialed, nil); (got == dialed) != tt.off {
				t.Errorf("Wrap returned a %T", got)
			}
			if _, wrapped := accepted.(*Conn); wrapped == tt.off {
				t.Errorf("the listener accepted a %T", accepted)
			}
			if _, capable := NewWriter(accepted).(*Conn); capable == tt.off {
				t.Errorf("NewWriter returned a %T", NewWriter(accepted))
			}
		})
	}
}

// A scene is a connection in the state in which its reads are to be tested.
type scene struct {
	c    net.Conn
	peer *net.TCPConn

	// settle returns once r, which was begun before, is blocked, or has ended after all.
	settle func(t testing.TB, r *pendingRead)
}

// A sceneKind makes scenes.
type sceneKind struct {
	name string
	make func(t *testing.T) scene
}

// doze gives other goroutines the time to block where nothing tells that they have.
func doze() { time.Sleep(20 * time.Millisecond) }

func dozeOver(testing.TB, *pendingRead) { doze() }

func TestReadsBehaveLikeTCP(t *testing.T) {
	skipWithoutZeroCopy(t)
	compareReads(t, loopbackPair, asIs, []sceneKind{
		{"wrapped", func(t *testing.T) scene {
			c, s := loopbackPair(t)
			return scene{wrap(t, c, nil), s, dozeOver}
		}},
		{"without the runtime's poller", func(t *testing.T) scene {
			c, s := loopbackPair(t)
			return scene{slowConn{wrap(t, c, nil)}, s, dozeOver}
		}},
	})
}

// A slowConn reads as a Conn does when the runtime's poller refuses it.
type slowConn struct{ *Conn }

func (c slowConn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return c.Conn.Read(b) // nobody refuses that
	}
	return c.s.read(b)
}

// A pairMaker returns the two ends of a new connection.
type pairMaker func(t testing.TB) (near, far *net.TCPConn)

// asIs has connections read by Read.
func asIs(c net.Conn) net.Conn { return c }

// compareReads runs every behaviour on a plain connection and on each kind, all
// of them read in the same way, and wants the same errors.
func compareReads(t *testing.T, plain pairMaker, by func(net.Conn) net.Conn, kinds []sceneKind) {
	for _, b := range readBehaviours {
		t.Run(b.name, func(t *testing.T) {
			c, s := plain(t)
			want := describe(c, b.test(t, scene{by(c), s, dozeOver}))
			for _, kind := range kinds {
				t.Run(kind.name, func(t *testing.T) {
					t.Parallel()
					s := kind.make(t)
					s.c = by(s.c)
					waitForEvents(t, s.c)
					if got := describe(s.c, b.test(t, s)); got != want {
						t.Errorf("the error is\n%s, want as on a plain connection\n%s", got, want)
					}
				})
			}
		})
	}
}

// waitForEvents has blocked reads wait for what happens. Before any deadline was set on a Conn they also look from time
// to time for one that was set before the connection was wrapped, which would hide a missing wake-up.
func waitForEvents(t testing.TB, c net.Conn) {
	t.Helper()
	check(t, c.SetReadDeadline(never))
}

// describe tells all that a caller can tell of an error of c, except the addresses.
func describe(c net.Conn, err error) string {
	op, ok := err.(*net.OpError)
	if !ok {
		return fmt.Sprintf("%T %v", err, err)
	}
	end := func(a net.Addr) string {
		switch {
		case a == nil:
			return "nowhere"
		case a.String() == c.LocalAddr().String():
			return "local"
		case a.String() == c.RemoteAddr().String():
			return "remote"
		}
		return a.String()
	}
	return fmt.Sprintf("%T %s %s from %s to %s: %T %v (timeout %v, temporary %v)",
		op, op.Op, op.Net, end(op.Source), end(op.Addr), op.Err, op.Err, op.Timeout(), op.Temporary())
}

// Deadlines for tests.
var (
	longAgo = time.Unix(1, 0)
	never   = time.Time{}
)

func inAnHour() time.Time { return time.Now().Add(time.Hour) }

// readBehaviours are what users of a connection count on when they read. Each returns the error that it provoked, if
// any, for comparison.
var readBehaviours = []struct {
	name string
	test func(t *testing.T, s scene) error
}{
	{"a read takes what is there and fits", func(t *testing.T, s scene) error {
		send(t, s.peer, "hello")
		expect(t, s.c, []byte("hel"))
		b := make([]byte, 10)
		if n, err := s.c.Read(b); n != 2 || err != nil || string(b[:n]) != "lo" {
			t.Errorf("read %q and %v, want the rest", b[:n], err)
		}
		return nil
	}},
	{"an empty read does not block", func(t *testing.T, s scene) error {
		n, err := s.c.Read(nil)
		if n != 0 || err != nil {
			t.Errorf("read %d bytes and %v, want nothing", n, err)
		}
		return err
	}},
	{"a read waits for data", func(t *testing.T, s scene) error {
		read := begin(s.c)
		s.settle(t, read)
		send(t, s.peer, "hello")
		read.wants(t, "hello")
		stillReads(t, s)
		return nil
	}},
	{"data that comes in pieces is all read", func(t *testing.T, s scene) error {
		read := begin(s.c)
		s.settle(t, read)
		send(t, s.peer, "hello")
		read.wants(t, "hello")
		content := noise(100<<10, 1)
		var sending sync.WaitGroup
		sending.Go(func() {
			for piece := range slices.Chunk(content, 7001) {
				if _, err := s.peer.Write(piece); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Millisecond)
			}
		})
		check(t, s.c.SetReadDeadline(time.Now().Add(testTimeout)))
		expect(t, s.c, content)
		sending.Wait()
		return nil
	}},
	{"the end of the stream ends a blocked read and every later one", func(t *testing.T, s scene) error {
		read := begin(s.c)
		s.settle(t, read)
		check(t, s.peer.CloseWrite())
		err := read.fails(t, io.EOF)
		expectEOF(t, s.c)
		expectEOF(t, s.c)
		return err
	}},
	{"data before the end of the stream is read first", func(t *testing.T, s scene) error {
		send(t, s.peer, "hello")
		check(t, s.peer.CloseWrite())
		doze()
		expect(t, s.c, []byte("hello"))
		expectEOF(t, s.c)
		return nil
	}},
	{"a reset ends a blocked read", func(t *testing.T, s scene) error {
		read := begin(s.c)
		s.settle(t, read)
		check(t, s.peer.SetLinger(0))
		check(t, s.peer.Close())
		return read.fails(t, syscall.ECONNRESET)
	}},
	{"a deadline that has passed comes before data that is there", func(t *testing.T, s scene) error {
		send(t, s.peer, "hi")
		expect(t, s.c, []byte("h"))
		check(t, s.c.SetReadDeadline(longAgo))
		err := begin(s.c).fails(t, os.ErrDeadlineExceeded)
		check(t, s.c.SetReadDeadline(never))
		expect(t, s.c, []byte("i"))
		return err
	}},
	{"a read ends at its deadline, not before", func(t *testing.T, s scene) error {
		deadline := time.Now().Add(50 * time.Millisecond)
		check(t, s.c.SetReadDeadline(deadline))
		err := begin(s.c).fails(t, os.ErrDeadlineExceeded)
		if time.Now().Before(deadline) {
			t.Errorf("the read ended %v early", time.Until(deadline))
		}
		stillReads(t, s)
		return err
	}},
	{"a deadline set during a blocked read ends it then", func(t *testing.T, s scene) error {
		read := begin(s.c)
		s.settle(t, read)
		deadline := time.Now().Add(50 * time.Millisecond)
		check(t, s.c.SetDeadline(deadline))
		err := read.fails(t, os.ErrDeadlineExceeded)
		if time.Now().Before(deadline) {
			t.Errorf("the read ended %v early", time.Until(deadline))
		}
		stillReads(t, s)
		return err
	}},
	{"a deadline brought forward ends a blocked read", func(t *testing.T, s scene) error {
		check(t, s.c.SetReadDeadline(inAnHour()))
		read := begin(s.c)
		s.settle(t, read)
		check(t, s.c.SetReadDeadline(longAgo))
		err := read.fails(t, os.ErrDeadlineExceeded)
		stillReads(t, s)
		return err
	}},
	{"a deadline put off does not end a blocked read", func(t *testing.T, s scene) error {
		return putOff(t, s, inAnHour())
	}},
	{"a deadline taken away does not end a blocked read", func(t *testing.T, s scene) error {
		return putOff(t, s, never)
	}},
	{"the write deadline does not end a blocked read", func(t *testing.T, s scene) error {
		read := begin(s.c)
		s.settle(t, read)
		check(t, s.c.SetWriteDeadline(longAgo))
		doze()
		send(t, s.peer, "hello")
		read.wants(t, "hello")
		return nil
	}},
	{"CloseRead ends a blocked read", func(t *testing.T, s scene) error {
		read := begin(s.c)
		s.settle(t, read)
		check(t, s.c.(interface{ CloseRead() error }).CloseRead())
		return read.fails(t, io.EOF)
	}},
	{"Close ends a blocked read", func(t *testing.T, s scene) error {
		read := begin(s.c)
		s.settle(t, read)
		check(t, s.c.Close())
		return read.fails(t, net.ErrClosed)
	}},
	{"a read after Close fails", func(t *testing.T, s scene) error {
		check(t, s.c.Close())
		return begin(s.c).fails(t, net.ErrClosed)
	}},
	{"a second Close fails", func(t *testing.T, s scene) error {
		check(t, s.c.Close())
		err := s.c.Close()
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("the second Close: %v, want net.ErrClosed", err)
		}
		return err
	}},
	{"many readers share the stream and all see its end", func(t *testing.T, s scene) error {
		var mu sync.Mutex
		var seen [256]int
		readers := make([]*pendingRead, 8)
		for i := range readers {
			readers[i] = begin(readerFunc(func(b []byte) (n int, err error) {
				for err == nil {
					mu.Lock()
					for _, v := range b[:n] {
						seen[v]++
					}
					mu.Unlock()
					n, err = s.c.Read(b[:1])
				}
				return n, err
			}))
		}
		s.settle(t, readers[0])
		for i := range seen {
			send(t, s.peer, string([]byte{byte(i)}))
		}
		check(t, s.peer.CloseWrite())
		for _, r := range readers {
			r.fails(t, io.EOF)
		}
		for i, n := range seen {
			if n != 1 {
				t.Errorf("byte %d was read %d times", i, n)
			}
		}
		return nil
	}},
}

type readerFunc func(b []byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// putOff has a blocked read outlive a deadline that was replaced by a later one in time.
func putOff(t *testing.T, s scene, later time.Time) error {
	t.Helper()
	read := begin(s.c)
	s.settle(t, read)
	first := time.Now().Add(200 * time.Millisecond)
	check(t, s.c.SetReadDeadline(first))
	check(t, s.c.SetReadDeadline(later))
	if time.Now().After(first) {
		t.Skip("too busy to put the deadline off before it passed")
	}
	time.Sleep(time.Until(first) + 20*time.Millisecond)
	send(t, s.peer, "hello")
	read.wants(t, "hello")
	return nil
}

// stillReads shows that what a read came to did not break the connection.
func stillReads(t *testing.T, s scene) {
	t.Helper()
	check(t, s.c.SetDeadline(time.Now().Add(testTimeout)))
	send(t, s.peer, "still here")
	expect(t, s.c, []byte("still here"))
}

func send(t testing.TB, c net.Conn, what string) {
	t.Helper()
	if _, err := c.Write([]byte(what)); err != nil {
		t.Fatal(err)
	}
}

// A pendingRead is a Read in another goroutine.
type pendingRead struct {
	done chan struct{}
	b    []byte
	err  error
}

func begin(c io.Reader) *pendingRead {
	r := &pendingRead{done: make(chan struct{})}
	go func() {
		defer close(r.done)
		b := make([]byte, 100)
		n, err := c.Read(b)
		r.b, r.err = b[:n], err
	}()
	return r
}

func (r *pendingRead) ended() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

func (r *pendingRead) wait(t *testing.T) {
	t.Helper()
	select {
	case <-r.done:
	case <-time.After(testTimeout):
		t.Fatalf("the read is still blocked after %v", testTimeout)
	}
}

func (r *pendingRead) wants(t *testing.T, what string) {
	t.Helper()
	r.wait(t)
	if string(r.b) != what || r.err != nil {
		t.Fatalf("read %q and %v, want %q", r.b, r.err, what)
	}
}

func (r *pendingRead) fails(t *testing.T, cause error) error {
	t.Helper()
	r.wait(t)
	if len(r.b) != 0 || !errors.Is(r.err, cause) {
		t.Fatalf("read %q and %v, want %v", r.b, r.err, cause)
	}
	return r.err
}

func TestErrorsNameTheNetworkThatWasDialled(t *testing.T) {
	for _, network := range []string{"tcp", "tcp4"} {
		t.Run(network, func(t *testing.T) {
			l, err := net.Listen("tcp4", "127.0.0.1:0")
			check(t, err)
			defer l.Close()
			dialed, err := net.Dial(network, l.Addr().String())
			check(t, err)
			c := wrap(t, dialed.(*net.TCPConn), insist)
			check(t, c.SetDeadline(longAgo))
			readErr := begin(c).fails(t, os.ErrDeadlineExceeded)
			slowErr := begin(slowConn{c}).fails(t, os.ErrDeadlineExceeded)
			_, pinnedErr := c.WritePinned(Pin([]byte("hello")))
			for what, err := range map[string]error{"Read": readErr, "Read without the runtime's poller": slowErr, "WritePinned": pinnedErr} {
				var op *net.OpError
				if !errors.As(err, &op) || op.Net != network {
					t.Errorf("%s: %v, want an error of %s", what, err, network)
				}
			}
		})
	}
}

// writeKinds are the ways to write bytes to a TCP connection: all but the first are the library's.
var writeKinds = []struct {
	name  string
	cfg   *Config // nil for a connection that is not wrapped
	write func(c net.Conn, b []byte) (int64, error)
}{
	{"plain Write", nil, plainWrite},
	{"Write", insist, plainWrite},
	{"WritePinned", insist, func(c net.Conn, b []byte) (int64, error) {
		_, err := c.(*Conn).WritePinned(Pin(b))
		return queued(b, err)
	}},
	{"WritePinned that copies", &Config{Threshold: 1 << 30}, func(c net.Conn, b []byte) (int64, error) {
		_, err := c.(*Conn).WritePinned(Pin(b))
		return queued(b, err)
	}},
	{"WritePinnedBuffers", insist, func(c net.Conn, b []byte) (int64, error) {
		header := min(len(b), 10)
		_, err := c.(*Conn).WritePinnedBuffers([]Pinned{Pin(b[:header]), Pin(b[header:])})
		return queued(b, err)
	}},
}

func plainWrite(c net.Conn, b []byte) (int64, error) {
	n, err := c.Write(b)
	return int64(n), err
}

// queued is how much of b a write of the library has put into the stream.
func queued(b []byte, err error) (int64, error) {
	var we *WriteError
	if errors.As(err, &we) {
		return we.Queued, err
	}
	return int64(len(b)), err
}

func TestWritesBehaveLikeTCP(t *testing.T) {
	skipWithoutZeroCopy(t)
	for _, b := range writeBehaviours {
		t.Run(b.name, func(t *testing.T) {
			for _, kind := range writeKinds {
				t.Run(kind.name, func(t *testing.T) {
					t.Parallel()
					c, peer := narrowPair(t)
					if kind.cfg == nil {
						b.test(t, c, peer, func(b []byte) (int64, error) { return kind.write(c, b) })
						return
					}
					zc := wrap(t, c, kind.cfg)
					b.test(t, zc, peer, func(b []byte) (int64, error) { return kind.write(zc, b) })
					zc.Close() // some have done so
					ctx := testContext(t)
					if err := zc.Flush(ctx); ctx.Err() != nil || zc.Stats().UnprovenBytes != 0 {
						t.Errorf("memory was not released: %v: %+v", err, zc.Stats())
					}
				})
			}
		})
	}
}

// narrowPair returns a connection with small buffers, which soon blocks whoever writes while nobody reads.
func narrowPair(t testing.TB) (near, far *net.TCPConn) {
	t.Helper()
	near, far = loopbackPair(t)
	narrow(t, near, far)
	return near, far
}

func narrow(t testing.TB, near, far *net.TCPConn) {
	t.Helper()
	check(t, near.SetWriteBuffer(256<<10))
	check(t, far.SetReadBuffer(64<<10))
}

// tooMuch is more than a narrowPair holds.
var tooMuch = sync.OnceValue(func() []byte { return noise(8<<20, 1) })

// tcpConn is what the tests of writes need of a *net.TCPConn and of a Conn.
type tcpConn interface {
	net.Conn
	CloseWrite() error
	SetLinger(sec int) error
}

// writeBehaviours are what users of a connection count on when they write.
var writeBehaviours = []struct {
	name string
	test func(t *testing.T, c tcpConn, peer *net.TCPConn, write func([]byte) (int64, error))
}{
	{"nothing is queued after the deadline", func(t *testing.T, c tcpConn, peer *net.TCPConn, write func([]byte) (int64, error)) {
		check(t, c.SetWriteDeadline(longAgo))
		n, err := write(tooMuch())
		wantError(t, c, err, os.ErrDeadlineExceeded)
		endsAfter(t, c, peer, n, 0)
	}},
	{"the deadline ends a blocked write, not before", func(t *testing.T, c tcpConn, peer *net.TCPConn, write func([]byte) (int64, error)) {
		deadline := time.Now().Add(50 * time.Millisecond)
		check(t, c.SetWriteDeadline(deadline))
		n, err := write(tooMuch())
		if time.Now().Before(deadline) {
			t.Errorf("the write ended %v early", time.Until(deadline))
		}
		wantError(t, c, err, os.ErrDeadlineExceeded)
		endsAfter(t, c, peer, n, 0)
	}},
	{"a deadline brought forward ends a blocked write", func(t *testing.T, c tcpConn, peer *net.TCPConn, write func([]byte) (int64, error)) {
		check(t, c.SetDeadline(inAnHour()))
		blocked := beginWrite(t, peer, write)
		check(t, c.SetWriteDeadline(longAgo))
		n, err := blocked.wait(t)
		wantError(t, c, err, os.ErrDeadlineExceeded)
		endsAfter(t, c, peer, n, 1)
	}},
	{"the read deadline does not end a blocked write", func(t *testing.T, c tcpConn, peer *net.TCPConn, write func([]byte) (int64, error)) {
		blocked := beginWrite(t, peer, write)
		check(t, c.SetReadDeadline(longAgo))
		doze()
		expect(t, peer, tooMuch()[1:])
		n, err := blocked.wait(t)
		check(t, err)
		if n != int64(len(tooMuch())) {
			t.Errorf("%d bytes were queued, want all %d", n, len(tooMuch()))
		}
	}},
	{"a write goes on where the deadline cut the one before", func(t *testing.T, c tcpConn, peer *net.TCPConn, write func([]byte) (int64, error)) {
		check(t, c.SetWriteDeadline(time.Now().Add(20*time.Millisecond)))
		n, err := write(tooMuch())
		wantError(t, c, err, os.ErrDeadlineExceeded)
		check(t, c.SetWriteDeadline(time.Now().Add(testTimeout)))
		var reading sync.WaitGroup
		reading.Go(func() {
			if err := receive(peer, tooMuch()); err != nil {
				t.Error(err)
			}
		})
		if _, err := write(tooMuch()[n:]); err != nil {
			t.Error(err)
		}
		reading.Wait()
	}},
	{"Close ends a blocked write and delivers what was queued", func(t *testing.T, c tcpConn, peer *net.TCPConn, write func([]byte) (int64, error)) {
		blocked := beginWrite(t, peer, write)
		check(t, c.Close())
		n, err := blocked.wait(t)
		wantError(t, c, err, net.ErrClosed)
		expect(t, peer, tooMuch()[1:n])
		expectEOF(t, peer)
	}},
	{"a write after Close fails", func(t *testing.T, c tcpConn, peer *net.TCPConn, write func([]byte) (int64, error)) {
		check(t, c.Close())
		n, err := write(tooMuch())
		wantError(t, c, err, net.ErrClosed)
		if n != 0 {
			t.Errorf("%d bytes were queued", n)
		}
		expectEOF(t, peer)
	}},
	{"a write after CloseWrite fails", func(t *testing.T, c tcpConn, peer *net.TCPConn, write func([]byte) (int64, error)) {
		check(t, c.CloseWrite())
		n, err := write(tooMuch())
		wantError(t, c, err, syscall.EPIPE)
		if n != 0 {
			t.Errorf("%d bytes were queued", n)
		}
		expectEOF(t, peer)
		send(t, peer, "answer")
		expect(t, c, []byte("answer"))
	}},
	{"CloseWrite delivers what was written before", func(t *testing.T, c tcpConn, peer *net.TCPConn, write func([]byte) (int64, error)) {
		n, err := write(tooMuch()[:50<<10])
		check(t, err)
		if n != 50<<10 {
			t.Errorf("%d bytes were queued, want all", n)
		}
		endsAfter(t, c, peer, n, 0)
		send(t, peer, "answer")
		expect(t, c, []byte("answer"))
	}},
	{"a reset by the peer ends a blocked write", func(t *testing.T, c tcpConn, peer *net.TCPConn, write func([]byte) (int64, error)) {
		blocked := beginWrite(t, peer, write)
		check(t, peer.SetLinger(0))
		check(t, peer.Close())
		_, err := blocked.wait(t)
		wantError(t, c, err, syscall.ECONNRESET)
		_, err = write(tooMuch())
		wantError(t, c, err, syscall.EPIPE)
	}},
	{"Close with linger 0 resets", func(t *testing.T, c tcpConn, peer *net.TCPConn, write func([]byte) (int64, error)) {
		if _, err := write(tooMuch()[:50<<10]); err != nil {
			t.Error(err)
		}
		check(t, c.SetLinger(0))
		check(t, c.Close())
		if _, err := io.Copy(io.Discard, peer); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the peer's read: %v, want a reset", err)
		}
	}},
	{"Close with linger 0 resets a connection whose write is blocked", func(t *testing.T, c tcpConn, peer *net.TCPConn, write func([]byte) (int64, error)) {
		blocked := beginWrite(t, peer, write)
		check(t, c.SetLinger(0))
		check(t, c.Close())
		_, err := blocked.wait(t)
		wantError(t, c, err, net.ErrClosed)
		if _, err := io.Copy(io.Discard, peer); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the peer's read: %v, want a reset", err)
		}
	}},
	{"an empty write does nothing", func(t *testing.T, c tcpConn, peer *net.TCPConn, write func([]byte) (int64, error)) {
		n, err := write(nil)
		check(t, err)
		endsAfter(t, c, peer, n, 0)
	}},
}

// A pendingWriting is a write of tooMuch in another goroutine.
type pendingWriting struct {
	done chan struct{}
	n    int64
	err  error
}

// beginWrite returns when the peer has received the first byte, and the write has had a moment to block.
func beginWrite(t *testing.T, peer net.Conn, write func([]byte) (int64, error)) *pendingWriting {
	t.Helper()
	w := &pendingWriting{done: make(chan struct{})}
	go func() {
		defer close(w.done)
		w.n, w.err = write(tooMuch())
	}()
	expect(t, peer, tooMuch()[:1])
	doze()
	return w
}

func (w *pendingWriting) wait(t *testing.T) (int64, error) {
	t.Helper()
	select {
	case <-w.done:
	case <-time.After(testTimeout):
		t.Fatalf("the write is still blocked after %v", testTimeout)
	}
	return w.n, w.err
}

// wantError checks the error of a write: its cause, and that it says what a *net.TCPConn's would.
func wantError(t *testing.T, c net.Conn, err, cause error) {
	t.Helper()
	if !errors.Is(err, cause) {
		t.Errorf("the error is %v, want %v", err, cause)
	}
	ne, ok := err.(net.Error)
	if timeout := cause == os.ErrDeadlineExceeded; !ok || ne.Timeout() != timeout {
		t.Errorf("the error %v is a %T, want a net.Error whose Timeout is %v", err, err, timeout)
	}
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "write" || op.Net != "tcp" || op.Source != c.LocalAddr() || op.Addr != c.RemoteAddr() {
		t.Errorf("the error does not tell the operation and the connection: %#v", op)
	}
}

// endsAfter ends the stream and checks that the peer receives the queued bytes of tooMuch, no more and no less, but for
// those that it has read before.
func endsAfter(t *testing.T, c tcpConn, peer net.Conn, queued int64, read int) {
	t.Helper()
	if queued < int64(read) || queued == int64(len(tooMuch())) {
		t.Fatalf("%d bytes were queued, want at least %d and not all", queued, read)
	}
	check(t, c.CloseWrite())
	got, err := io.ReadAll(peer)
	check(t, err)
	if err := sameBytes(got, tooMuch()[read:queued]); err != nil {
		t.Errorf("the peer received: %v", err)
	}
}

func TestWriteCutByItsDeadlineKeepsItsTicket(t *testing.T) {
	near, peer := narrowPair(t)
	c := wrap(t, near, insist)
	ticket, queued := cutWrite(t, c, peer)
	if ticket == (Ticket{}) || ticket.Ready() {
		t.Error("the ticket is done before the peer has read")
	}
	endsAfter(t, c, peer, queued, 1)
	if err := ticket.Wait(testContext(t)); err != nil {
		t.Errorf("the ticket, once the peer has read: %v", err)
	}
	if s := c.Stats(); s.MaybeCopiedBytes+s.ZeroCopiedBytes != queued || s.BytesInFlight != 0 {
		t.Errorf("%d bytes sent and %d in flight, want the %d queued and none", s.MaybeCopiedBytes+s.ZeroCopiedBytes, s.BytesInFlight, queued)
	}
}

// cutWrite begins to write tooMuch without copy, has the peer read one byte, and cuts the write by its deadline.
func cutWrite(t *testing.T, c *Conn, peer net.Conn) (ticket Ticket, queued int64) {
	t.Helper()
	blocked := beginWrite(t, peer, func(b []byte) (n int64, err error) {
		ticket, err = c.WritePinned(Pin(b))
		return 0, err
	})
	check(t, c.SetWriteDeadline(longAgo))
	_, err := blocked.wait(t)
	wantError(t, c, err, os.ErrDeadlineExceeded)
	var we *WriteError
	if !errors.As(err, &we) {
		t.Fatalf("the error of the write is a %T, want a *WriteError", err)
	}
	if we.Queued <= 0 || we.Queued >= we.Total || we.Total != int64(len(tooMuch())) {
		t.Fatalf("%d of %d bytes were queued, want a part of %d", we.Queued, we.Total, len(tooMuch()))
	}
	return ticket, we.Queued
}

// TestCloseDuringCloseKeepsWhatIsInFlight has a second Close come while the first is under way.
func TestCloseDuringCloseKeepsWhatIsInFlight(t *testing.T) {
	near, peer := narrowPair(t)
	c := wrap(t, near, insist)
	second := &closeDuringClose{RawConn: c.s.raw, c: c, result: make(chan error, 1)}
	c.s.raw = second
	ticket, queued := cutWrite(t, c, peer)
	first := c.Close()
	second.once.Do(func() { second.result <- c.Close() }) // if the first did not get there
	if other := <-second.result; (first == nil) == (other == nil) {
		t.Errorf("the first Close: %v, the second: %v; want one to succeed", first, other)
	}
	expect(t, peer, tooMuch()[1:queued])
	expectEOF(t, peer)
	if err := ticket.Wait(testContext(t)); err != nil {
		t.Errorf("the ticket: %v", err)
	}
}

// closeDuringClose calls Close when another Close has begun and reaches for the descriptor, and lets that one go on
// when the second has returned, or appears to wait for the first.
type closeDuringClose struct {
	syscall.RawConn
	c      *Conn
	once   sync.Once
	result chan error
}

func (r *closeDuringClose) Control(f func(fd uintptr)) error {
	if r.c.s.ledger().isClosed() {
		r.once.Do(func() {
			returned := make(chan struct{})
			go func() {
				defer close(returned)
				r.result <- r.c.Close()
			}()
			select {
			case <-returned:
			case <-time.After(100 * time.Millisecond):
			}
		})
	}
	return r.RawConn.Control(f)
}

func TestClosingFromManyGoroutinesKeepsWhatIsInFlight(t *testing.T) {
	for range 10 {
		near, peer := narrowPair(t)
		c := wrap(t, near, insist)
		ticket, queued := cutWrite(t, c, peer)
		start := make(chan struct{})
		var succeeded atomic.Int32
		var closing sync.WaitGroup
		for range 4 {
			closing.Go(func() {
				<-start
				if c.Close() == nil {
					succeeded.Add(1)
				}
			})
		}
		close(start)
		closing.Wait()
		if n := succeeded.Load(); n != 1 {
			t.Errorf("%d of 4 calls of Close succeeded, want 1", n)
		}
		expect(t, peer, tooMuch()[1:queued])
		expectEOF(t, peer)
		if err := ticket.Wait(testContext(t)); err != nil {
			t.Fatalf("the ticket: %v", err)
		}
	}
}

func TestConcurrentWritesAreContiguousAndInOrder(t *testing.T) {
	near, far := loopbackPair(t)
	testOrder(t, wrap(t, near, insist), far)
}

// A message of testOrder is a header, which is the writer, its running number and a length in 4 bytes each, and that
// many bytes of content.
const (
	orderWriters  = 16
	orderFlushers = 16
	orderMessages = 200 // of each writer
	orderHeader   = 12
	orderLongest  = 300 << 10
)

// orderContent is the content of a message of n bytes.
func orderContent(writer, seq, n int) []byte {
	start := (writer*orderMessages + seq) * 101
	return orderBlock()[start : start+n]
}

var orderBlock = sync.OnceValue(func() []byte { return noise(orderLongest+orderWriters*orderMessages*101, 7) })

// testOrder has many goroutines write to c in every way there is, while as many wait for completions, and checks that
// every message arrives in one piece and behind the one that its writer wrote before.
func testOrder(t *testing.T, c *Conn, far net.Conn) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(8)) // so that the system interrupts writers anywhere
	var latest atomic.Pointer[Ticket]
	stop := make(chan struct{})
	var writing, flushing sync.WaitGroup
	writeErrs := make([]error, orderWriters)
	for id := range orderWriters {
		writing.Go(func() { writeErrs[id] = writeInOrder(c, id, &latest) })
	}
	for range orderFlushers {
		flushing.Go(func() { flushUntil(t, c, stop, &latest) })
	}
	received := make(chan error, 1)
	go func() {
		err := receiveInOrder(far)
		received <- err
		if err != nil {
			far.Close() // nobody needs to write any more
		}
	}()
	writing.Wait()
	close(stop)
	flushing.Wait()
	sendErr := errors.Join(errors.Join(writeErrs...), c.Flush(testContext(t)), c.CloseWrite())
	if err := <-received; err != nil {
		t.Fatal(err) // what else went wrong came of it
	}
	check(t, sendErr)
	if s := c.Stats(); s.Sends == 0 || s.CopiedBytes == 0 || s.BytesInFlight != 0 {
		t.Errorf("want sends with and without copy, and none in flight: %+v", s)
	}
}

// writeInOrder writes the messages of one writer, in one of four ways.
func writeInOrder(c *Conn, id int, latest *atomic.Pointer[Ticket]) error {
	r := rand.New(rand.NewPCG(uint64(id), 0))
	for seq := range orderMessages {
		most := []int{100, 100, 100, page, 2 * page, 2 * page, 64 << 10, 64 << 10}[r.IntN(8)]
		if seq%32 == 0 {
			most = orderLongest
		}
		content := orderContent(id, seq, r.IntN(most))
		header := make([]byte, 0, orderHeader)
		for _, v := range []int{id, seq, len(content)} {
			header = binary.BigEndian.AppendUint32(header, uint32(v))
		}
		var ticket Ticket
		var err error
		switch id % 4 {
		case 0:
			_, err = c.Write(slices.Concat(header, content))
		case 1:
			ticket, err = c.WritePinned(Pin(slices.Concat(header, content)))
		case 2:
			ticket, err = c.WritePinnedBuffers([]Pinned{Pin(header), Pin(content)})
		case 3:
			_, err = (&net.Buffers{header, content}).WriteTo(c)
		}
		if err != nil {
			return fmt.Errorf("writer %d, message %d: %w", id, seq, err)
		}
		latest.Store(&ticket)
	}
	return nil
}

// flushUntil flushes again and again, and checks that what was written before the call is done after it.
func flushUntil(t *testing.T, c *Conn, stop <-chan struct{}, latest *atomic.Pointer[Ticket]) {
	ctx := testContext(t)
	for {
		select {
		case <-stop:
			return
		case <-time.After(100 * time.Microsecond):
		}
		before := latest.Load()
		if err := c.Flush(ctx); err != nil {
			t.Errorf("Flush: %v", err)
			return
		}
		if before != nil && !before.Ready() {
			t.Error("a ticket issued before Flush is not done after it")
		}
	}
}

// receiveInOrder reads all messages to the end of the stream.
func receiveInOrder(r io.Reader) error {
	var next [orderWriters]int
	header := make([]byte, orderHeader)
	for range orderWriters * orderMessages {
		if _, err := io.ReadFull(r, header); err != nil {
			return fmt.Errorf("after %v messages of the writers: %w", next, err)
		}
		field := func(i int) int { return int(binary.BigEndian.Uint32(header[4*i:])) }
		id, seq, n := field(0), field(1), field(2)
		if id >= orderWriters || n > orderLongest || seq != next[id] {
			return fmt.Errorf("after %v messages of the writers: header %x: writer %d, message %d, %d bytes", next, header, id, seq, n)
		}
		next[id]++
		if err := receive(r, orderContent(id, seq, n)); err != nil {
			return fmt.Errorf("message %d of writer %d: %w", seq, id, err)
		}
	}
	if n, err := r.Read(header); n != 0 || err != io.EOF {
		return fmt.Errorf("read %d bytes and %v behind the last message, want the end of the stream", n, err)
	}
	return nil
}
