package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// childEnv makes the test binary a child of one of its own tests. Its value
// names the function that the child runs.
const childEnv = "ZCNET_LAB_TEST_CHILD"

// childPanics is what the child that panics says.
const childPanics = "at the parent's request"

var children = map[string]func(){
	"report":  childReport,
	"contain": childContain,
	"panic":   childPanic,
	"wait":    childWait,
	"idle":    childIdle,
}

func TestMain(m *testing.M) {
	if child, ok := children[os.Getenv(childEnv)]; ok {
		child()
		return
	}
	os.Exit(m.Run())
}

func TestLinkDoesNotCopy(t *testing.T) {
	l := ForTest(t)
	for _, to := range []netip.Addr{l.Receiver.IPv4(), l.Receiver.IPv6()} {
		for range 10 {
			o, err := l.transfer(to)
			if err != nil {
				t.Fatalf("transfer to %v: %v", to, err)
			}
			if least := uint32(proofBytes / proofSend); o.sends < least || o.copied != 0 {
				t.Fatalf("transfer to %v: %d sends, %d copied; want at least %d and none", to, o.sends, o.copied, least)
			}
		}
	}
}

// The proof is one only if it can fail.
func TestLinkWithoutProgramCopies(t *testing.T) {
	ForTest(t)
	l, err := build(copyingLink)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.prove(); !errors.Is(err, errCopied) {
		t.Fatalf("proof on a plain veth pair: %v, want: %v", err, errCopied)
	}
}

func TestReceivingEndWorksApart(t *testing.T) {
	l := apartForTest(t)
	usable := affinityOf(t, 0)
	if got := append(l.SendingCPUs(), l.ReceivingCPU()); !slices.Equal(slices.Sorted(slices.Values(got)), usable) {
		t.Errorf("sending processors %v and receiving one %d, want each of %v once", l.SendingCPUs(), l.ReceivingCPU(), usable)
	}
	if got := affinityOf(t, l.thread); !slices.Equal(got, []int{l.ReceivingCPU()}) {
		t.Errorf("the thread may use processors %v, want %d", got, l.ReceivingCPU())
	}
	for _, to := range []netip.Addr{l.Receiver.IPv4(), l.Receiver.IPv6()} {
		before := receivingTime(t, l)
		o, err := l.transfer(to)
		if err != nil {
			t.Fatal(err)
		}
		if after := receivingTime(t, l); after <= before || o.receivingTime <= 0 {
			t.Errorf("transfer to %v: the thread's time went from %v to %v, within the transfer by %v",
				to, before, after, o.receivingTime)
		}
		if o.dataCPU != l.ReceivingCPU() || !slices.Contains(l.SendingCPUs(), o.ackCPU) {
			t.Errorf("transfer to %v: data on processor %d, acknowledgements on %d; want %d and one of %v",
				to, o.dataCPU, o.ackCPU, l.ReceivingCPU(), l.SendingCPUs())
		}
	}
}

// The proof is one only if it can fail.
func TestProofNeedsTheReceivingEndApart(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(*testing.T, *Link)
		want  []error // Any of these.
	}{
		{"inline after all", func(t *testing.T, l *Link) {
			inline := inlineForTest(t)
			l.Sender, l.Receiver, inline.Sender, inline.Receiver = inline.Sender, inline.Receiver, l.Sender, l.Receiver
			l.thread = deadProcess(t)
		}, []error{errIdle}},
		{"not threaded any more", func(t *testing.T, l *Link) {
			if err := l.Receiver.Do(func() error { return setThreaded("0") }); err != nil {
				t.Fatal(err)
			}
		}, []error{os.ErrProcessDone, errIdle}}, // Older kernels keep the thread, without work.
		{"thread on a sending processor", func(t *testing.T, l *Link) {
			if err := setAffinity(l.thread, l.sendingCPUs); err != nil {
				t.Fatal(err)
			}
		}, []error{errElsewhere}},
		{"acknowledgements on the receiving processor", func(t *testing.T, l *Link) {
			if err := l.Sender.Do(func() error { return steerPackets(l.receivingCPUs) }); err != nil {
				t.Fatal(err)
			}
		}, []error{errElsewhere}},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := apartForTest(t)
			test.spoil(t, l)
			err := l.prove()
			if !slices.ContainsFunc(test.want, func(want error) bool { return errors.Is(err, want) }) {
				t.Errorf("proof: %v, want one of: %v", err, test.want)
			}
		})
	}
}

