package zcnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// This file drives whole connections over the fake kernel, and compares what they do with a model, after every step.
// A history is a string of bytes: some settings, and then instructions of two bytes each. The same bytes make the same
// run, for one goroutine runs at a time: each step ends when all that it has set in motion is blocked or done.

// settings are the first bytes of a history.
type settings struct {
	start     byte // the first ID: so many before the wrap, or 0
	buffer    byte // size of the send buffer
	threshold byte
	inFlight  byte // Config.MaxInFlight
	stubborn  byte // odd: devices keep what they hold until after the end
	linger    byte
}

const settingsLen = 6

// historyTimeout is the CloseTimeout of a history, in the time of its bubble.
const historyTimeout = 10 * time.Second

// writeOp is what the model knows of one write.
type writeOp struct {
	number int
	want   [][]byte // the bytes to come, part by part
	total  int
	loans  map[*region]int
	plain  bool // goes through Write: it has no ticket

	// As the kernel saw it.
	queued      int
	flagged     int             // IDs
	ids         map[uint32]bool // that the library has not read
	lost        int             // of them, that it never can read
	uncommitted int             // IDs of calls that have not returned
	unacked     int             // bytes of flagged calls that the peer does not have

	// As the caller sees it.
	returned bool
	ticket   Ticket
	err      error
	done     bool
	result   error
}

// expect returns the next n bytes to be sent.
func (op *writeOp) expect(n int) (b []byte) {
	for n > 0 && len(op.want) > 0 {
		m := min(n, len(op.want[0]))
		if b == nil && m == n {
			b = op.want[0][:m:m]
		} else {
			b = append(slices.Clip(b), op.want[0][:m]...)
		}
		if op.want[0] = op.want[0][m:]; len(op.want[0]) == 0 {
			op.want = op.want[1:]
		}
		n -= m
	}
	return b
}

// lent reports whether the memory of op may still be sent from.
func (op *writeOp) lent() bool {
	return !op.returned || op.ticket.pending() || errors.Is(op.ticket.err(), ErrReleaseUnproven)
}

// unproven reports whether the library gave op up.
func (op *writeOp) unproven() bool { return op.done && errors.Is(op.result, ErrReleaseUnproven) }

// memory is what the history writes from.
type memory struct {
	p        Pinned
	content  []byte // what is in it
	users    []*writeOp
	released bool
}

func (m *memory) idle() bool {
	m.users = slices.DeleteFunc(m.users, func(op *writeOp) bool { return op.returned && !op.lent() })
	return len(m.users) == 0
}

// waiter is a Wait, a Flush or a Get that may take its time.
type waiter struct {
	what      string
	ops       []*writeOp
	get       bool
	cancel    context.CancelFunc
	cancelled bool
	returned  bool
	err       error
}

// history is one run.
type history struct {
	t       *testing.T
	k       *fakeKernel
	c       *Conn
	pool    *Pool
	ops     []*writeOp
	pins    []*memory
	live    []*memory // of Pool and Alloc, and not released by the history
	own     []*memory // all of those
	waiters []*waiter
	heard   []ErrorQueueMessage
	fresh   int // where in noise the next content begins
	closes  int // Close calls that have not returned
	closed  bool
	set     settings

	mu      sync.Mutex // guards failure, and what operations report
	failure string
	steps   []string
}

// historyNoise is the content of all memory, which is written to it from ever other places.
var historyNoise = sync.OnceValue(func() []byte { return noise(1<<20, 7) })

// historyMemory is what all histories, of which there is one at a time, send by Pin.
var historyMemory = sync.OnceValue(func() []byte { return make([]byte, historyPins*historyPin) })

const (
	historyPins   = 4
	historyPool   = 3
	historyBuffer = 16 << 10
	historyPin    = 140 << 10
	historyWrites = 60
)

