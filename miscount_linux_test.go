package zcnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	ebpflink "github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/zcnet-go/zcnet/internal/lab"
)

// A tap is a BPF sockmap with an sk_msg program that looks at what a socket
// sends, as observability agents and service meshes attach them from outside.
// Below it the kernel copies what is sent and passes it on in pieces, each with
// the caller's flags, so that IDs count pieces and not calls.
type tap struct{ m *ebpf.Map }

func newTap(t testing.TB) *tap {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("BPF takes root")
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "tap", Type: ebpf.SockMap, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	check(t, err)
	t.Cleanup(func() { m.Close() })
	const pass = 1 // SK_PASS, include/uapi/linux/bpf.h
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:         "tap_pass",
		Type:         ebpf.SkMsg,
		License:      "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, pass), asm.Return()},
	})
	check(t, err)
	t.Cleanup(func() { prog.Close() })
	check(t, ebpflink.RawAttachProgram(ebpflink.RawAttachProgramOptions{Target: m.FD(), Program: prog, Attach: ebpf.AttachSkMsgVerdict}))
	t.Cleanup(func() {
		_ = ebpflink.RawDetachProgram(ebpflink.RawDetachProgramOptions{Target: m.FD(), Program: prog, Attach: ebpf.AttachSkMsgVerdict})
	})
	return &tap{m}
}

func (tp *tap) attach(t testing.TB, c *Conn) {
	t.Helper()
	onDescriptor(t, c, func(fd int) { check(t, tp.m.Put(uint32(0), uint32(fd))) })
}

func (tp *tap) detach(t testing.TB) {
	t.Helper()
	check(t, tp.m.Delete(uint32(0)))
}

// onDescriptor calls f with the descriptor of c.
func onDescriptor(t testing.TB, c syscall.Conn, f func(fd int)) {
	t.Helper()
	raw, err := c.SyscallConn()
	check(t, err)
	check(t, raw.Control(func(fd uintptr) { f(int(fd)) }))
}

func enableZeroCopy(t testing.TB, raw syscall.RawConn) {
	t.Helper()
	check(t, raw.Control(func(fd uintptr) { check(t, setZeroCopy(int(fd))) }))
}

// wantDistrust checks what is left of a connection whose completions were found
// out: it is said, once, and from here on every write copies.
func wantDistrust(t *testing.T, c *Conn, far net.Conn, log *syncBuffer) {
	t.Helper()
	before := c.Stats()
	if !before.CompletionsDistrusted || !before.ZeroCopyRefused || before.IDsInFlight != 0 || before.BytesInFlight != 0 {
		t.Errorf("distrusted %v, refused %v, %d IDs and %d bytes in flight; want true, true and none",
			before.CompletionsDistrusted, before.ZeroCopyRefused, before.IDsInFlight, before.BytesInFlight)
	}
	if n := strings.Count(log.String(), "zero-copy sends turned off"); n != 1 {
		t.Errorf("the log tells %d times that zero-copy was turned off, want once:\n%s", n, log.String())
	}
	if r := Probe(c); r.ZeroCopy || !strings.Contains(r.Reason, "completions do not") {
		t.Errorf("Probe: zero-copy %v, because %q", r.ZeroCopy, r.Reason)
	}
	data := noise(256<<10, 99)
	received := beginCall(func() error { return receive(far, data) })
	ticket, err := c.WritePinned(Pin(data))
	check(t, err)
	check(t, ticket.Wait(testContext(t)))
	if after := c.Stats(); after.Sends != before.Sends || ticket.Outcome() != OutcomeCopied || after.Fallbacks.Refused == before.Fallbacks.Refused {
		t.Errorf("a later write made %d flagged calls, its outcome is %v, fallbacks %+v", after.Sends-before.Sends, ticket.Outcome(), after.Fallbacks)
	}
	check(t, <-received)
}

func logging(log *syncBuffer, cfg Config) *Config {
	cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
	return &cfg
}

