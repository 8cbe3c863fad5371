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
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/zcnet-go/zcnet/internal/lab"
)

// The hazards of zero-copy sending, each by name, on the real kernel, and on the link that does not copy wherever it
// matters that the peer receives what is in the memory now.

// labPair returns the two ends of a TCP connection over the copy-free link. The near end can send without copying.
func labPair(t testing.TB, link *lab.Link) (near, far *net.TCPConn) {
	t.Helper()
	l, err := link.Receiver.ListenAddr("tcp4", net.JoinHostPort(link.Receiver.IPv4().String(), "0"))
	check(t, err)
	defer l.Close()
	n, err := link.Sender.Dial(testContext(t), "tcp4", l.Addr().String())
	check(t, err)
	f, err := l.Accept()
	check(t, err)
	t.Cleanup(func() { n.Close(); f.Close() })
	return n.(*net.TCPConn), f.(*net.TCPConn)
}

// allocNoise returns memory of Alloc filled with noise, and a copy of it.
func allocNoise(t testing.TB, n int, seed uint64) (p Pinned, want []byte) {
	t.Helper()
	p, err := Alloc(n)
	check(t, err)
	want = noise(n, seed)
	copy(p.Bytes(), want)
	return p, want
}

// pendingWrite queues about a send buffer full of data that the peer does not read, and returns its ticket and how
// much it is.
func pendingWrite(t testing.TB, c *Conn, p Pinned) (ticket Ticket, queued int) {
	t.Helper()
	var we *WriteError
	for d := 50 * time.Millisecond; we == nil || we.Queued == 0; d *= 2 { // a checksum of it may take longer
		check(t, c.SetWriteDeadline(time.Now().Add(d)))
		var err error
		ticket, err = c.WritePinned(p)
		if !errors.As(err, &we) || !we.Timeout() || d > testTimeout {
			t.Fatalf("a write of %d bytes to a peer that does not read: %v, want a timeout", p.Len(), err)
		}
	}
	check(t, c.SetWriteDeadline(time.Time{}))
	if ticket.Ready() {
		t.Fatal("the ticket is done though the peer has not read")
	}
	return ticket, int(we.Queued)
}

func TestLabSendsEveryByteAboveTheThresholdUncopied(t *testing.T) {
	link := lab.ForTest(t)
	near, far := labPair(t, link)
	c := wrap(t, near, nil)
	big, want := allocNoise(t, 8<<20, 1)
	defer big.Release()
	const small = DefaultThreshold - 1
	var reading sync.WaitGroup
	reading.Go(func() {
		for range 4 {
			expect(t, far, want)
			expect(t, far, want[:small])
		}
	})
	for range 4 {
		ticket, err := c.WritePinned(big)
		check(t, err)
		copied, err := c.WritePinned(big.Slice(0, small))
		check(t, err)
		if !copied.Ready() || copied.Outcome() != OutcomeCopied {
			t.Errorf("below the threshold: ready %v, %v; want a done, copied ticket", copied.Ready(), copied.Outcome())
		}
		check(t, ticket.Wait(testContext(t)))
		if got := ticket.Outcome(); got != OutcomeZeroCopied {
			t.Errorf("above the threshold: %v, want %v", got, OutcomeZeroCopied)
		}
	}
	reading.Wait()
	s := c.Stats()
	if s.ZeroCopiedBytes != 4*8<<20 || s.MaybeCopiedBytes != 0 || s.CopiedBytes != 4*small {
		t.Errorf("%d bytes without copy, %d perhaps copied, %d copied; want %d, 0, %d", s.ZeroCopiedBytes, s.MaybeCopiedBytes, s.CopiedBytes, 4*8<<20, 4*small)
	}
	if s.Fallbacks != (Fallbacks{Threshold: 4}) || s.Writes != 8 || s.BytesInFlight != 0 || s.IDsInFlight != 0 || s.Released != 4 {
		t.Errorf("stats: %+v", s)
	}
}

func TestHeaderIsCopiedAndBodyIsNot(t *testing.T) {
	for _, n := range []int64{24, 2 * page} {
		link := lab.ForTest(t)
		near, far := labPair(t, link)
		c := wrap(t, near, nil)
		body, want := allocNoise(t, 1<<20, 1)
		defer body.Release()
		header := noise(int(n), 2)
		ticket, err := c.WriteFrame(header, body)
		check(t, err)
		expect(t, far, header)
		expect(t, far, want)
		check(t, ticket.Wait(testContext(t)))
		if s := c.Stats(); s.CopiedBytes != n || s.ZeroCopiedBytes != 1<<20 {
			t.Errorf("%d bytes copied and %d not, want %d and %d", s.CopiedBytes, s.ZeroCopiedBytes, n, 1<<20)
		}
	}
}

