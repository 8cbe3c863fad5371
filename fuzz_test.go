//go:build linux

package zcnet

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// controlMessage lays out one control message as the kernel does.
func controlMessage(level, typ int32, data []byte) []byte {
	b := make([]byte, unix.CmsgSpace(len(data)))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = level, typ
	h.SetLen(unix.CmsgLen(len(data)))
	copy(b[unix.CmsgLen(0):], data)
	return b
}

// extendedErr is a struct sock_extended_err followed by the offender's address, as IP_RECVERR carries it.
func extendedErr(errno uint32, origin, code byte, info, data uint32) []byte {
	b := make([]byte, 16+16)
	binary.NativeEndian.PutUint32(b, errno)
	b[4], b[6] = origin, code
	binary.NativeEndian.PutUint32(b[8:], info)
	binary.NativeEndian.PutUint32(b[12:], data)
	return b
}

// controlSamples are what the error queue of a TCP socket really holds, and what must not be taken for it.
var controlSamples = []struct {
	name    string
	control []byte
	want    []completion
}{
	{"IPv4", controlMessage(unix.SOL_IP, unix.IP_RECVERR, extendedErr(0, unix.SO_EE_ORIGIN_ZEROCOPY, 0, 3, 9)), []completion{{3, 9, false}}},
	{"IPv6", controlMessage(unix.SOL_IPV6, unix.IPV6_RECVERR, extendedErr(0, unix.SO_EE_ORIGIN_ZEROCOPY, 0, 3, 9)), []completion{{3, 9, false}}},
	{"copied", controlMessage(unix.SOL_IP, unix.IP_RECVERR, extendedErr(0, unix.SO_EE_ORIGIN_ZEROCOPY, unix.SO_EE_CODE_ZEROCOPY_COPIED, 0, 0)), []completion{{0, 0, true}}},
	{"wrapped range", controlMessage(unix.SOL_IP, unix.IP_RECVERR, extendedErr(0, unix.SO_EE_ORIGIN_ZEROCOPY, 0, 0xffffffff, 1)), []completion{{0xffffffff, 1, false}}},
	{"behind a timestamp", append(
		controlMessage(unix.SOL_SOCKET, unix.SO_TIMESTAMPING, make([]byte, 48)),
		controlMessage(unix.SOL_IP, unix.IP_RECVERR, extendedErr(0, unix.SO_EE_ORIGIN_ZEROCOPY, 0, 7, 7))...), []completion{{7, 7, false}}},
	{"before packet information", append(
		controlMessage(unix.SOL_IP, unix.IP_RECVERR, extendedErr(0, unix.SO_EE_ORIGIN_ZEROCOPY, 0, 7, 7)),
		controlMessage(unix.SOL_IP, unix.IP_PKTINFO, make([]byte, 12))...), []completion{{7, 7, false}}},
	{"two", append(
		controlMessage(unix.SOL_IP, unix.IP_RECVERR, extendedErr(0, unix.SO_EE_ORIGIN_ZEROCOPY, 0, 1, 2)),
		controlMessage(unix.SOL_IPV6, unix.IPV6_RECVERR, extendedErr(0, unix.SO_EE_ORIGIN_ZEROCOPY, 0, 3, 4))...), []completion{{1, 2, false}, {3, 4, false}}},
	{"timestamp", controlMessage(unix.SOL_IP, unix.IP_RECVERR, extendedErr(uint32(unix.ENOMSG), unix.SO_EE_ORIGIN_TIMESTAMPING, 0, 1, 2)), nil},
	{"ICMP error", controlMessage(unix.SOL_IP, unix.IP_RECVERR, extendedErr(uint32(unix.EHOSTUNREACH), unix.SO_EE_ORIGIN_ICMP, 0, 1, 2)), nil},
	{"our origin with an error number", controlMessage(unix.SOL_IP, unix.IP_RECVERR, extendedErr(uint32(unix.EIO), unix.SO_EE_ORIGIN_ZEROCOPY, 0, 1, 2)), nil},
	{"another level", controlMessage(unix.SOL_SOCKET, unix.IP_RECVERR, extendedErr(0, unix.SO_EE_ORIGIN_ZEROCOPY, 0, 1, 2)), nil},
	{"cut short", controlMessage(unix.SOL_IP, unix.IP_RECVERR, extendedErr(0, unix.SO_EE_ORIGIN_ZEROCOPY, 0, 1, 2)[:15]), nil},
	{"header only", make([]byte, unix.SizeofCmsghdr-1), nil},
	{"empty", nil, nil},
}

