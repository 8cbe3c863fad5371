package zcnet

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/zcnet-go/zcnet/internal/lab"
)

// What completions do to those who read from the same socket: by themselves, and as net/http, crypto/tls and yamux do.
//
// The runtime's poller takes a completion that arrives while the socket is neither readable nor writable, a bare
// EPOLLERR, for a broken descriptor, and refuses every read from then on (netpollcheckerr in runtime/netpoll.go). A
// socket is in that state whenever its sender is faster than the receiver. So the receivers of these tests are slow,
// and the send buffers small.

// onEachLink runs a test over loopback, where completions report a copy, and over the link on which what near sends is
// not copied. The buffers of the connections are small, and so soon full.
func onEachLink(t *testing.T, test func(t *testing.T, pair pairMaker)) {
	t.Run("loopback", func(t *testing.T) { test(t, narrowPair) })
	t.Run("copy-free link", func(t *testing.T) {
		link := lab.ForTest(t)
		test(t, func(t testing.TB) (near, far *net.TCPConn) {
			near, far = labPair(t, link)
			narrow(t, near, far)
			return near, far
		})
	})
}

// broaden gives near a send buffer of which a third, the part that has to be free for the socket to be writable, is
// more than the 512 KiB that the kernel may report as one completion (msg_zerocopy_realloc in net/core/skbuff.c). So
// whenever it has been full, a completion comes before the socket is writable again.
func broaden(t testing.TB, near *net.TCPConn) {
	t.Helper()
	const size = 1 << 20 // the kernel doubles it
	raw, err := near.SyscallConn()
	check(t, err)
	check(t, raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, size)
	}))
	if err != nil {
		check(t, near.SetWriteBuffer(size)) // without CAP_NET_ADMIN net.core.wmem_max bounds it
	}
}

// TestNaiveReaderDies shows the hazard that Conn.Read answers: a sender that does what the kernel's document asks for
// (MSG_ZEROCOPY, and reading the error queue) makes reads of the same connection fail for good.
func TestNaiveReaderDies(t *testing.T) {
	const tries = 20
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		var err error
		for range tries {
			if err = readBesideNaiveSender(t, pair); err != nil && strings.Contains(err.Error(), "not pollable") {
				return
			}
		}
		t.Errorf("in %d tries no read failed as it was expected to, the last with %v: these tests do not meet what they are about", tries, err)
	})
}

// readBesideNaiveSender returns the error of a read, and fails the test if reads are refused from then on and Conn
// would not know it.
func readBesideNaiveSender(t *testing.T, pair pairMaker) error {
	t.Helper()
	near, _ := pair(t)
	read := begin(near)
	var sending sync.WaitGroup
	sending.Go(func() { sendNaively(t, near) })
	defer sending.Wait()
	defer near.Close()
	select {
	case <-read.done:
	case <-time.After(time.Second):
		return errors.New("none, for a second")
	}
	check(t, near.SetReadDeadline(inAnHour())) // which is no cure
	next := begin(near)
	next.wait(t)
	if !refused(read.err) || !refused(next.err) {
		t.Errorf("a blocked read: %v; the next read: %v; want both to be known as refused by the poller", read.err, next.err)
	}
	return read.err
}

// sendNaively sends without copy until the connection is closed.
func sendNaively(t *testing.T, c *net.TCPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		t.Errorf("no descriptor: %v", err)
		return
	}
	enableZeroCopy(t, raw)
	content := noise(16<<10, 1)
	control := make([]byte, 512)
	for err == nil {
		var sendErr error
		err = raw.Write(func(fd uintptr) bool {
			_, sendErr = unix.SendmsgN(int(fd), content, nil, nil, unix.MSG_ZEROCOPY|unix.MSG_DONTWAIT)
			return sendErr != unix.EAGAIN
		})
		_ = raw.Control(func(fd uintptr) {
			for drainErr := error(nil); drainErr == nil; {
				_, _, _, _, drainErr = unix.Recvmsg(int(fd), nil, control, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			}
		})
	}
}

func TestReadsBehaveLikeTCPWhileThePollerRefusesThem(t *testing.T) {
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		compareReads(t, pair, asIs, []sceneKind{
			{"refused before the read", func(t *testing.T) scene { return stalled(t, pair) }},
			{"refused during the read", func(t *testing.T) scene {
				near, far := pair(t)
				c := wrap(t, near, insist)
				return scene{c, far, func(t testing.TB, r *pendingRead) {
					doze()
					stop := flood(t, c)
					nudgeUntil(t, far, "the read is refused", func() bool { return r.ended() || c.Stats().SlowReads > 0 })
					stop()
					doze()
				}}
			}},
		})
	})
}