func TestMemoryIsReusableOnceItsTicketIsDone(t *testing.T) {
	link := lab.ForTest(t)
	near, far := labPair(t, link)
	c := wrap(t, near, nil)
	const rounds, size = 200, 256 << 10
	buffers := make([]Pinned, 4)
	tickets := make([]Ticket, len(buffers))
	for i := range buffers {
		buffers[i], _ = allocNoise(t, size, 0)
		defer buffers[i].Release()
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		for round := range rounds {
			expect(t, far, bytes.Repeat([]byte{byte(round), byte(round >> 8)}, size/2))
		}
	})
	for round := range rounds {
		i := round % len(buffers)
		check(t, tickets[i].Wait(testContext(t)))
		b := buffers[i].Bytes()
		for j := 0; j < size; j += 2 {
			b[j], b[j+1] = byte(round), byte(round>>8)
		}
		var err error
		tickets[i], err = c.WritePinned(buffers[i])
		check(t, err)
	}
	check(t, c.Flush(testContext(t)))
	reading.Wait()
}

func TestTicketNobodyWaitsForStillReleasesItsMemory(t *testing.T) {
	link := lab.ForTest(t)
	near, far := labPair(t, link)
	c := wrap(t, near, nil)
	p, want := allocNoise(t, 1<<20, 1)
	if _, err := c.WritePinned(p); err != nil {
		t.Fatal(err)
	}
	p.Release()
	if s := p.r.state.Load(); s>>1 == 0 {
		t.Fatal("the memory is gone while it is in flight")
	}
	expect(t, far, want)
	eventually(t, "the memory is released", func() bool { return p.r.state.Load()&regionUse == regionReleased })
}

// TestNaiveCloseSendsWhatIsWrittenLater shows the hazard that Close answers: without a ledger, what is written to
// the memory after close(2) reaches the peer.
func TestNaiveCloseSendsWhatIsWrittenLater(t *testing.T) {
	link := lab.ForTest(t)
	near, far := labPair(t, link)
	p, want := allocNoise(t, 16<<20, 1)
	defer p.Release()
	raw, err := near.SyscallConn()
	check(t, err)
	enableZeroCopy(t, raw)
	queued := 0
	var msg message
	check(t, raw.Control(func(fd uintptr) {
		for queued < p.Len() {
			msg.clear()
			msg.add(p.Bytes()[queued:min(queued+smallCall, p.Len())])
			n, err := msg.send(fd, msgZeroCopy)
			if err != nil {
				break
			}
			queued += n
		}
	}))
	check(t, near.Close())
	clear(p.Bytes())
	got, err := io.ReadAll(far)
	check(t, err)
	if len(got) != queued {
		t.Fatalf("%d bytes came, want %d", len(got), queued)
	}
	if bytes.Equal(got, want[:queued]) {
		t.Fatal("everything came as it was before: the test shows no hazard")
	}
}

func TestCloseKeepsMemoryInFlightUntilItIsReleased(t *testing.T) {
	link := lab.ForTest(t)
	near, far := labPair(t, link)
	c := wrap(t, near, nil)
	p, want := allocNoise(t, 16<<20, 1)
	ticket, queued := pendingWrite(t, c, p)
	p.Release()
	check(t, c.Close())
	if ticket.Ready() {
		t.Fatal("done at Close")
	}
	// The memory is not mapped for anything else: what a new user of memory writes does not reach the peer.
	other, err := Alloc(16 << 20)
	check(t, err)
	defer other.Release()
	b := other.Bytes()
	for i := range b {
		b[i] = 0xee
	}
	// And whoever waits for the ticket before writing is safe.
	overwritten := make(chan error, 1)
	go func() {
		overwritten <- ticket.Wait(context.Background())
	}()
	expect(t, far, want[:queued])
	expectEOF(t, far)
	check(t, <-overwritten)
	check(t, c.Flush(testContext(t)))
	eventually(t, "the memory is released", func() bool { return p.r.state.Load()&regionUse == regionReleased })
	if s := c.Stats(); s.UnprovenBytes != 0 || s.BytesInFlight != 0 {
		t.Errorf("%d bytes unproven, %d in flight", s.UnprovenBytes, s.BytesInFlight)
	}
}

