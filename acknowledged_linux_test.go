package zcnet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcnet-go/zcnet/internal/lab"
)

// soon is a context that ends before anything but a wrong answer can come.
func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// A beginning is a context that tells when a goroutine begins to wait for it.
type beginning struct {
	context.Context
	once  sync.Once
	begun chan struct{}
}

func newBeginning(ctx context.Context) *beginning {
	return &beginning{Context: ctx, begun: make(chan struct{})}
}

func (b *beginning) Done() <-chan struct{} {
	b.once.Do(func() { close(b.begun) })
	return b.Context.Done()
}

// acknowledging calls Acknowledged in a goroutine, and returns when it waits.
func acknowledging(t testing.TB, c *Conn) (result chan error) {
	t.Helper()
	ctx := newBeginning(testContext(t))
	result = make(chan error, 1)
	go func() { result <- c.Acknowledged(ctx) }()
	select {
	case <-ctx.begun:
	case err := <-result:
		t.Fatalf("Acknowledged returned %v at once", err)
	}
	return result
}

// waysIntoTheStream are all that bytes can take into the stream. Each queues
// content, which fits the send buffer.
var waysIntoTheStream = []struct {
	name  string
	write func(t *testing.T, c *Conn, content []byte) error
}{
	{"Write", func(t *testing.T, c *Conn, content []byte) error { _, err := c.Write(content); return err }},
	{"Write of the embedded connection", func(t *testing.T, c *Conn, content []byte) error {
		_, err := c.TCPConn.Write(content)
		return err
	}},
	{"net.Buffers", func(t *testing.T, c *Conn, content []byte) error {
		bufs := net.Buffers{content[:100], content[100:]}
		_, err := bufs.WriteTo(c)
		return err
	}},
	{"WritePinned", func(t *testing.T, c *Conn, content []byte) error { _, err := c.WritePinned(Pin(content)); return err }},
	{"WriteFrame", func(t *testing.T, c *Conn, content []byte) error {
		_, err := c.WriteFrame(content[:100], Pin(content[100:]))
		return err
	}},
	{"ReadFrom", func(t *testing.T, c *Conn, content []byte) error {
		_, err := c.ReadFrom(struct{ io.Reader }{bytes.NewReader(content)})
		return err
	}},
	{"sendfile", func(t *testing.T, c *Conn, content []byte) error {
		path := filepath.Join(t.TempDir(), "content")
		check(t, os.WriteFile(path, content, 0o600))
		f, err := os.Open(path)
		check(t, err)
		defer f.Close()
		_, err = io.Copy(c, f)
		return err
	}},
	{"splice", func(t *testing.T, c *Conn, content []byte) error {
		near, far := loopbackPair(t)
		go func() { far.Write(content); far.Close() }()
		_, err := io.Copy(c, near)
		return err
	}},
}

// plainAndLent are two of them.
var plainAndLent = append(waysIntoTheStream[:1:1], waysIntoTheStream[3])

func TestAcknowledgedWaitsForBytesOfEveryCall(t *testing.T) {
	content := noise(200<<10, 1)
	for _, way := range waysIntoTheStream {
		t.Run(way.name, func(t *testing.T) {
			near, far := narrowPair(t)
			c := wrap(t, near, insist)
			check(t, c.Acknowledged(testContext(t)))
			check(t, way.write(t, c, content))
			if err := c.Acknowledged(soon(t)); err != context.DeadlineExceeded {
				t.Errorf("%v, while %d bytes are unacknowledged; want the context's error", err, unacknowledged(t, c))
			}
			result := acknowledging(t, c)
			expect(t, far, content)
			check(t, <-result)
			if n := unacknowledged(t, c); n != 0 {
				t.Errorf("nil, while %d bytes are unacknowledged", n)
			}
		})
	}
}

// Later writes may never be acknowledged.
func TestAcknowledgedDoesNotWaitForLaterWrites(t *testing.T) {
	for _, way := range plainAndLent {
		t.Run(way.name, func(t *testing.T) {
			near, far := narrowPair(t)
			c := wrap(t, near, insist)
			before, after := noise(130<<10, 1), noise(200<<10, 2)
			check(t, way.write(t, c, before))
			result := acknowledging(t, c)
			check(t, way.write(t, c, after))
			expect(t, far, before)
			check(t, <-result)
			if unacknowledged(t, c) == 0 {
				t.Fatal("everything is acknowledged, so that this test shows nothing")
			}
		})
	}
}