func TestCompletionsAreFoundAmongControlMessages(t *testing.T) {
	for _, tt := range controlSamples {
		t.Run(tt.name, func(t *testing.T) {
			got := parseCompletions(tt.control, nil)
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(completion{})); diff != "" {
				t.Errorf("completions (-want +got):\n%s", diff)
			}
		})
	}
}

// FuzzParseCompletions feeds the parser arbitrary control messages. It must not read outside of them, must end, must
// find the same whatever follows them in memory, and must find a real completion behind anything well-formed.
func FuzzParseCompletions(f *testing.F) {
	for _, s := range controlSamples {
		f.Add(s.control)
	}
	real := controlMessage(unix.SOL_IP, unix.IP_RECVERR, extendedErr(0, unix.SO_EE_ORIGIN_ZEROCOPY, 0, 11, 12))
	f.Fuzz(func(t *testing.T, control []byte) {
		exact := slices.Clip(slices.Clone(control))
		got := parseCompletions(exact, nil)
		if most := len(control) / unix.CmsgSpace(16); len(got) > most {
			t.Fatalf("%d completions in %d bytes, at most %d fit", len(got), len(control), most)
		}
		roomy := append(slices.Clone(control), 0xff, 0xff, 0xff, 0xff)[:len(control)]
		if again := parseCompletions(roomy, nil); !slices.Equal(got, again) {
			t.Fatalf("what lies behind the message changes the result: %v, then %v", got, again)
		}
		wellFormed := controlMessage(unix.SOL_SOCKET, unix.SO_TIMESTAMPING, control)
		if got := parseCompletions(append(wellFormed, real...), nil); !slices.Equal(got, []completion{{11, 12, false}}) {
			t.Fatalf("behind another message of %d bytes: %v", len(control), got)
		}
	})
}

// modelWrite is what the model knows of one write: the memory must be out exactly as long as an ID is, or the write
// has not returned.
type modelWrite struct {
	c         *claim
	ticket    Ticket
	mem       *region
	out       map[uint64]bool
	sealed    bool
	failed    bool // finished after a failure
	abandoned bool
}

// ledgerModel checks a ledger against the plainest description of what it does.
type ledgerModel struct {
	t        *testing.T
	l        *ledger
	start    uint64
	next     uint64
	owner    map[uint64]*modelWrite // of the IDs that are out
	charges  map[uint64]int64       // to RLIMIT_MEMLOCK by each ID
	size     int                    // of the call that is reserved
	calling  int64                  // what it is charged
	joined   int                    // bytes of calls that may share the newest notification
	writes   []*modelWrite
	open     *modelWrite
	inCall   bool // a call is reserved
	early    bool // and has completed
	failed   bool
	rejected uint64
	ended    bool
}

func (m *ledgerModel) begin() {
	if m.open == nil {
		m.open = &modelWrite{c: m.l.begin(0), mem: &region{}, out: map[uint64]bool{}}
		m.open.ticket = m.open.c.ticket()
		m.open.mem.lend(0)
		m.open.c.loan.regions = append(m.open.c.loan.regions, m.open.mem)
		m.writes = append(m.writes, m.open)
	}
}

func (m *ledgerModel) reserve() {
	m.begin()
	if m.inCall {
		return
	}
	size := int(m.next%7) * 50000
	if _, err := m.l.reserve(size); err == nil {
		m.inCall, m.size, m.calling = true, size, pinnedBy(int64(size))
	}
}

func (m *ledgerModel) commit(bytes int) {
	if !m.inCall {
		return
	}
	w := m.open
	m.l.commit(w.c, bytes)
	if !m.early {
		w.out[m.next] = true
		m.owner[m.next] = w
	}
	m.charges[m.next], m.joined = m.calling, m.size
	m.next++
	m.inCall, m.early, m.calling = false, false, 0
}