// A tapped call takes several IDs, and its ticket is done all the same, as are
// those of all later writes.
func TestTappedWritesAreDone(t *testing.T) {
	for _, size := range []int{64 << 10, 256 << 10, 1 << 20} {
		t.Run(byteSize(size), func(t *testing.T) {
			onEachLink(t, func(t *testing.T, pair pairMaker) {
				near, far := pair(t)
				var log syncBuffer
				c := wrap(t, near, logging(&log, *insist))
				newTap(t).attach(t, c)
				p, want := allocNoise(t, size, 1)
				received := beginCall(func() error { return receive(far, want) })
				ticket, err := c.WritePinned(p)
				check(t, err)
				check(t, <-received)
				if err := ticket.Wait(testContext(t)); err != nil {
					t.Errorf("Wait: %v", err)
				}
				// The IDs that it has taken beyond its own may not have been read yet.
				for i := 0; i < 50 && !c.Stats().CompletionsDistrusted; i++ {
					received := beginCall(func() error { return receive(far, want) })
					ticket, err := c.WritePinned(p)
					check(t, err)
					check(t, <-received)
					check(t, ticket.Wait(testContext(t)))
				}
				wantDistrust(t, c, far, &log)
				p.Release()
				wantFreed(t, p)
				socket := watchDescriptors(t, c)
				check(t, c.Close())
				expectEOF(t, far)
				wantNothingLeft(t, c, socket)
			})
		})
	}
}

func TestPoolDoesNotStarveBelowATap(t *testing.T) {
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		near, far := pair(t)
		c := wrap(t, near, nil)
		newTap(t).attach(t, c)
		pool, err := NewPool(256<<10, 8)
		check(t, err)
		defer pool.Close()
		go io.Copy(io.Discard, far)
		for range 64 {
			p, err := pool.Get(testContext(t))
			check(t, err)
			_, err = c.WritePinned(p)
			check(t, err)
			p.Release()
		}
	})
}

// The IDs that a tapped call has taken beyond its own are not those of later
// calls, though they may be read as such: they complete while the peer still
// waits for the later ones.
func TestATapThatIsTakenOffFreesNoMemory(t *testing.T) {
	link := lab.ForTest(t)
	for i := range 2 {
		near, far := smallReceiver(t, link)
		c := wrap(t, near, insist)
		tap := newTap(t)
		tap.attach(t, c)
		first, want := allocNoise(t, 512<<10, uint64(2*i)) // as much as shares one notification
		_, err := c.WritePinned(first)
		check(t, err)
		tap.detach(t)
		wantNotReused(t, c, far, want, uint64(2*i+1))
		first.Release()
	}
}

// smallReceiver returns a pair whose far end takes few bytes that are not read.
func smallReceiver(t *testing.T, link *lab.Link) (near, far *net.TCPConn) {
	return smallPair(t, link, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<10) })
}

// wantNotReused makes writes to a slow peer, and writes to the memory of each as
// soon as its ticket is done. The peer must receive what was sent.
func wantNotReused(t *testing.T, c *Conn, far net.Conn, before []byte, seed uint64) {
	t.Helper()
	const parts = 16 // more IDs than the calls before have taken beyond their own
	p, want := allocNoise(t, parts*32<<10, seed)
	defer p.Release()
	var waiting []pendingCall
	for i := range parts {
		part := p.Slice(i*p.Len()/parts, (i+1)*p.Len()/parts)
		ticket, err := c.WritePinned(part)
		check(t, err)
		waiting = append(waiting, beginCall(func() error {
			err := ticket.Wait(testContext(t))
			clear(part.Bytes())
			return err
		}))
	}
	for rest := append(before, want...); len(rest) > 0; {
		n := min(len(rest), 16<<10)
		expect(t, far, rest[:n])
		rest = rest[n:]
		time.Sleep(time.Millisecond)
	}
	for i, done := range waiting {
		if err := <-done; err != nil {
			t.Errorf("Wait for part %d: %v", i, err)
		}
	}
}