// Others write all the time, and acknowledgements come all the time, while
// positions are taken.
func TestAcknowledgedAmongOtherWriters(t *testing.T) {
	near, far := loopbackPair(t)
	c := wrap(t, near, nil)
	var others, reading sync.WaitGroup
	reading.Go(func() { io.Copy(io.Discard, far) })
	ctx, stop := context.WithCancel(context.Background())
	for i := range 2 {
		content := noise(100000*(i+1), 1)
		others.Go(func() {
			for ctx.Err() == nil {
				_, _ = c.WritePinned(Pin(content))
			}
		})
	}
	for range 100 {
		// Acknowledgements that come between the two questions make it less.
		atLeast := tcpInfo(t, c).Bytes_acked + uint64(unacknowledged(t, c))
		check(t, c.Acknowledged(testContext(t)))
		if got := tcpInfo(t, c).Bytes_acked; got < atLeast {
			t.Fatalf("nil at position %d, though at least %d was written before", got, atLeast)
		}
	}
	stop()
	others.Wait()
	check(t, c.Close())
	reading.Wait()
}

func TestAcknowledgedReportsWhatAResetHasCutOff(t *testing.T) {
	content := noise(200<<10, 1)
	for _, way := range waysIntoTheStream {
		t.Run(way.name, func(t *testing.T) {
			near, far := narrowPair(t)
			c := wrap(t, near, insist)
			check(t, way.write(t, c, content))
			result := acknowledging(t, c)
			reset(t, far)
			if err := <-result; !errors.Is(err, ErrConnFailed) {
				t.Errorf("reset during the call: %v, want ErrConnFailed", err)
			}
			if err := c.Acknowledged(testContext(t)); !errors.Is(err, ErrConnFailed) || !strings.HasPrefix(err.Error(), "acknowledge tcp ") {
				t.Errorf("reset before the call: %v, want ErrConnFailed", err)
			}
		})
	}
}

// What was acknowledged stays so, whatever becomes of the connection.
func TestAcknowledgedAfterTheEndOfTheConnection(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, c *Conn, far *net.TCPConn){
		"reset by the peer": func(t *testing.T, c *Conn, far *net.TCPConn) {
			reset(t, far)
			awaitReset(t, c)
		},
		"half-closed by us":       func(t *testing.T, c *Conn, far *net.TCPConn) { check(t, c.CloseWrite()) },
		"half-closed by the peer": func(t *testing.T, c *Conn, far *net.TCPConn) { check(t, far.CloseWrite()); expectEOF(t, c) },
		"closed by both": func(t *testing.T, c *Conn, far *net.TCPConn) {
			check(t, far.CloseWrite())
			check(t, c.CloseWrite())
			expectEOF(t, c)
			expectEOF(t, far)
			awaitReset(t, c) // TIME_WAIT looks the same
		},
	} {
		t.Run(name, func(t *testing.T) {
			near, far := loopbackPair(t)
			c := wrap(t, near, insist)
			content := noise(100000, 1)
			_, err := c.WritePinned(Pin(content))
			check(t, err)
			expect(t, far, content)
			eventually(t, "everything is acknowledged", func() bool { return unacknowledged(t, c) == 0 })
			end(t, c, far)
			check(t, c.Acknowledged(testContext(t)))
		})
	}
}

func TestAcknowledgedOfAHalfClosedConnection(t *testing.T) {
	for name, close := range map[string]func(c *Conn, far *net.TCPConn) error{
		"by us":       func(c *Conn, far *net.TCPConn) error { return c.CloseWrite() },
		"by the peer": func(c *Conn, far *net.TCPConn) error { return far.CloseWrite() },
	} {
		t.Run(name, func(t *testing.T) {
			near, far := narrowPair(t)
			c := wrap(t, near, insist)
			content := noise(200<<10, 1)
			_, err := c.Write(content)
			check(t, err)
			check(t, close(c, far))
			result := acknowledging(t, c)
			expect(t, far, content)
			check(t, <-result)
		})
	}
}