func (m *ledgerModel) cancel(abort bool) {
	if !m.inCall {
		return
	}
	cancel := m.l.cancel
	if newest := m.next - 1; abort {
		cancel = m.l.abort
		if m.owner[newest] != nil && m.joined+m.size <= mostJoined {
			m.joined += m.size
			m.charges[newest] += m.calling
		}
	}
	if stray := cancel(); stray != m.early {
		m.t.Fatalf("cancel: a completion named the ID: %v, want %v", stray, m.early)
	}
	if m.early {
		m.rejected++
	}
	m.inCall, m.early, m.calling = false, false, 0
}

func (m *ledgerModel) seal() {
	if m.open == nil || m.inCall {
		return
	}
	w := m.open
	w.sealed = true
	w.failed = len(w.out) == 0 && m.failed && w.c.lo < w.c.hi
	if m.l.seal(w.c, false) != w.ticket {
		m.t.Fatal("seal returned another ticket")
	}
	m.open = nil
}

// completed predicts, ID by ID, what a range does: nothing if any of its IDs was never issued. The IDs below start
// are those of an earlier life of the connection, all complete.
func (m *ledgerModel) completed(lo, hi uint32) {
	limit := m.next
	if m.inCall && !m.early {
		limit++
	}
	end, valid := m.latest(hi, limit) // the 64-bit ID behind hi, plus one
	n := uint64(hi-lo) + 1
	valid = valid && n <= end
	var news uint64
	if valid {
		for id := max(end-n, m.start); id < end; id++ {
			switch w := m.owner[id]; {
			case w != nil:
				delete(m.owner, id)
				delete(w.out, id)
				w.failed = w.failed || (m.failed && w.sealed && len(w.out) == 0 && !w.abandoned)
				news++
			case m.inCall && id == m.next && !m.early:
				m.early = true
				news++
			}
		}
	}
	if !valid || news < n {
		m.rejected++
	}
	if got, ok := m.l.completed(lo, hi, false); got != news || ok != (m.ended || valid && news == n) {
		m.t.Fatalf("completed(%d, %d): %d IDs were news, all of them: %v, want %d of %d", lo, hi, got, ok, news, n)
	}
}

// latest finds the last ID below limit whose low bits are id32, and returns the one after it.
func (m *ledgerModel) latest(id32 uint32, limit uint64) (after uint64, ok bool) {
	id := limit>>32<<32 | uint64(id32)
	if id >= limit {
		id -= 1 << 32
	}
	return id + 1, id < limit
}

// outstanding returns a run of IDs that are out, beginning at the pick-th.
func (m *ledgerModel) outstanding(pick, length int) (lo, hi uint32, ok bool) {
	if len(m.owner) == 0 {
		return 0, 0, false
	}
	out := make([]uint64, 0, len(m.owner))
	for id := range m.owner {
		out = append(out, id)
	}
	slices.Sort(out)
	first := pick % len(out)
	last := first
	for last+1 < len(out) && last-first < length && out[last+1] == out[last]+1 {
		last++
	}
	return uint32(out[first]), uint32(out[last]), true
}

func (m *ledgerModel) fail() {
	m.l.fail(ErrConnFailed)
	m.failed = true
}

func (m *ledgerModel) abandon() {
	if m.ended || m.inCall || m.open != nil {
		return
	}
	m.ended = true
	m.l.close()
	m.l.abandon()
	for _, w := range m.writes {
		w.abandoned = len(w.out) > 0
	}
	clear(m.owner) // given up: nothing is in flight, and no completion is accepted
}