func TestMemoryRewrittenAfterCloseAtItsTicketDoesNotReachThePeer(t *testing.T) {
	link := lab.ForTest(t)
	near, far := labPair(t, link)
	c := wrap(t, near, nil)
	const size = 64 << 10
	p, want := allocNoise(t, 16<<20, 1)
	defer p.Release()
	var tickets []Ticket
	queued := 0
	check(t, c.SetWriteDeadline(time.Now().Add(50*time.Millisecond)))
	for queued < p.Len() {
		ticket, err := c.WritePinned(p.Slice(queued, queued+size))
		tickets = append(tickets, ticket)
		var we *WriteError
		if errors.As(err, &we) {
			queued += int(we.Queued)
			break
		}
		queued += size
	}
	if queued == p.Len() {
		t.Fatal("the peer's and our buffers took everything: nothing is in flight")
	}
	check(t, c.Close())
	var writing sync.WaitGroup
	for i, ticket := range tickets {
		writing.Go(func() {
			if err := ticket.Wait(testContext(t)); err != nil {
				t.Error(err)
			}
			clear(p.Bytes()[i*size : (i+1)*size])
		})
	}
	expect(t, far, want[:queued])
	expectEOF(t, far)
	writing.Wait()
}

func TestPeerThatNeverReads(t *testing.T) {
	link := lab.ForTest(t)
	near, far := labPair(t, link)
	c := wrap(t, near, &Config{CloseTimeout: 100 * time.Millisecond})
	p, _ := allocNoise(t, 16<<20, 1)
	ticket, _ := pendingWrite(t, c, p)

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := ticket.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait: %v, want the context's error", err)
	}
	if err := c.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Flush: %v, want the context's error", err)
	}

	check(t, c.Close())
	p.Release()
	if err := ticket.Wait(testContext(t)); !errors.Is(err, ErrConnFailed) || !strings.Contains(err.Error(), "reset 100ms after Close") {
		t.Errorf("ticket after the close timeout: %v, want ErrConnFailed and the reason", err)
	}
	if err := c.Flush(testContext(t)); !errors.Is(err, ErrConnFailed) {
		t.Errorf("Flush after the close timeout: %v, want ErrConnFailed", err)
	}
	eventually(t, "the memory is released", func() bool { return p.r.state.Load()&regionUse == regionReleased })
	if _, err := io.Copy(io.Discard, far); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer's read: %v, want a reset", err)
	}
	if s := c.Stats(); !s.ConnectionFailed || s.UnprovenBytes != 0 {
		t.Errorf("stats: %+v", s)
	}
}

func TestLingerZeroResetsAtOnceAndReleases(t *testing.T) {
	link := lab.ForTest(t)
	near, far := labPair(t, link)
	c := wrap(t, near, nil) // the default close timeout is far longer than this test waits
	p, _ := allocNoise(t, 16<<20, 1)
	ticket, _ := pendingWrite(t, c, p)
	p.Release()
	check(t, c.SetLinger(0))
	check(t, c.Close())
	if err := ticket.Wait(testContext(t)); !errors.Is(err, ErrConnFailed) {
		t.Errorf("ticket: %v, want ErrConnFailed", err)
	}
	eventually(t, "the memory is released", func() bool { return p.r.state.Load()&regionUse == regionReleased })
	if _, err := io.Copy(io.Discard, far); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer's read: %v, want a reset", err)
	}
}

func TestLingerMakesCloseWait(t *testing.T) {
	link := lab.ForTest(t)
	near, far := labPair(t, link)
	c := wrap(t, near, nil)
	p, want := allocNoise(t, 16<<20, 1)
	defer p.Release()
	ticket, queued := pendingWrite(t, c, p)
	check(t, c.SetLinger(int(testTimeout/time.Second)))
	var reading sync.WaitGroup
	reading.Go(func() {
		time.Sleep(20 * time.Millisecond)
		expect(t, far, want[:queued])
		expectEOF(t, far)
	})
	check(t, c.Close())
	if !ticket.Ready() {
		t.Error("Close returned before what was in flight had been delivered")
	}
	reading.Wait()
}

func TestCloseWriteKeepsCompletionsComing(t *testing.T) {
	link := lab.ForTest(t)
	near, far := labPair(t, link)
	c := wrap(t, near, nil)
	p, want := allocNoise(t, 16<<20, 1)
	defer p.Release()
	ticket, queued := pendingWrite(t, c, p)
	check(t, c.CloseWrite())
	if _, err := c.WritePinned(p); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("WritePinned after CloseWrite: %v, want EPIPE", err)
	}
	expect(t, far, want[:queued])
	expectEOF(t, far)
	check(t, ticket.Wait(testContext(t)))
	if _, err := far.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	expect(t, c, []byte("answer"))
	check(t, far.Close())
	expectEOF(t, c)
	check(t, c.Flush(testContext(t)))
	if c.Stats().ConnectionFailed {
		t.Error("an orderly end counts as a failure")
	}
}