func newHistory(t *testing.T, set settings) *history {
	h := &history{t: t, set: set}
	start := uint64(0)
	if set.start > 0 {
		start = 1<<32 - uint64(set.start%64)
	}
	h.k = newFakeKernel(uint32(start), h.failf)
	h.k.sndbuf = []int{256 << 10, 64 << 10, 20 << 10, 1 << 20}[set.buffer%4]
	switch set.linger % 8 {
	case 6:
		h.k.lingers = unix.Linger{Onoff: 1}
	case 7:
		h.k.lingers = unix.Linger{Onoff: 1, Linger: 3}
	}
	cfg := &Config{
		Threshold:    []int{1, 16 << 10, 0}[set.threshold%3],
		MaxInFlight:  []int64{0, 100 << 10, 1, 0}[set.inFlight%4],
		CloseTimeout: historyTimeout,
		ErrorQueue: func(_ *net.TCPConn, m ErrorQueueMessage) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.heard = append(h.heard, m)
		},
	}
	tc := &net.TCPConn{}
	s := &socket{tc: tc, raw: fakeRaw{h.k, mainFD}, kernel: h.k, cfg: cfg.withDefaults()}
	s.books.Store(&ledger{reader: s, total: &tally{}, base: start, next: start, answered: mark{ids: start}, gated: true, plain: &s.plain})
	h.k.s = s
	h.c = &Conn{TCPConn: tc, s: s}
	var err error
	h.pool, err = NewPool(historyBuffer, historyPool)
	check(t, err)
	all := historyMemory()
	for i := range historyPins {
		h.pins = append(h.pins, &memory{p: Pin(all[i*historyPin : (i+1)*historyPin])})
	}
	return h
}

// failf keeps the first failure. The step in which it comes to pass reports it.
func (h *history) failf(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.failure == "" {
		h.failure = fmt.Sprintf(format, args...)
	}
}

// fill writes new content into m, whose memory is nobody else's now.
func (h *history) fill(m *memory) {
	all := historyNoise()
	n := m.p.Len()
	if h.fresh+n > len(all) {
		h.fresh = (h.fresh*7 + 1) % 4093
	}
	m.content = all[h.fresh : h.fresh+n]
	h.fresh += 4099
	copy(m.p.Bytes(), m.content)
}

// pin returns memory of Pin: the i-th that nothing refers to any more, with new content, or one that is in flight, as it is.
func (h *history) pin(i int) *memory {
	m := h.pins[i%len(h.pins)]
	if m.idle() {
		h.fill(m)
	}
	return m
}

// take returns memory of the pool, or of Alloc.
func (h *history) take(alloc bool, size int) *memory {
	m := &memory{}
	if alloc {
		p, err := Alloc(size)
		check(h.t, err)
		m.p = p
	} else if p, ok := h.pool.tryGet(); ok {
		m.p = p
	} else {
		return nil
	}
	h.own = append(h.own, m)
	h.live = append(h.live, m)
	for _, other := range h.own[:len(h.own)-1] {
		if other.p.r == m.p.r && !other.idle() {
			h.failf("the pool hands out memory that the kernel may still read")
		}
	}
	h.fill(m)
	return m
}

func (h *history) release(i int) {
	if len(h.live) > 0 {
		i %= len(h.live)
		h.live[i].released = true
		h.live[i].p.Release()
		h.live = slices.Delete(h.live, i, i+1)
	}
}

// spawn runs f, until it is done or blocked.
func (h *history) spawn(f func()) {
	go f()
	synctest.Wait()
}

// part is a piece of memory.
type part struct {
	m      *memory
	lo, hi int
}

func (p part) pinned() Pinned { return p.m.p.Slice(p.lo, p.hi) }