// stalled returns a connection whose send buffer is full and whose reads are refused by the runtime's poller.
func stalled(t testing.TB, pair pairMaker) scene {
	t.Helper()
	near, far := pair(t)
	c := wrap(t, near, insist)
	waitForEvents(t, c)
	stop := flood(t, c)
	nudgeUntil(t, far, "reads are refused", func() bool {
		return refused(c.s.raw.Read(func(uintptr) bool { return true }))
	})
	stop()
	return scene{c, far, func(t testing.TB, r *pendingRead) {
		eventually(t, "the read is refused", func() bool { return r.ended() || c.Stats().SlowReads > 0 })
		doze()
	}}
}

// flood sends without copy until stop is called or the connection ends.
func flood(t testing.TB, c *Conn) (stop func()) {
	content := noise(16<<10, 1)
	var sending sync.WaitGroup
	sending.Go(func() {
		for err := error(nil); err == nil; {
			_, err = c.WritePinned(Pin(content))
		}
	})
	t.Cleanup(func() { c.Close(); sending.Wait() })
	return func() {
		check(t, c.SetWriteDeadline(longAgo))
		sending.Wait()
		check(t, c.SetWriteDeadline(never))
	}
}

// nudgeUntil receives a little of a flood again and again, each time making completions come, until what is wanted
// has happened.
func nudgeUntil(t testing.TB, far *net.TCPConn, what string, ok func() bool) {
	t.Helper()
	b := make([]byte, 16<<10)
	eventually(t, what, func() bool {
		if ok() {
			return true
		}
		check(t, far.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
		if _, err := far.Read(b); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		check(t, far.SetReadDeadline(never))
		return false
	})
}

// A reading reads a stream to its end.
type reading func() ([]byte, error)

// readingStyles are ways to do so.
var readingStyles = []struct {
	name    string
	prepare func(t *testing.T, c *Conn) reading
}{
	{"Read", func(_ *testing.T, c *Conn) reading {
		return func() ([]byte, error) { return io.ReadAll(onlyReader{c}) }
	}},
	{"Read under deadlines", func(t *testing.T, c *Conn) reading {
		return func() ([]byte, error) { return readUnderDeadlines(t, c) }
	}},
	{"WriteTo", func(_ *testing.T, c *Conn) reading {
		return func() ([]byte, error) {
			var sink bytes.Buffer
			n, err := c.WriteTo(&sink)
			if n != int64(sink.Len()) {
				err = errors.Join(err, fmt.Errorf("WriteTo returned %d, and wrote %d bytes", n, sink.Len()))
			}
			return sink.Bytes(), err
		}
	}},
	{"io.Copy to TCP", func(t *testing.T, c *Conn) reading {
		in, out := loopbackPair(t)
		return relay(in, out, func() (int64, error) { return io.Copy(in, c) })
	}},
	{"io.Copy to a Conn", func(t *testing.T, c *Conn) reading {
		in, out := loopbackPair(t)
		zc := wrap(t, in, insist)
		return relay(zc, out, func() (int64, error) { return io.Copy(zc, c) })
	}},
	{"io.Copy to a unix socket", func(t *testing.T, c *Conn) reading {
		in, out := unixPair(t)
		return relay(in, out, func() (int64, error) { return io.Copy(in, c) })
	}},
	{"io.Copy to a pipe", func(t *testing.T, c *Conn) reading {
		out, in, err := os.Pipe()
		check(t, err)
		t.Cleanup(func() { out.Close(); in.Close() })
		return relay(closingWriter{in}, out, func() (int64, error) { return io.Copy(in, c) })
	}},
	{"ReadFrom of TCP", func(t *testing.T, c *Conn) reading {
		in, out := loopbackPair(t)
		return relay(in, out, func() (int64, error) { return in.ReadFrom(c) })
	}},
	{"ReadFrom of a Conn", func(t *testing.T, c *Conn) reading {
		in, out := loopbackPair(t)
		zc := wrap(t, in, insist)
		return relay(zc, out, func() (int64, error) { return zc.ReadFrom(c) })
	}},
	{"RawConn.Read", func(_ *testing.T, c *Conn) reading {
		return func() ([]byte, error) { return io.ReadAll(onlyReader{rawReader{c}}) }
	}},
	{"File.ReadFrom of a limited reader", func(t *testing.T, c *Conn) reading {
		out, in, err := os.Pipe()
		check(t, err)
		t.Cleanup(func() { out.Close(); in.Close() })
		return relay(closingWriter{in}, out, func() (int64, error) { return in.ReadFrom(io.LimitReader(c, 1<<40)) })
	}},
	{"io.Copy of a limited reader", func(t *testing.T, c *Conn) reading {
		in, out := loopbackPair(t)
		return relay(in, out, func() (int64, error) { return io.Copy(in, io.LimitReader(c, 1<<40)) })
	}},
}

// readUnderDeadlines reads with a deadline so short that many reads come to nothing.
func readUnderDeadlines(t *testing.T, c *Conn) (all []byte, err error) {
	b := make([]byte, 4<<10)
	for {
		deadline := time.Now().Add(300 * time.Microsecond)
		if err := c.SetReadDeadline(deadline); err != nil {
			return all, err
		}
		n, err := c.Read(b)
		all = append(all, b[:n]...)
		switch {
		case err == io.EOF:
			return all, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			if time.Now().Before(deadline) {
				t.Error("a read ended before its deadline")
			}
		case err != nil:
			return all, err
		}
	}
}

// relay reads what comes out of a connection into which run copies the stream.
func relay(in interface{ CloseWrite() error }, out io.Reader, run func() (int64, error)) reading {
	return func() ([]byte, error) {
		var n int64
		var err error
		var copying sync.WaitGroup
		copying.Go(func() {
			n, err = run()
			err = errors.Join(err, in.CloseWrite())
		})
		got, readErr := io.ReadAll(out)
		copying.Wait()
		if n != int64(len(got)) {
			err = errors.Join(err, fmt.Errorf("the copy returned %d, and %d bytes came out", n, len(got)))
		}
		return got, errors.Join(readErr, err)
	}
}

// A closingWriter has no end of the stream but Close.
type closingWriter struct{ io.Closer }

func (w closingWriter) CloseWrite() error { return w.Close() }

func unixPair(t *testing.T) (near, far *net.UnixConn) {
	t.Helper()
	l := listenUnix(t)
	n, err := net.Dial("unix", l.Addr().String())
	check(t, err)
	f, err := l.Accept()
	check(t, err)
	t.Cleanup(func() { n.Close(); f.Close() })
	return n.(*net.UnixConn), f.(*net.UnixConn)
}

func TestEveryStyleOfReadingSurvivesBulkSending(t *testing.T) {
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		for _, style := range readingStyles {
			t.Run(style.name, func(t *testing.T) {
				near, far := pair(t)
				c := wrap(t, near, insist)
				waitForEvents(t, c)
				read := style.prepare(t, c)
				sending := startBulk(t, c, far)
				answer := noise(64<<10, 2)
				done := make(chan error, 1)
				go func() {
					got, err := read()
					done <- errors.Join(err, sameBytes(got, answer))
				}()
				eventually(t, "a read is refused by the runtime's poller", func() bool { return len(done) > 0 || c.Stats().SlowReads > 0 })
				for piece := range slices.Chunk(answer, 1500) {
					send(t, far, string(piece))
					time.Sleep(300 * time.Microsecond)
				}
				check(t, far.CloseWrite())
				eventually(t, "the stream is read", func() bool { return len(done) > 0 })
				if err := <-done; err != nil {
					t.Errorf("reading: %v", err)
				}
				sending.stop(t)
			})
		}
	})
}

