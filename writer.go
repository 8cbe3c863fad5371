package zcnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-multierror"
)

// This file is the path of one write:
// Pinned -> writer (threshold? cut) -> sendmsg -> ledger. The way back, from the error queue to the ledger and the
// memory's owner, is in errqueue_linux.go and notify.go.

// ZeroCopyWriter sends memory without copying it where that is possible, and by copying where it is not.
// [NewWriter] makes one of any connection; [Conn] is one.
type ZeroCopyWriter interface {
	// WritePinned sends p. It blocks, as Write does, while the socket's send buffer is full, and never for a
	// completion; the write deadline ends it. When it returns, every byte is queued in the kernel, in order and
	// contiguous with respect to every other write of the connection, and the memory is lent until the ticket is
	// done.
	//
	// If it fails, the error is a *[WriteError] that says how much was queued, and the ticket stands for that
	// part: the memory is lent until it is done all the same. Memory that was released fails with [ErrReleased],
	// and nothing is sent. An empty p gives a done ticket.
	//
	// It may be called by many goroutines at once.
	WritePinned(p Pinned) (Ticket, error)

	// WritePinnedBuffers sends the buffers one after the other as one write with one ticket. Each buffer shorter
	// than a page is copied, for a header would cost a page and a pin of its own. It does not keep ps.
	WritePinnedBuffers(ps []Pinned) (Ticket, error)

	// Flush waits until every ticket issued before the call is done: all
	// buffers are free. Other goroutines may go on writing meanwhile. It
	// returns all failures of the connection's tickets together, whether they
	// came before or during the call, or ctx.Err() if ctx ends first. It leaves
	// deadlines alone, and works after Close. As with [Ticket.Wait], nil does
	// not say that the peer's kernel has what was copied: [Conn.Acknowledged]
	// does.
	Flush(ctx context.Context) error
}

// FlushAll is a barrier over several connections: it waits until every ticket
// that each of them issued before the call is done, and returns all failures
// together. It is a barrier for memory, as Flush is; where the bytes have to
// have arrived, call [Conn.Acknowledged] of each.
func FlushAll(ctx context.Context, ws ...ZeroCopyWriter) error {
	errs := make([]error, len(ws))
	var wg sync.WaitGroup
	for i, w := range ws {
		wg.Go(func() { errs[i] = w.Flush(ctx) })
	}
	wg.Wait()
	return together(errs)
}

// together joins errors into one that errors.Is and errors.As look through, or nil.
func together(errs []error) error {
	var all *multierror.Error
	for _, err := range errs {
		all = multierror.Append(all, err)
	}
	if all != nil {
		all.ErrorFormat = describeAll
	}
	return all.ErrorOrNil()
}

// describeAll keeps the text short where one broken connection failed a thousand tickets.
func describeAll(errs []error) string {
	const shown = 3
	parts := make([]string, 0, shown+1)
	for i, err := range errs {
		if i == shown {
			parts = append(parts, fmt.Sprintf("and %d more", len(errs)-shown))
			break
		}
		parts = append(parts, err.Error())
	}
	return strings.Join(parts, "; ")
}

// WriteError is the error of a write that began and did not end well. It is a net.Error; errors.Is and errors.As
// find the cause: os.ErrDeadlineExceeded, net.ErrClosed, a *net.OpError, a syscall.Errno.
type WriteError struct {
	Queued int64 // bytes that are in the stream, from the beginning of the write
	Total  int64 // bytes of the write
	Err    error
}

var (
	_ net.Error   = &WriteError{}
	_ FrameWriter = &Conn{}
)

func (e *WriteError) Error() string {
	return fmt.Sprintf("zcnet: %v (%d of %d bytes were queued)", e.Err, e.Queued, e.Total)
}

func (e *WriteError) Unwrap() error { return e.Err }

// Timeout reports whether the write deadline passed.
func (e *WriteError) Timeout() bool {
	var ne net.Error
	return errors.As(e.Err, &ne) && ne.Timeout()
}

// Temporary is part of net.Error, and deprecated there; it is the same as Timeout.
func (e *WriteError) Temporary() bool { return e.Timeout() }

// WritePinned sends p without copying it if it is as long as the threshold and the path allows it. See
// [ZeroCopyWriter].
func (c *Conn) WritePinned(p Pinned) (Ticket, error) {
	defer runtime.KeepAlive(c)
	if p.Len() < c.s.cfg.Threshold {
		return c.s.writeShort(p)
	}
	w := newWrite(c.s)
	w.bufs = append(w.bufs, p)
	return w.run()
}