// Other code makes a flagged call on the socket, as code does that passes the
// flag always because it was always ignored.
func TestTheCompletionOfAnothersCallFreesNoMemory(t *testing.T) {
	link := lab.ForTest(t)
	near, far := smallReceiver(t, link)
	var log syncBuffer
	c := wrap(t, near, logging(&log, *insist))
	foreign := noise(64<<10, 2)
	sendFlagged(t, c, foreign)
	expect(t, far, foreign)
	eventually(t, "all is acknowledged", func() bool { return unacknowledged(t, c) == 0 })
	wantNotReused(t, c, far, nil, 3)
	wantDistrust(t, c, far, &log)
}

// sendFlagged makes one flagged call of which the library does not know.
func sendFlagged(t *testing.T, c *Conn, b []byte) {
	t.Helper()
	onDescriptor(t, c, func(fd int) {
		n, err := unix.SendmsgN(fd, b, nil, nil, unix.MSG_ZEROCOPY|unix.MSG_DONTWAIT)
		if err != nil || n != len(b) {
			t.Fatalf("sent %d of %d bytes: %v", n, len(b), err)
		}
	})
}

// In the middle of a stream, IDs run ahead of the ledger's for as long as the
// stream goes on. No memory may be reused that the peer still waits for.
func TestAnothersCallsAmongOurs(t *testing.T) {
	link := lab.ForTest(t)
	near, far := labPair(t, link)
	c := wrap(t, near, insist)
	pool, err := NewPool(128<<10, 16)
	check(t, err)
	defer pool.Close()
	const rounds = 400
	received := beginCall(func() error {
		got := make([]byte, 128<<10)
		for i := range rounds {
			if _, err := io.ReadFull(far, got); err != nil {
				return err
			}
			for at, b := range got {
				if b != byte(i) {
					return fmt.Errorf("round %d: byte %d is %d", i, at, b)
				}
			}
			if i%50 == 0 {
				time.Sleep(5 * time.Millisecond) // the send buffer fills
			}
		}
		return nil
	})
	for i := range rounds {
		p, err := pool.Get(testContext(t))
		check(t, err)
		for at := range p.Bytes() {
			p.Bytes()[at] = byte(i)
		}
		if i == 20 { // of the same content, and as long: the peer does not see whose it was
			stranger := make([]byte, p.Len())
			copy(stranger, p.Bytes())
			p.Release()
			sendWhole(t, c, stranger)
			continue
		}
		_, err = c.WritePinned(p)
		check(t, err)
		p.Release()
	}
	check(t, <-received)
	if err := c.Flush(testContext(t)); err != nil {
		t.Errorf("Flush: %v", err)
	}
	eventually(t, "the count is found out", func() bool { return c.Stats().CompletionsDistrusted })
}

// sendWhole sends b by flagged calls of which the library does not know, under the
// lock of writes.
func sendWhole(t *testing.T, c *Conn, b []byte) {
	t.Helper()
	check(t, c.s.raw.Write(func(fd uintptr) bool {
		n, err := unix.SendmsgN(int(fd), b, nil, nil, unix.MSG_ZEROCOPY|unix.MSG_DONTWAIT)
		if err == unix.EAGAIN {
			return false
		}
		check(t, err)
		b = b[n:]
		return len(b) == 0
	}))
}

// Other code reads the error queue.
func TestStolenCompletions(t *testing.T) {
	onEachLink(t, func(t *testing.T, pair pairMaker) {
		near, far := pair(t)
		var log syncBuffer
		c := wrap(t, near, logging(&log, *insist))
		var read atomic.Int64
		received := beginCall(func() error {
			b := make([]byte, 64<<10)
			for {
				n, err := far.Read(b)
				if read.Add(int64(n)); err != nil {
					return err
				}
			}
		})
		stop := steal(t, c)
		p := Pin(noise(64<<10, 1))
		sent := int64(0)
		for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); sent += int64(p.Len()) {
			_, err := c.WritePinned(p)
			check(t, err)
		}
		if stop() == 0 {
			t.Fatal("nothing was stolen")
		}
		if err := c.Flush(testContext(t)); err != nil {
			t.Errorf("Flush: %v", err)
		}
		if s := c.Stats(); !s.CompletionsDistrusted || s.UnprovenBytes > 0 {
			t.Errorf("distrusted %v, %d bytes unproven; want true, and none", s.CompletionsDistrusted, s.UnprovenBytes)
		}
		socket := watchDescriptors(t, c)
		check(t, c.Close())
		if err := <-received; err != io.EOF || read.Load() != sent {
			t.Errorf("the peer received %d of %d bytes, then %v", read.Load(), sent, err)
		}
		wantNothingLeft(t, c, socket)
	})
}

