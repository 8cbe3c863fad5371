package zcnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A seccompRule makes one system call of the process fail, if the arguments that
// it names have these values, or these bits.
type seccompRule struct {
	call  uintptr
	args  []seccompArg
	errno syscall.Errno
}

type seccompArg struct {
	n    uint32 // which argument
	bits bool   // any of the bits of value, instead of equality
	want uint32 // low word
}

// forbid installs rules in this process, for good: it stands for kernels and
// sandboxes that are not here. Only children do that.
func forbid(rules ...seccompRule) error {
	const number, arg0 = 0, 16 // offsets in struct seccomp_data; little-endian
	const allow, errno = 0x7fff0000, 0x00050000
	var prog []unix.SockFilter
	load := func(off uint32) {
		prog = append(prog, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off})
	}
	unless := func(op uint16, k uint32, skip int) {
		prog = append(prog, unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, K: k, Jf: uint8(skip)})
	}
	ret := func(k uint32) { prog = append(prog, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k}) }
	for _, r := range rules {
		left := 2*len(r.args) + 1
		load(number)
		unless(unix.BPF_JEQ, uint32(r.call), left)
		for _, a := range r.args {
			left -= 2
			load(arg0 + 8*a.n)
			if a.bits {
				unless(unix.BPF_JSET, a.want, left)
			} else {
				unless(unix.BPF_JEQ, a.want, left)
			}
		}
		ret(errno | uint32(r.errno))
	}
	ret(allow)
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	_, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(prog)
	if e != 0 {
		return e
	}
	return nil
}

// optionRule is about getsockopt or setsockopt of SO_ZEROCOPY.
func optionRule(call uintptr, errno syscall.Errno) seccompRule {
	return seccompRule{call, []seccompArg{{1, false, unix.SOL_SOCKET}, {2, false, unix.SO_ZEROCOPY}}, errno}
}

// flagRule is about sendto or sendmsg with MSG_ZEROCOPY.
func flagRule(call uintptr, flagsArg uint32, errno syscall.Errno) seccompRule {
	return seccompRule{call, []seccompArg{{flagsArg, true, unix.MSG_ZEROCOPY}}, errno}
}

func init() {
	children["option cannot be read"] = func() error {
		return refusedByNewConn(optionRule(unix.SYS_GETSOCKOPT, unix.ENOPROTOOPT), "sandbox")
	}
	children["option cannot be set"] = func() error {
		return refusedByNewConn(optionRule(unix.SYS_SETSOCKOPT, unix.EBUSY), kernelName(), "4.17", "net.ListenConfig.Control")
	}
	children["flagged calls fail"] = func() error {
		return sendWhereCallsFail(flagRule(unix.SYS_SENDTO, 3, unix.EINVAL), flagRule(unix.SYS_SENDMSG, 2, unix.EINVAL))
	}
	children["flagged calls of several buffers fail"] = func() error {
		return sendWhereCallsFail(flagRule(unix.SYS_SENDMSG, 2, unix.EINVAL))
	}
	children["sendto and sendmsg are forbidden"] = func() error {
		return sendWhereCallsFail(seccompRule{call: unix.SYS_SENDTO, errno: unix.EPERM}, seccompRule{call: unix.SYS_SENDMSG, errno: unix.ENOSYS})
	}
	children["recvfrom is forbidden"] = readWhereRecvfromFails
	children["recvmsg is forbidden"] = func() error {
		return sendWhereCompletionsAreUnreadable(func(k kernel) kernel { return k }, seccompRule{call: unix.SYS_RECVMSG, errno: unix.EPERM})
	}
	children["poll is forbidden"] = func() error {
		return sendWhereCompletionsAreUnreadable(func(k kernel) kernel { return unpolledKernel{k} })
	}
}

func TestKernelThatSaysYes(t *testing.T) {
	for _, name := range []string{"option cannot be read", "option cannot be set", "flagged calls fail", "flagged calls of several buffers fail",
		"sendto and sendmsg are forbidden", "recvfrom is forbidden", "recvmsg is forbidden", "poll is forbidden"} {
		t.Run(name, func(t *testing.T) { runChild(t, name) })
	}
}