// write begins a write of parts, by the call that f makes.
func (h *history) write(parts []part, f func() (Ticket, error)) *writeOp {
	if len(h.ops) >= historyWrites {
		return nil
	}
	op := &writeOp{number: len(h.ops), ids: map[uint32]bool{}, loans: map[*region]int{}}
	for _, p := range parts {
		if p.hi > p.lo {
			op.want = append(op.want, p.m.content[p.lo:p.hi])
		}
		op.total += p.hi - p.lo
		if r := p.m.p.r; r != nil {
			op.loans[r]++
		}
		p.m.users = append(p.m.users, op)
	}
	h.ops = append(h.ops, op)
	h.k.mu.Lock()
	h.k.arriving = op
	h.k.mu.Unlock()
	h.spawn(func() {
		ticket, err := f()
		h.k.mu.Lock()
		defer h.k.mu.Unlock()
		op.ticket, op.err, op.returned = ticket, err, true
	})
	h.k.mu.Lock()
	h.k.arriving = nil
	h.k.mu.Unlock()
	return op
}

// wait begins something that returns when all of ops are done.
func (h *history) wait(what string, ops []*writeOp, f func(context.Context) error) *waiter {
	ctx, cancel := context.WithCancel(context.Background())
	w := &waiter{what: what, ops: ops, cancel: cancel}
	h.waiters = append(h.waiters, w)
	h.spawn(func() {
		err := f(ctx)
		h.mu.Lock()
		defer h.mu.Unlock()
		w.err, w.returned = err, true
	})
	return w
}

// withTickets returns the writes that have one.
func (h *history) withTickets() (ops []*writeOp) {
	for _, op := range h.ops {
		if op.returned && op.ticket.c != nil {
			ops = append(ops, op)
		}
	}
	return ops
}

// size makes lengths around those that matter out of a byte.
func size(arg byte) int {
	switch arg % 8 {
	case 0:
		return 1 + int(arg)
	case 1, 2, 3:
		return page + int(arg)
	case 4, 5:
		return smallestCall - 16 + int(arg)
	case 6:
		return 40<<10 + int(arg)
	}
	return smallCall + int(arg)<<4
}

// instructions of a history. The kernel's are those that begin with do.
const (
	opWrite = iota
	opWritePool
	opWriteAlloc
	opWriteBuffers
	opFrame
	opPlain
	opRelease
	opWait
	opFlush
	opFlushCancelled
	opCancel
	opReady
	opGet
	opDeadline
	opClose
	doTransmit
	doAcknowledge
	doRetransmit
	doHold
	doReleaseHeld
	doFault
	doUnpark
	doReceiveFault
	doOtherFault
	doMessage
	doReorder
	doPoll
	doTick
	doReset
	doLimits
	doCopies
	doRoom
	doSleep
	instructions
)

var instructionNames = [instructions]string{
	"WritePinned", "WritePinned of the pool", "WritePinned of Alloc", "WritePinnedBuffers", "WriteFrame", "Write", "Release", "Wait", "Flush",
	"Flush, cancelled", "cancel", "Ready", "Get", "deadline", "Close", "transmit", "acknowledge", "retransmit", "hold in a device", "device releases",
	"fault of a send", "unpark", "fault of a receive", "fault of another call", "message", "reorder", "poll", "tick", "reset", "limits", "copies", "room", "sleep",
}