// steal reads the error queue of c until stop is called, which returns how many
// messages it has read.
func steal(t *testing.T, c *Conn) (stop func() int) {
	var dup int
	onDescriptor(t, c, func(fd int) {
		var err error
		dup, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		check(t, err)
	})
	var over atomic.Bool
	var thief sync.WaitGroup
	stolen := 0
	thief.Go(func() {
		control := make([]byte, 512)
		for !over.Load() {
			if _, _, _, _, err := unix.Recvmsg(dup, nil, control, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT); err == nil {
				stolen++
			} else {
				time.Sleep(20 * time.Microsecond)
			}
		}
	})
	return func() int {
		over.Store(true)
		thief.Wait()
		unix.Close(dup)
		return stolen
	}
}

// A Close that begins while completions are missing does not wait for them.
func TestCloseDoesNotWaitForStolenCompletions(t *testing.T) {
	near, far := loopbackPair(t)
	cfg := *insist
	cfg.CloseTimeout = time.Hour
	c := wrap(t, near, &cfg)
	stop := steal(t, c)
	p, want := allocNoise(t, 256<<10, 1)
	ticket, err := c.WritePinned(p)
	check(t, err)
	p.Release()
	expect(t, far, want)
	eventually(t, "all is acknowledged", func() bool { return unacknowledged(t, c) == 0 })
	stop()
	socket := watchDescriptors(t, c)
	check(t, c.Close())
	check(t, ticket.Wait(testContext(t)))
	expectEOF(t, far)
	wantNothingLeft(t, c, socket)
}

// A silentKernel tells less of its accounts than Linux does.
type silentKernel struct {
	kernel
	noQueue bool // nor what is unacknowledged
}

func (silentKernel) optionMemory(uintptr) (int64, bool) { return 0, false }

// A queuelessKernel does not tell what is unacknowledged, and only that.
type queuelessKernel struct{ kernel }

func (queuelessKernel) unacknowledged(uintptr) (int64, bool) { return 0, false }

func (k silentKernel) unacknowledged(fd uintptr) (int64, bool) {
	if k.noQueue {
		return 0, false
	}
	return k.kernel.unacknowledged(fd)
}

// No completion ever comes: on Linux, of a socket from which the option was taken
// away again. What the kernel's accounts prove is free; what they do not is given
// up, and every wait ends.
func TestNoCompletionEverComes(t *testing.T) {
	for _, tt := range []struct {
		name   string
		kernel func(kernel) kernel
		proven bool
	}{
		{"the kernel's accounts tell", func(k kernel) kernel { return k }, true},
		{"they tell what is acknowledged only", func(k kernel) kernel { return silentKernel{k, false} }, false},
		{"they tell nothing", func(k kernel) kernel { return silentKernel{k, true} }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			near, far := loopbackPair(t)
			var log syncBuffer
			cfg := *insist
			cfg.patience = 200 * time.Millisecond
			c := wrap(t, near, logging(&log, cfg))
			c.s.kernel = tt.kernel(c.s.kernel)
			onDescriptor(t, c, func(fd int) { check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 0)) })
			p, want := allocNoise(t, 256<<10, 1)
			ticket, err := c.WritePinned(p)
			check(t, err)
			expect(t, far, want)
			p.Release()
			flushed := beginCall(func() error { return c.Flush(testContext(t)) })
			err = ticket.Wait(testContext(t))
			if tt.proven && err != nil || !tt.proven && !errors.Is(err, ErrReleaseUnproven) {
				t.Errorf("Wait: %v; what is free is proven: %v", err, tt.proven)
			}
			if err := <-flushed; tt.proven != (err == nil) {
				t.Errorf("Flush: %v", err)
			}
			if s := c.Stats(); (s.UnprovenBytes == 0) != tt.proven {
				t.Errorf("%d bytes unproven; what is free is proven: %v", s.UnprovenBytes, tt.proven)
			}
			if !tt.proven && p.r.state.Load()&regionUse == regionReleased {
				t.Error("memory is used again whose release was not proven")
			}
			wantDistrust(t, c, far, &log)
			socket := watchDescriptors(t, c)
			check(t, c.Close())
			expectEOF(t, far)
			socket.wantGone(t)
		})
	}
}