func TestPeerResetFailsWhatIsInFlight(t *testing.T) {
	for _, who := range []string{"reader", "writer", "nobody"} {
		t.Run("found by "+who, func(t *testing.T) {
			link := lab.ForTest(t)
			near, far := labPair(t, link)
			c := wrap(t, near, nil)
			p, _ := allocNoise(t, 16<<20, 1)
			ticket, _ := pendingWrite(t, c, p)
			var finding sync.WaitGroup
			switch who {
			case "reader":
				finding.Go(func() {
					if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
						t.Errorf("Read: %v, want ECONNRESET", err)
					}
				})
			case "writer":
				finding.Go(func() {
					if _, err := c.WritePinned(p); !errors.Is(err, syscall.ECONNRESET) {
						t.Errorf("WritePinned: %v, want ECONNRESET", err)
					}
				})
			}
			check(t, far.SetLinger(0))
			check(t, far.Close())
			if err := ticket.Wait(testContext(t)); !errors.Is(err, ErrConnFailed) {
				t.Errorf("ticket: %v, want ErrConnFailed", err)
			}
			finding.Wait()
			p.Release()
			if err := c.Flush(testContext(t)); !errors.Is(err, ErrConnFailed) {
				t.Errorf("Flush: %v, want ErrConnFailed", err)
			}
			eventually(t, "the memory is released", func() bool { return p.r.state.Load()&regionUse == regionReleased })
			check(t, c.Close())
		})
	}
}

// TestMemoryHeldByADeviceIsNeverReused holds packets back in a queue of the sender's device, beyond the reach of a
// reset.
func TestMemoryHeldByADeviceIsNeverReused(t *testing.T) {
	link := lab.ForTest(t)
	near, _ := labPair(t, link)
	check(t, link.Sender.Do(func() error {
		dev, err := netlink.LinkByName("veth0")
		if err != nil {
			return err
		}
		const rate, burst = 20_000, 70_000 // bytes a second, and at once: one packet every three seconds
		return netlink.QdiscAdd(&netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: dev.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
			Rate:       rate, Limit: 64 << 20, Buffer: netlink.Xmittime(rate, burst),
		})
	}))
	c := wrap(t, near, &Config{CloseTimeout: 50 * time.Millisecond})
	p, err := Alloc(1 << 20)
	check(t, err)
	ticket, err := c.WritePinned(p)
	check(t, err)
	p.Release()
	check(t, c.Close())
	if err := ticket.Wait(testContext(t)); !errors.Is(err, ErrReleaseUnproven) {
		t.Fatalf("ticket: %v, want ErrReleaseUnproven", err)
	}
	if got := c.Stats().UnprovenBytes; got != 1<<20 {
		t.Errorf("%d bytes unproven, want %d", got, 1<<20)
	}
	if s := p.r.state.Load(); s == regionReleased {
		t.Error("the memory was unmapped")
	}
	if err := c.Flush(testContext(t)); !errors.Is(err, ErrReleaseUnproven) {
		t.Errorf("Flush: %v, want ErrReleaseUnproven", err)
	}
}

func TestSmallOptmemNeverBlocks(t *testing.T) {
	for _, max := range []string{"0", "2000", "6000"} {
		t.Run(max, func(t *testing.T) {
			link := lab.ForTest(t)
			check(t, link.Sender.SetSysctl("net.core.optmem_max", max))
			near, far := labPair(t, link)
			c := wrap(t, near, &Config{Threshold: 1})
			p, want := allocNoise(t, 1<<20, 1)
			defer p.Release()
			const rounds, cut = 20, 8 << 10
			var reading sync.WaitGroup
			reading.Go(func() {
				for range rounds {
					expect(t, far, want)
					time.Sleep(time.Millisecond)
				}
			})
			for range rounds {
				for off := 0; off < p.Len(); off += cut {
					_, err := c.WritePinned(p.Slice(off, off+cut))
					check(t, err)
				}
			}
			reading.Wait()
			check(t, c.Flush(testContext(t)))
			s := c.Stats()
			if s.EnobufsOptmem == 0 || s.EnobufsMemlock != 0 {
				t.Errorf("ENOBUFS by optmem %d, by memlock %d; want some and none", s.EnobufsOptmem, s.EnobufsMemlock)
			}
			if max == "0" && (s.Sends != 0 || s.CopiedBytes != rounds<<20 || s.Fallbacks.Optmem == 0) {
				t.Errorf("without any optmem: %+v", s)
			}
			if max == "6000" && s.ZeroCopiedBytes == 0 {
				t.Error("nothing was sent without copy")
			}
		})
	}
}

