package zcnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcnet-go/zcnet/internal/lab"
)

// Peers that are broken or mean harm: they never read, read a little at a time, reset at the worst moment, or go on
// sending when nobody listens. Whatever they do, what they make us hold is bounded, tickets come to an end, and Close
// leaves nothing behind. What networks do to packets is in lossy_linux_test.go.

// hourly is a configuration under which nothing but the peer ends what Close began.
var hourly = &Config{Threshold: 1, insist: true, CloseTimeout: time.Hour}

// wantFreed waits until p, which has been released, is unmapped.
func wantFreed(t testing.TB, p Pinned) {
	t.Helper()
	eventually(t, "the memory is released", func() bool { return p.r.state.Load()&regionUse == regionReleased })
}

// A descriptorWatch knows the socket of a connection, and so whether any descriptor of it is left.
type descriptorWatch struct{ link string }

func watchDescriptors(t testing.TB, c *Conn) (w descriptorWatch) {
	t.Helper()
	check(t, c.s.raw.Control(func(fd uintptr) {
		var err error
		w.link, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		check(t, err)
	}))
	return w
}

// wantGone waits until no descriptor of the socket is open any more.
func (w descriptorWatch) wantGone(t testing.TB) {
	t.Helper()
	eventually(t, "the last descriptor of "+w.link+" is closed", func() bool {
		for _, open := range openSockets() {
			if strings.HasSuffix(open, w.link) {
				return false
			}
		}
		return true
	})
}

// wantNothingLeft checks that a connection that has been closed holds nothing any more.
func wantNothingLeft(t testing.TB, c *Conn, socket descriptorWatch) {
	t.Helper()
	socket.wantGone(t)
	if s := c.Stats(); s.BytesInFlight != 0 || s.IDsInFlight != 0 || s.UnprovenBytes != 0 {
		t.Errorf("%d bytes and %d IDs in flight, %d bytes unproven; want none", s.BytesInFlight, s.IDsInFlight, s.UnprovenBytes)
	}
}

// reset has the peer end the connection by a reset.
func reset(t testing.TB, far *net.TCPConn) {
	t.Helper()
	check(t, far.SetLinger(0))
	check(t, far.Close())
}

// tcpInfo asks for what the kernel knows of the connection.
func tcpInfo(t testing.TB, c *Conn) (info *unix.TCPInfo) {
	t.Helper()
	check(t, c.s.control(func(fd uintptr) {
		var err error
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		check(t, err)
	}))
	return info
}

// awaitReset waits until c's kernel knows of the peer's reset.
func awaitReset(t testing.TB, c *Conn) {
	t.Helper()
	const closed = 7 // TCP_CLOSE in include/net/tcp_states.h
	eventually(t, "the reset arrives", func() bool { return tcpInfo(t, c).State == closed })
}

// A memoryWatch looks all the time at how much a connection has in flight.
type memoryWatch struct {
	most     atomic.Int64
	stop     atomic.Bool
	watching sync.WaitGroup
}

func watchMemory(c *Conn) *memoryWatch {
	w := &memoryWatch{}
	w.watching.Go(func() {
		for !w.stop.Load() {
			w.most.Store(max(w.most.Load(), c.Stats().BytesInFlight))
			time.Sleep(50 * time.Microsecond)
		}
	})
	return w
}

// wantMost ends the watch.
func (w *memoryWatch) wantMost(t testing.TB, bound int64) {
	t.Helper()
	w.stop.Store(true)
	w.watching.Wait()
	if most := w.most.Load(); most == 0 || most > bound {
		t.Errorf("at most %d bytes were in flight, want some, and no more than %d", most, bound)
	}
}

// sendBuffer returns how much the socket of c may queue, as the kernel counts.
func sendBuffer(t testing.TB, c *Conn) (n int) {
	t.Helper()
	check(t, c.s.raw.Control(func(fd uintptr) {
		var err error
		n, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF)
		check(t, err)
	}))
	return n
}

// A bystander is a connection whose business must not suffer from what is done to others.
type bystander struct {
	ended    atomic.Bool
	rounds   atomic.Int64
	business sync.WaitGroup
}