// A bulk is a stream of zero-copy sends that is received slowly and checked.
type bulk struct {
	c         *Conn
	content   []byte // sent over and over
	sent      int64
	ended     atomic.Bool
	sending   sync.WaitGroup
	receiving sync.WaitGroup
}

// startBulk sends from c to far until stop is called.
func startBulk(t *testing.T, c *Conn, far net.Conn) *bulk {
	b := &bulk{c: c, content: noise(1<<20, 3)}
	b.sending.Go(func() { b.send(t) })
	b.receiving.Go(func() { b.receive(t, &slowly{Conn: far}) })
	return b
}

// stop ends the stream, and the test fails unless all of it has come.
func (b *bulk) stop(t *testing.T) {
	t.Helper()
	b.ended.Store(true)
	b.sending.Wait()
	check(t, b.c.CloseWrite())
	b.receiving.Wait()
	check(t, b.c.Flush(testContext(t)))
}

func (b *bulk) send(t *testing.T) {
	const piece = 16 << 10
	for !b.ended.Load() {
		p := b.content[b.sent%int64(len(b.content)):][:piece]
		_, err := b.c.WritePinned(Pin(p))
		n, err := queued(p, err)
		if b.sent += n; err != nil {
			t.Errorf("sending, after %d bytes: %v", b.sent, err)
			return
		}
	}
}