// TestENOBUFSIsRare sends many times what net.core.optmem_max allows to be in flight. The kernel refuses once in a while, and
// not each time.
func TestENOBUFSIsRare(t *testing.T) {
	link := lab.ForTest(t)
	check(t, link.Sender.SetSysctl("net.core.optmem_max", "6000"))
	near, far := labPair(t, link)
	c := wrap(t, near, &Config{Threshold: 1})
	go io.Copy(io.Discard, far)
	p, _ := allocNoise(t, 1<<20, 1)
	defer p.Release()
	start := time.Now()
	for range 20 {
		for off := 0; off < p.Len(); off += 8 << 10 {
			_, err := c.WritePinned(p.Slice(off, off+8<<10))
			check(t, err)
		}
	}
	s, rare := c.Stats(), 10*(1+uint64(time.Since(start)/limitsHold))
	if s.EnobufsOptmem == 0 || s.EnobufsOptmem > rare || s.Sends == 0 {
		t.Errorf("%d times ENOBUFS in %d sends of %d writes, want 1 to %d", s.EnobufsOptmem, s.Sends, s.Writes, rare)
	}
}

func TestPacketSocketTurnsZeroCopyOffAndItComesBack(t *testing.T) {
	link := lab.ForTest(t)
	near, far := labPair(t, link)
	c := wrap(t, near, nil)
	p, want := allocNoise(t, 1<<20, 1)
	defer p.Release()
	send := func() Outcome {
		t.Helper()
		var reading sync.WaitGroup
		reading.Go(func() { expect(t, far, want) })
		ticket, err := c.WritePinned(p)
		check(t, err)
		reading.Wait()
		check(t, ticket.Wait(testContext(t)))
		return ticket.Outcome()
	}
	if o := send(); o != OutcomeZeroCopied {
		t.Fatalf("before: %v", o)
	}
	var capture int
	check(t, link.Sender.Do(func() (err error) {
		capture, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		return err
	}))
	eventually(t, "the kernel's copies are noticed", func() bool { send(); return c.Stats().PathCopies })
	if o := send(); o != OutcomeCopied {
		t.Errorf("while somebody listens: %v, want %v", o, OutcomeCopied)
	}
	if c.Stats().Fallbacks.Path == 0 {
		t.Error("the reason is not counted")
	}
	check(t, unix.Close(capture))
	eventually(t, "zero-copy comes back", func() bool { return send() == OutcomeZeroCopied })
	if c.Stats().PathCopies {
		t.Error("the path is still said to copy")
	}
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

func TestConnectionsOfADeadReceiverDoNotDisturbOthers(t *testing.T) {
	link := lab.ForTest(t)
	near, _ := labPair(t, link)
	stuck := wrap(t, near, &Config{CloseTimeout: 50 * time.Millisecond})
	p, want := allocNoise(t, 16<<20, 1)
	pendingWrite(t, stuck, p)
	near, far := labPair(t, link)
	lively := wrap(t, near, nil)
	var reading sync.WaitGroup
	reading.Go(func() { expect(t, far, want) })
	ticket, err := lively.WritePinned(p)
	check(t, err)
	check(t, ticket.Wait(testContext(t)))
	reading.Wait()
	p.Release()
}

func TestCloseForbidsFlaggedCallsBeforeItDetachesTheDescriptor(t *testing.T) {
	near, _ := loopbackPair(t)
	c := wrap(t, near, insist)
	c.s.watch.mu.Lock() // Close cannot detach the descriptor yet
	var closing sync.WaitGroup
	closing.Go(func() { c.Close() })
	eventually(t, "flagged calls are forbidden", c.s.ledger().isClosed)
	if c.s.watch.interest.mode() == modeDetached {
		t.Error("a first flagged call in between would be made, and its completion not be read")
	}
	c.s.watch.mu.Unlock()
	closing.Wait()
}

func TestLastCompletionMayComeBeforeCloseHasBegunToWait(t *testing.T) {
	near, far := loopbackPair(t)
	c := wrap(t, near, insist)
	ticket, _ := pendingWrite(t, c, Pin(noise(16<<20, 1)))
	s := c.s
	l, err := s.closeDescriptor()
	check(t, err)
	l.begin()
	go io.Copy(io.Discard, far)
	eventually(t, "every completion has come", func() bool {
		check(t, s.control(func(fd uintptr) { s.drain(fd) }))
		return s.ledger().idle()
	})
	select {
	case <-l.done:
		t.Error("the descriptor was closed under the hands of Close")
	default:
	}
	go l.run()
	check(t, ticket.Wait(testContext(t)))
	<-l.done
	thePoller.mu.Lock()
	defer thePoller.mu.Unlock()
	for token, left := range thePoller.sockets {
		if left == s {
			t.Errorf("the poller knows the connection still, by token %d", token)
		}
	}
}

func TestCloseDeliversThoughReceivedBytesWereLeftUnread(t *testing.T) {
	link := lab.ForTest(t)
	near, far := labPair(t, link)
	check(t, near.SetWriteBuffer(8<<20))
	check(t, far.SetReadBuffer(64<<10))
	c := wrap(t, near, nil)
	if _, err := far.Write([]byte("never read")); err != nil {
		t.Fatal(err)
	}
	p, want := allocNoise(t, 1<<20, 1)
	_, err := c.WritePinned(p)
	check(t, err)
	p.Release()
	last := noise(1<<20, 2)
	if _, err := c.Write(last); err != nil {
		t.Fatal(err)
	}
	if c.Stats().IDsInFlight == 0 {
		t.Fatal("nothing is in flight")
	}
	check(t, c.Close())
	expect(t, far, want)
	expect(t, far, last)
	expectEOF(t, far)
}

// TestPeerThatIsBlockedInWriteIsResetByClose closes while our receive window is full, which nothing opens any more.
func TestPeerThatIsBlockedInWriteIsResetByClose(t *testing.T) {
	near, far := narrowPair(t)
	c := wrap(t, near, insist)
	wrote := make(chan error, 1)
	go func() {
		_, err := far.Write(make([]byte, 64<<20))
		wrote <- err
	}()
	eventually(t, "our receive window is full", func() (full bool) {
		before := unreadBytes(t, near)
		time.Sleep(20 * time.Millisecond)
		return before > 0 && unreadBytes(t, near) == before
	})
	c.s.path.free.Store(true) // or the writer would look for what the path does, and find that nothing is in flight
	want := noise(16<<10, 1)
	ticket, err := c.WritePinned(Pin(want))
	check(t, err)
	if c.Stats().IDsInFlight == 0 {
		t.Fatal("nothing is in flight")
	}
	check(t, c.Close())
	expect(t, far, want)
	expectEOF(t, far)
	check(t, ticket.Wait(testContext(t)))
	select {
	case err := <-wrote:
		if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("the peer's Write: %v, want a reset", err)
		}
	case <-time.After(testTimeout):
		t.Error("the peer's Write goes on blocking")
	}
}

