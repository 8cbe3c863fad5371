package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// device is the name of the cable's end, the same in both hosts.
	device = "veth0"

	// mtu is the largest that veth takes, ETH_MAX_MTU. The fewer frames, the
	// less a measurement is one of the link's own work.
	mtu = 65535

	// patience bounds every wait for the kernel while a link is built.
	patience = 5 * time.Second
)

// errExited is what [Host.Do] returns when its function never returned.
var errExited = errors.New("lab: the function ended its goroutine instead of returning")

// A step is one part of building a link.
type step struct {
	does  string // What is being done, for errors.
	needs string // The capabilities it takes, for errors.
	run   func(*Link) error
}

// copyingLink builds two hosts and an ordinary cable between them.
var copyingLink = []step{
	{"learn which processors this process may use", "sched_getaffinity", (*Link).learnCPUs},
	{"create the sender's namespace", "CAP_SYS_ADMIN", func(l *Link) error { return l.Sender.create() }},
	{"create the receiver's namespace", "CAP_SYS_ADMIN", func(l *Link) error { return l.Receiver.create() }},
	{"create the veth pair", "CAP_NET_ADMIN", (*Link).plugIn},
	{"configure the sender", "CAP_NET_ADMIN", func(l *Link) error { return l.Sender.Do(l.Sender.configure) }},
	{"configure the receiver", "CAP_NET_ADMIN", func(l *Link) error { return l.Receiver.Do(l.Receiver.configure) }},
	{"wait for the sender", "CAP_NET_ADMIN", func(l *Link) error { return l.Sender.Do(l.Sender.await) }},
	{"wait for the receiver", "CAP_NET_ADMIN", func(l *Link) error { return l.Receiver.Do(l.Receiver.await) }},
}

// copyFreeLink goes on to what makes the cable copy-free.
var copyFreeLink = slices.Concat(copyingLink, []step{
	{"attach the XDP program", "CAP_BPF and CAP_NET_ADMIN", func(l *Link) error { return l.Receiver.Do(attachXDP) }},
})

// inlineLink goes on to a link that is proven.
var inlineLink = slices.Concat(copyFreeLink, []step{
	{"prove that the link does not copy", "CAP_SYS_ADMIN", (*Link).prove},
})

// apartLink goes on to a link whose receiving end works apart, and is proven.
var apartLink = slices.Concat(copyFreeLink, []step{
	{"have the receiving end work apart", "CAP_SYS_ADMIN and CAP_NET_ADMIN", (*Link).workApart},
	{"prove that the link does not copy and its receiving end works apart", "CAP_SYS_ADMIN", (*Link).prove},
})

func newLink() (*Link, error) { return build(apartLink) }

func newInlineLink() (*Link, error) { return build(inlineLink) }

// build takes the steps in order, and leaves nothing behind if one fails.
func build(steps []step) (*Link, error) {
	l := &Link{
		Sender: &Host{
			ipv4: netip.MustParsePrefix("10.203.0.1/30"),
			ipv6: netip.MustParsePrefix("fd5a:6370::1/64"),
		},
		Receiver: &Host{
			ipv4: netip.MustParsePrefix("10.203.0.2/30"),
			ipv6: netip.MustParsePrefix("fd5a:6370::2/64"),
		},
		inline: "nothing else was asked for",
	}
	for _, s := range steps {
		if err := s.run(l); err != nil {
			l.Close()
			return nil, s.failed(err)
		}
	}
	return l, nil
}

// failed says which step failed and, if that was for want of a right, which.
func (s step) failed(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("lab: %s: %w (it needs %s): %w", s.does, err, s.needs, errors.ErrUnsupported)
	}
	return fmt.Errorf("lab: %s: %w", s.does, err)
}

// create makes the host's network namespace. It has no name: with nothing in
// /run/netns to refer to it, it goes when its last descriptor does.
func (h *Host) create() error {
	return onOwnThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		h.namespace, err = threadNamespace()
		return err
	})
}

// plugIn joins the hosts by a veth pair. Both ends are made where they belong,
// so that no device shows up, however briefly, in the process's namespace.
func (l *Link) plugIn() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = device
	attrs.MTU = mtu
	pair := netlink.NewVeth(attrs)
	pair.PeerName = device
	pair.PeerMTU = mtu
	return l.Sender.Do(func() error {
		return withFd(l.Receiver.namespace, func(fd int) error {
			pair.PeerNamespace = netlink.NsFd(fd)
			return netlink.LinkAdd(pair)
		})
	})
}

// configure gives the host its addresses and brings its devices up. It has to
// be called inside the host.
func (h *Host) configure() error {
	if err := bringUp("lo"); err != nil {
		return err
	}
	for _, prefix := range []netip.Prefix{h.ipv4, h.ipv6} {
		if err := addAddress(prefix); err != nil {
			return fmt.Errorf("add the address %v: %w", prefix, err)
		}
	}
	return bringUp(device)
}

// bringUp sets a device of the thread's namespace up.
func bringUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

