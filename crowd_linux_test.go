package zcnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcnet-go/zcnet/internal/lab"
	"github.com/zcnet-go/zcnet/internal/perf"
)

// Many connections of one process. Their other ends are in a process of their own, so that either needs one descriptor
// for each, which the usual limits allow.

const (
	// spareDescriptors is for what else a process has open.
	spareDescriptors = 200
	// crowdEnv tells a child how many connections to accept, and crowdSizeEnv how many bytes of each to expect at a time.
	crowdEnv     = "ZCNET_TEST_CROWD"
	crowdSizeEnv = "ZCNET_TEST_CROWD_SIZE"
)

// A dialer makes connections to a listener, starts the process that serves it,
// and tells what the receiving end has used of the processors beside that
// process.
type dialer interface {
	Dial(ctx context.Context, network, addr string) (net.Conn, error)
	StartReceiver(cmd *exec.Cmd) error
	ReceivingTime() (time.Duration, error)
}

type loopbackDialer struct{}

func (loopbackDialer) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return dialPlain(ctx, network, addr)
}

func (loopbackDialer) StartReceiver(cmd *exec.Cmd) error     { return cmd.Start() }
func (loopbackDialer) ReceivingTime() (time.Duration, error) { return 0, nil }

// A labDialer is the sender of a link, and starts processes on the processor of
// the receiving end.
type labDialer struct{ *lab.Link }

func (d labDialer) Dial(ctx context.Context, network, addr string) (c net.Conn, err error) {
	err = d.Sender.Do(func() error {
		c, err = dialPlain(ctx, network, addr)
		return err
	})
	return c, err
}

// congestionEnv names the congestion control of what benchmarks send over. It is
// set before connecting: one that is replaced on a connection can leave its
// pacing behind, as BBR does (sk_pacing_status in net/ipv4/tcp_bbr.c).
const congestionEnv = "ZCNET_BENCH_CONGESTION"

func dialPlain(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	d.SetMultipathTCP(false)
	if name := os.Getenv(congestionEnv); name != "" {
		d.Control = func(_, _ string, raw syscall.RawConn) (err error) {
			if ctlErr := raw.Control(func(fd uintptr) {
				err = os.NewSyscallError("setsockopt TCP_CONGESTION", unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, name))
			}); ctlErr != nil {
				return ctlErr
			}
			return err
		}
	}
	return d.DialContext(ctx, network, addr)
}

// A crowd is many connections to one receiving process.
type crowd struct {
	near     []*net.TCPConn
	dialer   dialer
	receiver *exec.Cmd
	out      bytes.Buffer
	ended    sync.Once
	err      error
}

// newCrowd makes n connections by d to a child, which has got the listener l. The child must end by itself when all are
// closed. env tells it more.
func newCrowd(t testing.TB, n int, child string, l net.Listener, d dialer, env ...string) *crowd {
	t.Helper()
	defer l.Close()
	needDescriptors(t, n+spareDescriptors)
	f, err := l.(*net.TCPListener).File()
	check(t, err)
	defer f.Close()
	c := &crowd{dialer: d, near: make([]*net.TCPConn, 0, n), receiver: exec.Command(os.Args[0])}
	c.receiver.Env = append(os.Environ(), childEnv+"="+child, fmt.Sprintf("%s=%d", crowdEnv, n))
	c.receiver.Env = append(c.receiver.Env, env...)
	c.receiver.ExtraFiles = []*os.File{f}
	c.receiver.Stdout, c.receiver.Stderr = &c.out, &c.out
	check(t, d.StartReceiver(c.receiver))
	t.Cleanup(func() {
		for _, near := range c.near {
			near.Close()
		}
		_ = c.receiver.Process.Kill()
		_ = c.wait()
	})
	ctx := testContext(t)
	for range n {
		near, err := d.Dial(ctx, "tcp4", l.Addr().String())
		if err != nil {
			t.Fatalf("connection %d of %d: %v", len(c.near)+1, n, err)
		}
		c.near = append(c.near, near.(*net.TCPConn))
	}
	return c
}