// unreadBytes returns how many bytes c has received that were not read.
func unreadBytes(t *testing.T, c *net.TCPConn) (n int) {
	t.Helper()
	raw, err := c.SyscallConn()
	check(t, err)
	check(t, raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCINQ) }))
	check(t, err)
	return n
}

func TestASocketIsWrappedOnce(t *testing.T) {
	near, far := loopbackPair(t)
	for range 2 {
		if r := Probe(near); !r.ZeroCopy {
			t.Fatalf("a socket that was probed: %v", r.Reason)
		}
	}
	c := wrap(t, near, insist)
	f, err := near.File()
	check(t, err)
	dup, err := net.FileConn(f)
	check(t, err)
	defer dup.Close()
	check(t, f.Close())
	for name, again := range map[string]net.Conn{"the same": near, "a duplicate": dup} {
		if got := Wrap(again, nil); got != again {
			t.Errorf("%s was wrapped again: two ledgers would count one socket's completions", name)
		}
		if _, err := NewConn(again.(*net.TCPConn), nil); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "set already") {
			t.Errorf("%s: %v, want an error that says why", name, err)
		}
	}
	data := noise(100000, 1)
	ticket, err := c.WritePinned(Pin(data))
	check(t, err)
	expect(t, far, data)
	check(t, ticket.Wait(testContext(t)))
}

func TestReadDeadlineSetBeforeWrappingHolds(t *testing.T) {
	near, far := narrowPair(t)
	const patience = 200 * time.Millisecond
	start := time.Now()
	check(t, near.SetReadDeadline(start.Add(patience)))
	c := wrap(t, near, insist)
	done := make(chan error, 1)
	go func() {
		_, err := c.s.read(make([]byte, 1)) // as a Read that the runtime's poller has refused
		done <- err
	}()
	_ = far
	select {
	case err := <-done:
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) < patience {
			t.Errorf("after %v: %v, want a timeout, not early", time.Since(start), err)
		}
	case <-time.After(testTimeout):
		t.Fatal("the deadline is not honoured")
	}
}