func startBystander(t *testing.T, pair pairMaker) *bystander {
	t.Helper()
	near, far := pair(t)
	c := wrap(t, near, insist)
	b := &bystander{}
	content := noise(64<<10, 9)
	ctx := testContext(t)
	b.business.Go(func() {
		for !b.ended.Load() && ctx.Err() == nil {
			ticket, err := c.WritePinned(Pin(content))
			if err = errors.Join(err, receive(far, content), ticket.Wait(ctx)); err != nil {
				t.Errorf("another connection was disturbed: %v", err)
				return
			}
			b.rounds.Add(1)
			time.Sleep(time.Millisecond)
		}
	})
	t.Cleanup(func() { b.ended.Store(true); b.business.Wait() })
	return b
}

// wantAlive waits until the business has gone on for two more rounds.
func (b *bystander) wantAlive(t *testing.T) {
	t.Helper()
	before := b.rounds.Load()
	eventually(t, "another connection goes on", func() bool { return b.rounds.Load() >= before+2 })
}

func TestPeerWhoseWindowStaysZeroBoundsWhatWeHold(t *testing.T) {
	const bound = 128 << 10
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		for _, kind := range []struct {
			name        string
			maxInFlight int64
		}{
			{"by Config.MaxInFlight", bound},
			{"by the send buffer", 0},
		} {
			t.Run(kind.name, func(t *testing.T) {
				near, far := pair(t)
				cfg := *hourly
				cfg.MaxInFlight = kind.maxInFlight
				c := wrap(t, near, &cfg)
				memory := watchMemory(c)
				p, _ := allocNoise(t, 8<<20, 1)
				defer p.Release()

				// Many writers, again and again, and each is told by its deadline.
				const writers, rounds = 4, 3
				tickets := make(chan Ticket, writers*rounds)
				var total atomic.Int64
				for range rounds {
					check(t, c.SetWriteDeadline(time.Now().Add(30*time.Millisecond)))
					var writing sync.WaitGroup
					for range writers {
						writing.Go(func() {
							ticket, err := c.WritePinned(p)
							var we *WriteError
							if !errors.As(err, &we) || !we.Timeout() || !errors.Is(err, os.ErrDeadlineExceeded) {
								t.Errorf("a write to a peer that does not read: %v, want a timeout", err)
								return
							}
							total.Add(we.Queued)
							if we.Queued > 0 {
								tickets <- ticket
							}
						})
					}
					writing.Wait()
				}
				close(tickets)
				most := int64(sendBuffer(t, c)) + smallCall // the buffer may be exceeded by the packet that fills it
				if kind.maxInFlight > 0 {
					most = kind.maxInFlight
				}
				if received, _ := far.SyscallConn(); total.Load() > int64(sendBuffer(t, c))+smallCall+int64(receiveBuffer(t, received)) {
					t.Errorf("%d bytes were queued, more than all buffers hold", total.Load())
				}

				// What is in flight stays so, and nobody waits longer than they want to.
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
				defer cancel()
				pending := 0
				for ticket := range tickets {
					if ticket.Ready() {
						continue
					}
					pending++
					if err := ticket.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
						t.Errorf("Wait: %v, want the context's error", err)
					}
				}
				if pending == 0 {
					t.Error("no ticket is pending")
				}
				if err := c.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("Flush: %v, want the context's error", err)
				}
				memory.wantMost(t, most)

				// At last the peer reads: it was slow, no more.
				go io.Copy(io.Discard, far)
				check(t, c.SetWriteDeadline(never))
				check(t, c.Flush(testContext(t)))
				if s := c.Stats(); s.BytesInFlight != 0 || (kind.maxInFlight > 0) != (s.Fallbacks.InFlight > 0) {
					t.Errorf("%d bytes in flight after all; fallbacks %+v", s.BytesInFlight, s.Fallbacks)
				}
			})
		}
	})
}

// receiveBuffer returns SO_RCVBUF.
func receiveBuffer(t testing.TB, raw syscall.RawConn) (n int) {
	t.Helper()
	check(t, raw.Control(func(fd uintptr) {
		var err error
		n, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF)
		check(t, err)
	}))
	return n
}