// step carries out one instruction.
func (h *history) step(op, arg byte) {
	op %= instructions
	h.steps = append(h.steps, fmt.Sprintf("%s %d", instructionNames[op], arg))
	switch k := h.k; op {
	case opWrite:
		m := h.pin(int(arg >> 3))
		n := size(arg)
		lo := int(arg) * 16 % page
		h.pinned(part{m, lo, lo + n})
	case opWritePool, opWriteAlloc:
		n := historyBuffer
		if op == opWriteAlloc {
			n = page + size(arg)%(64<<10)
		}
		m := h.take(op == opWriteAlloc, n)
		if m == nil {
			return
		}
		h.pinned(part{m, 0, n})
		if arg%4 != 0 {
			h.release(len(h.live) - 1)
		}
	case opWriteBuffers:
		h.buffers(arg)
	case opFrame:
		header, body := &memory{p: Pin(make([]byte, 1+arg%64))}, h.pin(int(arg>>3))
		h.fill(header)
		n := size(arg >> 2)
		h.write([]part{{header, 0, header.p.Len()}, {body, 0, n}}, func() (Ticket, error) {
			t, err := h.c.WriteFrame(header.p.Bytes(), body.p.Slice(0, n))
			clear(header.p.Bytes())
			return t, err
		})
	case opPlain:
		m := &memory{p: Pin(make([]byte, size(arg%6)))}
		h.fill(m)
		if op := h.write([]part{{m, 0, m.p.Len()}}, func() (Ticket, error) {
			n, err := k.write(m.p.Bytes())
			clear(m.p.Bytes())
			if err != nil {
				err = &WriteError{Queued: int64(n), Total: int64(m.p.Len()), Err: err}
			}
			return Ticket{}, err
		}); op != nil {
			op.plain = true
		}
	case opRelease:
		h.release(int(arg))
	case opWait:
		if ops := h.withTickets(); len(ops) > 0 {
			op := ops[len(ops)-1-int(arg)%len(ops)]
			h.wait("Wait", []*writeOp{op}, op.ticket.Wait)
		}
	case opFlush:
		h.wait("Flush", h.withTickets(), h.c.Flush)
	case opFlushCancelled:
		w := h.wait("Flush", h.withTickets(), h.c.Flush)
		h.cancel(w)
	case opCancel:
		if len(h.waiters) > 0 {
			h.cancel(h.waiters[int(arg)%len(h.waiters)])
		}
	case opReady:
		if ops := h.withTickets(); len(ops) > 0 {
			ops[int(arg)%len(ops)].ticket.Ready()
			h.c.Stats()
		}
	case opGet:
		h.get()
	case opDeadline:
		k.mu.Lock()
		k.deadline = []time.Time{{}, time.Now(), time.Now().Add(time.Second)}[arg%3]
		k.changed()
		k.mu.Unlock()
	case opClose:
		h.close()
	case doPoll:
		for range 1 + arg%2 {
			h.spawn(func() { k.report() })
		}
	case doTick:
		h.spawn(func() { k.tick((*socket).tick) })
	case doUnpark:
		k.unpark()
	case doSleep:
		time.Sleep(time.Duration(arg) * 20 * time.Millisecond)
	default:
		k.mu.Lock()
		h.event(op, arg)
		k.mu.Unlock()
	}
}

// event is what the kernel does by itself. k.mu is held.
func (h *history) event(op, arg byte) {
	k := h.k
	switch op {
	case doTransmit:
		k.transmit(1 + int(arg%8))
	case doAcknowledge:
		k.transmit(int(arg % 4))
		k.acknowledge(1 + int(arg%8))
	case doRetransmit:
		k.retransmit()
	case doHold:
		k.hold(int(arg % 4))
	case doReleaseHeld:
		k.releaseHeld(int(arg))
	case doFault:
		k.sends = append(k.sends, fault(arg)%faultCount)
	case doReceiveFault:
		k.receives = append(k.receives, []fault{faultEAGAIN, faultEINTR}[arg%2])
	case doOtherFault:
		if arg%8 == 0 {
			k.others = append(k.others, faultENOBUFS)
		}
	case doMessage:
		h.message(arg)
	case doReorder:
		k.reorder()
	case doReset:
		if arg%4 == 0 {
			k.reset()
		} else if arg%4 == 1 {
			k.peerCloses()
		}
	case doLimits:
		h.limits(arg)
	case doCopies:
		k.copies = arg%2 == 1
	case doRoom:
		k.tight = arg%4 == 1
		k.changed()
	}
}