// writeShort is the write of one buffer below the threshold: a Write, and as little more as there can be.
func (s *socket) writeShort(p Pinned) (Ticket, error) {
	if p.r != nil {
		if !p.r.lend(p.gen) {
			return Ticket{}, ErrReleased
		}
		defer p.r.giveBack()
	}
	if p.Len() == 0 {
		return Ticket{}, nil
	}
	n, err := s.write(p.b)
	s.countShort(n)
	if err == nil {
		return copiedTicket, nil
	}
	w := progress{s: s, total: int64(p.Len()), queued: int64(n), err: cause(err)}
	return w.ticket(), w.failure()
}

// WritePinnedBuffers sends ps as one write with one ticket; their total counts for the threshold. See
// [ZeroCopyWriter].
func (c *Conn) WritePinnedBuffers(ps []Pinned) (Ticket, error) {
	defer runtime.KeepAlive(c)
	w := newWrite(c.s)
	w.bufs = append(w.bufs, ps...)
	return w.run()
}

// A FrameWriter sends frames of a protocol. [Conn] is one, and so is every writer of [NewWriter].
type FrameWriter interface {
	// WriteFrame sends header and body as one contiguous write with one ticket. The header is copied and is the
	// caller's again when the call returns; the body is lent as by WritePinned.
	WriteFrame(header []byte, body Pinned) (Ticket, error)
}

// WriteFrame sends a header, which it copies, and a body, which it does not, as one write with one ticket. See
// [FrameWriter].
func (c *Conn) WriteFrame(header []byte, body Pinned) (Ticket, error) {
	defer runtime.KeepAlive(c)
	w := newWrite(c.s)
	w.bufs = append(w.bufs, Pin(header), body)
	w.copies = 1
	return w.run()
}

// Flush waits for every ticket issued before the call. See [ZeroCopyWriter];
// see [Conn.Acknowledged] for whether the bytes have arrived.
func (c *Conn) Flush(ctx context.Context) error {
	defer runtime.KeepAlive(c)
	l := c.s.ledger()
	if done := l.flush(); done != nil {
		l.await()
		select {
		case <-done:
		case <-ctx.Done():
			l.unflush(done)
			return ctx.Err()
		}
	}
	return together(l.failuresSoFar())
}

// Sizes of system calls.
const (
	// smallestCall is the least to which narrow bounds cut flagged calls.
	smallestCall = 16 << 10
	// smallCall is the least to which bounds cut flagged calls so that several
	// have room.
	smallCall = 128 << 10
	// plainCall is the most that one copying call sends.
	plainCall = 1 << 30
	// page is the length below which a buffer is not worth a fragment of its own.
	page = 4 << 10
	// keptBuffers is how many buffers an unused write keeps room for.
	keptBuffers = 1024
	// maxIovecs is the most buffers in one call.
	maxIovecs = 64
)

// A write is one WritePinned or WritePinnedBuffers on its way to the kernel. Writes are used again by later ones.
// Between the first and the last call of step it is the only write of its connection: the descriptor's write lock,
// which every other way to write takes too, is held by RawConn.Write, waiting for buffer space included.
type write struct {
	progress
	bufs []Pinned
	loan loan
	msg  message
	step func(fd uintptr) bool // w.sendAll, bound once
}

// progress is what begins anew with each write.
type progress struct {
	s       *socket
	copies  int           // how many buffers, from the first on, are copied in any case
	total   int64         // bytes of the write
	queued  int64         // of them in the kernel
	at, off int           // the next byte to send is bufs[at].b[off]
	flag    bool          // flagged calls are still worth trying
	tries   int           // of them that are left on a path that copies
	began   time.Duration // by clock
	now     time.Duration // when limits were last looked at, by clock
	limits  *limits
	size    int  // bytes of the next flagged call, at most
	full    bool // there is no use in looking for room for one before the send buffer has room again
	claim   *claim
	helped  bool    // a part was copied
	why     reasons // why

	syscalls uint64
	err      error
}

var writes = sync.Pool{New: func() any {
	w := new(write)
	w.step = w.sendAll
	return w
}}

func newWrite(s *socket) *write {
	w := writes.Get().(*write)
	w.s = s
	return w
}

// free makes w ready for another write.
func (w *write) free() {
	clear(w.bufs)
	w.bufs = w.bufs[:0]
	if cap(w.bufs) > keptBuffers {
		w.bufs = nil
	}
	w.msg.clear()
	w.progress = progress{}
	writes.Put(w)
}