func TestCloseOfAConnectionWhoseWindowStaysZero(t *testing.T) {
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		t.Run("returns at once", func(t *testing.T) {
			near, far := pair(t)
			c := wrap(t, near, hourly)
			socket := watchDescriptors(t, c)
			p, want := allocNoise(t, 8<<20, 1)
			ticket, queued := pendingWrite(t, c, p)
			p.Release()
			check(t, c.Close()) // or it would wait for an hour
			if ticket.Ready() {
				t.Error("the ticket is done though the peer has not read")
			}
			expect(t, far, want[:queued])
			expectEOF(t, far)
			check(t, ticket.Wait(testContext(t)))
			wantFreed(t, p)
			wantNothingLeft(t, c, socket)
		})
		t.Run("ends by its timeout", func(t *testing.T) {
			near, far := pair(t)
			cfg := *hourly
			cfg.CloseTimeout = 50 * time.Millisecond
			c := wrap(t, near, &cfg)
			socket := watchDescriptors(t, c)
			p, _ := allocNoise(t, 8<<20, 1)
			ticket, _ := pendingWrite(t, c, p)
			p.Release()
			check(t, c.Close())
			if err := ticket.Wait(testContext(t)); !errors.Is(err, ErrConnFailed) {
				t.Errorf("the ticket: %v, want ErrConnFailed", err)
			}
			if err := c.Flush(testContext(t)); !errors.Is(err, ErrConnFailed) {
				t.Errorf("Flush: %v, want ErrConnFailed", err)
			}
			wantFreed(t, p)
			wantNothingLeft(t, c, socket)
			if _, err := io.Copy(io.Discard, far); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the peer's read: %v, want a reset", err)
			}
		})
	})
}

// TestConnectionThatHasEndedKeepsNobodyBusy is about what the kernel reports of a socket for as long as it is open: that
// it has been reset, or that both its directions have ended.
func TestConnectionThatHasEndedKeepsNobodyBusy(t *testing.T) {
	for _, end := range []struct {
		name string
		end  func(t *testing.T, c *Conn, far *net.TCPConn)
	}{
		{"closed, and the peer does not read", func(t *testing.T, c *Conn, far *net.TCPConn) { check(t, c.Close()) }},
		{"reset by the peer", func(t *testing.T, c *Conn, far *net.TCPConn) { reset(t, far); awaitReset(t, c) }},
		{"ended by both, and not closed", func(t *testing.T, c *Conn, far *net.TCPConn) {
			check(t, c.CloseWrite())
			_, err := io.Copy(io.Discard, far)
			check(t, err)
			check(t, far.Close())
			expectEOF(t, c)
		}},
		{"reset and then closed", func(t *testing.T, c *Conn, far *net.TCPConn) {
			reset(t, far)
			awaitReset(t, c)
			check(t, c.Close())
		}},
	} {
		t.Run(end.name, func(t *testing.T) {
			onEachLink(t, func(t *testing.T, pair pairMaker) {
				near, far := pair(t)
				c := wrap(t, near, hourly)
				p, _ := allocNoise(t, 8<<20, 1)
				defer p.Release()
				pendingWrite(t, c, p)
				end.end(t, c, far)
				eventually(t, "the poller has nothing to do", func() bool {
					before := c.Stats()
					time.Sleep(50 * time.Millisecond)
					after := c.Stats()
					return after.Wakeups == before.Wakeups && after.Drains == before.Drains
				})
				far.Close()
			})
		})
	}
}

// TestCompletionsAreHeardAfterBothEndsOfTheStream has the connection hang up while bytes are in flight, of which the peer
// takes a few at a time.
func TestCompletionsAreHeardAfterBothEndsOfTheStream(t *testing.T) {
	for _, closed := range []bool{false, true} {
		t.Run(fmt.Sprintf("and Close %v", closed), func(t *testing.T) {
			onEachLink(t, func(t *testing.T, pair pairMaker) {
				near, far := pair(t)
				c := wrap(t, near, hourly)
				socket := watchDescriptors(t, c)
				p, want := allocNoise(t, 8<<20, 1)
				ticket, queued := pendingWrite(t, c, p)
				p.Release()
				check(t, far.CloseWrite())
				expectEOF(t, c)
				check(t, c.CloseWrite())
				doze()
				if closed {
					check(t, c.Close())
					doze()
				}
				if ticket.Ready() {
					t.Error("the ticket is done though the peer has not read")
				}
				const parts = 4
				for i := range parts {
					expect(t, far, want[i*queued/parts:(i+1)*queued/parts])
					doze()
				}
				expectEOF(t, far)
				select { // Wait would itself look
				case <-ticket.Done():
				case <-time.After(testTimeout):
					t.Error("nobody heard the last completion")
				}
				check(t, ticket.Wait(testContext(t)))
				check(t, far.Close())
				if !closed {
					check(t, c.Close())
				}
				wantFreed(t, p)
				wantNothingLeft(t, c, socket)
			})
		})
	}
}