// message puts something else than a plain completion into the error queue.
func (h *history) message(arg byte) {
	timestamp := append(controlMessage(unix.SOL_SOCKET, unix.SO_TIMESTAMPING, make([]byte, 48)),
		controlMessage(unix.SOL_IP, unix.IP_RECVERR, extendedErr(uint32(unix.ENOMSG), unix.SO_EE_ORIGIN_TIMESTAMPING, 0, 1, uint32(arg)))...)
	switch k := h.k; arg % 6 {
	case 0:
		k.stranger(timestamp, 0)
	case 1:
		k.stranger(timestamp, int(arg)<<6)
	case 2:
		k.duplicated(int(arg))
	case 3:
		k.invented(uint32(arg), uint32(arg>>3))
	case 4:
		k.beside(controlMessage(unix.SOL_SOCKET, unix.SO_TIMESTAMPING, make([]byte, 48)))
	case 5:
		if arg%4 == 1 { // so much beside it that the completion does not fit
			k.beside(controlMessage(unix.SOL_SOCKET, unix.SO_TIMESTAMPING, make([]byte, 2040)))
		}
	}
}

// limits sets what the kernel allows, and what the library is told of it.
func (h *history) limits(arg byte) {
	k := h.k
	k.optmem = []int{1 << 20, 0, 1, 2, 5}[arg%5]
	k.memlock = []int64{1 << 40, 10 << 10, 64 << 10, 200 << 10}[arg/5%4]
	switch arg / 20 % 3 {
	case 0: // the truth
		k.lim.ids, k.lim.pinned = uint64(max(1, k.optmem)), k.memlock
	case 1:
		k.lim = noLimits
	case 2: // others use up what is allowed
		k.lim.ids, k.lim.pinned = 1<<20, 1<<39
	}
	k.mute, k.elsewhere = arg >= 120, arg >= 180
}

func (h *history) pinned(p part) {
	h.write([]part{p}, func() (Ticket, error) { return h.c.WritePinned(p.pinned()) })
}

// buffers writes several buffers, short ones, empty ones and long ones.
func (h *history) buffers(arg byte) {
	var parts []part
	for i := range 2 + int(arg%5) {
		m := h.pin(i)
		n := size(arg*byte(2*i+1) + byte(i))
		if i == 3 {
			n = 0
		}
		parts = append(parts, part{m, i, i + n})
	}
	if arg%3 == 0 {
		if m := h.take(false, 0); m != nil {
			parts = append(parts, part{m, 0, page}, part{m, page, m.p.Len()})
		}
	}
	if arg == 255 { // more than one call takes
		for range 3 * maxIovecs {
			parts = append(parts, part{h.pins[0], 0, page})
		}
	}
	var ps []Pinned
	for _, p := range parts {
		ps = append(ps, p.pinned())
	}
	h.write(parts, func() (Ticket, error) { return h.c.WritePinnedBuffers(ps) })
}

func (h *history) cancel(w *waiter) {
	w.cancelled = true
	w.cancel()
}

// get waits for memory of the pool, and gives it up again.
func (h *history) get() {
	w := h.wait("Get", nil, func(ctx context.Context) error {
		p, err := h.pool.Get(ctx)
		if err == nil {
			p.Release()
		}
		return err
	})
	w.get = true
	h.spawn(func() { h.k.tick((*socket).await) }) // as Get does with what is in the care of the real poller
}

func (h *history) close() {
	if h.closes > 0 {
		return
	}
	h.closes++
	first := !h.closed
	h.closed = true
	h.spawn(func() {
		err := h.c.Close()
		h.mu.Lock()
		defer h.mu.Unlock()
		h.closes--
		lingered := h.k.lingers.Linger > 0 && errors.Is(err, ErrConnFailed)
		if first && err != nil && !lingered || !first && !errors.Is(err, net.ErrClosed) {
			h.failure = fmt.Sprintf("Close (the first: %v): %v", first, err)
		}
	})
}