// check compares everything that can be seen from outside.
func (m *ledgerModel) check() {
	counts, _ := m.l.snapshot()
	if counts.idsInFlight != uint64(len(m.owner)) {
		m.t.Fatalf("%d IDs in flight, want %d", counts.idsInFlight, len(m.owner))
	}
	charged := m.calling
	for id := range m.owner {
		charged += m.charges[id]
	}
	if m.l.charged != charged {
		m.t.Fatalf("%d bytes charged, want %d", m.l.charged, charged)
	}
	if counts.rejected != m.rejected {
		m.t.Fatalf("%d ranges rejected, want %d", counts.rejected, m.rejected)
	}
	if idle := m.l.idle(); idle != (len(m.owner) == 0 && !m.inCall) {
		m.t.Fatalf("idle: %v with %d IDs out and a call in the kernel: %v", idle, len(m.owner), m.inCall)
	}
	for i, w := range m.writes {
		finished := w.sealed && len(w.out) == 0
		if out := w.mem.state.Load() != 0; out != (!finished || w.abandoned) {
			m.t.Fatalf("write %d: memory lent: %v (state %d), IDs out: %d, returned: %v", i, out, w.mem.state.Load(), len(w.out), w.sealed)
		}
		if done := w.ticket.Ready(); done != (finished || w.abandoned) {
			m.t.Fatalf("write %d: done: %v, IDs out: %d, returned: %v", i, done, len(w.out), w.sealed)
		}
		if w.ticket.Ready() {
			m.checkResult(i, w)
		}
	}
}

func (m *ledgerModel) checkResult(i int, w *modelWrite) {
	err := w.ticket.Wait(context.Background())
	switch {
	case w.abandoned:
		if !errors.Is(err, ErrReleaseUnproven) {
			m.t.Fatalf("write %d was abandoned: %v", i, err)
		}
	case w.failed != errors.Is(err, ErrConnFailed):
		m.t.Fatalf("write %d finished after the failure: %v; its error: %v", i, w.failed, err)
	}
}

// FuzzLedger drives a ledger through sends, partial and failed calls, completions in any order, merged, early,
// duplicated and invented, across the wrap of the 32-bit counter, failure and the end of the connection, and asserts
// after every step that each write's memory is given back exactly when its last ID is complete, and never twice.
func FuzzLedger(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		program := make([]byte, 40+r.IntN(400))
		for i := range program {
			program[i] = byte(r.Uint32())
		}
		f.Add(uint64(1<<32)-uint64(r.IntN(40)), program)
	}
	f.Add(uint64(0), []byte{0, 0, 1, 0, 4, 0, 3, 0, 8, 0, 10, 1})
	f.Fuzz(func(t *testing.T, start uint64, program []byte) {
		start %= 1 << 62
		m := &ledgerModel{t: t, l: newLedger(start), start: start, next: start, owner: map[uint64]*modelWrite{}, charges: map[uint64]int64{}}
		for ; len(program) >= 2 && len(m.writes) < 200; program = program[2:] {
			m.step(program[0], program[1])
			m.check()
		}
		m.finish()
	})
}

// step carries out one instruction.
func (m *ledgerModel) step(op, arg byte) {
	switch op % 16 {
	case 0, 1, 2:
		m.reserve()
		m.commit(int(arg) + 1)
	case 3, 4:
		m.seal()
	case 5:
		m.reserve()
	case 6:
		m.commit(int(arg) + 1)
	case 7:
		m.cancel(arg%2 == 1)
	case 8, 9, 10, 11:
		if lo, hi, ok := m.outstanding(int(arg), int(op>>4)); ok {
			m.completed(lo, hi)
		}
	case 12: // around the newest ID: early, merged with others, or never issued
		m.completed(uint32(m.next)-uint32(arg%5), uint32(m.next)+uint32(op>>7))
	case 13: // anywhere near: duplicated, partly duplicated, reversed
		m.completed(uint32(m.next)-uint32(arg), uint32(m.next)-uint32(arg)+uint32(op>>4))
	case 14: // far away, huge
		m.completed(uint32(arg)<<24, uint32(op)<<16)
	case 15:
		switch {
		case arg < 16:
			m.abandon()
		case arg < 64:
			m.fail()
		}
	}
}

// finish completes whatever is out, and so every ticket.
func (m *ledgerModel) finish() {
	m.commit(1)
	m.seal()
	for {
		lo, hi, ok := m.outstanding(0, 1<<20)
		if !ok {
			break
		}
		m.completed(lo, hi)
	}
	m.check()
	for i, w := range m.writes {
		if !w.ticket.Ready() {
			m.t.Fatalf("write %d is not done though every ID has completed", i)
		}
	}
	if ch := m.l.flush(); ch != nil {
		m.t.Fatal("a flush waits though every ticket is done")
	}
}
