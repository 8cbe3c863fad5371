package zcnet

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// Helpers of all tests, and a check that they leave no goroutine and no descriptor behind.

func TestMain(m *testing.M) {
	if childMain() {
		return
	}
	code := m.Run()
	if code == 0 {
		code = checkLeaks()
	}
	os.Exit(code)
}

// checkLeaks waits a moment for what is ending, and then reports what is not.
func checkLeaks() int {
	var leaks []string
	for range 100 {
		if leaks = findLeaks(); len(leaks) == 0 {
			return 0
		}
		runtime.GC() // what tests have dropped without Close ends when the collector finds it
		time.Sleep(50 * time.Millisecond)
	}
	fmt.Fprintf(os.Stderr, "left behind by the tests:\n%s\n", strings.Join(leaks, "\n\n"))
	return 1
}

func findLeaks() (leaks []string) {
	buf := make([]byte, 1<<20)
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if !strings.Contains(g, "testing.(*M).Run") && !strings.Contains(g, "zcnet.TestMain") && !strings.Contains(g, "runtime.goexit0") && !strings.Contains(g, "os/signal") {
			leaks = append(leaks, g)
		}
	}
	return append(leaks, openSockets()...)
}

// testTimeout bounds every wait of a test that should not need waiting.
const testTimeout = 20 * time.Second

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// insist is the configuration that keeps sending without copy over loopback, where the kernel copies.
var insist = &Config{Threshold: 1, insist: true, CloseTimeout: 2 * time.Second}

// tcpPair returns the two ends of a plain TCP connection over loopback: listen on addr, dialled end first.
func tcpPair(t testing.TB, listen, dial string) (client, server *net.TCPConn) {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", net.JoinHostPort(dial, fmt.Sprint(l.Addr().(*net.TCPAddr).Port)))
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func loopbackPair(t testing.TB) (client, server *net.TCPConn) {
	t.Helper()
	return tcpPair(t, "127.0.0.1:0", "127.0.0.1")
}

// wrap returns NewConn of c, and skips the test on systems that cannot.
func wrap(t testing.TB, c *net.TCPConn, cfg *Config) *Conn {
	t.Helper()
	zc, err := NewConn(c, cfg)
	if err != nil {
		if runtime.GOOS != "linux" {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { zc.Close() })
	return zc
}

// noise returns n bytes that repeat nowhere.
func noise(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1})
	_, _ = r.Read(b)
	return b
}

// expect reads exactly want from r.
func expect(t testing.TB, r io.Reader, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil {
		t.Fatalf("after %d of %d bytes: %v", n, len(want), err)
	}
	if !bytes.Equal(got, want) {
		i := 0
		for got[i] == want[i] {
			i++
		}
		t.Fatalf("byte %d of %d is %#x, want %#x", i, len(want), got[i], want[i])
	}
}

// expectEOF reads the end of the stream from r.
func expectEOF(t testing.TB, r io.Reader) {
	t.Helper()
	if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("read %d bytes and %v, want the end of the stream", n, err)
	}
}

// eventually polls for what other goroutines bring about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(testTimeout); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("it did not happen within %v: %s", testTimeout, what)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// heapInUse returns how many bytes of the heap are reachable.
func heapInUse() int64 {
	runtime.GC()
	runtime.GC() // what the first one has found to be finalized or pooled
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
