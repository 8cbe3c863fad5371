package zcnet

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// This file is about which limit a refusal (ENOBUFS) was about, and what is
// made of it. RLIMIT_MEMLOCK is tried by processes of users that exist for
// these tests only, because it counts what all processes of a user pin.

func init() {
	children["all pinned by others"] = allPinnedByOthers
	children["half pinned by others"] = halfPinnedByOthers
	children["nothing pinned by others"] = nothingPinnedByOthers
	children["limit raised"] = limitRaised
	children["no socket"] = noSocket
	children["user namespace"] = inUserNamespace
}

func TestRefusalsByMemlock(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the children become other users, which takes root")
	}
	for _, name := range []string{"all pinned by others", "half pinned by others", "nothing pinned by others", "limit raised", "no socket"} {
		t.Run(name, func(t *testing.T) { runChild(t, name) })
	}
}

// becomeLimited makes the process one of a user that has no other. It may pin
// limit bytes, and up to most if it raises the limit.
func becomeLimited(limit, most uint64) error {
	user := 1<<20 + os.Getpid()
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: limit, Max: most}); err != nil {
		return err
	}
	return errors.Join(syscall.Setgid(user), syscall.Setuid(user))
}

// strangers pins memory of this user that zcnet knows nothing of, as other
// processes do: all that may be pinned down to a page, or up to most bytes.
// What it returns lets go of it.
func strangers(most int64) (release func(), err error) {
	var conns []net.Conn
	release = func() {
		for _, c := range conns {
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		}
	}
	data := make([]byte, 64<<10)
	for pinned, size := int64(0), len(data); size >= page && pinned+pinnedBy(int64(size)) <= most; {
		near, far, err := plainPair()
		if err != nil {
			return release, err
		}
		conns = append(conns, near, far)
		raw, err := near.SyscallConn()
		if err != nil {
			return release, err
		}
		var optionErr error
		ctlErr := raw.Control(func(fd uintptr) { optionErr = setZeroCopy(int(fd)) })
		if err := errors.Join(far.SetReadBuffer(4<<10), ctlErr, optionErr); err != nil {
			return release, err
		}
		for sendErr := error(nil); sendErr == nil && size >= page && pinned+pinnedBy(int64(size)) <= most; {
			_ = raw.Control(func(fd uintptr) {
				var m message
				m.add(data[:size])
				_, sendErr = m.send(fd, msgZeroCopy)
			})
			switch sendErr {
			case nil:
				pinned += pinnedBy(int64(size))
			case unix.ENOBUFS:
				size, sendErr = size/2, nil
			}
		}
	}
	return release, nil
}

// plainPair returns two ends of a connection over loopback.
func plainPair() (near, far *net.TCPConn, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	n, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	f, err := l.Accept()
	if err != nil {
		return nil, nil, err
	}
	return n.(*net.TCPConn), f.(*net.TCPConn), nil
}

// few is how many refusals there may be since start.
func few(start time.Time) uint64 { return 4 * (1 + uint64(time.Since(start)/limitsHold)) }

// allPinnedByOthers: the kernel is asked now and then only, a write takes the
// calls of Write, and what others let go of during one long write is used in
// it.
func allPinnedByOthers() error {
	if err := becomeLimited(4<<20, 4<<20); err != nil {
		return err
	}
	release, err := strangers(1 << 40)
	if err != nil {
		return err
	}
	near, far, err := childPair(insist)
	if err != nil {
		return err
	}
	start, data := time.Now(), noise(2*smallCall, 1)
	const writes = 300
	got := make([]byte, len(data))
	for range writes {
		if _, err := near.WritePinned(Pin(data)); err != nil {
			return err
		}
		if _, err := io.ReadFull(far, got); err != nil {
			return err
		}
	}
	s := near.Stats()
	switch reason := Probe(near).Reason; {
	case s.EnobufsMemlock == 0 || s.EnobufsMemlock > few(start) || s.EnobufsOptmem+s.EnobufsOther > 0:
		return fmt.Errorf("want from 1 to %d refusals, by memlock: %+v", few(start), s)
	case s.Sends > 0 || s.Fallbacks.Memlock != writes:
		return fmt.Errorf("want every write copied for want of memlock: %+v", s)
	case s.Syscalls > writes*3/2+3*few(start): // one each, but for those that found the send buffer full
		return fmt.Errorf("%d system calls for %d writes", s.Syscalls, writes)
	case !strings.Contains(reason, "RLIMIT_MEMLOCK") || !strings.Contains(reason, "other processes of this user") || strings.Contains(reason, "optmem"):
		return fmt.Errorf("Probe gives as the reason %q", reason)
	}
	var parts []Pinned
	for range 20 {
		parts = append(parts, Pin(data[:100]), Pin(data[:2*page]))
	}
	if _, err := near.WritePinnedBuffers(parts); err != nil {
		return err
	}
	if n := near.Stats().Syscalls - s.Syscalls; n > 6 { // two, and those of a call that the kernel refuses
		return fmt.Errorf("%d system calls for a write of short and long buffers", n)
	}
	if _, err := io.CopyN(io.Discard, far, totalLen(parts)); err != nil {
		return err
	}
	return flaggedWithin(near, far, release)
}