// A writer finds out by itself, before it has lent much.
func TestWriterFindsOutThatNoCompletionComes(t *testing.T) {
	near, far := loopbackPair(t)
	c := wrap(t, near, insist)
	onDescriptor(t, c, func(fd int) { check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 0)) })
	go io.Copy(io.Discard, far)
	_, err := io.Copy(c, io.LimitReader(zeros{}, 256<<20))
	check(t, err)
	if s := c.Stats(); !s.CompletionsDistrusted || s.Sends > 1000 {
		t.Errorf("distrusted %v after %d flagged calls", s.CompletionsDistrusted, s.Sends)
	}
	check(t, c.Flush(testContext(t)))
}

// Where the kernel's accounts do not tell that no completion will come, little is
// lent until that is certain, and all the bytes arrive.
func TestLittleIsLentWithoutCompletions(t *testing.T) {
	for _, heard := range []int{0, 1} { // before they end
		near, far := loopbackPair(t)
		c := wrap(t, near, insist)
		c.s.kernel = silentKernel{c.s.kernel, true}
		data := noise(64<<10, 1)
		most := mostUnansweredBytes / len(data)
		for i := range heard + most + 50 {
			if i == heard {
				onDescriptor(t, c, func(fd int) { check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 0)) })
			}
			ticket, err := c.WritePinned(Pin(data))
			check(t, err)
			expect(t, far, data)
			if i < heard {
				check(t, ticket.Wait(testContext(t)))
			}
		}
		if s := c.Stats(); s.Sends != uint64(heard+most) || s.Fallbacks.Refused == 0 {
			t.Errorf("%d flagged calls, want %d; %+v", s.Sends, heard+most, s.Fallbacks)
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// A completion is read, and everything is acknowledged, before its call has
// returned. The write finds that out itself: there will be no event.
func TestCompletionBeforeItsCallReturnsIsProven(t *testing.T) {
	near, far := loopbackPair(t)
	c := wrap(t, near, insist)
	in, out := make(chan struct{}), make(chan struct{})
	c.s.kernel = &parkingKernel{kernel: c.s.kernel, in: in, out: out}
	data := noise(page, 1)
	var ticket Ticket
	written := beginCall(func() (err error) { ticket, err = c.WritePinned(Pin(data)); return err })
	<-in
	expect(t, far, data)
	eventually(t, "all is acknowledged", func() bool { return unacknowledged(t, c) == 0 })
	c.s.reap()
	close(out)
	check(t, <-written)
	if ticket.pending() {
		t.Error("the ticket is pending, with everything acknowledged and its completion read")
	}
}

// A check looks at all connections, a part of them at a time.
func TestEveryConnectionIsChecked(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	var tickets []Ticket
	for range 2*roundPart + 10 {
		near, err := net.Dial("tcp4", l.Addr().String())
		check(t, err)
		t.Cleanup(func() { near.Close() })
		far, err := l.Accept()
		check(t, err)
		t.Cleanup(func() { far.Close() })
		c := wrap(t, near.(*net.TCPConn), insist)
		onDescriptor(t, c, func(fd int) { check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 0)) })
		ticket, err := c.WritePinned(Pin(make([]byte, page)))
		check(t, err)
		tickets = append(tickets, ticket)
	}
	for i, ticket := range tickets {
		if err := ticket.Wait(testContext(t)); err != nil {
			t.Fatalf("connection %d of %d: %v", i, len(tickets), err)
		}
	}
}