// smallPair returns a connection whose far end is prepared before there is a connection, so that what it says in the
// handshake is as small as what it does later. link is nil for loopback.
func smallPair(t *testing.T, link *lab.Link, prepare func(fd int) error) (near, far *net.TCPConn) {
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		return errors.Join(raw.Control(func(fd uintptr) { err = prepare(int(fd)) }), err)
	}}
	lc.SetMultipathTCP(false)
	ctx := testContext(t)
	listen := func(addr string) (l net.Listener, err error) { return lc.Listen(ctx, "tcp4", addr) }
	var l net.Listener
	var n net.Conn
	var err error
	if link == nil {
		l, err = listen("127.0.0.1:0")
		check(t, err)
		n, err = net.Dial("tcp4", l.Addr().String())
	} else {
		check(t, link.Receiver.Do(func() (err error) {
			l, err = listen(net.JoinHostPort(link.Receiver.IPv4().String(), "0"))
			return err
		}))
		n, err = link.Sender.Dial(ctx, "tcp4", l.Addr().String())
	}
	check(t, err)
	defer l.Close()
	f, err := l.Accept()
	check(t, err)
	t.Cleanup(func() { n.Close(); f.Close() })
	return n.(*net.TCPConn), f.(*net.TCPConn)
}

// tinyPeers are receivers that take as little at a time as the kernel lets them.
var tinyPeers = []struct {
	name    string
	prepare func(fd int) error
}{
	{"receive buffer", func(fd int) error { // one that can hold a page: what the kernel copies for loopback comes in those
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<10),
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, 1460))
	}},
	{"window", func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP, 1) }},
	{"segments", func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, 88) }},
	{"all of it", func(fd int) error {
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG, 88))
	}},
}

func TestTinyWindowsAndSegments(t *testing.T) {
	for _, name := range []string{"loopback", "copy-free link"} {
		t.Run(name, func(t *testing.T) {
			var link *lab.Link
			if name != "loopback" {
				link = lab.ForTest(t)
			}
			for _, peer := range tinyPeers {
				t.Run(peer.name, func(t *testing.T) {
					near, far := smallPair(t, link, peer.prepare)
					check(t, near.SetWriteBuffer(256<<10))
					c := wrap(t, near, insist)
					p, want := allocNoise(t, 128<<10, 1)
					const writes = 8
					piece := p.Len() / writes
					var receiving sync.WaitGroup
					receiving.Go(func() {
						if err := receive(far, want); err != nil {
							t.Errorf("the peer received: %v", err)
						}
					})
					check(t, c.SetWriteDeadline(time.Now().Add(testTimeout)))
					for i := range writes {
						_, err := c.WritePinned(p.Slice(i*piece, (i+1)*piece))
						check(t, err)
					}
					p.Release()
					check(t, c.Flush(testContext(t)))
					receiving.Wait()
					wantFreed(t, p)
				})
			}
		})
	}
}

func TestWindowThatOpensForAMomentManyTimes(t *testing.T) {
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		near, far := pair(t)
		const bound, size, opened = 64 << 10, 4 << 20, 32
		cfg := *hourly
		cfg.MaxInFlight = bound
		c := wrap(t, near, &cfg)
		memory := watchMemory(c)
		p, want := allocNoise(t, size, 1)
		var sending sync.WaitGroup
		sending.Go(func() {
			const piece = 64 << 10
			for off := 0; off < size; off += piece {
				if _, err := c.WritePinned(p.Slice(off, off+piece)); err != nil {
					t.Errorf("sending: %v", err)
				}
			}
		})
		for i := range opened {
			eventually(t, "the window is closed, or nearly", func() bool {
				info := tcpInfo(t, c)
				return info.Snd_wnd < info.Snd_mss || info.Notsent_bytes == 0
			})
			const gulp = size / opened / 2
			expect(t, far, want[i*gulp:(i+1)*gulp])
		}
		expect(t, far, want[size/2:])
		sending.Wait()
		p.Release()
		check(t, c.Flush(testContext(t)))
		memory.wantMost(t, bound)
		wantFreed(t, p)
	})
}

// A resetScene is a connection to whose far end a reset is about to happen.
type resetScene struct {
	c      *Conn
	far    *net.TCPConn
	socket descriptorWatch
	p      Pinned
}