// All links have threads of nearly the same name, and build them at once.
func TestEveryLinkHasItsOwnThread(t *testing.T) {
	links := make([]*Link, 8)
	var wg sync.WaitGroup
	for i := range links {
		wg.Go(func() { links[i], _ = New() })
	}
	wg.Wait()
	threads := make(map[int]bool)
	for i, l := range links {
		if l == nil {
			t.Fatalf("link %d of %d was not built", i, len(links))
		}
		defer l.Close()
		requireApart(t, l)
		threads[l.thread] = true
	}
	if len(threads) != len(links) {
		t.Fatalf("%d links have %d threads", len(links), len(threads))
	}
	for i, l := range links {
		idle := links[(i+1)%len(links)]
		before, idleBefore := receivingTime(t, l), receivingTime(t, idle)
		for range 8 {
			if _, err := l.transfer(l.Receiver.IPv4()); err != nil {
				t.Fatal(err)
			}
		}
		// Not zero: IPv6 has things to say on an idle link too.
		used, idleUsed := receivingTime(t, l)-before, receivingTime(t, idle)-idleBefore
		if used <= idleUsed {
			t.Errorf("while link %d transferred its thread used %v, and the next link's %v", i, used, idleUsed)
		}
	}
}

func TestInlineLink(t *testing.T) {
	l := inlineForTest(t)
	if l.Inline() == "" || l.ReceivingCPU() != -1 {
		t.Errorf("Inline() = %q, ReceivingCPU() = %d; want a reason and -1", l.Inline(), l.ReceivingCPU())
	}
	if got, want := l.SendingCPUs(), affinityOf(t, 0); !slices.Equal(got, want) {
		t.Errorf("SendingCPUs() = %v, want %v", got, want)
	}
	checkNotThreaded(t, l)
	if _, err := l.transfer(l.Receiver.IPv4()); err != nil {
		t.Fatal(err)
	}
	napi, err := l.receivingNAPI()
	if napi == 0 || err != nil {
		t.Fatalf("the receiving end's NAPI instance is %d, %v", napi, err)
	}
	if thread, err := findThread(napi); err == nil {
		t.Errorf("the receiving end has a thread, process %d", thread)
	}
	if used := receivingTime(t, l); used != 0 {
		t.Errorf("ReceivingTime() = %v, want 0", used)
	}
}

func TestOneProcessorIsTooFew(t *testing.T) {
	ForTest(t)
	cmd := runSelf(nil, childEnv+"=report")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := startOn(affinityOf(t, 0)[:1], cmd); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if !strings.Contains(out.String(), "inline, because the receiving end needs a processor of its own") {
		t.Errorf("on one processor New said %q", out.String())
	}
}

// In a container with process IDs of its own the kernel's threads, which have
// none there, can be neither found nor moved.
func TestThreadOutOfReach(t *testing.T) {
	apartForTest(t)
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS}
	out, _ := runSelf(attr, childEnv+"=contain").CombinedOutput()
	if !strings.Contains(string(out), "inline, because find the receiving end's thread") {
		t.Errorf("in a PID namespace New said %q", out)
	}
}

// Whatever refuses, nothing of what was set before is left.
func TestRefusedLinkIsInline(t *testing.T) {
	apartForTest(t)
	for _, test := range []struct {
		name  string
		steps []step
		napi  int
		want  string
	}{
		{"no NAPI instance", copyingLink, 1, "give the receiving end a thread"},
		{"a NAPI instance that the kernel does not tell", copyFreeLink, 0, "find the receiving end's thread"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l, err := build(test.steps)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if err := l.settle(test.napi); err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(l.Inline(), test.want) {
				t.Errorf("Inline() = %q, want: %s", l.Inline(), test.want)
			}
			if l.ReceivingCPU() != -1 || !slices.Equal(l.SendingCPUs(), affinityOf(t, 0)) {
				t.Errorf("ReceivingCPU() = %d, SendingCPUs() = %v; want -1 and all", l.ReceivingCPU(), l.SendingCPUs())
			}
			if used := receivingTime(t, l); used != 0 {
				t.Errorf("ReceivingTime() = %v, want 0", used)
			}
			checkNotThreaded(t, l)
		})
	}
}