// flaggedWithin makes one long write, and change while it is blocked, after
// which calls of it must be flagged.
func flaggedWithin(near *Conn, far net.Conn, change func()) error {
	before := near.Stats().Sends
	written := make(chan error, 1)
	const size = 64 << 20
	go func() {
		_, err := near.WritePinned(Pin(make([]byte, size)))
		written <- err
	}()
	if _, err := io.CopyN(io.Discard, far, size/4); err != nil {
		return err
	}
	if n := near.Stats().Sends; n != before {
		return fmt.Errorf("%d calls are flagged before there is room", n-before)
	}
	change()
	time.Sleep(2 * limitsHold)
	if _, err := io.CopyN(io.Discard, far, size-size/4); err != nil {
		return err
	}
	if err := <-written; err != nil {
		return err
	}
	if s := near.Stats(); s.Sends == before {
		return fmt.Errorf("room that came during a write was not used by it: %+v", s)
	}
	return nil
}

// halfPinnedByOthers: the other half is used, by two connections that send at
// once, and all refusals are memlock's, though completions come at any time.
func halfPinnedByOthers() error {
	const limit = 4 << 20
	if err := becomeLimited(limit, limit); err != nil {
		return err
	}
	if _, err := strangers(limit / 2); err != nil {
		return err
	}
	if room := roomToPin(limit); room < limit/4 || room > limit/2 {
		return fmt.Errorf("room for %d bytes, want about half of %d", room, limit)
	}
	start := time.Now()
	var refusals atomic.Uint64
	send := func() error {
		near, far, err := childPair(insist)
		if err != nil {
			return err
		}
		go io.Copy(io.Discard, far)
		data := noise(1<<20, 1)
		for range 300 {
			if _, err := near.WritePinned(Pin(data)); err != nil {
				return err
			}
		}
		s := near.Stats()
		refusals.Add(s.EnobufsMemlock)
		switch {
		case s.EnobufsMemlock > few(start) || s.EnobufsOptmem+s.EnobufsOther > 0 || s.Fallbacks.Optmem > 0:
			return fmt.Errorf("want at most %d refusals, by memlock: %+v", few(start), s)
		case s.Sends < 10:
			return fmt.Errorf("the half that is free was not used: %+v", s)
		}
		return nil
	}
	all := make(chan error, 2)
	for range cap(all) {
		go func() { all <- send() }()
	}
	if err := errors.Join(<-all, <-all); err != nil || refusals.Load() > 0 {
		return err
	}
	return errors.New("the kernel has refused nothing")
}

// nothingPinnedByOthers: the kernel never refuses, because all that it charges
// is counted.
func nothingPinnedByOthers() error {
	const limit = 2 << 20
	if err := becomeLimited(limit, limit); err != nil {
		return err
	}
	for _, size := range []int64{1, limit - pinnedBy(0)} {
		if room := roomToPin(size); room != size {
			return fmt.Errorf("room for %d bytes, want %d", room, size)
		}
	}
	if err := chargedCalls(limit); err != nil {
		return err
	}
	near, far, err := childPair(insist)
	if err != nil {
		return err
	}
	go io.Copy(io.Discard, far)
	data := noise(1<<20, 1)
	for range 300 {
		if _, err := near.WritePinned(Pin(data)); err != nil {
			return err
		}
	}
	if s := near.Stats(); s.EnobufsMemlock+s.EnobufsOptmem+s.EnobufsOther > 0 || s.Sends == 0 || s.Fallbacks.Memlock == 0 {
		return fmt.Errorf("want no refusal, and some writes copied for want of memlock: %+v", s)
	}
	if reason := Probe(near).Reason; !strings.Contains(reason, "by what this process has in flight") {
		return fmt.Errorf("Probe gives as the reason %q", reason)
	}
	return nil
}