// run takes the write from its buffers to its ticket.
func (w *write) run() (Ticket, error) {
	defer w.free()
	if err := w.loan.take(w.bufs); err != nil {
		return Ticket{}, err
	}
	defer w.loan.giveBack()
	w.total = totalLen(w.bufs)
	if w.total == 0 {
		return Ticket{}, nil
	}
	w.advance(0)
	w.plan()
	if b, ok := onlyBuffer(w.bufs); ok && !w.flag {
		w.writePlainly(b)
	} else if err := w.s.raw.Write(w.step); err != nil && w.err == nil {
		w.err = cause(err)
	}
	t, err := w.ticket(), w.failure()
	w.s.count(&w.progress)
	w.s.deliver()
	return t, err
}

// plan decides what holds for the whole write.
func (w *write) plan() {
	s := w.s
	switch {
	case w.total < int64(s.cfg.Threshold):
		w.why.add(reasonThreshold)
	case s.refused.Load() != nil:
		w.why.add(reasonRefused)
	default:
		w.planFlagged()
	}
}

// planFlagged decides for a write that is worth sending without copying.
func (w *write) planFlagged() {
	w.flag, w.began = true, clock()
	w.now = w.began
	if w.s.postponed(w.now) {
		w.sendPlainly(reasonRefused)
		return
	}
	w.limits = w.s.kernel.currentLimits(w.now)
	if !w.s.pathCopies() {
		return
	}
	w.tries = 1
	if w.flag = w.s.path.try(w.now); !w.flag {
		w.why.add(reasonPath)
	}
}

// writePlainly sends b, the whole write, as Write does. That costs least for what is copied.
func (w *write) writePlainly(b []byte) {
	n, err := w.s.write(b)
	w.syscalls++
	w.queued, w.err = int64(n), cause(err)
	w.s.stats.copiedBytes.Add(w.queued)
}

// sendAll makes calls until the write is done or the send buffer is full. It is called by RawConn.Write with the write
// lock held, again each time the socket has become writable.
func (w *write) sendAll(fd uintptr) (done bool) {
	w.full = false
	for w.queued < w.total && w.err == nil {
		switch err := w.sendNext(fd); err {
		case nil, syscall.EINTR:
		case syscall.EAGAIN:
			return false
		default:
			w.err = err
		}
	}
	return true
}

// sendNext makes one system call for the next part of the write.
func (w *write) sendNext(fd uintptr) error {
	if !w.flagNext(fd) {
		return w.sendCopied(fd)
	}
	err := w.sendFlagged(fd)
	if errno, ok := err.(syscall.Errno); ok && rejected(errno) {
		w.invalid(err)
		return nil
	}
	switch err {
	case errUnwatched:
		return nil
	case errUntrusted:
		w.sendPlainly(reasonRefused)
		return nil
	case syscall.ENOBUFS:
		w.noBuffers(fd)
		return nil
	case syscall.EOPNOTSUPP:
		w.refuse(err)
		return nil
	case syscall.EFAULT, syscall.ENOMEM: // memory that cannot be pinned, or no memory at all: Write would know
		w.sendPlainly(reasonUnpinnable)
		return nil
	default:
		return err
	}
}

// rejected reports whether errno is of a kernel, a sandbox or a filter that does
// not let the call be made.
func rejected(errno syscall.Errno) bool {
	switch errno {
	case syscall.EINVAL, syscall.EPERM, syscall.EACCES, syscall.ENOSYS, syscall.ENOPROTOOPT:
		return true
	}
	return false
}

// sendPlainly has the rest of the write copied.
func (w *write) sendPlainly(why reason) {
	w.flag = false
	w.why.add(why)
}

// invalid answers an error that Write may not meet: the rest of the write is
// copied, and after the second time every later one. Linux 4.14 to 4.20
// answers EINVAL to a flagged call once the peer has ended its stream, and so do
// sandboxes always.
func (w *write) invalid(err error) {
	if w.s.invalid++; w.s.invalid > 1 {
		w.s.refuse(os.NewSyscallError("send with MSG_ZEROCOPY", err))
	}
	w.sendPlainly(reasonRefused)
}

// errUnwatched is the error of a flagged call that was not made, because its
// completion could not be waited for.
var errUnwatched = errors.New("completions cannot be waited for")