// refusedByNewConn wants NewConn and Probe to say why.
func refusedByNewConn(rule seccompRule, why ...string) error {
	near, far, err := plainChildPair()
	if err != nil {
		return err
	}
	defer near.Close()
	defer far.Close()
	if err := forbid(rule); err != nil {
		return err
	}
	_, err = NewConn(near, nil)
	if !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("NewConn: %v", err)
	}
	for _, text := range why {
		if !strings.Contains(err.Error(), text) {
			return fmt.Errorf("NewConn: %v; want it to name %s", err, text)
		}
	}
	if r := Probe(near); r.ZeroCopy {
		return fmt.Errorf("Probe: zero-copy on, because %q", r.Reason)
	}
	if c := Wrap(near, nil); c != near {
		return fmt.Errorf("Wrap returned a %T", c)
	}
	return nil
}

func plainChildPair() (near *net.TCPConn, far net.Conn, err error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	n, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	far, err = l.Accept()
	return n.(*net.TCPConn), far, err
}

// sendWhereCallsFail wants every way to write to work where flagged calls fail.
func sendWhereCallsFail(rules ...seccompRule) error {
	c, far, err := childPair(insist)
	if err != nil {
		return err
	}
	defer far.Close()
	defer c.Close()
	if err := forbid(rules...); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	data := noise(256<<10, 1)
	for _, w := range waysToWrite {
		received := beginCall(func() error { return receive(far, data) })
		ticket, err := w.write(c, data)
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		if err := ticket.Wait(ctx); err != nil {
			return fmt.Errorf("%s: its ticket: %w", w.name, err)
		}
		if err := <-received; err != nil {
			return fmt.Errorf("%s: the peer: %w", w.name, err)
		}
	}
	if s := c.Stats(); s.Fallbacks.Refused == 0 {
		return fmt.Errorf("it was not noticed: %+v", s)
	}
	return nil
}

// readWhereRecvfromFails wants a Read that the runtime's poller has refused to
// work where a filter allows what Read calls otherwise.
func readWhereRecvfromFails() error {
	c, far, err := childPair(nil)
	if err != nil {
		return err
	}
	defer far.Close()
	defer c.Close()
	if err := forbid(seccompRule{call: unix.SYS_RECVFROM, errno: unix.EPERM}); err != nil {
		return err
	}
	received := beginCall(func() error { return receive(slowConn{c}, []byte("hello")) })
	time.Sleep(10 * time.Millisecond) // let it find nothing first
	if _, err := far.Write([]byte("hello")); err != nil {
		return err
	}
	return <-received
}

// An unpolledKernel forbids poll, which has another number on each architecture.
type unpolledKernel struct{ kernel }

func (unpolledKernel) poll(uintptr, *[1]unix.PollFd) error { return unix.ENOSYS }