func TestStartedProcessesAreApart(t *testing.T) {
	l := apartForTest(t)
	before := affinities(t)
	for _, test := range []struct {
		name  string
		start func(*exec.Cmd) error
		want  []int
	}{
		{"StartReceiver", l.StartReceiver, []int{l.ReceivingCPU()}},
		{"StartBeside", l.StartBeside, l.SendingCPUs()},
	} {
		if got := startIdle(t, test.start); !slices.Equal(got, test.want) {
			t.Errorf("%s: the process may use processors %v, want %v", test.name, got, test.want)
		}
		if err := test.start(exec.Command("/no/such/program")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s of a program that does not exist: %v, want %v", test.name, err, fs.ErrNotExist)
		}
	}
	for tid, cpus := range affinities(t) {
		if was, ok := before[tid]; ok && !slices.Equal(cpus, was) || !slices.Equal(cpus, affinityOf(t, 0)) {
			t.Errorf("thread %d of this process may use processors %v, before: %v", tid, cpus, was)
		}
	}
}

func TestStartedProcessesAreAnywhereOnAnInlineLink(t *testing.T) {
	l := inlineForTest(t)
	for name, start := range map[string]func(*exec.Cmd) error{"StartReceiver": l.StartReceiver, "StartBeside": l.StartBeside} {
		if got, want := startIdle(t, start), affinityOf(t, 0); !slices.Equal(got, want) {
			t.Errorf("%s: the process may use processors %v, want %v", name, got, want)
		}
	}
}

func TestStartInsideAHost(t *testing.T) {
	l := apartForTest(t)
	cmd := runSelf(nil, childEnv+"=idle")
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := l.Receiver.Do(func() error { return l.StartReceiver(cmd) }); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	namespace, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(namespace, stat(t, l.Receiver.namespace)) {
		t.Error("the process is not inside the receiver")
	}
}

func TestReceivingTimeEndsWithTheLink(t *testing.T) {
	l, err := New()
	if err != nil {
		giveUp(t, err)
	}
	l.Close()
	requireApart(t, l)
	if used, err := l.ReceivingTime(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("ReceivingTime after Close: %v, %v; want %v", used, err, os.ErrClosed)
	}
}

func TestIsKernelThread(t *testing.T) {
	const name = "napi/veth0-8200"
	for _, test := range []struct {
		what, stat string
		want       bool
	}{
		{"it", "14344 (napi/veth0-8200) S 2 0 0 0 -1 2129984 0 0", true},
		{"a longer name", "14344 (napi/veth0-82001) S 2 0 0 0 -1 2129984 0 0", false},
		{"a process that has taken the name", "14344 (napi/veth0-8200) S 1 14344 14344 0 -1 4194304 0 0", false},
		{"cut off", "14344 (napi/veth0-8200) S 2 0 0 0 -1", false},
		{"nothing", "", false},
	} {
		if got := isKernelThread(test.stat, name); got != test.want {
			t.Errorf("%s: isKernelThread(%q, %q) = %v, want %v", test.what, test.stat, name, got, test.want)
		}
	}
}

func TestCPUMask(t *testing.T) {
	for _, test := range []struct {
		cpus []int
		want string
	}{
		{[]int{0}, "00000001"},
		{[]int{0, 1, 5}, "00000023"},
		{[]int{31}, "80000000"},
		{[]int{32}, "00000001,00000000"},
		{[]int{65, 2}, "00000002,00000000,00000004"},
	} {
		if got := cpuMask(test.cpus); got != test.want {
			t.Errorf("cpuMask(%v) = %s, want %s", test.cpus, got, test.want)
		}
	}
}

// A packet lost while the link comes up costs a second, and not every time.
func TestNewIsFast(t *testing.T) {
	ForTest(t) // Whatever is slow only once.
	for range 20 {
		start := time.Now()
		l, err := New()
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("New took %v, want less than a second", took)
		}
		l.Close()
	}
}

func BenchmarkNew(b *testing.B) {
	ForTest(b)
	for b.Loop() {
		l, err := New()
		if err != nil {
			b.Fatal(err)
		}
		l.Close()
	}
}

