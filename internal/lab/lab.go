// Package lab builds, on one machine, a TCP link over which MSG_ZEROCOPY sends
// without a copy.
//
// Between two sockets of one machine the kernel copies after all: before it
// queues somebody else's pages on a local socket, where they might stay for
// any length of time, it replaces them by its own (skb_orphan_frags_rx in
// include/linux/skbuff.h; Documentation/networking/msg_zerocopy.rst,
// "Loopback"). Loopback is like that, and so is a plain veth pair. Code that
// sends without copying can neither be tested nor be measured there.
//
// The link of this package is a veth pair between two network namespaces whose
// receiving end runs an XDP program that lets every frame pass. Such a device
// first moves each frame into pages of its own, as the DMA of a network card
// would, and the sender's pages are released uncopied (veth_xdp_rcv_skb and
// veth_convert_skb_to_xdp_buff in drivers/net/veth.c). Only the direction from
// [Link.Sender] to [Link.Receiver] is like this; the other one copies.
//
// # Whom the link charges
//
// By default the kernel runs veth's receiving end, up to the receiver's socket,
// inside the sender's system call. A measurement of the sender is then for the
// most part one of the other host. So [New] gives that end's work to a kernel
// thread (threaded NAPI, Documentation/networking/napi.rst) on a processor that
// the sender does not use, and has the sender's acknowledgements handled by the
// sender's processors (receive packet steering, rps_cpus in
// Documentation/networking/scaling.rst). The receiving process belongs on the
// thread's processor, by [Link.StartReceiver], and what sends on the others, by
// [Link.StartBeside]. What sending costs the host is then what the machine was
// busy, less what the thread ([Link.ReceivingTime]) and the receiving process
// used. The processor time of the sending process alone is less: it leaves out
// what the kernel sends from timers and acknowledgements. Left out of both is
// what it sends because the thread frees a frame (tcp_wfree in
// net/ipv4/tcp_output.c), a few hundredths of the whole: a card would have that
// done by its completion interrupt, on the sending host.
//
// With one processor, or where the kernel refuses, the link works inline as by
// default, and [Link.Inline] says why. [NewInline] asks for that.
//
// There is no card on this link, and so neither its driver's work nor that of
// an IOMMU, nor a card's interrupts. There is no round-trip time, and with it
// no more data in flight than the receiver is behind. And the processors of one
// machine may share a cache: bytes that Write has just copied are warm when the
// receiving end moves them, those sent without a copy are not. A card would not
// notice, so throughput here says less than processor time does.
//
// Everything the package makes is held by file descriptors of this process
// alone. When the process ends, in whichever way, the kernel removes it all.
package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// requireEnv names the environment variable that, set to 1, makes [ForTest]
// fail a test it would otherwise skip.
const requireEnv = "ZCNET_REQUIRE_LAB"

// A Link is two hosts joined by a cable on which the kernel does not copy what
// Sender sends to Receiver with MSG_ZEROCOPY.
//
// Links are independent of each other, although all use the same addresses:
// every one has namespaces of its own.
type Link struct {
	// Sender is the host whose sends are released without a copy.
	Sender *Host

	// Receiver is the host whose end of the cable runs the XDP program.
	Receiver *Host

	// inline says why the receiving end works inside the sender's calls. It is
	// empty if thread works for it.
	inline string

	// thread is the process ID of the receiving end's kernel thread, 0 on an
	// inline link.
	thread int

	// receivingCPUs is the processor of thread, nothing on an inline link.
	// sendingCPUs are the others that this process may use.
	receivingCPUs, sendingCPUs []int
}