// chargedCalls makes calls of which the kernel queues a part, and others of
// which it queues nothing, and compares what it has charged for them with what
// is counted.
func chargedCalls(limit int64) error {
	near, far, err := childPair(insist)
	if err != nil {
		return err
	}
	if err := errors.Join(near.SetWriteBuffer(256<<10), far.(*net.TCPConn).SetReadBuffer(4<<10)); err != nil {
		return err
	}
	for timeouts := 0; timeouts < 5; {
		if err := near.SetWriteDeadline(time.Now().Add(5 * time.Millisecond)); err != nil {
			return err
		}
		if _, err := near.WritePinned(Pin(noise(64<<10, 1))); errors.Is(err, os.ErrDeadlineExceeded) {
			timeouts++
		} else if err != nil {
			return err
		}
	}
	charged := int64(0)
	for tryToPin(limit-charged-pinnedBy(0)) != nil {
		charged += kernelPage
	}
	if counted := inProcess.pinned.Load(); counted < charged || charged < 64<<10 {
		return fmt.Errorf("%d bytes are counted, and the kernel has charged %d", counted, charged)
	}
	return errors.Join(near.SetLinger(0), near.Close()) // which resets it
}

// limitRaised: a limit that is raised during a write is noticed in it.
func limitRaised() error {
	const most = 8 << 20
	if err := becomeLimited(0, most); err != nil {
		return err
	}
	near, far, err := childPair(insist)
	if err != nil {
		return err
	}
	var raised error
	err = flaggedWithin(near, far, func() {
		raised = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: most, Max: most})
	})
	return errors.Join(raised, err)
}

// TestMemlockHoldsInAUserNamespace: a process with all capabilities, and with
// the user IDs of the initial namespace, has CAP_IPC_LOCK in vain.
func TestMemlockHoldsInAUserNamespace(t *testing.T) {
	if os.Getuid() != 0 || strconv.IntSize < 64 {
		t.Skip("a map of all users takes root, and 64 bits")
	}
	var rl unix.Rlimit
	check(t, unix.Getrlimit(unix.RLIMIT_MEMLOCK, &rl))
	if r, err := Probe(nil), tryToPin(int64(min(rl.Cur+1, plainCall))); rl.Cur < plainCall && r.MemlockLimited != (err != nil) {
		t.Errorf("RLIMIT_MEMLOCK is said to hold here: %v; a call of more than that: %v", r.MemlockLimited, err)
	}
	users := uint32(math.MaxUint32)
	everyone := []syscall.SysProcIDMap{{Size: int(users)}}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=user namespace")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: everyone, GidMappings: everyone}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) {
		t.Skip("no user namespace can be made: ", err)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func inUserNamespace() error {
	const limit = 1 << 20
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
		return err
	}
	near, far, err := childPair(insist)
	if err != nil {
		return err
	}
	go io.Copy(io.Discard, far)
	for range 50 {
		if _, err := near.WritePinned(Pin(make([]byte, limit))); err != nil {
			return err
		}
	}
	r := Probe(near)
	if s := r.Stats; s.EnobufsMemlock+s.EnobufsOptmem+s.EnobufsOther > 0 || s.Sends == 0 {
		return fmt.Errorf("want flagged calls, and no refusal: %+v", s)
	}
	if !r.MemlockLimited || r.MemlockLimit != limit {
		return fmt.Errorf("RLIMIT_MEMLOCK is not said to hold: %+v", r)
	}
	return nil
}