func TestListenTakesBothFamilies(t *testing.T) {
	l := ForTest(t)
	listener, err := l.Receiver.Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, to := range []netip.Addr{l.Receiver.IPv4(), l.Receiver.IPv6()} {
		t.Run(to.String(), func(t *testing.T) {
			dialed, accepted := connect(t, l.Sender, listener, net.JoinHostPort(to.String(), port))
			checkStream(t, dialed, accepted)
			for _, conn := range []net.Conn{dialed, accepted} {
				if mptcp, err := conn.(*net.TCPConn).MultipathTCP(); mptcp || err != nil {
					t.Errorf("MultipathTCP() = %v, %v; want plain TCP", mptcp, err)
				}
			}
		})
	}
}

func TestAddresses(t *testing.T) {
	l := ForTest(t)
	for _, host := range []*Host{l.Sender, l.Receiver} {
		listener, err := host.ListenAddr("tcp4", netip.AddrPortFrom(host.IPv4(), 0).String())
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		if got := netip.MustParseAddrPort(listener.Addr().String()).Addr(); got != host.IPv4() {
			t.Errorf("listening on %v, want %v", got, host.IPv4())
		}
	}
	if l.Sender.IPv4() == l.Receiver.IPv4() || l.Sender.IPv6() == l.Receiver.IPv6() {
		t.Error("the hosts share an address")
	}
}

func TestNamesAreRefused(t *testing.T) {
	l := ForTest(t)
	if c, err := l.Sender.Dial(t.Context(), "tcp", "localhost:1"); err == nil {
		c.Close()
		t.Error("Dial took a name")
	}
	if ln, err := l.Receiver.ListenAddr("tcp", "localhost:0"); err == nil {
		ln.Close()
		t.Error("ListenAddr took a name")
	}
}

// Where Go makes a socket is not documented, so the kernel is asked.
func TestSocketsAreInsideTheHost(t *testing.T) {
	l := ForTest(t)
	listener, err := l.Receiver.Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	dialed, accepted := connect(t, l.Sender, listener, net.JoinHostPort(l.Receiver.IPv4().String(), port))
	for _, test := range []struct {
		what   string
		socket syscall.Conn
		host   *Host
	}{
		{"listener", listener.(syscall.Conn), l.Receiver},
		{"accepted", accepted.(syscall.Conn), l.Receiver},
		{"dialed", dialed.(syscall.Conn), l.Sender},
	} {
		if !os.SameFile(stat(t, namespaceOf(t, test.socket)), stat(t, test.host.namespace)) {
			t.Errorf("the %s socket is not in its host's namespace", test.what)
		}
	}
}

func TestTwoLinks(t *testing.T) {
	one, two := ForTest(t), ForTest(t)
	addr := netip.AddrPortFrom(one.Receiver.IPv4(), 7000).String()
	for _, l := range []*Link{one, two} {
		listener, err := l.Receiver.ListenAddr("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		dialed, accepted := connect(t, l.Sender, listener, addr)
		checkStream(t, dialed, accepted)
	}
}

func TestDoStaysInsideAndComesBack(t *testing.T) {
	l := ForTest(t)
	home := stat(t, currentNamespace(t))
	var wg sync.WaitGroup
	for _, host := range []*Host{l.Sender, l.Receiver} {
		want := stat(t, host.namespace)
		for range 8 {
			wg.Go(func() {
				for range 50 {
					err := host.Do(func() error { return expectNamespace(want) })
					if err != nil {
						t.Errorf("inside Do: %v", err)
					}
					if err := expectNamespace(home); err != nil {
						t.Errorf("outside Do: %v", err)
					}
				}
			})
		}
	}
	wg.Wait()
}

func TestDoReturnsTheError(t *testing.T) {
	l := ForTest(t)
	want := errors.New("from inside")
	if err := l.Sender.Do(func() error { return want }); err != want {
		t.Errorf("Do = %v, want %v", err, want)
	}
}

func TestDoSurvivesGoexit(t *testing.T) {
	l := ForTest(t)
	if err := l.Sender.Do(func() error { runtime.Goexit(); return nil }); err != errExited {
		t.Errorf("Do = %v, want %v", err, errExited)
	}
}

// A thread that cannot be taken home must not be met again.
func TestThreadGoneAstrayDies(t *testing.T) {
	l := ForTest(t)
	var tid int
	err := l.Sender.Do(func() error {
		if tid = unix.Gettid(); tid == os.Getpid() {
			return errors.ErrUnsupported // The first thread cannot die, the runtime parks it.
		}
		runtime.LockOSThread() // One lock too many, as if giving back had failed.
		return nil
	})
	if err != nil {
		t.Skip("on the process's first thread by chance")
	}
	eventually(t, "the thread is gone", func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", tid))
		return errors.Is(err, fs.ErrNotExist)
	})
}