func (b *bulk) receive(t *testing.T, r io.Reader) {
	received, buf := int64(0), make([]byte, 16<<10)
	for {
		n, err := r.Read(buf)
		for got := buf[:n]; len(got) > 0; {
			want := b.content[received%int64(len(b.content)):]
			k := min(len(got), len(want))
			if err := sameBytes(got[:k], want[:k]); err != nil {
				t.Errorf("after %d bytes, the peer received: %v", received, err)
			}
			got, received = got[k:], received+int64(k)
		}
		if err != nil {
			b.sending.Wait()
			if err != io.EOF || received != b.sent {
				t.Errorf("the peer received %d of %d bytes, then %v", received, b.sent, err)
			}
			return
		}
	}
}

// slowly receives so slowly that the other end's send buffer is full most of the time. It has one reader.
type slowly struct {
	net.Conn
	left int // until the next pause
}

func (s *slowly) Read(b []byte) (int, error) {
	const gulp = 32 << 10
	if s.left == 0 {
		time.Sleep(100 * time.Microsecond)
		s.left = gulp
	}
	n, err := s.Conn.Read(b[:min(len(b), s.left)])
	s.left -= n
	return n, err
}

// A countingRawConn counts how often the library reaches for the descriptor without waiting: to read, to drain, and
// to tell its poller something.
type countingRawConn struct {
	syscall.RawConn
	controls atomic.Int64
}

func (c *countingRawConn) Control(f func(fd uintptr)) error {
	c.controls.Add(1)
	return c.RawConn.Control(f)
}

// quiet waits until nobody reaches for the descriptor any more.
func (c *countingRawConn) quiet(t *testing.T) {
	t.Helper()
	eventually(t, "nobody reaches for the descriptor while nothing happens", func() bool {
		before := c.controls.Load()
		time.Sleep(100 * time.Millisecond)
		return c.controls.Load() == before
	})
}

func TestBlockedReadDoesNotSpin(t *testing.T) {
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		near, far := pair(t)
		c := wrap(t, near, insist)
		waitForEvents(t, c)
		raw := &countingRawConn{RawConn: c.s.raw}
		c.s.raw = raw
		read := begin(c)
		doze()
		flood(t, c)
		nudgeUntil(t, far, "the read is refused", func() bool { return read.ended() || c.Stats().SlowReads > 0 })
		raw.quiet(t)

		// Completions make it drained, and do nothing else.
		before, controls := c.Stats(), raw.controls.Load()
		nudgeUntil(t, far, "more completions come", func() bool { return c.Stats().Notifications >= before.Notifications+5 })
		after := c.Stats()
		reached, drains := raw.controls.Load()-controls, int64(after.Drains-before.Drains)
		if reached > drains+1 { // one may be on its way
			t.Errorf("the descriptor was reached for %d times, %d of them to drain it: the blocked read spins", reached, drains)
		}
		if after.SlowReads != 1 {
			t.Errorf("one blocked read was refused %d times", after.SlowReads)
		}
		send(t, far, "hello")
		read.wants(t, "hello")

		// Once nobody reads any more, what comes wakes nobody.
		send(t, far, "and more")
		raw.quiet(t)
		expect(t, c, []byte("and more"))
	})
}

func TestRefusedReadsOfManyConnectionsGetTheirOwnData(t *testing.T) {
	scenes := make([]scene, 16)
	reads := make([]*pendingRead, len(scenes))
	for i := range scenes {
		scenes[i] = stalled(t, narrowPair)
		reads[i] = begin(scenes[i].c)
	}
	for i, s := range scenes {
		s.settle(t, reads[i])
	}
	for i, s := range scenes {
		send(t, s.peer, fmt.Sprint("for ", i))
	}
	for i, read := range reads {
		read.wants(t, fmt.Sprint("for ", i))
	}
}

// The versions of HTTP, without TLS.
var http1, http2 = func() (one, two http.Protocols) {
	one.SetHTTP1(true)
	two.SetUnencryptedHTTP2(true)
	return one, two
}()

// An httpTest is a server that serves one connection, as accepted by a listener of the library, and a client that
// receives slowly.
type httpTest struct {
	near     net.Listener
	adapt    func(*Conn) net.Conn // makes of the Conn what the server sees
	accepted atomic.Pointer[Conn]
	client   *http.Client
}

// startHTTP starts the server on near and the client on far. The server's connection is in its requests' contexts.
func startHTTP(t *testing.T, near, far *net.TCPConn, version *http.Protocols, adapt func(*Conn) net.Conn, handler http.HandlerFunc) *httpTest {
	t.Helper()
	ht := &httpTest{near: NewListener(newQueueListener(near), insist), adapt: adapt}
	server := &http.Server{
		Handler:     handler,
		Protocols:   version,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ErrorLog:    log.New(t.Output(), "", 0),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ht) }()

	conns := make(chan net.Conn, 1)
	conns <- &slowly{Conn: far}
	transport := &http.Transport{
		Protocols: version,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			select {
			case c := <-conns:
				return c, nil
			default:
				return nil, errors.New("the connection was not kept")
			}
		},
	}
	ht.client = &http.Client{Transport: transport, Timeout: testTimeout}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		server.Close()
		far.Close()
		if err := <-served; err != http.ErrServerClosed {
			t.Errorf("the server ended by %v", err)
		}
	})
	return ht
}