// side returns the clock of the sender's side.
func (c *crowd) side() *perf.SideClock {
	return &perf.SideClock{Apart: []perf.Clock{
		c.dialer.ReceivingTime,
		func() (time.Duration, error) { return perf.ProcessTimeOf(c.receiver.Process.Pid) },
	}}
}

// wait returns when the receiver has ended, and with what.
func (c *crowd) wait() error {
	c.ended.Do(func() {
		if err := c.receiver.Wait(); err != nil {
			c.err = fmt.Errorf("%v\n%s", err, c.out.String())
		}
	})
	return c.err
}

// needDescriptors raises RLIMIT_NOFILE if it must, and skips the test where it may not.
func needDescriptors(t testing.TB, n int) {
	t.Helper()
	var now syscall.Rlimit
	check(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &now))
	need := uint64(n)
	if now.Cur >= need {
		return
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: need, Max: max(need, now.Max)}); err != nil {
		t.Skipf("it takes %d descriptors, of which this process may have %d: raise RLIMIT_NOFILE: %v", n, now.Max, err)
	}
	t.Cleanup(func() { _ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &now) })
}

// acceptCrowd accepts the connections of a crowd in the receiving process.
func acceptCrowd() (conns []*net.TCPConn, err error) {
	n, err := envNumber(crowdEnv)
	if err != nil {
		return nil, err
	}
	l, err := net.FileListener(os.NewFile(3, "listener")) // the first of exec.Cmd.ExtraFiles
	if err != nil {
		return nil, err
	}
	defer l.Close()
	for range n {
		c, err := l.Accept()
		if err != nil {
			return nil, fmt.Errorf("connection %d of %d: %w", len(conns)+1, n, err)
		}
		conns = append(conns, c.(*net.TCPConn))
	}
	return conns, nil
}

func envNumber(name string) (n int, err error) {
	if _, err := fmt.Sscan(os.Getenv(name), &n); err != nil {
		return 0, fmt.Errorf("%s=%q: %w", name, os.Getenv(name), err)
	}
	return n, nil
}

// discardChild drops what arrives on any of its connections.
func discardChild() error {
	conns, err := acceptCrowd()
	if err != nil {
		return err
	}
	errs := make([]error, len(conns))
	var receiving sync.WaitGroup
	for i, c := range conns {
		receiving.Go(func() { _, errs[i] = perf.Discard(c) })
	}
	receiving.Wait()
	return errors.Join(errs...)
}

// verifyChild reads from each connection in turn what a round sends, and again, until they end.
func verifyChild() error {
	conns, err := acceptCrowd()
	if err != nil {
		return err
	}
	size, err := envNumber(crowdSizeEnv)
	if err != nil {
		return err
	}
	want, got := noise(size, crowdSeed), make([]byte, size)
	for round := 0; len(conns) > 0; round++ {
		var open []*net.TCPConn
		for i, c := range conns {
			switch n, err := io.ReadFull(c, got); {
			case err == io.EOF:
			case err != nil:
				return fmt.Errorf("round %d, connection %d, after %d of %d bytes: %w", round, i, n, size, err)
			case !bytes.Equal(got, want):
				return fmt.Errorf("round %d, connection %d: what arrived is not what was sent", round, i)
			default:
				open = append(open, c)
			}
		}
		if len(open) != len(conns) && len(open) != 0 {
			return fmt.Errorf("round %d: %d of %d connections have ended", round, len(conns)-len(open), len(conns))
		}
		if len(open) == 0 && round != crowdRounds {
			return fmt.Errorf("the connections ended after %d rounds, want %d", round, crowdRounds)
		}
		conns = open
	}
	return nil
}

// What TestTenThousandConnections sends over each connection, and who.
const (
	crowdRounds  = 3
	crowdSize    = 16 << 10
	crowdSeed    = 7
	crowdSenders = 16 // goroutines for all of them
)