// TestOptmemIsBlamedByBehaviour: the peer acknowledges nothing, and the kernel
// has room for a few notifications only. Whatever it tells of its limits, each
// refusal is optmem's, no call is made smaller, and few are refused.
func TestOptmemIsBlamedByBehaviour(t *testing.T) {
	const notifications, memlock = 24, 8 << 20
	hidden := limits{ids: noLimits.ids, pinned: memlock}
	for _, tt := range []struct {
		name  string
		told  limits
		setUp func(k *fakeKernel)
	}{
		{"the limit is known", limits{ids: notifications, pinned: memlock}, func(*fakeKernel) {}},
		{"its file is hidden", hidden, func(*fakeKernel) {}},
		{"its file is hidden, and the kernel tells nothing", hidden, func(k *fakeKernel) { k.mute = true }},
		{"its file is of another namespace", limits{ids: 1000, pinned: memlock}, func(k *fakeKernel) { k.elsewhere = true }},
		{"memlock is unlimited", noLimits, func(*fakeKernel) {}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHistory(t, settings{})
				defer h.end()
				h.k.sndbuf, h.k.optmem, h.k.memlock, h.k.lim = 1<<30, notifications, memlock, tt.told
				tt.setUp(h.k)
				start, m := time.Now(), h.pin(0)
				const writes = 200
				for range writes {
					h.ops = h.ops[:0] // the model keeps no more than a few
					h.pinned(part{m, 0, 100 << 10})
					time.Sleep(10 * time.Millisecond)
				}
				s := h.c.Stats()
				if n, most := s.EnobufsOptmem, 1+uint64(time.Since(start)/limitsHold); n == 0 || n > most || s.EnobufsMemlock+s.EnobufsOther > 0 {
					t.Errorf("ENOBUFS by optmem %d, by memlock %d, by neither %d; want 1 to %d, and none", n, s.EnobufsMemlock, s.EnobufsOther, most)
				}
				if s.Sends != notifications || s.Fallbacks != (Fallbacks{Optmem: writes - notifications}) {
					t.Errorf("%d flagged calls, and %+v; want %d, each of a whole write, and the other writes copied for want of optmem", s.Sends, s.Fallbacks, notifications)
				}
				if _, reason := verdict(s); !strings.Contains(reason, "optmem_max") || strings.Contains(reason, "MEMLOCK") {
					t.Errorf("Probe gives as the reason %q", reason)
				}
				h.k.mu.Lock()
				h.k.transmit(len(h.k.segments))
				h.k.acknowledge(len(h.k.segments))
				h.k.mu.Unlock()
				for moved := true; moved; {
					h.spawn(func() { moved = h.k.report(); moved = h.k.tick((*socket).tick) || moved })
				}
			})
		})
	}
}

// TestRoomThatCameBackIsMemlocks: what has completed between a refusal and the
// question after its cause may have made room.
func TestRoomThatCameBackIsMemlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHistory(t, settings{})
		defer h.end()
		const size = 100 << 10
		h.k.memlock, h.k.lim = 3*size/2, limits{ids: noLimits.ids, pinned: 1 << 30}
		h.pinned(part{h.pin(0), 0, size})
		h.k.transmit(1)
		h.k.acknowledge(1)
		h.k.sends = append(h.k.sends, faultENOBUFS)
		h.pinned(part{h.pin(1), 0, size})
		if s := h.c.Stats(); s.EnobufsMemlock != 1 || s.EnobufsOptmem != 0 || s.Sends != 2 {
			t.Errorf("want one refusal by memlock, and two flagged calls: %+v", s)
		}
		h.settle()
	})
}

func TestBlameOfARefusal(t *testing.T) {
	const optmem = 100 * notificationCharge
	told := limits{ids: 100, pinned: 1 << 20}
	unlimited := limits{ids: 100, pinned: noLimits.pinned}
	hidden := limits{ids: noLimits.ids, pinned: 1 << 20}
	for _, tt := range []struct {
		name      string
		told      limits
		charged   int64
		room      int64 // of 1000
		elsewhere bool
		want      reason
	}{
		{"another socket is refused a part", told, optmem, 500, false, reasonMemlock},
		{"another socket is refused all", hidden, optmem, 0, false, reasonMemlock},
		{"in spite of CAP_IPC_LOCK", unlimited, 0, 500, false, reasonMemlock},
		{"another socket is refused nothing", hidden, optmem, 1000, false, reasonOptmem},
		{"optmem is far from used up", told, optmem / 10, 1000, false, reasonMemlock},
		{"optmem is far from used up elsewhere", told, optmem / 10, 1000, true, reasonOptmem},
		{"neither is near", unlimited, optmem / 10, 1000, false, reasonRefused},
		{"memlock does not hold, and optmem is near", unlimited, optmem - 10, unknown, false, reasonOptmem},
		{"there is no optmem at all", limits{ids: 0, pinned: 1 << 20}, 0, 0, false, reasonOptmem},
		{"the kernel does not tell, and optmem is far from used up", told, 0, unknown, false, reasonMemlock},
		{"the kernel does not tell, and nothing is charged", hidden, 0, unknown, false, reasonMemlock},
		{"the kernel does not tell, and something is charged", hidden, 832, unknown, false, reasonOptmem},
		{"nothing is told", hidden, unknown, unknown, false, reasonOptmem},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := newFakeKernel(0, t.Errorf)
			k.elsewhere = tt.elsewhere
			w := &write{progress: progress{s: &socket{kernel: k}, limits: &tt.told}}
			if got := w.blame(mainFD, tt.charged, 1000, tt.room); got != tt.want {
				t.Errorf("reason %d, want %d", got, tt.want)
			}
		})
	}
}