func TestSysctlIsPerNamespace(t *testing.T) {
	const key = "net.core.optmem_max"
	l := ForTest(t)
	ours, err := os.ReadFile("/proc/sys/net/core/optmem_max")
	if err != nil {
		t.Fatal(err)
	}
	theirs := sysctl(t, l.Receiver, key)
	if err := l.Sender.SetSysctl(key, "54321"); err != nil {
		t.Fatal(err)
	}
	if got := sysctl(t, l.Sender, key); got != "54321" {
		t.Errorf("sender's %s = %s after SetSysctl to 54321", key, got)
	}
	if got := sysctl(t, l.Receiver, key); got != theirs {
		t.Errorf("receiver's %s went from %s to %s with the sender's", key, theirs, got)
	}
	if got, _ := os.ReadFile("/proc/sys/net/core/optmem_max"); string(got) != string(ours) {
		t.Errorf("the process's %s went from %s to %s with the sender's", key, ours, got)
	}
}

func TestSysctlErrors(t *testing.T) {
	l := ForTest(t)
	if err := l.Sender.SetSysctl("net.core.no_such", "1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("SetSysctl of a key that does not exist: %v, want %v", err, fs.ErrNotExist)
	}
	if err := l.Sender.SetSysctl("kernel.hostname", "x"); err == nil {
		t.Error("SetSysctl took a setting of the whole machine")
	}
	if err := l.Sender.SetSysctl("net.core.optmem_max", "much"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("SetSysctl of nonsense: %v, want %v", err, unix.EINVAL)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	watch := ForTest(t)
	before := takeStock(t)
	for range 3 {
		l, err := New()
		if err != nil {
			t.Fatal(err)
		}
		isGone := watchNamespaces(t, watch.Sender, l.Sender.namespace, l.Receiver.namespace)
		if l.Inline() == "" && isNoThread(l.thread) {
			t.Fatalf("process %d is not the thread of the link", l.thread)
		}
		for range 2 {
			if err := l.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		if err := l.Sender.Do(func() error { return nil }); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Do after Close: %v, want %v", err, os.ErrClosed)
		}
		eventually(t, "the namespaces are gone", isGone)
		eventually(t, "the thread is gone", func() bool { return isNoThread(l.thread) })
	}
	before.compare(t)
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	ForTest(t)
	before := takeStock(t)
	want := errors.New("by test")
	for n := range apartLink {
		steps := slices.Clone(apartLink[:n+1])
		steps[n].run = func(*Link) error { return want }
		if l, err := build(steps); l != nil || !errors.Is(err, want) {
			t.Errorf("step %d failing: %v, %v; want nil, %v", n, l, err, want)
		}
	}
	before.compare(t)
}

func TestDeadProcessLeavesNothing(t *testing.T) {
	for _, test := range []struct {
		child string
		end   func(*child, *testing.T)
	}{
		{"panic", (*child).letPanic},
		{"wait", (*child).kill},
	} {
		t.Run(test.child, func(t *testing.T) {
			watch := ForTest(t)
			before := takeStock(t)
			c := startChild(t, test.child)
			isGone := c.watch(t, watch.Sender)
			if isGone() {
				t.Fatal("the namespaces of a living child are gone")
			}
			if c.thread != 0 && isNoThread(c.thread) {
				t.Fatalf("process %d is not the thread of the living child's link", c.thread)
			}
			test.end(c, t)
			eventually(t, "the child's namespaces are gone", isGone)
			eventually(t, "the child's thread is gone", func() bool { return isNoThread(c.thread) })
			before.compare(t)
		})
	}
}

func TestMissingRightIsNamed(t *testing.T) {
	ForTest(t)
	for _, test := range []struct {
		name string
		attr *syscall.SysProcAttr
		want string
	}{
		{"nobody", nobody(), "CAP_SYS_ADMIN"},
		{"root of a user namespace", rootOfUserNamespace(), "CAP_BPF"},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, _ := runSelf(test.attr, childEnv+"=report").CombinedOutput()
			if want := "unsupported=true"; !strings.Contains(string(out), want) || !strings.Contains(string(out), test.want) {
				t.Errorf("New said %q, want %s and %s", out, want, test.want)
			}
			t.Logf("%s", out)
		})
	}
}

