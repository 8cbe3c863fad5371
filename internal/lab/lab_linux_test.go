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
	"report": childReport,
	"panic":  childPanic,
	"wait":   childWait,
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

func TestNewIsFast(t *testing.T) {
	ForTest(t) // Whatever is slow only once.
	start := time.Now()
	ForTest(t)
	if took := time.Since(start); took > time.Second {
		t.Errorf("New took %v, want less than a second", took)
	} else {
		t.Logf("New took %v", took)
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
		for range 2 {
			if err := l.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		if err := l.Sender.Do(func() error { return nil }); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Do after Close: %v, want %v", err, os.ErrClosed)
		}
		eventually(t, "the namespaces are gone", isGone)
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
			test.end(c, t)
			eventually(t, "the child's namespaces are gone", isGone)
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
	mounts      int      // Mounted namespaces.
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
	s.mounts = strings.Count(string(mounts), " - nsfs ")
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
	fmt.Println("ready")
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
	_, err := New()
	fmt.Printf("unsupported=%v: %v\n", errors.Is(err, errors.ErrUnsupported), err)
}

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
	c := &child{cmd, stdin, &stderr}
	t.Cleanup(func() { c.cmd.Process.Kill() })
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
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