// TestTenThousandConnections wraps ten thousand connections and has all of them send at once: that takes one goroutine
// for all together and little memory for each, every ticket is done and every byte arrives.
func TestTenThousandConnections(t *testing.T) {
	const (
		n = 10_000
		// heapEach is the heap memory that a wrapped connection that does nothing may take, beside the *net.TCPConn's.
		heapEach = 700
		// others is how many goroutines may be nobody's: a cleanup of what an earlier test has dropped may be at work.
		others = 10
	)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	c := newCrowd(t, n, "verify", l, loopbackDialer{}, fmt.Sprintf("%s=%d", crowdSizeEnv, crowdSize))
	p, _ := allocNoise(t, crowdSize, crowdSeed)
	defer p.Release()
	ctx := testContext(t)
	conns, tickets := make([]*Conn, n), make([]Ticket, n)

	goroutines, heap := runtime.NumGoroutine(), heapInUse()
	for i, near := range c.near {
		conns[i], err = NewConn(near, insist)
		check(t, err)
	}
	each := (heapInUse() - heap) / n
	t.Logf("heap of a wrapped connection: %d bytes", each)
	if each > heapEach {
		t.Errorf("a wrapped connection takes %d bytes of heap, want at most %d", each, heapEach)
	}
	if now := runtime.NumGoroutine(); now > goroutines+others {
		t.Errorf("%d goroutines, %d before the connections were wrapped", now, goroutines)
	}

	for round := range crowdRounds {
		sendFromAll(t, conns, p, tickets)
		if now := runtime.NumGoroutine(); now > goroutines+crowdSenders+1+others {
			t.Errorf("%d goroutines when %d connections have sent, %d before: want at most the poller and the %d senders more",
				now, n, goroutines, crowdSenders)
		}
		if round == crowdRounds-1 {
			closeAll(t, conns)
		}
		for i, ticket := range tickets {
			if err := ticket.Wait(ctx); err != nil {
				t.Fatalf("ticket of connection %d in round %d: %v", i, round, err)
			}
			if ticket.Outcome() == OutcomeUnknown {
				t.Fatalf("connection %d in round %d did not send", i, round)
			}
		}
	}
	t.Logf("heap of a connection that has sent: %d bytes", (heapInUse()-heap)/n)
	for i, zc := range conns {
		s := zc.Stats()
		if sent := s.ZeroCopiedBytes + s.MaybeCopiedBytes + s.CopiedBytes; sent != crowdRounds*crowdSize || s.BytesInFlight != 0 {
			t.Fatalf("connection %d: %d bytes sent, %d in flight; want %d, 0", i, sent, s.BytesInFlight, crowdRounds*crowdSize)
		}
		if s.CopiedBytes != 0 && s.Fallbacks.Memlock == 0 { // which is for all together, without CAP_IPC_LOCK
			t.Fatalf("connection %d: %d bytes were copied by the library, not for RLIMIT_MEMLOCK: %+v", i, s.CopiedBytes, s.Fallbacks)
		}
	}
	check(t, c.wait())
	eventually(t, "the poller has stopped", func() bool {
		thePoller.mu.Lock()
		defer thePoller.mu.Unlock()
		return thePoller.file == nil && runtime.NumGoroutine() <= goroutines
	})
}

// sendFromAll sends p over each of conns, by a few goroutines that wait for nothing but the sockets, and puts the
// tickets into tickets. When it returns, these goroutines may still be ending.
func sendFromAll(t testing.TB, conns []*Conn, p Pinned, tickets []Ticket) {
	t.Helper()
	var errs [crowdSenders]error
	var sending sync.WaitGroup
	for first := range crowdSenders {
		sending.Go(func() {
			for i := first; i < len(conns); i += crowdSenders {
				if tickets[i], errs[first] = conns[i].WritePinned(p); errs[first] != nil {
					return
				}
			}
		})
	}
	sending.Wait()
	check(t, errors.Join(errs[:]...))
}

func closeAll(t testing.TB, conns []*Conn) {
	t.Helper()
	for _, c := range conns {
		check(t, c.Close())
	}
}