func TestForTestSkipsOrFails(t *testing.T) {
	ForTest(t)
	for _, test := range []struct{ require, want string }{
		{"0", "--- SKIP"},
		{"1", "--- FAIL"},
	} {
		cmd := runSelf(nobody(), requireEnv+"="+test.require)
		cmd.Args = append(cmd.Args, "-test.run=^TestDoReturnsTheError$", "-test.v")
		out, _ := cmd.CombinedOutput()
		if !strings.Contains(string(out), test.want) || !strings.Contains(string(out), "CAP_SYS_ADMIN") {
			t.Errorf("with %s=%s: want %s and the reason, got:\n%s", requireEnv, test.require, test.want, out)
		}
	}
}

// apartForTest is ForTest for a link whose receiving end works apart.
func apartForTest(t *testing.T) *Link {
	t.Helper()
	l := ForTest(t)
	requireApart(t, l)
	return l
}

// requireApart skips a test for which the receiving end has to work apart, or
// fails it where it could.
func requireApart(t *testing.T, l *Link) {
	t.Helper()
	if l.Inline() == "" {
		return
	}
	if os.Getenv(requireEnv) == "1" && len(affinityOf(t, 0)) > 1 {
		t.Fatalf("%s=1, but the link is inline: %s", requireEnv, l.Inline())
	}
	t.Skipf("the link is inline: %s", l.Inline())
}