// A wrong count is told though zero-copy was turned off before.
func TestWrongCountIsToldAfterFile(t *testing.T) {
	near, far := loopbackPair(t)
	var log syncBuffer
	c := wrap(t, near, logging(&log, *insist))
	onDescriptor(t, c, func(fd int) { check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 0)) })
	data := noise(page, 1)
	ticket, err := c.WritePinned(Pin(data))
	check(t, err)
	expect(t, far, data)
	f, err := c.File()
	check(t, err)
	defer f.Close()
	check(t, ticket.Wait(testContext(t)))
	if !strings.Contains(log.String(), errNoCompletions.Error()) {
		t.Errorf("the log does not tell of it:\n%s", log.String())
	}
}

// A peer that does not read holds memory rightly, for as long as it likes.
func TestSlowPeerIsNotMistakenForMissingCompletions(t *testing.T) {
	link := lab.ForTest(t)
	for _, below := range []func(kernel) kernel{
		func(k kernel) kernel { return k },
		func(k kernel) kernel { return silentKernel{k, false} },
		func(k kernel) kernel { return queuelessKernel{k} },
	} {
		near, far := smallReceiver(t, link)
		cfg := *insist
		cfg.patience = time.Millisecond
		c := wrap(t, near, &cfg)
		c.s.kernel = below(c.s.kernel)
		p, want := allocNoise(t, 256<<10, 1)
		_, err := c.WritePinned(p)
		check(t, err)
		ctx, cancel := context.WithTimeout(context.Background(), 4*checkEvery)
		if err := c.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) || unacknowledged(t, c) == 0 {
			t.Fatalf("Flush while the peer does not read: %v, %d bytes unacknowledged", err, unacknowledged(t, c))
		}
		cancel()
		expect(t, far, want)
		check(t, c.Flush(testContext(t)))
		if s := c.Stats(); s.CompletionsDistrusted || s.UnprovenBytes > 0 {
			t.Errorf("distrusted %v, %d bytes unproven", s.CompletionsDistrusted, s.UnprovenBytes)
		}
		p.Release()
	}
}

// attachFilter gives the socket a filter that passes everything. The kernel
// charges it to the socket's option memory, for as long as it is there, as it
// does BPF socket storage, TCP MD5 keys and more.
func attachFilter(t testing.TB, fd int) {
	t.Helper()
	prog := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff}}
	check(t, unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &prog[0]}))
	runtime.KeepAlive(prog)
	if n, ok := optionMemory(uintptr(fd)); !ok || n == 0 {
		t.Fatalf("option memory %d, %v", n, ok)
	}
}

// shortBuffers are n bytes in buffers too short to be lent.
func shortBuffers(n int) (ps []Pinned) {
	for ; n > 0; n -= 2 << 10 {
		ps = append(ps, Pin(make([]byte, min(n, 2<<10))))
	}
	return ps
}