// sendWhereCompletionsAreUnreadable wants little to be lent, and its waits to end,
// also where the kernel does not tell what is acknowledged.
func sendWhereCompletionsAreUnreadable(below func(kernel) kernel, rules ...seccompRule) error {
	cfg := *insist
	cfg.patience = time.Millisecond
	c, far, err := childPair(&cfg)
	if err != nil {
		return err
	}
	defer far.Close()
	defer c.Close()
	c.s.kernel = below(c.s.kernel)
	noQueue := seccompRule{unix.SYS_IOCTL, []seccompArg{{1, false, unix.SIOCOUTQ}}, unix.ENOTTY}
	if err := forbid(append(rules, noQueue)...); err != nil {
		return err
	}
	go io.Copy(io.Discard, far)
	if _, err := io.Copy(c, io.LimitReader(zeros{}, 64<<20)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	if err := c.Flush(ctx); !errors.Is(err, ErrReleaseUnproven) {
		return fmt.Errorf("Flush: %v, want %v", err, ErrReleaseUnproven)
	}
	if s := c.Stats(); s.Sends > mostUnanswered || !s.CompletionsDistrusted {
		return fmt.Errorf("%d flagged calls, distrusted %v", s.Sends, s.CompletionsDistrusted)
	}
	return nil
}

// waysToWrite are the calls that send flagged.
var waysToWrite = []struct {
	name  string
	write func(c *Conn, b []byte) (Ticket, error)
}{
	{"WritePinned", func(c *Conn, b []byte) (Ticket, error) { return c.WritePinned(Pin(b)) }},
	{"WritePinnedBuffers", func(c *Conn, b []byte) (Ticket, error) {
		return c.WritePinnedBuffers([]Pinned{Pin(b[:len(b)/3]), Pin(b[len(b)/3:])})
	}},
	{"WriteFrame", func(c *Conn, b []byte) (Ticket, error) { return c.WriteFrame(b[:100], Pin(b[100:])) }},
	{"ReadFrom", func(c *Conn, b []byte) (Ticket, error) {
		_, err := io.Copy(c, struct{ io.Reader }{strings.NewReader(string(b))})
		return Ticket{}, err
	}},
}

// A rejectingKernel fails flagged calls while it is told to. Linux 4.14 to 4.20
// does from the peer's end of stream on.
type rejectingKernel struct {
	kernel
	errno syscall.Errno
	after atomic.Int64 // calls that still work
	until atomic.Int64 // calls that fail from then on
}

func (k *rejectingKernel) send(fd uintptr, m *message, flags int) (int, error) {
	if flags&msgZeroCopy != 0 && k.after.Add(-1) < 0 && k.until.Add(-1) >= 0 {
		return 0, k.errno
	}
	return k.kernel.send(fd, m, flags)
}

func rejecting(t *testing.T, errno syscall.Errno, after, until int64) (c *Conn, far *net.TCPConn) {
	near, far := loopbackPair(t)
	c = wrap(t, near, insist)
	k := &rejectingKernel{kernel: c.s.kernel, errno: errno}
	k.after.Store(after)
	k.until.Store(until)
	c.s.kernel = k
	return c, far
}

// An error of a flagged call that Write would not have met is not the caller's.
func TestFlaggedCallThatFailsIsRepeatedPlainly(t *testing.T) {
	for _, errno := range []syscall.Errno{unix.EINVAL, unix.EPERM, unix.EOPNOTSUPP, unix.ENOSYS} {
		for _, after := range []int64{0, 1} {
			c, far := rejecting(t, errno, after, 1<<40)
			data := noise(1<<20, 1)
			for _, w := range waysToWrite {
				received := beginCall(func() error { return receive(far, data) })
				ticket, err := w.write(c, data)
				if err != nil {
					t.Fatalf("%v after %d calls: %s: %v", errno, after, w.name, err)
				}
				check(t, ticket.Wait(testContext(t)))
				check(t, <-received)
			}
			s := c.Stats()
			if !s.ZeroCopyRefused || s.Fallbacks.Refused < uint64(len(waysToWrite)) || s.CompletionsDistrusted {
				t.Errorf("%v after %d calls: refused %v, fallbacks %+v, distrusted %v", errno, after, s.ZeroCopyRefused, s.Fallbacks, s.CompletionsDistrusted)
			}
		}
	}
}

func TestCallWithoutMemoryToPinIsRepeatedPlainly(t *testing.T) {
	c, far := rejecting(t, unix.ENOMEM, 0, 1)
	data := noise(256<<10, 1)
	received := beginCall(func() error { return receive(far, data) })
	ticket, err := c.WritePinned(Pin(data))
	check(t, err)
	check(t, ticket.Wait(testContext(t)))
	check(t, <-received)
	if s := c.Stats(); s.Fallbacks.Unpinnable != 1 || s.ZeroCopyRefused {
		t.Errorf("refused %v, fallbacks %+v; want one fallback", s.ZeroCopyRefused, s.Fallbacks)
	}
}

func TestOneRejectedCallDoesNotTurnZeroCopyOff(t *testing.T) {
	c, far := rejecting(t, unix.EINVAL, 0, 1)
	go io.Copy(io.Discard, far)
	for range 2 {
		ticket, err := c.WritePinned(Pin(noise(64<<10, 1)))
		check(t, err)
		check(t, ticket.Wait(testContext(t)))
	}
	if s := c.Stats(); s.ZeroCopyRefused || s.Fallbacks.Refused != 1 || s.Sends == 0 {
		t.Errorf("refused %v, fallbacks %+v, %d flagged calls; want one fallback, and flagged calls after it", s.ZeroCopyRefused, s.Fallbacks, s.Sends)
	}
}

// The only way before Linux 4.17: the option is set before there is a connection.
func TestSocketThatHasTheOptionIsWrapped(t *testing.T) {
	set := func(_, _ string, raw syscall.RawConn) error {
		enableZeroCopy(t, raw)
		return nil
	}
	var plain, listening net.ListenConfig
	plain.SetMultipathTCP(false)
	listening.SetMultipathTCP(false)
	listening.Control = set
	for _, tt := range []struct {
		name   string
		listen net.ListenConfig
		dial   net.Dialer
	}{{"by its listener", listening, net.Dialer{}}, {"by its dialer", plain, net.Dialer{Control: set}}} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := tt.listen.Listen(testContext(t), "tcp4", "127.0.0.1:0")
			check(t, err)
			defer l.Close()
			near, err := tt.dial.DialContext(testContext(t), "tcp4", l.Addr().String())
			check(t, err)
			defer near.Close()
			far, err := l.Accept()
			check(t, err)
			defer far.Close()
			if tt.dial.Control == nil {
				near, far = far, near
			}
			if r := Probe(near); !r.ZeroCopy {
				t.Errorf("Probe: off, because %q", r.Reason)
			}
			c := wrap(t, near.(*net.TCPConn), insist)
			data := noise(256<<10, 1)
			ticket, err := c.WritePinned(Pin(data))
			check(t, err)
			expect(t, far, data)
			check(t, ticket.Wait(testContext(t)))
			if s := c.Stats(); s.Sends == 0 || s.CompletionsDistrusted {
				t.Errorf("%d flagged calls, distrusted %v", s.Sends, s.CompletionsDistrusted)
			}
		})
	}
}