func TestMemoryThatCannotBePinnedIsCopied(t *testing.T) {
	fd, _, errno := unix.Syscall(unix.SYS_MEMFD_SECRET, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		t.Skipf("memfd_secret: %v", errno) // a kernel without it: nothing else here can be read and not pinned
	}
	defer unix.Close(int(fd))
	check(t, unix.Ftruncate(int(fd), 1<<20))
	secret, err := unix.Mmap(int(fd), 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	check(t, err)
	defer unix.Munmap(secret)
	want := noise(len(secret), 1)
	copy(secret, want)
	near, far := loopbackPair(t)
	c := wrap(t, near, insist)
	var reading sync.WaitGroup
	reading.Go(func() { expect(t, far, want) })
	ticket, err := c.WritePinned(Pin(secret))
	check(t, err)
	check(t, ticket.Wait(testContext(t)))
	reading.Wait()
	if s := c.Stats(); ticket.Outcome() != OutcomeCopied || s.Fallbacks.Unpinnable != 1 || s.CopiedBytes != 1<<20 {
		t.Errorf("%v; %+v", ticket.Outcome(), s)
	}
	unmapped, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_NONE, unix.MAP_ANON|unix.MAP_PRIVATE)
	check(t, err)
	defer unix.Munmap(unmapped)
	if _, err := c.WritePinned(Pin(unmapped)); !errors.Is(err, syscall.EFAULT) {
		t.Errorf("memory that cannot even be read: %v, want EFAULT", err)
	}
}

func TestMaxInFlightLetsALargeWritePass(t *testing.T) {
	link := lab.ForTest(t)
	near, far := labPair(t, link)
	const bound = 8 << 20
	c := wrap(t, near, &Config{MaxInFlight: bound})
	p, want := allocNoise(t, 64<<20, 1)
	defer p.Release()
	var reading sync.WaitGroup
	reading.Go(func() { expect(t, far, want) })
	ticket, err := c.WritePinned(p)
	check(t, err)
	reading.Wait()
	check(t, ticket.Wait(testContext(t)))
	s := c.Stats()
	if sent := int64(p.Len()) - s.CopiedBytes; sent < 2*bound {
		t.Errorf("%d of %d bytes were sent without copy: what has completed counts as in flight", sent, p.Len())
	}
	if s.BytesInFlight != 0 {
		t.Errorf("%d bytes in flight after the last completion", s.BytesInFlight)
	}
}

// children are the parts of tests that need a process of their own, by name. What one prints is its failure.
var children = map[string]func() error{
	"memlock":   memlockChild,
	"nofile":    nofileChild,
	"noconnect": noconnectChild,
	"discard":   discardChild,
	"verify":    verifyChild,
}

const childEnv = "ZCNET_TEST_CHILD"

// childMain runs the part of a test that needs a process of its own, if this process is one.
func childMain() bool {
	name := os.Getenv(childEnv)
	if name == "" {
		return false
	}
	if err := children[name](); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	return true
}

// runChild runs one of children in a process of its own.
func runChild(t *testing.T, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*testTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+name)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// childPair is loopbackPair for a child.
func childPair(cfg *Config) (near *Conn, far net.Conn, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	n, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	far, err = l.Accept()
	if err != nil {
		return nil, nil, err
	}
	near, err = NewConn(n.(*net.TCPConn), cfg)
	return near, far, err
}

func TestMemlockLimitOfAnUnprivilegedProcess(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the child lowers its limit and drops root, which takes root")
	}
	runChild(t, "memlock")
}

// memlockChild sends with less and less RLIMIT_MEMLOCK, which the library learns by being refused or knows. Every byte
// must arrive, and nothing may wait for a completion that will never come.
func memlockChild() error {
	if err := syscall.Setuid(65534); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	for _, limit := range []uint64{256 << 10, 64 << 10, 4 << 10} {
		if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return err
		}
		for _, known := range []bool{false, true} {
			if knownLimits.Store(nil); !known {
				knownLimits.Store(unlimitedFor(time.Hour))
			}
			if err := sendUnderMemlock(ctx, limit, known); err != nil {
				return fmt.Errorf("limit %d, known before: %v: %w", limit, known, err)
			}
		}
	}
	return nil
}

// unlimitedFor returns limits that are believed for so long.
func unlimitedFor(d time.Duration) *limits {
	l := noLimits
	l.read = clock() + d
	return &l
}