// The end of the stream takes a place in it, and may be unacknowledged for
// longer than the bytes.
func TestAcknowledgedDoesNotWaitForTheEndOfTheStream(t *testing.T) {
	link := lab.ForTest(t)
	near, far := labPair(t, link)
	c := wrap(t, near, nil)
	content := noise(100000, 1)
	_, err := c.WritePinned(Pin(content))
	check(t, err)
	expect(t, far, content)
	check(t, c.Acknowledged(testContext(t)))
	trouble{lost: 256, rate: 1 << 20}.make(t, link.Sender)
	check(t, c.CloseWrite())
	check(t, c.Acknowledged(testContext(t)))
	if n := unacknowledged(t, c); n != 1 {
		t.Fatalf("%d unacknowledged, want the end of the stream alone", n)
	}
}

func TestAcknowledgedAndClose(t *testing.T) {
	for _, way := range plainAndLent {
		t.Run(way.name, func(t *testing.T) {
			near, far := narrowPair(t)
			c := wrap(t, near, insist)
			content := noise(200<<10, 1)
			check(t, way.write(t, c, content))
			result := acknowledging(t, c)
			check(t, c.Close())
			if err := <-result; !errors.Is(err, net.ErrClosed) {
				t.Errorf("Close during the call: %v, want net.ErrClosed", err)
			}
			if err := c.Acknowledged(testContext(t)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Close before the call: %v, want net.ErrClosed", err)
			}
			expect(t, far, content)
		})
	}
}

// On a path that does not copy the completion tells, and no timer has to.
func TestAcknowledgedHearsOfACompletion(t *testing.T) {
	defer func(first, last time.Duration) { firstAsk, lastAsk = first, last }(firstAsk, lastAsk)
	firstAsk, lastAsk = time.Hour, time.Hour
	near, far := labPair(t, lab.ForTest(t))
	c := wrap(t, near, nil)
	check(t, far.SetReadBuffer(64<<10))
	content := noise(300<<10, 1)
	_, err := c.WritePinned(Pin(content))
	check(t, err)
	result := acknowledging(t, c)
	expect(t, far, content)
	check(t, <-result)
}

// Nil of Wait says that memory is free, of Acknowledged that the bytes have
// arrived. A part that the library copied is in the socket's buffer, and the
// completion of another part says nothing about it.
func TestNilOfWaitDoesNotMeanAcknowledged(t *testing.T) {
	link := lab.ForTest(t)
	near, _ := labPair(t, link)
	c := wrap(t, near, nil)
	trouble{lost: 256, rate: 1 << 20}.make(t, link.Sender)
	ticket, err := c.WritePinned(Pin(noise(16<<10, 1))) // below the threshold
	check(t, err)
	check(t, ticket.Wait(testContext(t)))
	check(t, c.Flush(testContext(t)))
	if err := c.Acknowledged(soon(t)); err != context.DeadlineExceeded {
		t.Errorf("Acknowledged: %v, though no packet has left the host", err)
	}
}

func TestAcknowledgedWhereTheSystemDoesNotTell(t *testing.T) {
	r, w, err := os.Pipe() // as good as a sandbox's socket: neither question has an answer
	check(t, err)
	defer r.Close()
	defer w.Close()
	if _, err := deliveryOf(r.Fd()); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "TCP_INFO") {
		t.Errorf("%v, want an error that names the call and matches ErrUnsupported", err)
	}
}

// By TCP Fast Open a connection is accepted, and written to, before its
// handshake is complete; until then the kernel says that nothing is
// unacknowledged.
func TestAcknowledgedBeforeTheHandshakeIsComplete(t *testing.T) {
	link := lab.ForTest(t)
	check(t, link.Sender.SetSysctl("net.ipv4.tcp_fastopen", "1538")) // every listener, without a cookie
	check(t, link.Receiver.SetSysctl("net.ipv4.tcp_fastopen", "5"))  // without a cookie
	l, err := link.Sender.ListenAddr("tcp4", net.JoinHostPort(link.Sender.IPv4().String(), "0"))
	check(t, err)
	defer l.Close()
	trouble{lost: 256, rate: 1 << 20}.make(t, link.Sender)
	check(t, link.Receiver.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(fd) })
		to := &unix.SockaddrInet4{Addr: link.Sender.IPv4().As4(), Port: l.Addr().(*net.TCPAddr).Port}
		return unix.Sendto(fd, []byte("request"), unix.MSG_FASTOPEN, to)
	}))
	n, err := l.Accept()
	check(t, err)
	c := wrap(t, n.(*net.TCPConn), nil)
	_, err = c.Write([]byte("response"))
	check(t, err)
	if err := c.Acknowledged(soon(t)); err != context.DeadlineExceeded {
		t.Errorf("%v, though no packet has left the host", err)
	}
}