// New builds a link and proves by a transfer over IPv4 and one over IPv6 that
// the kernel reports no copies on it, that a thread did the receiving end's
// work, and that each end's packets were handled by its own processors. If the
// machine or the kernel does not let the receiving end work apart, the link is
// as by [NewInline] and [Link.Inline] says why.
//
// It needs Linux 5.18 or newer and the capabilities CAP_SYS_ADMIN (network
// namespaces), CAP_NET_ADMIN (the veth pair) and CAP_BPF (the XDP program).
// The error says which step failed. On other systems, and where a capability
// is missing, it matches [errors.ErrUnsupported].
func New() (*Link, error) { return newLink() }

// NewInline is [New] for a link whose receiving end works inside the sender's
// system calls, and so at the sender's expense.
func NewInline() (*Link, error) { return newInlineLink() }

// Inline returns why the receiving end works inside the sender's system calls,
// and "" if a thread of its own does that work.
func (l *Link) Inline() string { return l.inline }

// ReceivingTime returns the processor time that the receiving end's thread has
// used so far, 0 on an inline link. It is exact while the thread waits for
// frames; while it runs the kernel may be a clock tick behind.
func (l *Link) ReceivingTime() (time.Duration, error) { return l.receivingTime() }

// ReceivingCPU returns the number of the processor on which the receiving end's
// thread runs, -1 on an inline link.
func (l *Link) ReceivingCPU() int {
	if l.inline != "" {
		return -1
	}
	return l.receivingCPUs[0]
}

// SendingCPUs returns the numbers of the processors that this process may use,
// without that of [Link.ReceivingCPU]. Acknowledgements are handled on these.
func (l *Link) SendingCPUs() []int { return slices.Clone(l.sendingCPUs) }

// StartReceiver starts cmd on the processor of [Link.ReceivingCPU]. On an inline
// link it just starts it. As [exec.Cmd.Start] does, it starts cmd in the network
// namespace of the calling thread, so within [Host.Do] inside the host.
func (l *Link) StartReceiver(cmd *exec.Cmd) error { return l.start(cmd, l.receivingCPUs) }

// StartBeside starts cmd, a sender or what is to compete with one, on the
// processors of [Link.SendingCPUs], and otherwise as [Link.StartReceiver] does.
func (l *Link) StartBeside(cmd *exec.Cmd) error { return l.start(cmd, l.sendingCPUs) }

// start starts cmd on cpus, on an inline link wherever the kernel likes.
func (l *Link) start(cmd *exec.Cmd, cpus []int) error {
	if l.inline != "" {
		return cmd.Start()
	}
	return startOn(cpus, cmd)
}

// Close gives up the link. A host on which sockets are still open stays in the
// kernel until they are closed too; the cable goes as soon as either host does.
// Closing a closed Link does nothing.
func (l *Link) Close() error {
	return errors.Join(l.Sender.close(), l.Receiver.close())
}

// A Host is a network namespace with a loopback device and one end of the
// cable, a device called veth0.
//
// Its methods may be called from any goroutine. After [Link.Close] those that
// return an error fail with one that matches [os.ErrClosed].
type Host struct {
	// namespace is an open file of the network namespace and, sockets apart,
	// all that keeps the namespace alive.
	namespace *os.File

	// ipv4 and ipv6 are the addresses of veth0.
	ipv4, ipv6 netip.Prefix
}