// Close of a write that is not sealed: its one flagged call seems complete, but
// that was another program's call, and the peer has not acknowledged ours.
func TestCloseDuringAWriteFreesNothingThatThePeerWaitsFor(t *testing.T) {
	link := lab.ForTest(t)
	near, far := smallReceiver(t, link)
	check(t, near.SetWriteBuffer(512<<10))
	c := wrap(t, near, insist)
	foreign := noise(4<<10, 1)
	sendFlagged(t, c, foreign)
	expect(t, far, foreign)
	eventually(t, "all is acknowledged", func() bool { return unacknowledged(t, c) == 0 })

	filler := make([]byte, 256<<10) // more than the peer's window
	_, err := c.Write(filler)
	check(t, err)
	p, want := allocNoise(t, 32<<10, 2)
	var ticket Ticket
	written := beginCall(func() (err error) {
		ticket, err = c.WritePinnedBuffers(append([]Pinned{p}, shortBuffers(8<<20)...))
		return err
	})
	eventually(t, "the write is blocked", func() bool { s := c.Stats(); return s.Sends > 0 && unacknowledged(t, c) > 700<<10 })
	time.Sleep(200 * time.Millisecond)
	check(t, c.Close())
	if err := <-written; !errors.Is(err, net.ErrClosed) {
		t.Fatalf("write: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err = ticket.Wait(ctx)
	t.Logf("Wait: %v", err)
	if err == nil || errors.Is(err, ErrConnFailed) {
		clear(p.Bytes()) // it is ours again
	}
	expect(t, far, filler)
	expect(t, far, want)
}

// slowWrite begins a write of head copied bytes, one flagged buffer, and tail
// copied bytes, and beside it a Write of b that waits for its turn before the
// flagged call is made.
func slowWrite(t *testing.T, c *Conn, head, tail int, p Pinned, b []byte) (ticket *Ticket, written, beside pendingCall) {
	ticket = new(Ticket)
	written = beginCall(func() (err error) {
		*ticket, err = c.WritePinnedBuffers(append(append(shortBuffers(head), p), shortBuffers(tail)...))
		return err
	})
	eventually(t, "the write is blocked", func() bool { return unacknowledged(t, c) > 700<<10 })
	beside = beginCall(func() error { _, err := c.Write(b); return err })
	eventually(t, "the other waits", func() bool { return c.s.plain.most()-c.s.plain.least() >= int64(len(b)) })
	return ticket, written, beside
}

// The IDs of a write are complete before it returns, and its end cannot be told
// from the plain bytes beside it. It is looked at until that is known.
func TestWriteThatIsHeldWhenItReturnsIsDone(t *testing.T) {
	near, far := smallPair(t, nil, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<10) })
	check(t, near.SetWriteBuffer(512<<10))
	c := wrap(t, near, insist)
	onDescriptor(t, c, func(fd int) { attachFilter(t, fd) })
	p, _ := allocNoise(t, 32<<10, 1)
	const head, tail, other = 2 << 20, 8 << 20, 32 << 20
	ticket, written, beside := slowWrite(t, c, head, tail, p, make([]byte, other))
	_, err := io.CopyN(io.Discard, far, head+int64(p.Len())+256<<10)
	check(t, err)
	eventually(t, "the flagged call is complete", func() bool { s := c.Stats(); return s.Sends > 0 && s.IDsInFlight == 0 })
	_, err = io.CopyN(io.Discard, far, tail-256<<10+other)
	check(t, err)
	check(t, <-written)
	check(t, <-beside)
	eventually(t, "all is acknowledged", func() bool { return unacknowledged(t, c) == 0 })
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
	defer cancel()
	if err := ticket.Wait(ctx); err != nil {
		t.Errorf("Wait, 8 s after all was acknowledged: %v; held %d", err, c.s.ledger().held.Load())
	}
}

// A Write that waited for its turn during a flagged call, and then sends less than
// it was given, leaves the claim's end beyond the end of the stream.
func TestWriteThatIsCutShortHoldsNothing(t *testing.T) {
	for _, filter := range []bool{false, true} {
		near, far := smallPair(t, nil, func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<10) })
		check(t, near.SetWriteBuffer(512<<10))
		c := wrap(t, near, insist)
		if filter {
			onDescriptor(t, c, func(fd int) { attachFilter(t, fd) })
		}
		p, _ := allocNoise(t, 32<<10, 1)
		const head, other = 2 << 20, 32 << 20
		ticket, written, beside := slowWrite(t, c, head, 0, p, make([]byte, other))
		_, err := io.CopyN(io.Discard, far, head-512<<10)
		check(t, err)
		check(t, <-written)
		check(t, c.SetWriteDeadline(time.Now()))
		if err := <-beside; err == nil {
			t.Fatal("Write was not cut short")
		}
		go io.Copy(io.Discard, far)
		eventually(t, "all is acknowledged", func() bool { return unacknowledged(t, c) == 0 })
		ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
		defer cancel()
		if err := ticket.Wait(ctx); err != nil {
			t.Errorf("filter %v: Wait, 4 s after all was acknowledged: %v", filter, err)
		}
		check(t, c.Close())
		if err := ticket.Wait(testContext(t)); err != nil {
			t.Errorf("filter %v: Wait after Close: %v", filter, err)
		}
	}
}