// flagNext decides for the next part of the write whether to send it with MSG_ZEROCOPY.
func (w *write) flagNext(fd uintptr) bool {
	s := w.s
	switch {
	case !w.flag || w.full:
		return false
	case !w.lends(w.at):
		w.why.add(reasonThreshold)
		return false
	case s.pathCopies() && w.tries <= 0:
		w.why.add(reasonPath)
		return false
	}
	return w.withinBounds(fd)
}

// lends reports whether buffer i is worth lending to the kernel.
func (w *write) lends(i int) bool { return i >= w.copies && len(w.bufs[i].b) >= page }

// sendFlagged sends with MSG_ZEROCOPY, and books the ID that the call took.
func (w *write) sendFlagged(fd uintptr) error {
	if w.claim == nil {
		w.claim = w.s.ledger().begin(w.began)
		w.loan.pass(&w.claim.loan, w.bufs[w.copies:])
		if w.s.cfg.Guard {
			w.claim.loan.guard = w.guard()
		}
	}
	w.gather(w.size, true)
	l := w.claim.l
	first, err := l.reserve(w.msg.size)
	if err != nil {
		return err
	}
	if first {
		if err := w.s.expectCompletion(fd); err != nil {
			l.cancel()
			w.s.postpone(w.now, err)
			w.sendPlainly(reasonRefused)
			return errUnwatched
		}
		w.s.resume()
	}
	n, err := w.send(fd, msgZeroCopy)
	if err != nil {
		stray := false
		if err == syscall.ENOBUFS { // nothing was charged
			stray = l.cancel()
		} else {
			stray = l.abort()
		}
		if stray {
			w.s.distrust(errMiscounted)
		}
		return err
	}
	l.commit(w.claim, n)
	// At once while a completion has yet to tell what the path does, or has come
	// before what it is about was known to be acknowledged.
	if w.s.calls++; w.s.calls%reapEvery == 0 || !w.s.path.free.Load() || l.held.Load() > 0 {
		w.s.drain(fd)
	}
	w.tries--
	w.advance(n)
	return nil
}

// sendCopied sends the way Write does.
func (w *write) sendCopied(fd uintptr) error {
	w.gather(plainCall, false)
	flags := 0
	if w.queued+int64(w.msg.size) < w.total {
		flags = msgMore
	}
	n, err := w.send(fd, flags)
	if err != nil {
		return err
	}
	w.helped = true
	w.s.stats.copiedBytes.Add(int64(n))
	w.s.plain.begin(n) // nothing else is sent meanwhile
	w.s.plain.end(n, n)
	if w.claim != nil && w.claim.l.held.Load() > 0 {
		w.s.drain(fd)
	}
	w.advance(n)
	return nil
}

// send makes the call.
func (w *write) send(fd uintptr, flags int) (int, error) {
	w.syscalls++
	return w.s.kernel.send(fd, &w.msg, flags)
}

// gather makes the next call's message: the buffers from the cursor on that are sent in the same way, up to limit
// bytes.
func (w *write) gather(limit int, flagged bool) {
	w.msg.clear()
	off := w.off
	for i := w.at; i < len(w.bufs) && w.msg.n < maxIovecs && w.msg.size < limit; i++ {
		b := w.bufs[i].b[off:]
		off = 0
		if len(b) == 0 {
			continue
		}
		if w.flag && !w.full && w.lends(i) != flagged && w.msg.n > 0 {
			break
		}
		w.msg.add(b[:min(len(b), limit-w.msg.size)])
	}
}

// advance moves the cursor over n bytes that were queued, and over empty buffers.
func (w *write) advance(n int) {
	w.queued += int64(n)
	w.off += n
	for w.at < len(w.bufs) && w.off >= len(w.bufs[w.at].b) {
		w.off -= len(w.bufs[w.at].b)
		w.at++
	}
}

// refuse makes the connection copy from here on: flagged calls do not work on
// it after all.
func (w *write) refuse(err error) {
	w.s.refuse(err)
	w.sendPlainly(reasonRefused)
}

// ticket closes the accounts of the write.
func (w *progress) ticket() Ticket {
	switch {
	case w.claim != nil:
		w.unguard()
		return w.claim.l.seal(w.claim, w.helped)
	case w.queued > 0:
		return copiedTicket
	}
	return Ticket{}
}

func (w *progress) failure() error {
	if w.err == nil {
		return nil
	}
	err := w.err
	if err == syscall.EPIPE && w.s.ending() {
		err = net.ErrClosed
	}
	return &WriteError{Queued: w.queued, Total: w.total, Err: w.s.opError("write", err)}
}