// inFlight queues more than the peer takes, and returns the ticket.
func (s *resetScene) inFlight(t *testing.T) Ticket {
	t.Helper()
	ticket, _ := pendingWrite(t, s.c, s.p)
	return ticket
}

// wantFailed waits for a ticket whose bytes the peer never acknowledged.
func wantFailed(t *testing.T, ticket Ticket) {
	t.Helper()
	if err := ticket.Wait(testContext(t)); !errors.Is(err, ErrConnFailed) {
		t.Errorf("the ticket: %v, want ErrConnFailed", err)
	}
}

// wantNotWritten checks that nothing was queued of a write to a dead connection.
func wantNotWritten(t *testing.T, c *Conn, p Pinned, cause error) {
	t.Helper()
	ticket, err := c.WritePinned(p)
	var we *WriteError
	if !errors.As(err, &we) || we.Queued != 0 || !errors.Is(err, cause) || !ticket.Ready() || ticket.Wait(testContext(t)) != nil {
		t.Errorf("a write after the reset: %v, ticket ready: %v; want %v, and a ticket of nothing", err, ticket.Ready(), cause)
	}
}

// resetStates are the states of a connection in which a peer can reset it.
var resetStates = []struct {
	name string
	test func(t *testing.T, s *resetScene)
}{
	{"before the first write", func(t *testing.T, s *resetScene) {
		reset(t, s.far)
		awaitReset(t, s.c)
		wantNotWritten(t, s.c, s.p, syscall.ECONNRESET)
		wantNotWritten(t, s.c, s.p, syscall.EPIPE)
		check(t, s.c.Flush(testContext(t)))
	}},
	{"after the last completion", func(t *testing.T, s *resetScene) {
		ticket, err := s.c.WritePinned(s.p.Slice(0, 10000))
		check(t, err)
		expect(t, s.far, s.p.Bytes()[:10000])
		check(t, ticket.Wait(testContext(t)))
		reset(t, s.far)
		awaitReset(t, s.c)
		wantNotWritten(t, s.c, s.p, syscall.ECONNRESET)
		check(t, ticket.Wait(testContext(t)))
		check(t, s.c.Flush(testContext(t)))
	}},
	{"between a write and its completion", func(t *testing.T, s *resetScene) {
		ticket := s.inFlight(t)
		reset(t, s.far)
		wantFailed(t, ticket)
		wantNotWritten(t, s.c, s.p, syscall.ECONNRESET)
	}},
	{"in the middle of a write", func(t *testing.T, s *resetScene) {
		var ticket Ticket
		w := beginCall(func() (err error) { ticket, err = s.c.WritePinned(s.p); return err })
		s.awaitFull(t)
		reset(t, s.far)
		err := w.wait(t)
		var we *WriteError
		if !errors.As(err, &we) || !errors.Is(err, syscall.ECONNRESET) || we.Queued == 0 || we.Queued == we.Total {
			t.Errorf("the write: %v, want a reset after a part", err)
		}
		wantFailed(t, ticket)
	}},
	{"in the middle of many writes", func(t *testing.T, s *resetScene) {
		const writers = 8
		tickets, errs := make([]Ticket, writers), make([]error, writers)
		var writing sync.WaitGroup
		for i := range writers {
			writing.Go(func() { tickets[i], errs[i] = s.c.WritePinned(s.p) })
		}
		s.awaitFull(t)
		reset(t, s.far)
		writing.Wait()
		failed := 0
		for i, ticket := range tickets {
			if !errors.Is(errs[i], syscall.ECONNRESET) && !errors.Is(errs[i], syscall.EPIPE) {
				t.Errorf("a write: %v, want a reset or a broken pipe", errs[i])
			}
			switch err := ticket.Wait(testContext(t)); {
			case errors.Is(err, ErrConnFailed):
				failed++
			case err != nil || queuedOf(errs[i]) != 0:
				t.Errorf("the ticket of %v: %v", errs[i], err)
			}
		}
		if failed != 1 {
			t.Errorf("%d tickets failed, want that of the write that had begun", failed)
		}
	}},
	{"after CloseWrite", func(t *testing.T, s *resetScene) {
		ticket := s.inFlight(t)
		check(t, s.c.CloseWrite())
		reset(t, s.far)
		wantFailed(t, ticket)
		begin(s.c).fails(t, syscall.ECONNRESET)
	}},
	{"after CloseWrite and the last completion", func(t *testing.T, s *resetScene) {
		ticket, err := s.c.WritePinned(s.p.Slice(0, 10000))
		check(t, err)
		check(t, s.c.CloseWrite())
		expect(t, s.far, s.p.Bytes()[:10000])
		expectEOF(t, s.far)
		check(t, ticket.Wait(testContext(t)))
		reset(t, s.far)
		awaitReset(t, s.c)
		check(t, s.c.Flush(testContext(t)))
		begin(s.c).fails(t, syscall.ECONNRESET)
	}},
	{"after the peer's end of the stream", func(t *testing.T, s *resetScene) {
		check(t, s.far.CloseWrite())
		expectEOF(t, s.c)
		ticket := s.inFlight(t)
		reset(t, s.far)
		wantFailed(t, ticket)
		wantNotWritten(t, s.c, s.p, syscall.EPIPE) // which is what a reset after the end of the stream is (tcp_reset)
	}},
	{"in the background of Close", func(t *testing.T, s *resetScene) {
		ticket := s.inFlight(t)
		check(t, s.c.Close())
		reset(t, s.far)
		wantFailed(t, ticket)
	}},
	{"together with Close", func(t *testing.T, s *resetScene) {
		ticket := s.inFlight(t)
		var closing sync.WaitGroup
		closing.Go(func() { check(t, s.c.Close()) })
		reset(t, s.far)
		closing.Wait()
		wantFailed(t, ticket)
	}},
	{"together with our own reset", func(t *testing.T, s *resetScene) {
		ticket := s.inFlight(t)
		check(t, s.c.SetLinger(0))
		check(t, s.far.SetLinger(0))
		var closing sync.WaitGroup
		closing.Go(func() { check(t, s.c.Close()) })
		closing.Go(func() { check(t, s.far.Close()) })
		closing.Wait()
		wantFailed(t, ticket)
	}},
	{"while Flush waits", func(t *testing.T, s *resetScene) {
		ticket := s.inFlight(t)
		flushing := beginCall(func() error { return s.c.Flush(context.Background()) })
		eventually(t, "Flush waits", func() bool { return s.c.s.ledger().waited.Load() > 0 })
		reset(t, s.far)
		if err := flushing.wait(t); !errors.Is(err, ErrConnFailed) {
			t.Errorf("Flush: %v, want ErrConnFailed", err)
		}
		wantFailed(t, ticket)
	}},
	{"while a reader is parked", func(t *testing.T, s *resetScene) {
		read := begin(s.c)
		ticket := s.inFlight(t)
		doze()
		reset(t, s.far)
		read.fails(t, syscall.ECONNRESET)
		wantFailed(t, ticket)
	}},
	{"while a reader is parked beside the runtime's poller", func(t *testing.T, s *resetScene) {
		waitForEvents(t, s.c)
		read := begin(slowConn{s.c})
		ticket := s.inFlight(t)
		eventually(t, "the reader waits", func() bool {
			s.c.s.watch.mu.Lock()
			defer s.c.s.watch.mu.Unlock()
			return s.c.s.watch.interest&wantsData != 0
		})
		doze()
		reset(t, s.far)
		read.fails(t, syscall.ECONNRESET)
		wantFailed(t, ticket)
	}},
}