// Accept makes ht the server's listener.
func (ht *httpTest) Accept() (net.Conn, error) {
	c, err := ht.near.Accept()
	if err != nil {
		return nil, err
	}
	ht.accepted.Store(c.(*Conn))
	return ht.adapt(c.(*Conn)), nil
}

func (ht *httpTest) Addr() net.Addr { return ht.near.Addr() }
func (ht *httpTest) Close() error   { return ht.near.Close() }

// get has the client ask, and checks the body of the response.
func (ht *httpTest) get(t *testing.T, want []byte) {
	t.Helper()
	resp, err := ht.client.Get("http://zcnet.test/")
	check(t, err)
	defer resp.Body.Close()
	if err := receive(resp.Body, want); err != nil {
		t.Errorf("the response: %v", err)
	}
}

// connKey is the key of a request's connection in its context.
type connKey struct{}

func itself(c *Conn) net.Conn       { return c }
func alwaysPinned(c *Conn) net.Conn { return pinnedConn{c} }

// A queueListener accepts what is in a channel.
type queueListener struct {
	conns  chan net.Conn
	addr   net.Addr
	once   sync.Once
	closed chan struct{}
}

func newQueueListener(c net.Conn) *queueListener {
	l := &queueListener{conns: make(chan net.Conn, 1), addr: c.LocalAddr(), closed: make(chan struct{})}
	l.conns <- c
	return l
}

func (l *queueListener) Addr() net.Addr { return l.addr }

func (l *queueListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *queueListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// startResponse sends the header of a response of n bytes, which the handler then sends around net/http. The
// server's background read, which finds out whether the client is still there, goes on meanwhile.
func startResponse(t *testing.T, w http.ResponseWriter, n int) {
	w.Header().Set("Content-Length", strconv.Itoa(n))
	w.WriteHeader(http.StatusOK)
	if err := http.NewResponseController(w).Flush(); err != nil {
		t.Errorf("flushing the header: %v", err)
	}
}

func TestHTTPRequestOutlivesZeroCopyResponse(t *testing.T) {
	body := tooMuch()
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		near, far := pair(t)
		broaden(t, near)
		ht := startHTTP(t, near, far, &http1, itself, func(w http.ResponseWriter, r *http.Request) {
			c := r.Context().Value(connKey{}).(*Conn)
			startResponse(t, w, len(body))
			ticket, err := c.WritePinned(Pin(body))
			if err = errors.Join(err, ticket.Wait(r.Context()), r.Context().Err()); err != nil {
				t.Errorf("sending the body: %v; cause: %v", err, context.Cause(r.Context()))
			}
			wantZeroCopy(t, c)
		})
		ht.get(t, body)
	})
}

func TestHTTPConnectionIsHijackedWhileItsReadIsRefused(t *testing.T) {
	body := tooMuch()
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		near, far := pair(t)
		broaden(t, near)
		ht := startHTTP(t, near, far, &http1, itself, func(w http.ResponseWriter, r *http.Request) {
			c := r.Context().Value(connKey{}).(*Conn)
			startResponse(t, w, len(body))
			half := len(body) / 2
			_, err := c.WritePinned(Pin(body[:half]))
			awaitRefusal(c)
			wantZeroCopy(t, c)
			if err != nil {
				t.Errorf("half of the body: %v", err)
			}
			hijacked, _, err := http.NewResponseController(w).Hijack()
			if err != nil || hijacked != net.Conn(c) {
				t.Errorf("hijacked a %T, %v; want the connection", hijacked, err)
				return
			}
			_, err = c.WritePinned(Pin(body[half:]))
			if err = errors.Join(err, c.Close()); err != nil {
				t.Errorf("the other half: %v", err)
			}
		})
		ht.get(t, body)
	})
}