// settle lets the kernel, the network and the poller do all that is left to do.
func (h *history) settle() {
	k := h.k
	for round := 0; ; round++ {
		h.assert(round < 1000, "the poller does not come to rest")
		k.unpark()
		time.Sleep(20 * time.Millisecond) // Close goes on without another descriptor
		k.mu.Lock()
		k.sends, k.receives, k.others, k.tight, k.deadline = nil, nil, nil, false, time.Time{}
		k.settleReset()
		moved := len(k.segments) > 0
		k.transmit(len(k.segments))
		k.retransmit()
		k.acknowledge(len(k.segments))
		if h.set.stubborn%2 == 0 {
			for len(k.held) > 0 {
				k.releaseHeld(0)
				moved = true
			}
		}
		k.changed()
		k.mu.Unlock()
		h.check()
		h.spawn(func() {
			reported := k.report()
			ticked := k.tick((*socket).tick)
			moved = moved || reported || ticked
		})
		h.check()
		k.mu.Lock()
		moved = moved || len(k.parked) > 0 || len(k.segments) > 0
		k.mu.Unlock()
		if !moved {
			return
		}
	}
}

// finish lets everything come to its end.
func (h *history) finish() {
	h.settle()
	for range 2 { // the second finds what has not changed since the first
		h.spawn(func() { h.c.s.check() })
	}
	h.check()
	for _, op := range h.ops {
		h.assert(op.returned, "write %d is blocked for ever", op.number)
		if h.set.stubborn%2 == 0 {
			h.assert(op.done, "write %d is never done: %d IDs unread", op.number, len(op.ids))
		}
	}
	h.close()
	for range 4 {
		h.check()
		h.settle()
		time.Sleep(historyTimeout)
	}
	if h.k.uncut { // it has to time out
		time.Sleep(3 * time.Minute)
	}
	h.check()
	k := h.k
	h.assert(h.closes == 0, "Close is blocked for ever")
	h.assert(len(k.open) == 0, "descriptors are left open: %v", k.open)
	h.assert(k.watched == 0, "the poller watches a closed descriptor")
	for len(h.live) > 0 {
		h.release(0)
	}
	h.check()
	unproven := false
	for _, op := range h.ops {
		h.assert(op.done, "write %d is not done after Close", op.number)
		unproven = unproven || op.unproven()
		if op.unproven() {
			h.assert(op.lost > 0 || h.set.stubborn%2 == 1 || k.cut || k.uncut, "write %d was given up for no reason", op.number)
		}
	}
	s := h.c.Stats()
	h.assert(s.BytesInFlight == 0 && s.IDsInFlight == 0, "%d bytes and %d IDs are in flight at the end", s.BytesInFlight, s.IDsInFlight)
	h.assert((s.UnprovenBytes > 0) == unproven, "%d bytes unproven, writes unproven: %v", s.UnprovenBytes, unproven)
	for _, w := range h.waiters {
		h.assert(w.returned || w.get, "%s is blocked for ever", w.what)
	}
	k.mu.Lock()
	k.retransmit() // what a device holds for ever
	k.mu.Unlock()
	h.check()
	for _, p := range h.pins {
		h.assert(p.content == nil || bytes.Equal(p.p.b, p.content), "the library wrote to memory that it was to send")
	}
}

// end frees everything, whatever has failed.
func (h *history) end() {
	for _, w := range h.waiters {
		w.cancel()
	}
	h.k.unpark()
	h.k.mu.Lock()
	closing := h.k.closing[mainFD]
	h.k.sends = nil
	h.k.mu.Unlock()
	if !closing {
		go h.k.close()
	}
	synctest.Wait()
	l := h.c.s.ledger()
	for i := range l.claims.len() { // of a history that failed; a Pinner that is collected while it pins kills the process
		l.claims.at(i).loan.giveBack()
	}
	check(h.t, h.pool.Close()) // first: in the place of what is lost it has other buffers
	unproven.mu.Lock()
	defer unproven.mu.Unlock()
	for _, ln := range unproven.loans {
		ln.giveBack()
	}
	unproven.loans = nil
	for len(h.live) > 0 {
		h.release(0)
	}
}