func sendUnderMemlock(ctx context.Context, limit uint64, known bool) error {
	near, far, err := childPair(insist)
	if err != nil {
		return err
	}
	defer far.Close()
	defer near.Close()
	data := noise(4<<20, limit)
	got := make(chan error, 1)
	go func() {
		b := make([]byte, len(data))
		_, err := io.ReadFull(far, b)
		if err == nil && !bytes.Equal(b, data) {
			err = errors.New("wrong bytes")
		}
		got <- err
	}()
	if _, err := near.WritePinned(Pin(data)); err != nil {
		return err
	}
	if err := near.Flush(ctx); err != nil {
		return err
	}
	if err := <-got; err != nil {
		return err
	}
	s := near.Stats()
	switch {
	case known && s.EnobufsMemlock+s.EnobufsOptmem > 0:
		return fmt.Errorf("the kernel had to refuse: %+v", s)
	case !known && s.EnobufsMemlock == 0:
		return fmt.Errorf("no ENOBUFS was counted as memlock's: %+v", s)
	case limit < smallestCall && s.Fallbacks.Memlock == 0:
		return fmt.Errorf("the copying was not counted: %+v", s)
	case limit > smallestCall && s.Sends == 0:
		return fmt.Errorf("no smaller call was tried: %+v", s)
	}
	return nil
}

func TestCollectorLeavesMemoryInFlightAlone(t *testing.T) {
	link := lab.ForTest(t)
	near, far := labPair(t, link)
	c := wrap(t, near, nil)
	check(t, c.SetWriteDeadline(time.Now().Add(testTimeout)))
	const size, count = 64 << 10, 20
	want := noise(size*count, 1)
	for i := range count {
		b := bytes.Clone(want[i*size : (i+1)*size]) // garbage as soon as the call returns
		_, err := c.WritePinned(Pin(b))
		check(t, err)
	}
	if c.Stats().BytesInFlight == 0 {
		t.Fatal("nothing is in flight")
	}
	var garbage [][]byte
	for range 5 {
		runtime.GC()
		for range count * 4 {
			garbage = append(garbage, bytes.Repeat([]byte{0xee}, size))
		}
	}
	expect(t, far, want)
	check(t, c.Flush(testContext(t)))
	if s := c.Stats(); s.ZeroCopiedBytes != size*count {
		t.Errorf("%d bytes were sent without copy, want %d", s.ZeroCopiedBytes, size*count)
	}
	_ = garbage
}

// TestWriterReadsCompletionsThatNobodyElseReads leaves room for one
// notification only, and no goroutine waits: the second call fails with
// ENOBUFS, and from then on the writer reads the completion of the call before
// in advance.
func TestWriterReadsCompletionsThatNobodyElseReads(t *testing.T) {
	link := lab.ForTest(t)
	check(t, link.Sender.SetSysctl("net.core.optmem_max", "1000"))
	near, far := labPair(t, link)
	c := wrap(t, near, nil)
	p, want := allocNoise(t, 64<<10, 1)
	defer p.Release()
	const writes = 50
	for range writes {
		_, err := c.WritePinned(p)
		check(t, err)
		expect(t, far, want)
		eventually(t, "the peer's acknowledgement arrives", func() bool { return unacknowledged(t, c) == 0 })
	}
	s := c.Stats()
	if s.Sends != writes || s.EnobufsOptmem == 0 || s.EnobufsOptmem > writes/2 || s.Fallbacks != (Fallbacks{}) {
		t.Errorf("%d of %d writes went out flagged, with %d ENOBUFS and %+v", s.Sends, writes, s.EnobufsOptmem, s.Fallbacks)
	}
}

// unacknowledged returns how many bytes the peer's kernel has not acknowledged.
func unacknowledged(t *testing.T, c *Conn) (n int) {
	t.Helper()
	check(t, c.s.raw.Control(func(fd uintptr) {
		var err error
		n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
		check(t, err)
	}))
	return n
}

func TestWriteThatMeetsCloseSendsNothingFlagged(t *testing.T) {
	c, _ := loopbackPair(t)
	zc := wrap(t, c, insist)
	zc.s.ledger().close() // where Close is between deciding that nothing is in flight and closing the descriptor
	ticket, err := zc.WritePinned(Pin(noise(100000, 1)))
	if !errors.Is(err, net.ErrClosed) || !ticket.Ready() {
		t.Errorf("error %v, ready %v; want net.ErrClosed and a done ticket", err, ticket.Ready())
	}
	if n := zc.Stats().Sends; n != 0 {
		t.Errorf("%d flagged calls whose completions nobody will hear", n)
	}
}