func TestHTTPServerNoticesThatTheClientIsGone(t *testing.T) {
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		near, far := pair(t)
		broaden(t, near)
		noticed := make(chan error, 1)
		ht := startHTTP(t, near, far, &http1, itself, func(w http.ResponseWriter, r *http.Request) {
			c := r.Context().Value(connKey{}).(*Conn)
			startResponse(t, w, len(tooMuch()))
			var sending sync.WaitGroup
			sending.Go(func() { c.WritePinned(Pin(tooMuch())) })
			awaitRefusal(c)
			far.Close()
			select {
			case <-r.Context().Done():
				noticed <- nil
			case <-time.After(testTimeout):
				noticed <- errors.New("the request's context is still alive")
			}
			sending.Wait()
			wantZeroCopy(t, c)
		})
		if resp, err := ht.client.Get("http://zcnet.test/"); err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		check(t, <-noticed)
	})
}

func TestHTTP1OverConnThatSendsEverythingWithoutCopy(t *testing.T) {
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		near, far := pair(t)
		broaden(t, near)
		ht := startHTTP(t, near, far, &http1, alwaysPinned, exchangeBodies(t))
		for range 3 {
			ht.exchange(t, func() {})
		}
		wantZeroCopy(t, ht.accepted.Load())
	})
}

func TestHTTP2OverConnThatSendsEverythingWithoutCopy(t *testing.T) {
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		near, far := pair(t)
		broaden(t, near)
		ht := startHTTP(t, near, far, &http2, alwaysPinned, exchangeBodies(t))
		// Who reads a body makes the client announce more window all the time, and with data coming in the poller
		// refuses nothing. So the client buffers first.
		buffer := func() {
			for i := 0; i < 500 && ht.accepted.Load().Stats().SlowReads == 0; i++ {
				time.Sleep(time.Millisecond)
			}
		}
		ht.exchange(t, buffer) // the first opens the connection, the others share it
		refused := refusedSoon(ht.accepted.Load())
		for n := 0; n == 0 || !refused() && !t.Failed(); n++ {
			var all sync.WaitGroup
			for range 3 {
				all.Go(func() { ht.exchange(t, buffer) })
			}
			all.Wait()
		}
		wantZeroCopy(t, ht.accepted.Load())
	})
}

// Bodies of requests and of responses.
var (
	upload   = sync.OnceValue(func() []byte { return noise(100<<10, 1) })
	download = sync.OnceValue(func() []byte { return noise(4<<20, 2) })
)

// exchangeBodies answers upload by download.
func exchangeBodies(t *testing.T) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		got, err := io.ReadAll(r.Body)
		_, writeErr := w.Write(download())
		if err := errors.Join(err, sameBytes(got, upload()), writeErr, r.Context().Err()); err != nil {
			t.Errorf("%s: %v", r.Proto, err)
		}
	}
}

// exchange has the client post upload and expect download, which it reads after before has returned.
func (ht *httpTest) exchange(t *testing.T, before func()) {
	resp, err := ht.client.Post("http://zcnet.test/", "", bytes.NewReader(upload()))
	if err != nil {
		t.Error(err)
		return
	}
	defer resp.Body.Close()
	before()
	got, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, sameBytes(got, download())); err != nil {
		t.Errorf("the response: %v", err)
	}
}

// wantZeroCopy complains unless a test has met what it is about: sends without copy, and a reader that was refused.
func wantZeroCopy(t *testing.T, c *Conn) {
	t.Helper()
	if s := c.Stats(); s.Sends == 0 || s.SlowReads == 0 {
		t.Errorf("%d sends without copy and %d refused reads, want some of both", s.Sends, s.SlowReads)
	}
}

func TestTLSOverConnThatSendsEverythingWithoutCopy(t *testing.T) {
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		near, far := pair(t)
		c := wrap(t, near, insist)
		cfg := serverTLS(t)
		server := tls.Server(pinnedConn{c}, cfg)
		client := tls.Client(&slowly{Conn: far}, &tls.Config{RootCAs: cfg.RootCAs, ServerName: "zcnet.test"})
		check(t, bothWays(c, server, client))
		wantZeroCopy(t, c)
	})
}

// bothWays sends bulk from near to far until a read of c, which it all goes over, has been refused. Near receives
// meanwhile, and has to wait for the last byte until the bulk has ended.
func bothWays(c *Conn, near, far net.Conn) error {
	for _, end := range []net.Conn{near, far} {
		if err := end.SetDeadline(time.Now().Add(2 * testTimeout)); err != nil {
			return err
		}
	}
	up := noise(64<<10, 2)
	errs := make([]error, 3)
	var all sync.WaitGroup
	all.Go(func() { errs[0] = sendRounds(near, refusedSoon(c)) })
	all.Go(func() { errs[1] = receive(near, up) })
	all.Go(func() { errs[2] = receiveRounds(far, up) })
	all.Wait()
	for i, what := range []string{"near sends", "near receives", "far"} {
		if errs[i] != nil {
			errs[i] = fmt.Errorf("%s: %w", what, errs[i])
		}
	}
	return errors.Join(errs...)
}