// addAddress adds an address to the cable's end in the thread's namespace.
func addAddress(prefix netip.Prefix) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(link, &netlink.Addr{
		IPNet: &net.IPNet{
			IP:   prefix.Addr().AsSlice(),
			Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen()),
		},
		// Nobody else is there to claim the address, and duplicate address
		// detection would hold it back for a second. IPv4 ignores the flag.
		Flags: unix.IFA_F_NODAD,
	})
}

// await waits until the host can send and receive. It has to be called inside
// the host. What TCP or neighbor discovery sends before that is lost, and
// repeated a second later only.
func (h *Host) await() error {
	if err := awaitThat(device+" is up", carrierIsUp); err != nil {
		return err
	}
	return awaitThat(h.IPv6().String()+" has a route", h.takesIPv6)
}

// awaitThat waits until isSo says so.
func awaitThat(what string, isSo func() (bool, error)) error {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if so, err := isSo(); so || err != nil {
			return err
		}
	}
	return fmt.Errorf("after %v it is still not so that %s", patience, what)
}

// carrierIsUp tells whether the cable's end in the thread's namespace can send.
// It cannot yet when the other end has just come up: a device starts sending
// after the link watch has run, asynchronously (linkwatch_do_dev in
// net/core/link_watch.c).
func carrierIsUp() (bool, error) {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return false, err
	}
	return link.Attrs().OperState == netlink.OperUp, nil
}

// takesIPv6 tells whether packets to the host's IPv6 address are taken for its
// own. They are once the address has a local route, which the kernel adds
// asynchronously, even without duplicate address detection, after joining the
// group for neighbor discovery (addrconf_dad_work in net/ipv6/addrconf.c).
func (h *Host) takesIPv6() (bool, error) {
	routes, err := netlink.RouteGet(h.IPv6().AsSlice())
	if errors.Is(err, unix.ENETUNREACH) {
		return false, nil
	}
	return len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL, err
}

// attachXDP attaches the program to the cable's end in the thread's namespace.
// The device holds the program from then on. Driver mode is asked for by name,
// or the kernel might fall back to generic mode, where the network stack and
// not the device handles the frame (netif_receive_generic_xdp in
// net/core/dev.c).
func attachXDP() error {
	program, err := loadXDPPass()
	if err != nil {
		return err
	}
	defer program.Close()
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	return netlink.LinkSetXdpFdWithFlags(link, program.FD(), nl.XDP_FLAGS_DRV_MODE)
}

// loadXDPPass loads a program that lets every frame pass. Without
// BPF_F_XDP_HAS_FRAGS veth refuses it at an MTU of more than a page
// (veth_xdp_set in drivers/net/veth.c).
func loadXDPPass() (*ebpf.Program, error) {
	const xdpPass = 2 // XDP_PASS in include/uapi/linux/bpf.h.
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:  "lab_xdp_pass",
		Type:  ebpf.XDP,
		Flags: unix.BPF_F_XDP_HAS_FRAGS,
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R0, xdpPass),
			asm.Return(),
		},
	})
	if errors.Is(err, unix.EINVAL) {
		// An older kernel does not know the flag.
		return nil, fmt.Errorf("%w (frames of many pages need Linux 5.18): %w", err, errors.ErrUnsupported)
	}
	return program, err
}

// inNamespace calls f on a thread that is in namespace meanwhile.
func inNamespace(namespace *os.File, f func() error) error {
	return onOwnThread(func() error {
		if err := enter(namespace); err != nil {
			return fmt.Errorf("lab: enter the host: %w", err)
		}
		return f()
	})
}

// onOwnThread calls f, which may change the thread's namespace, in a goroutine
// that has the thread to itself, and takes the thread back to where it was.
//
// If that fails the goroutine ends with the thread still locked, upon which
// the runtime ends the thread too, and nobody meets a thread gone astray.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Deferred, so that a runtime.Goexit in f (t.FailNow is one) does
		// not leave the caller waiting.
		err := errExited
		defer func() { done <- err }()
		runtime.LockOSThread()
		err = andBack(f)
	}()
	return <-done
}

// andBack calls f, and unlocks the goroutine's thread once it is back in the
// namespace in which it was before.
func andBack(f func() error) error {
	home, err := threadNamespace()
	if err != nil {
		return err
	}
	defer func() {
		if enter(home) == nil {
			runtime.UnlockOSThread()
		}
		home.Close()
	}()
	return f()
}

// threadNamespace opens the calling thread's network namespace. It has to be
// the thread's: /proc/self/ns/net is that of the process's first thread.
func threadNamespace() (*os.File, error) { return os.Open("/proc/thread-self/ns/net") }

// enter moves the calling thread into namespace.
func enter(namespace *os.File) error {
	return withFd(namespace, func(fd int) error {
		return os.NewSyscallError("setns", unix.Setns(fd, unix.CLONE_NEWNET))
	})
}

// withFd calls f with the descriptor of a file that stays open meanwhile, even
// if somebody closes it.
func withFd(file *os.File, f func(fd int) error) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := conn.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return os.ErrClosed // Control has no other error, and an unexported one for this.
	}
	return ferr
}