// awaitFull waits until a write under way has filled the buffers.
func (s *resetScene) awaitFull(t *testing.T) {
	t.Helper()
	eventually(t, "the write is blocked", func() bool {
		before := s.c.Stats()
		doze()
		return before.BytesInFlight > 0 && s.c.Stats().Sends == before.Sends
	})
}

// A pendingCall is a call in another goroutine.
type pendingCall chan error

func beginCall(f func() error) pendingCall {
	p := make(pendingCall, 1)
	go func() { p <- f() }()
	return p
}

func (p pendingCall) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-p:
		return err
	case <-time.After(testTimeout):
		t.Fatalf("the call is still blocked after %v", testTimeout)
		return nil
	}
}

func TestPeerResetInEveryState(t *testing.T) {
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		other := startBystander(t, pair)
		other.wantAlive(t)
		for _, state := range resetStates {
			t.Run(state.name, func(t *testing.T) {
				goroutines := runtime.NumGoroutine()
				near, far := pair(t)
				c := wrap(t, near, hourly)
				p, _ := allocNoise(t, 8<<20, 1)
				s := &resetScene{c, far, watchDescriptors(t, c), p}
				state.test(t, s)
				p.Release()
				c.Close() // some have done so
				wantFreed(t, p)
				wantNothingLeft(t, c, s.socket)
				eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= goroutines })
				other.wantAlive(t)
			})
		}
	})
}