func TestSocketInUseIsNotTaken(t *testing.T) {
	near, far := loopbackPair(t)
	raw, err := near.SyscallConn()
	check(t, err)
	enableZeroCopy(t, raw)
	onDescriptor(t, near, func(fd int) { check(t, unix.Sendto(fd, make([]byte, 4096), unix.MSG_ZEROCOPY, nil)) })
	expect(t, far, make([]byte, 4096))
	for name, err := range map[string]error{"NewConn": second(NewConn(near, nil)), "Probe": errors.New(Probe(near).Reason)} {
		if err == nil || !strings.Contains(err.Error(), "another program sends with MSG_ZEROCOPY") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// Of two that wrap a socket at the same time one succeeds, and a Probe beside them
// changes nothing.
func TestSocketIsWrappedOnce(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	for round := range 300 {
		near, err := net.Dial("tcp4", l.Addr().String())
		check(t, err)
		far, err := l.Accept()
		check(t, err)
		var conns [2]net.Conn
		var all sync.WaitGroup
		start := make(chan struct{})
		for i := range conns {
			all.Go(func() { <-start; conns[i] = Wrap(near, nil) })
		}
		all.Go(func() { <-start; Probe(near) })
		close(start)
		all.Wait()
		a, first := conns[0].(*Conn)
		b, other := conns[1].(*Conn)
		if first == other {
			t.Fatalf("round %d: of two that wrapped one socket, %v and %v succeeded", round, first, other)
		}
		if other {
			a = b
		}
		onDescriptor(t, a, func(fd int) {
			if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY); err != nil || on != 1 {
				t.Fatalf("round %d: the Conn's SO_ZEROCOPY is %d, %v", round, on, err)
			}
		})
		check(t, a.Close())
		check(t, far.Close())
	}
}

func TestProbeChangesNothing(t *testing.T) {
	near, _ := loopbackPair(t)
	before := droppedSoFar()
	for range 10 {
		if r := Probe(near); !r.ZeroCopy {
			t.Fatal(r.Reason)
		}
	}
	onDescriptor(t, near, func(fd int) {
		if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY); err != nil || on != 0 {
			t.Errorf("SO_ZEROCOPY is %d, %v", on, err)
		}
	})
	runtime.GC()
	doze()
	if after := droppedSoFar(); after != before {
		t.Errorf("dropped before %+v, after %+v", before, after)
	}
	wrapped := wrap(t, near, nil)
	if r := Probe(wrapped.TCPConn); r.ZeroCopy || !strings.Contains(r.Reason, "already") {
		t.Errorf("Probe of the inside of a Conn: %v, because %q", r.ZeroCopy, r.Reason)
	}
}