func TestRefusedCallsBoundWhatIsInFlight(t *testing.T) {
	var b bound
	want := func(now time.Duration, most int64) {
		t.Helper()
		if got := b.current(now).most; got != most {
			t.Errorf("at %v: %d may be in flight, want %d", now, got, most)
		}
	}
	want(0, noRefusal.most)
	b.refuse(reasonOptmem, 100, 88, 0)
	want(1, 88)
	b.refuse(reasonOptmem, 120, 110, 1) // of a call that began before
	want(2, 88)
	b.refuse(reasonOptmem, 80, 70, 2) // of what the bound allowed
	want(3, 44)
	b.refuse(reasonOptmem, 0, 0, 3)
	want(4, 0)
	want(3+limitsHold, noRefusal.most)
}

// A knowing kernel tells that RLIMIT_MEMLOCK is pinned.
type knowing struct {
	kernel
	pinned int64
}

func (k knowing) currentLimits(time.Duration) *limits {
	return &limits{ids: noLimits.ids, pinned: k.pinned}
}

// TestCallsOfAWriteThatFindsNoRoom: the peer acknowledges nothing, so that what
// is in flight stays, and the rest of each write is copied by one call, after
// one look at the error queue.
func TestCallsOfAWriteThatFindsNoRoom(t *testing.T) {
	const room, calls = 256 << 10, 2
	for _, name := range []string{"MaxInFlight", "RLIMIT_MEMLOCK"} {
		t.Run(name, func(t *testing.T) {
			limited := struct{ maxInFlight, memlock int64 }{room, noLimits.pinned}
			if name == "RLIMIT_MEMLOCK" { // beside what other tests have left in flight
				limited.maxInFlight, limited.memlock = 0, inProcess.pinned.Load()+room
			}
			near, far := loopbackPair(t)
			check(t, errors.Join(near.SetWriteBuffer(8<<20), far.SetReadBuffer(4<<10)))
			cfg := *insist
			cfg.MaxInFlight = limited.maxInFlight
			c := wrap(t, near, &cfg)
			c.s.kernel = knowing{c.s.kernel, limited.memlock}
			data := Pin(noise(1<<20, 1))
			if _, err := c.WritePinned(data); err != nil || c.Stats().IDsInFlight == 0 {
				t.Fatalf("%v, and %d calls are in flight, want some", err, c.Stats().IDsInFlight)
			}
			for range 3 {
				before := c.Stats().Syscalls
				_, err := c.WritePinned(data)
				check(t, err)
				if n := c.Stats().Syscalls - before; n > calls {
					t.Errorf("%d system calls for a write, want at most %d", n, calls)
				}
			}
		})
	}
}

// noSocket: others have all that may be pinned, and this process cannot ask by
// another socket, as below a seccomp filter.
func noSocket() error {
	if err := becomeLimited(4<<20, 4<<20); err != nil {
		return err
	}
	if _, err := strangers(1 << 40); err != nil {
		return err
	}
	near, far, err := childPair(insist)
	if err != nil {
		return err
	}
	go io.Copy(io.Discard, far)
	if err := forbid(seccompRule{unix.SYS_SOCKET, nil, unix.EPERM}); err != nil {
		return err
	}
	if _, err := near.WritePinned(Pin(make([]byte, 64<<10))); err != nil {
		return err
	}
	if s := near.Stats(); s.EnobufsMemlock == 0 || s.EnobufsOptmem+s.EnobufsOther > 0 {
		return fmt.Errorf("want refusals, all by memlock: %+v", s)
	}
	return nil
}