// The count is found wrong while the peer does not read. The write ends within
// bounded time, its memory is not used again, and the pool has another in its
// place.
func TestPoolReplacesWhatIsNotProven(t *testing.T) {
	link := lab.ForTest(t)
	near, far := smallReceiver(t, link)
	cfg := *insist
	cfg.patience = 100 * time.Millisecond
	c := wrap(t, near, &cfg)
	foreign := noise(4<<10, 1)
	for range 2 {
		sendFlagged(t, c, foreign)
		expect(t, far, foreign)
	}
	eventually(t, "all is acknowledged", func() bool { return unacknowledged(t, c) == 0 })
	pool, err := NewPool(256<<10, 1)
	check(t, err)
	defer pool.Close()
	p, err := pool.Get(testContext(t))
	check(t, err)
	want := noise(p.Len(), 2)
	copy(p.Bytes(), want)
	ticket, err := c.WritePinned(p)
	check(t, err)
	p.Release()
	eventually(t, "the count is found out", func() bool { return c.Stats().CompletionsDistrusted })
	if err := ticket.Wait(testContext(t)); !errors.Is(err, ErrReleaseUnproven) {
		t.Errorf("Wait: %v, %d bytes unproven", err, c.Stats().UnprovenBytes)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if p, err = pool.Get(ctx); err != nil {
		t.Errorf("Pool.Get: %v", err)
	} else {
		clear(p.Bytes())
		p.Release()
	}
	expect(t, far, want)
}

// A dialer sets the option and has a socket filter.
func TestSocketFilterIsNoSignOfOtherCalls(t *testing.T) {
	near, _ := loopbackPair(t)
	onDescriptor(t, near, func(fd int) { check(t, setZeroCopy(fd)); attachFilter(t, fd) })
	if _, err := NewConn(near, nil); err != nil {
		t.Errorf("NewConn: %v", err)
	}
}

// A Conn is dropped, while its *net.TCPConn is kept and wrapped again.
func TestSocketOfADroppedConnIsNotWrappedAgain(t *testing.T) {
	near, _ := loopbackPair(t)
	heard := droppedSoFar().Conns
	check(t, second(NewConn(near, insist)))
	collected(t, "the Conn", func() bool { return droppedSoFar().Conns > heard })
	for range 3 {
		runtime.GC()
		if err := second(NewConn(near, insist)); !errors.Is(err, errors.ErrUnsupported) {
			t.Fatalf("NewConn: %v", err)
		}
		doze()
	}
}

// Calls that queue up share one notification (msg_zerocopy_realloc), up to 512 KiB
// of them: the first is acknowledged long before the last, and its completion
// comes with the last's. A peer that pauses in between is healthy.
func TestPeerThatPausesWithinASharedNotification(t *testing.T) {
	link := lab.ForTest(t)
	near, far := smallReceiver(t, link)
	var log syncBuffer
	cfg := *insist
	cfg.patience = 100 * time.Millisecond
	c := wrap(t, near, logging(&log, cfg))
	const parts, size = 24, 16 << 10
	p, want := allocNoise(t, parts*size, 1)
	defer p.Release()
	var tickets []Ticket
	for i := range parts {
		ticket, err := c.WritePinned(p.Slice(i*size, (i+1)*size))
		check(t, err)
		tickets = append(tickets, ticket)
	}
	const part = 128 << 10
	expect(t, far, want[:part])
	time.Sleep(4 * checkEvery) // the peer pauses
	expect(t, far, want[part:])
	for i, ticket := range tickets {
		if err := ticket.Wait(testContext(t)); err != nil {
			t.Errorf("part %d: %v", i, err)
		}
	}
	if s := c.Stats(); s.CompletionsDistrusted || s.UnprovenBytes > 0 {
		t.Errorf("distrusted %v, %d bytes unproven: %s", s.CompletionsDistrusted, s.UnprovenBytes, log.String())
	}
}