// A round of bulk ends with a byte that tells whether another follows.
const (
	anotherRound = 'a'
	lastRound    = 'z'
)

var round = sync.OnceValue(func() []byte { return noise(1<<20, 1) })

func sendRounds(near io.Writer, enough func() bool) error {
	for flag := byte(anotherRound); flag != lastRound; {
		if enough() {
			flag = lastRound
		}
		if _, err := near.Write(append(slices.Clip(round()), flag)); err != nil {
			return err
		}
	}
	return nil
}

// receiveRounds sends up, but its last byte only after the last round.
func receiveRounds(far io.ReadWriter, up []byte) error {
	last := len(up) - 1
	if _, err := far.Write(up[:last]); err != nil {
		return err
	}
	for flag := []byte{anotherRound}; flag[0] != lastRound; {
		if err := receive(far, round()); err != nil {
			return err
		}
		if _, err := io.ReadFull(far, flag); err != nil {
			return err
		}
	}
	_, err := far.Write(up[last:])
	return err
}

// awaitRefusal returns when a read of c has been refused, or should have been.
func awaitRefusal(c *Conn) {
	for refused := refusedSoon(c); !refused(); {
		time.Sleep(time.Millisecond)
	}
}

// refusedSoon returns a function that tells whether a read of c has been refused, or should have been.
func refusedSoon(c *Conn) func() bool {
	end := time.Now().Add(testTimeout)
	return func() bool { return c.Stats().SlowReads > 0 || time.Now().After(end) }
}

func TestYamuxOverConnThatSendsEverythingWithoutCopy(t *testing.T) {
	const streams = 4
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		near, far := pair(t)
		c := wrap(t, near, insist)
		cfg := yamux.DefaultConfig()
		cfg.EnableKeepAlive = false
		cfg.LogOutput = t.Output()
		server, err := yamux.Server(pinnedConn{c}, cfg)
		check(t, err)
		defer server.Close()
		client, err := yamux.Client(&slowly{Conn: far}, cfg)
		check(t, err)
		defer client.Close()
		var all sync.WaitGroup
		for i := range streams {
			one, err := client.OpenStream()
			check(t, err)
			other, err := server.AcceptStream()
			check(t, err)
			all.Go(func() {
				if err := bothWays(c, other, one); err != nil {
					t.Errorf("stream %d: %v", i, err)
				}
			})
		}
		all.Wait()
		wantZeroCopy(t, c)
	})
}

// requestTimestamps has the kernel report when data leaves the machine and when it is acknowledged, on the error
// queue where completions are too (Documentation/networking/timestamping.rst).
func requestTimestamps(t *testing.T, c *Conn) {
	t.Helper()
	raw, err := c.SyscallConn()
	check(t, err)
	check(t, raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPING,
			unix.SOF_TIMESTAMPING_TX_ACK|unix.SOF_TIMESTAMPING_TX_SOFTWARE|unix.SOF_TIMESTAMPING_SOFTWARE|
				unix.SOF_TIMESTAMPING_OPT_ID|unix.SOF_TIMESTAMPING_OPT_TSONLY)
	}))
	check(t, err)
}

// A timestamp is what a message of the error queue says about the byte of the stream whose number is id.
type timestamp struct {
	kind, id uint32
}

const timestampOfAck = 2 // SCM_TSTAMP_ACK in include/uapi/linux/errqueue.h

// parseTimestamp reads the message of a timestamp, and fails for any other.
func parseTimestamp(m ErrorQueueMessage) (ts timestamp, err error) {
	messages, err := unix.ParseSocketControlMessage(m.Control)
	if err != nil {
		return ts, err
	}
	stamped := false
	for _, cm := range messages {
		switch {
		case cm.Header.Level == unix.SOL_SOCKET && cm.Header.Type == unix.SCM_TIMESTAMPING:
			stamped = true
		case cm.Header.Level == unix.SOL_IP && cm.Header.Type == unix.IP_RECVERR:
			var ee unix.SockExtendedErr
			if _, err := binary.Decode(cm.Data, binary.NativeEndian, &ee); err != nil {
				return ts, err
			}
			if ee.Origin != unix.SO_EE_ORIGIN_TIMESTAMPING || ee.Errno != uint32(unix.ENOMSG) {
				return ts, fmt.Errorf("a message of origin %d, errno %d", ee.Origin, ee.Errno)
			}
			ts = timestamp{ee.Info, ee.Data}
		}
	}
	if !stamped || m.Flags != 0 {
		return ts, fmt.Errorf("a message without a timestamp, or cut: flags %#x, %v", m.Flags, messages)
	}
	return ts, nil
}

