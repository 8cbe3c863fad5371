package zcnet

import (
	"errors"
	"fmt"
	"net"
	"strings"
)

// Report is the answer of [Probe] to "is it on, and if not, why not?". Its String is for people; a field that could
// not be determined is empty or zero.
type Report struct {
	ZeroCopy bool   // the connection sends without copying, or would if it were wrapped
	Reason   string // why it does not; or what limits it
	Wrapped  bool   // it is a *Conn

	System string // operating system and kernel release
	Family string // "IPv4", "IPv6", "IPv4 in IPv6"
	MPTCP  bool   // the socket speaks Multipath TCP

	MemlockLimited bool   // RLIMIT_MEMLOCK holds for this process
	MemlockLimit   uint64 // in bytes, if it does, for all processes of the user together
	OptmemMax      int    // net.core.optmem_max in bytes, of the network namespace of this process
	HugePages      string // transparent huge pages: "always", "madvise" or "never"

	Stats Stats // what a *Conn has learned; zero for others
}

// Probe reports whether c can send without copying, and what bears on it. It changes nothing. It does not block.
func Probe(c net.Conn) Report {
	var r Report
	probeSystem(&r)
	switch c := c.(type) {
	case *Conn:
		r.Wrapped = true
		probeSocket(&r, c.s.raw)
		r.Stats = c.Stats()
		r.ZeroCopy, r.Reason = verdict(r.Stats)
		if why := c.s.refused.Load(); why != nil {
			r.ZeroCopy, r.Reason = false, "zero-copy sends were turned off on this connection: "+(*why).Error()
		}
	case *net.TCPConn:
		raw, err := c.SyscallConn()
		if err != nil {
			r.Reason = err.Error()
			break
		}
		probeSocket(&r, raw)
		if err := errors.Join(disabled(), probeZeroCopy(raw)); err != nil {
			r.Reason = err.Error()
			break
		}
		r.ZeroCopy, r.Reason = true, "the connection is not wrapped yet: use Wrap or NewConn"
	case ZeroCopyWriter:
		r.Reason = fmt.Sprintf("%T is a ZeroCopyWriter of another package: ask that", c)
	case nil:
		r.Reason = "there is no connection"
	default:
		r.Reason = fmt.Sprintf("only TCP can send without copying, and this is a %T", c)
	}
	return r
}

// verdict says what a wrapped connection has learned so far.
func verdict(s Stats) (zeroCopy bool, reason string) {
	limits := limitsReached(s)
	switch {
	case s.PathCopies:
		why := "the kernel copies on this path (loopback, a tunnel, a packet capture, or a device without scatter-gather), so zcnet sends plainly and tries again from time to time"
		return false, strings.Join(append([]string{why}, limits...), "; ")
	case len(limits) > 0:
		return true, strings.Join(limits, "; ")
	case s.Writes > 0 && s.Sends == 0:
		return true, "every write so far was shorter than Config.Threshold"
	}
	return true, ""
}

// limitsReached says which limits have made zcnet copy, or send in smaller
// calls, and what to do about each.
func limitsReached(s Stats) (limits []string) {
	add := func(reached bool, advice string) {
		if reached {
			limits = append(limits, advice)
		}
	}
	shared := s.EnobufsMemlock > 0 // or the library would have kept within it
	add(shared, "RLIMIT_MEMLOCK was reached by this process and other processes of this user together, which share it: raise it")
	add(!shared && s.Fallbacks.Memlock > 0, "RLIMIT_MEMLOCK was reached by what this process has in flight: raise it")
	add(s.EnobufsOptmem > 0 || s.Fallbacks.Optmem > 0, "net.core.optmem_max was reached: raise it in the network namespace of the connection")
	add(s.EnobufsOther > 0, "the kernel refused calls (ENOBUFS) by neither RLIMIT_MEMLOCK nor net.core.optmem_max: does io_uring send on the same socket?")
	add(s.Fallbacks.InFlight > 0, "Config.MaxInFlight was reached: raise it")
	return limits
}

// String describes the report in lines for people.
func (r Report) String() string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-12s "+format+"\n", append([]any{name + ":"}, args...)...)
	}
	line("zero-copy", "%s", onOff(r.ZeroCopy))
	if r.Reason != "" {
		line("because", "%s", r.Reason)
	}
	line("system", "%s", r.System)
	if r.Family != "" {
		line("socket", "%s, %s", r.Family, protocolName(r.MPTCP))
	}
	if r.OptmemMax > 0 {
		line("optmem_max", "%d bytes", r.OptmemMax)
		line("memlock", "%s", r.memlock())
	}
	if r.HugePages != "" {
		line("huge pages", "%s", r.HugePages)
	}
	if r.Wrapped {
		s := r.Stats
		line("sent", "%d bytes without copy, %d perhaps copied by the kernel, %d copied by zcnet", s.ZeroCopiedBytes, s.MaybeCopiedBytes, s.CopiedBytes)
		line("in flight", "%d bytes", s.BytesInFlight)
		if l := s.Lingering; l.Conns > 0 || l.Resets > 0 {
			line("lingering", "%d closed connections hold %d bytes; %d had to be reset so far", l.Conns, l.Bytes, l.Resets)
		}
	}
	return b.String()
}

func (r Report) memlock() string {
	if !r.MemlockLimited {
		return "unlimited"
	}
	return fmt.Sprintf("%d bytes for all processes of the user", r.MemlockLimit)
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func protocolName(mptcp bool) string {
	if mptcp {
		return "Multipath TCP"
	}
	return "TCP"
}