// inlineForTest builds an inline link for a test.
func inlineForTest(t *testing.T) *Link {
	t.Helper()
	l, err := NewInline()
	if err != nil {
		giveUp(t, err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// checkNotThreaded asks the kernel whether the receiving end is threaded.
func checkNotThreaded(t *testing.T, l *Link) {
	t.Helper()
	err := l.Receiver.Do(func() error {
		threaded, err := readDevice("threaded")
		if err == nil && threaded != "0" {
			err = fmt.Errorf("threaded is %q, want 0", threaded)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// readDevice reads what writeDevice writes.
func readDevice(attribute string) (value string, err error) {
	root, err := openSysfs()
	if err != nil {
		return "", err
	}
	defer root.Close()
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/class/net/%s/%s", root.Fd(), device, attribute))
	return strings.TrimSpace(string(b)), err
}

// isNoThread tells whether a process ID is not that of any link's thread.
func isNoThread(pid int) bool {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return !strings.Contains(string(stat), " (napi/"+device)
}

// deadProcess returns the ID of a process that has ended, so that its processor
// time stands still, but has not been waited for, so that it has one.
func deadProcess(t *testing.T) (pid int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Wait() })
	err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
	if err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

// startIdle starts a process, and returns the processors that it may use.
func startIdle(t *testing.T, start func(*exec.Cmd) error) (cpus []int) {
	t.Helper()
	cmd := runSelf(nil, childEnv+"=idle")
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := start(cmd); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	return affinityOf(t, cmd.Process.Pid)
}

func affinityOf(t *testing.T, tid int) []int {
	t.Helper()
	cpus, err := affinity(tid)
	if err != nil {
		t.Fatal(err)
	}
	return cpus
}

// affinities returns the processors that each thread of this process may use.
func affinities(t *testing.T) map[int][]int {
	t.Helper()
	all := make(map[int][]int)
	for _, task := range glob(t, "/proc/self/task/*") {
		tid, err := strconv.Atoi(filepath.Base(task))
		if err != nil {
			t.Fatal(err)
		}
		if cpus, err := affinity(tid); err == nil { // Or it has ended.
			all[tid] = cpus
		}
	}
	return all
}

func receivingTime(t *testing.T, l *Link) time.Duration {
	t.Helper()
	used, err := l.ReceivingTime()
	if err != nil {
		t.Fatal(err)
	}
	return used
}

// connect dials addr from a host, and accepts.
func connect(t *testing.T, from *Host, listener net.Listener, addr string) (dialed, accepted net.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	dialed, err := from.Dial(ctx, "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialed.Close() })
	accepted, err = acceptBefore(listener, time.Now().Add(patience))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { accepted.Close() })
	return dialed, accepted
}

// checkStream sends a little in either direction.
func checkStream(t *testing.T, a, b net.Conn) {
	t.Helper()
	for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
		const want = "over the cable"
		if _, err := io.WriteString(pair[0], want); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		pair[1].SetReadDeadline(time.Now().Add(patience))
		if _, err := io.ReadFull(pair[1], got); err != nil || string(got) != want {
			t.Fatalf("read %q, %v; want %q", got, err, want)
		}
	}
}

func sysctl(t *testing.T, h *Host, key string) string {
	t.Helper()
	value, err := h.Sysctl(key)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func stat(t *testing.T, f *os.File) os.FileInfo {
	t.Helper()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// currentNamespace opens the namespace of the calling thread.
func currentNamespace(t *testing.T) *os.File {
	t.Helper()
	f, err := threadNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// expectNamespace fails unless the calling thread is in a namespace.
func expectNamespace(want os.FileInfo) error {
	got, err := os.Stat("/proc/thread-self/ns/net")
	if err == nil && !os.SameFile(got, want) {
		err = errors.New("the thread is in another namespace")
	}
	return err
}

// namespaceOf opens the namespace of a socket.
func namespaceOf(t *testing.T, socket syscall.Conn) *os.File {
	t.Helper()
	conn, err := socket.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	var ferr error
	err = conn.Control(func(s uintptr) { fd, ferr = unix.IoctlRetInt(int(s), unix.SIOCGSKNS) })
	if err := errors.Join(err, ferr); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "namespace of a socket")
	t.Cleanup(func() { f.Close() })
	return f
}

// stock is what a link must not add to.
type stock struct {
	descriptors int      // Open files of this process.
	devices     []string // Devices of this process's namespace.
	named       []string // Namespaces with a name.
	mounts      int      // Mounted namespaces and sysfs.
}

func takeStock(t *testing.T) stock {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var s stock
	for _, l := range links {
		s.devices = append(s.devices, l.Attrs().Name)
	}
	slices.Sort(s.devices)
	s.descriptors = len(glob(t, "/proc/self/fd/*"))
	s.named = glob(t, "/run/netns/*")
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	s.mounts = strings.Count(string(mounts), " - nsfs ") + strings.Count(string(mounts), " - sysfs ")
	return s
}

// compare waits, as some of it goes asynchronously, until there is no more of
// anything than there was.
func (s stock) compare(t *testing.T) {
	t.Helper()
	var now stock
	defer func() {
		if t.Failed() {
			t.Logf("before: %+v\nafter: %+v", s, now)
		}
	}()
	eventually(t, "all is as it was before", func() bool {
		now = takeStock(t)
		return now.descriptors <= s.descriptors && slices.Equal(now.devices, s.devices) &&
			slices.Equal(now.named, s.named) && now.mounts == s.mounts
	})
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// watchNamespaces returns a function that tells whether the last reference to
// each of the namespaces is gone, upon which the kernel removes them.
//
// The kernel is asked by an ID that the watching host gives each of them, which
// holds nothing: it resolves until the last reference is gone, whoever has
// it (get_net_ns_by_id in net/core/net_namespace.c). Looking through /proc
// would miss references and, as inode numbers are used again, take namespaces
// of others for these.
func watchNamespaces(t *testing.T, watcher *Host, namespaces ...*os.File) (areGone func() bool) {
	t.Helper()
	ids := make([]int, len(namespaces))
	err := watcher.Do(func() (err error) {
		for i, namespace := range namespaces {
			if ids[i], err = assignID(namespace); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return func() bool {
		err := watcher.Do(func() error {
			for _, id := range ids {
				if err := resolveID(id); !errors.Is(err, unix.ENOENT) {
					return fmt.Errorf("namespace %d: %v", id, err)
				}
			}
			return nil
		})
		return err == nil
	}
}

// assignID gives a namespace an ID in the thread's namespace.
func assignID(namespace *os.File) (id int, err error) {
	err = withFd(namespace, func(fd int) (err error) {
		if err := netlink.SetNetNsIdByFd(fd, -1); err != nil {
			return err
		}
		id, err = netlink.GetNetNsIdByFd(fd)
		return err
	})
	return id, err
}

// resolveID asks for the namespace that has an ID in the thread's namespace.
func resolveID(id int) error {
	const netnsaNSID = 1 // NETNSA_NSID in include/uapi/linux/net_namespace.h.
	req := nl.NewNetlinkRequest(unix.RTM_GETNSID, 0)
	req.AddData(nl.NewRtGenMsg())
	req.AddData(nl.NewRtAttr(netnsaNSID, nl.Uint32Attr(uint32(id))))
	_, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNSID)
	return err
}

// eventually waits for what the kernel does asynchronously.
func eventually(t *testing.T, what string, isSo func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if isSo() {
			return
		}
	}
	t.Fatalf("still not so after 20 s: %s", what)
}

// A child is a process of this test binary that has built a link.
type child struct {
	cmd    *exec.Cmd
	thread int // The process ID of its link's thread, 0 if that is inline.
	stdin  io.Closer
	stderr *bytes.Buffer // To be read after the child's end.
}

// childBuild builds a link, with connections that have data in flight, and
// tells the parent.
func childBuild() {
	l, err := New()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for _, to := range []netip.Addr{l.Receiver.IPv4(), l.Receiver.IPv6()} {
		conns, err := l.connect(to, time.Now().Add(time.Minute))
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		conns.discard()
		go io.Copy(conns.dialed, zeros{})
	}
	fmt.Println("ready", l.thread)
}

// zeros is an endless reader.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func childWait() {
	childBuild()
	io.Copy(io.Discard, os.Stdin)
}

func childPanic() {
	childWait()
	panic(childPanics)
}

func childReport() {
	l, err := New()
	if err != nil {
		fmt.Printf("unsupported=%v: %v\n", errors.Is(err, errors.ErrUnsupported), err)
		return
	}
	fmt.Printf("inline, because %s\n", l.Inline())
}

// childContain reports from a process that is given a /proc to go with its PID
// namespace.
func childContain() {
	err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	if err == nil {
		err = unix.Mount("proc", "/proc", "proc", 0, "")
	}
	if err != nil {
		fmt.Println("mount /proc:", err)
		return
	}
	childReport()
}

func childIdle() { io.Copy(io.Discard, os.Stdin) }

// startChild starts a child and waits until its link is there.
func startChild(t *testing.T, mode string) *child {
	t.Helper()
	cmd := runSelf(nil, childEnv+"="+mode)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: cmd, stdin: stdin, stderr: &stderr}
	t.Cleanup(func() { c.cmd.Process.Kill() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if _, scanErr := fmt.Sscanf(line, "ready %d\n", &c.thread); scanErr != nil {
		t.Fatalf("child said %q, %v", line, err)
	}
	return c
}

// watch is watchNamespaces for the two that the child holds by descriptors.
func (c *child) watch(t *testing.T, watcher *Host) (areGone func() bool) {
	t.Helper()
	var namespaces []*os.File
	for _, name := range glob(t, fmt.Sprintf("/proc/%d/fd/*", c.cmd.Process.Pid)) {
		if target, _ := os.Readlink(name); !strings.HasPrefix(target, "net:[") {
			continue
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		namespaces = append(namespaces, f)
	}
	if len(namespaces) != 2 {
		t.Fatalf("the child holds %d namespaces, want 2", len(namespaces))
	}
	return watchNamespaces(t, watcher, namespaces...)
}

// letPanic ends what the child waits for, and expects it to panic.
func (c *child) letPanic(t *testing.T) {
	t.Helper()
	c.stdin.Close()
	if err := c.cmd.Wait(); err == nil || !strings.Contains(c.stderr.String(), "panic: "+childPanics) {
		t.Fatalf("the child did not panic: %v\n%s", err, c.stderr)
	}
}

// kill ends the child by SIGKILL.
func (c *child) kill(t *testing.T) {
	t.Helper()
	if err := c.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	c.cmd.Wait()
}

// runSelf returns a command that runs this test binary.
func runSelf(attr *syscall.SysProcAttr, env ...string) *exec.Cmd {
	// By this name an unprivileged user can run it too, whose way to the
	// directory that go test builds it in may be barred.
	cmd := exec.Command("/proc/self/exe")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = attr
	return cmd
}

// nobody makes a process unprivileged.
func nobody() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}

// rootOfUserNamespace leaves a process all capabilities over what it makes
// itself, and none over the machine.
func rootOfUserNamespace() *syscall.SysProcAttr {
	self := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
	return &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: self, GidMappings: self}
}