func TestTimestampsTravelBesideCompletions(t *testing.T) {
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		t.Run("with a hook", func(t *testing.T) {
			near, far := pair(t)
			var mu sync.Mutex
			var stamps []timestamp
			var calls atomic.Int32
			cfg := *insist
			cfg.ErrorQueue = func(c *net.TCPConn, m ErrorQueueMessage) {
				if calls.Add(1) != 1 {
					t.Error("the hook was called twice at a time")
				}
				time.Sleep(100 * time.Microsecond) // for another call to come, if one may
				defer calls.Add(-1)
				ts, err := parseTimestamp(m)
				if err != nil || c != near {
					t.Errorf("the hook was called with %v: %v", c, err)
				}
				mu.Lock()
				defer mu.Unlock()
				stamps = append(stamps, ts)
			}
			c := wrap(t, near, &cfg)
			sent := exchangeWithTimestamps(t, c, far)
			received := func() []timestamp {
				mu.Lock()
				defer mu.Unlock()
				return slices.Clone(stamps)
			}
			eventually(t, "the last byte's acknowledgement is reported", func() bool {
				return slices.Contains(received(), timestamp{timestampOfAck, uint32(sent - 1)})
			})
			checkTimestamps(t, received(), uint32(sent))
			if got, want := uint64(len(received())), c.Stats().ForeignMessages; got != want {
				t.Errorf("the hook was called %d times, and %d messages counted", got, want)
			}
		})
		t.Run("without a hook", func(t *testing.T) {
			near, far := pair(t)
			c := wrap(t, near, insist)
			exchangeWithTimestamps(t, c, far)
			eventually(t, "the timestamps are counted", func() bool { return c.Stats().ForeignMessages >= 2 })
		})
	})
}

// exchangeWithTimestamps sends, with and without copy, while the peer answers and is read, and returns how many bytes
// it has sent.
func exchangeWithTimestamps(t *testing.T, c *Conn, far net.Conn) (sent int) {
	t.Helper()
	requestTimestamps(t, c)
	check(t, c.SetDeadline(time.Now().Add(testTimeout)))
	content, answer := noise(100<<10, 1), noise(10<<10, 2)
	const rounds = 20
	errs := make(chan error, 2)
	go func() {
		peer := &slowly{Conn: far}
		for range rounds {
			if err := errors.Join(receive(peer, content), receive(peer, content[:100])); err != nil {
				errs <- fmt.Errorf("the peer received: %w", err)
				return
			}
			far.Write(answer)
		}
		errs <- nil
	}()
	go func() { errs <- receive(c, bytes.Repeat(answer, rounds)) }()
	for range rounds {
		_, err := c.WritePinned(Pin(content))
		check(t, err)
		_, err = c.Write(content[:100])
		check(t, err)
		sent += len(content) + 100
	}
	check(t, c.Flush(testContext(t)))
	check(t, errors.Join(<-errs, <-errs))
	if s := c.Stats(); s.IDsInFlight != 0 || s.RejectedNotifications != 0 || s.ZeroCopiedBytes+s.MaybeCopiedBytes != rounds*int64(len(content)) {
		t.Errorf("not every completion was told from the timestamps: %+v", s)
	}
	return sent
}

// checkTimestamps wants acknowledgements to be reported in the order of the stream, each byte's once, and all kinds
// for bytes that were sent.
func checkTimestamps(t *testing.T, stamps []timestamp, sent uint32) {
	t.Helper()
	kinds := map[uint32]int{}
	last := int64(-1)
	for _, ts := range stamps {
		kinds[ts.kind]++
		if ts.id >= sent {
			t.Errorf("a timestamp of byte %d of %d", ts.id, sent)
		}
		if ts.kind != timestampOfAck {
			continue
		}
		if int64(ts.id) <= last {
			t.Errorf("byte %d was acknowledged after byte %d", ts.id, last)
		}
		last = int64(ts.id)
	}
	if len(kinds) != 2 {
		t.Errorf("timestamps by kind: %v, want two kinds", kinds)
	}
}

func TestConcurrentWritesAreContiguousAndInOrderWithoutCopy(t *testing.T) {
	near, far := labPair(t, lab.ForTest(t))
	c := wrap(t, near, &Config{Threshold: 16 << 10})
	testOrder(t, c, far)
	if s := c.Stats(); s.MaybeCopiedBytes != 0 || s.ZeroCopiedBytes == 0 {
		t.Errorf("%d bytes went without copy and %d were perhaps copied by the kernel, want all without", s.ZeroCopiedBytes, s.MaybeCopiedBytes)
	}
}