func TestPeerThatIsGoneBeforeAccept(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	zl := NewListener(l, hourly)
	defer zl.Close()
	p, _ := allocNoise(t, 1<<20, 1)
	for range 10 {
		far, err := net.Dial("tcp4", l.Addr().String())
		check(t, err)
		reset(t, far.(*net.TCPConn))
		near, err := zl.Accept()
		check(t, err)
		c, ok := near.(*Conn)
		if !ok {
			t.Fatalf("accepted a %T", near)
		}
		socket := watchDescriptors(t, c)
		wantNotWritten(t, c, p, syscall.ECONNRESET)
		check(t, c.Close())
		wantNothingLeft(t, c, socket)
	}
	p.Release()
	wantFreed(t, p)
}

func TestPeerThatSendsAfterOurClose(t *testing.T) {
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		near, far := pair(t)
		c := wrap(t, near, hourly)
		socket := watchDescriptors(t, c)
		p, _ := allocNoise(t, 8<<20, 1)
		ticket, _ := pendingWrite(t, c, p)
		p.Release()
		check(t, c.Close())
		send(t, far, "too late") // as it does to any connection, that resets it
		wantFailed(t, ticket)
		wantFreed(t, p)
		wantNothingLeft(t, c, socket)
	})
}

func TestPeerMaySendWhateverAfterOurCloseWrite(t *testing.T) {
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		near, far := pair(t)
		c := wrap(t, near, hourly)
		socket := watchDescriptors(t, c)
		p, want := allocNoise(t, 8<<20, 1)
		answer := noise(4<<20, 2)
		ticket, queued := pendingWrite(t, c, p)
		p.Release()
		check(t, c.CloseWrite())
		var answering sync.WaitGroup
		answering.Go(func() { send(t, far, string(answer)) })
		expect(t, c, answer[:len(answer)/2])
		if ticket.Ready() {
			t.Error("the ticket is done though the peer has not read")
		}
		expect(t, far, want[:queued])
		expectEOF(t, far)
		expect(t, c, answer[len(answer)/2:])
		answering.Wait()
		check(t, far.CloseWrite())
		expectEOF(t, c)
		check(t, ticket.Wait(testContext(t)))
		check(t, c.Close())
		wantFreed(t, p)
		wantNothingLeft(t, c, socket)
	})
}

// TestPeerThatFloodsUs has the peer send as much as it can, which nobody reads, while we send: Close comes to an end
// all the same, long before its timeout.
func TestPeerThatFloodsUs(t *testing.T) {
	for _, peer := range []struct {
		name  string
		reads bool
	}{{"and reads", true}, {"and does not read", false}} {
		t.Run(peer.name, func(t *testing.T) {
			onEachLink(t, func(t *testing.T, pair pairMaker) {
				near, far := pair(t)
				c := wrap(t, near, hourly)
				socket := watchDescriptors(t, c)
				p, _ := allocNoise(t, 8<<20, 1)
				var flooding sync.WaitGroup
				flooding.Go(func() {
					junk := noise(64<<10, 3)
					for err := error(nil); err == nil; {
						_, err = far.Write(junk)
					}
				})
				if peer.reads {
					flooding.Go(func() { io.Copy(io.Discard, far) })
				}
				_ = c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
				var tickets []Ticket
				for range 20 {
					ticket, err := c.WritePinned(p)
					var we *WriteError
					if err != nil && (!errors.As(err, &we) || !we.Timeout()) {
						t.Fatalf("a write to a peer that sends: %v", err)
					}
					tickets = append(tickets, ticket)
				}
				p.Release()
				check(t, c.Close())
				for _, ticket := range tickets {
					if err := ticket.Wait(testContext(t)); err != nil && !errors.Is(err, ErrConnFailed) {
						t.Errorf("a ticket: %v, want none or ErrConnFailed", err)
					}
				}
				wantFreed(t, p)
				wantNothingLeft(t, c, socket)
				check(t, beginCall(func() error { flooding.Wait(); return nil }).wait(t)) // a reset tells it that we are gone
			})
		})
	}
}