// close drops the reference to the namespace.
func (h *Host) close() error {
	if h.namespace == nil {
		return nil
	}
	if err := h.namespace.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// IPv4 returns the host's IPv4 address on the cable.
func (h *Host) IPv4() netip.Addr { return h.ipv4.Addr() }

// IPv6 returns the host's IPv6 address on the cable.
func (h *Host) IPv6() netip.Addr { return h.ipv6.Addr() }

// Do calls f inside the host: in a new goroutine, on an operating system thread
// that is in the host's network namespace until f returns. A socket belongs to
// the namespace in which it was made, so f can hand out sockets for use from
// anywhere. Goroutines started by f are not inside the host.
//
// Do returns f's error, or one of its own if f does not return but ends its
// goroutine, as t.FailNow does.
func (h *Host) Do(f func() error) error {
	return inNamespace(h.namespace, f)
}

// Listen listens for plain TCP on port, 0 for any, of all the host's
// addresses, IPv4 and IPv6.
func (h *Host) Listen(port int) (net.Listener, error) {
	return h.ListenAddr("tcp", net.JoinHostPort("::", strconv.Itoa(port)))
}

// ListenAddr is [net.Listen] inside the host. The address has to be a literal
// one. Multipath TCP is off, because it has no MSG_ZEROCOPY.
func (h *Host) ListenAddr(network, addr string) (l net.Listener, err error) {
	if err := checkLiteral(addr); err != nil {
		return nil, err
	}
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	err = h.Do(func() (err error) {
		l, err = config.Listen(context.Background(), network, addr)
		return err
	})
	return l, err
}

// Dial connects from inside the host. The address has to be a literal one.
// Multipath TCP is off, because it has no MSG_ZEROCOPY.
func (h *Host) Dial(ctx context.Context, network, addr string) (c net.Conn, err error) {
	if err := checkLiteral(addr); err != nil {
		return nil, err
	}
	var dialer net.Dialer
	dialer.SetMultipathTCP(false)
	err = h.Do(func() (err error) {
		c, err = dialer.DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// checkLiteral refuses an address that would have to be resolved. For a literal
// address package net makes the socket on the calling thread, and so inside
// the host; for a name with several addresses it may do so in goroutines of
// its own (sysDialer.dialParallel), and so outside.
func checkLiteral(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	if host == "" {
		return nil
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return fmt.Errorf("lab: %q is not a literal IP address and port: %w", addr, err)
	}
	return nil
}

// SetSysctl writes a setting of the host's network namespace, such as
// net.core.optmem_max.
func (h *Host) SetSysctl(key, value string) error {
	path, err := sysctlPath(key)
	if err != nil {
		return err
	}
	return h.Do(func() error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(value)
		return errors.Join(err, f.Close())
	})
}

// Sysctl reads a setting of the host's network namespace.
func (h *Host) Sysctl(key string) (value string, err error) {
	path, err := sysctlPath(key)
	if err != nil {
		return "", err
	}
	err = h.Do(func() error {
		b, err := os.ReadFile(path)
		value = strings.TrimSpace(string(b))
		return err
	})
	return value, err
}

// sysctlPath returns the file of a sysctl. What a thread finds under
// /proc/sys/net depends on its network namespace (net_ctl_header_lookup in
// net/sysctl_net.c); everything else under /proc/sys is the machine's, and
// not for a link to change.
func sysctlPath(key string) (string, error) {
	if !strings.HasPrefix(key, "net.") {
		return "", fmt.Errorf("lab: sysctl %q does not belong to a network namespace", key)
	}
	return "/proc/sys/" + strings.ReplaceAll(key, ".", "/"), nil
}

// TB is what [ForTest] needs of a [testing.TB]. It is spelled out so that a
// program may link this package without linking package testing.
type TB interface {
	Helper()
	Cleanup(func())
	Skipf(format string, args ...any)
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
}

// ForTest builds a link for a test, and closes it when the test is over. Where
// it cannot be built the test is skipped or, if ZCNET_REQUIRE_LAB=1 is in the
// environment, failed; either way it says why.
func ForTest(tb TB) *Link {
	tb.Helper()
	l, err := New()
	if err != nil {
		giveUp(tb, err)
		return nil
	}
	tb.Cleanup(func() {
		if err := l.Close(); err != nil {
			tb.Logf("lab: close the link: %v", err)
		}
	})
	return l
}

// giveUp ends a test for which no link could be built.
func giveUp(tb TB, err error) {
	tb.Helper()
	if os.Getenv(requireEnv) == "1" {
		tb.Fatalf("%s=1, but: %v", requireEnv, err)
		return
	}
	tb.Skipf("no copy-free link here: %v", err)
}
