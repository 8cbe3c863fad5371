package zcnet

import (
	"errors"
	"io"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// This file sends what is read from any reader, without copying it again, out of buffers of the library's own.

// ReadFrom sends what it reads from r until end of file. Files are sent by
// sendfile(2), TCP and unix connections by splice(2), as by *net.TCPConn. Any
// other reader reads into buffers of the library's own, which are sent without
// copying where that pays, so that the caller has no duty: r's memory is r's
// again when its Read returns. When ReadFrom returns, everything is queued in
// the kernel, as after Write; the buffers take care of themselves.
//
// io.Copy to a Conn calls ReadFrom unless the source has a WriteTo, which calls
// Write, which copies. Such sources are *bytes.Reader, *bytes.Buffer,
// *strings.Reader, *net.Buffers, what io.MultiReader returns, *bufio.Reader
// over one of these, and whatever forwards WriteTo to one. For them call
// conn.ReadFrom(r) instead of io.Copy(conn, r).
//
// What one Read returns is sent at once, unless r has returned promptly, within
// a millisecond, several times in a row. Then what is shorter than
// Config.Threshold, as from decompressors and TLS connections, is gathered up
// to that length, but sent a millisecond later at the latest, also while r is
// blocked; each time that happens it takes twice as many prompt Reads until the
// next try. So what comes from a reader that waits between two pieces is not
// delayed, but for a few of the first times. If r never waits, but is too slow
// for that, wrap it in a reader whose Read is io.ReadFull of r.
//
// A ReadFrom that waits in Read holds 6 KiB or, after a Read that returned more
// than that, 40 KiB; io.Copy holds 32. Longer buffers are for readers that have
// just filled one, or that are prompt. They are the process's: 64 of 256 KiB
// and, for a Threshold above that, 8 of 4 MiB. Prompt readers may keep half of
// them while they wait; when all are in flight, ReadFrom copies.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	if src, ok := r.(*Conn); ok {
		return src.spliceTo(c.TCPConn)
	}
	if kernelCanMove(r) {
		return c.TCPConn.ReadFrom(r)
	}
	return c.sendFrom(r)
}

const (
	readBufferSize  = 256 << 10 // each comes back by itself when it was sent
	readBufferCount = 64        // of the process: 16 MiB of address space, touched as needed
	// longestReadBuffer is the longest threshold for which there are buffers to
	// reach it. Longer ones copy.
	longestReadBuffer   = 4 << 20
	longReadBufferCount = 8
)

// readBuffers is the pool for ReadFrom of all connections; nil where there is
// no memory for it. longReadBuffers is that of connections with a longer
// threshold.
var (
	readBuffers     = sync.OnceValue(func() *Pool { return newReadPool(readBufferSize, readBufferCount) })
	longReadBuffers = sync.OnceValue(func() *Pool { return newReadPool(longestReadBuffer, longReadBufferCount) })
)

func newReadPool(size, n int) *Pool {
	return unbubbled(func() *Pool {
		p, err := NewPool(size, n)
		if err != nil {
			return nil
		}
		return p
	})
}

// readPool returns the pool with buffers of which a full one is worth sending
// without a copy, if any is.
func (s *socket) readPool() *Pool {
	if s.cfg.Threshold > readBufferSize && s.cfg.Threshold <= longestReadBuffer {
		return longReadBuffers()
	}
	return readBuffers()
}

// kernelCanMove reports whether r may be something that sendfile or splice takes, perhaps limited: it has a
// descriptor. So do the wrappers by which packages net and os hide methods of their types from io.Copy.
func kernelCanMove(r io.Reader) bool {
	if limited, ok := r.(*io.LimitedReader); ok {
		r = limited.R
	}
	if _, ok := r.(*Conn); ok {
		return false // its Read survives completions, a splice from it does not
	}
	_, ok := r.(syscall.Conn)
	return ok
}

// atHand returns how many bytes r says it has without waiting, perhaps limited.
func atHand(r io.Reader) int {
	switch r := r.(type) {
	case *io.LimitedReader:
		return int(min(int64(atHand(r.R)), r.N))
	case interface{ Len() int }: // *bytes.Reader, *bytes.Buffer, *strings.Reader
		return r.Len()
	case interface{ Buffered() int }: // *bufio.Reader
		return r.Buffered()
	}
	return 0
}

// sendFrom sends what it reads from r until end of file.
func (c *Conn) sendFrom(r io.Reader) (int64, error) {
	defer runtime.KeepAlive(c)
	f := &feed{s: c.s, c: c, r: r, pool: c.s.readPool(), patience: firstPatience}
	if atHand(r) > idleRead {
		f.next = lentRead
	}
	if bubbled() {
		f.patience = mostPatience // the clock of the bubble may stand still while r waits
	}
	err := f.run()
	if err == io.EOF {
		err = nil
	}
	return f.total, err
}

// How much a Read is asked for. Any Read may be the one that waits for hours,
// and holds its buffer meanwhile. So a Read gets a long buffer when the one
// before has filled its own, which tells that there is more, or when r is
// prompt. The others are no powers of two, because pages and pieces of other
// copies are: those must not fill one by chance.
const (
	idleRead  = 6 << 10        // to begin with, and after a Read that returned no more
	plainRead = 40 << 10       // after one that returned more, but not all that it was asked for
	lentRead  = readBufferSize // or what a longer threshold asks for
)

var (
	idleBuffers  = sync.Pool{New: func() any { return new([idleRead]byte) }}
	plainBuffers = sync.Pool{New: func() any { return new([plainRead]byte) }}
)

// Gathering. Whether a Read is going to wait cannot be known, so what is in
// hand must not depend on it: a timer sends it. It is a bet that pays if the
// Read returns first. So it is made with a reader that has returned promptly
// many times in a row, and each lost bet doubles how many.
const (
	longestHold   = time.Millisecond
	firstPatience = 8
	mostPatience  = 1 << 30
)

// A feed is one ReadFrom at work.
type feed struct {
	s     *socket
	c     *Conn
	r     io.Reader
	pool  *Pool // nil if there is none
	total int64 // bytes in the stream

	// mu is held by ReadFrom except while it is in Read. The timer's goroutine
	// takes it to send what is in hand.
	mu     sync.Mutex
	timer  *time.Timer // runs while there is something in hand; nil before there ever was
	failed error       // of the timer's write

	p        Pinned // the long buffer; empty if none is held
	at, have int    // p is lent up to at, and the next have bytes of it are in hand
	next     int    // what to ask the next Read for, to within the size of its buffer
	prompt   int    // prompt Reads in a row, those not counted that filled their buffer
	patience int    // how many it takes before something is held back
}

// run reads and sends until either fails.
func (f *feed) run() (err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.end()
	for err == nil {
		switch {
		case f.takesLong():
			err = f.sendLent()
		case f.next > idleRead:
			b := plainBuffers.Get().(*[plainRead]byte)
			err = f.sendCopied(b[:min(plainRead, max(f.s.cfg.Threshold, idleRead))])
			plainBuffers.Put(b)
		default:
			b := idleBuffers.Get().(*[idleRead]byte)
			err = f.sendCopied(b[:])
			idleBuffers.Put(b)
		}
	}
	return err
}

// gathers reports whether r is so prompt that something may be held back.
func (f *feed) gathers() bool { return f.prompt >= f.patience }

// takesLong takes a long buffer if the next Read is to have one, gives it up if
// not, and reports whether one is held. A reader that is merely prompt may keep
// it waiting, and gets none of the last half of the pool.
func (f *feed) takesLong() bool {
	full := f.next > plainRead
	if f.p.Len() > 0 && !full && !f.gathers() {
		f.release()
	}
	if f.p.Len() == 0 && f.pool != nil && (full || f.gathers() && len(f.pool.free) > cap(f.pool.free)/2) {
		f.p, _ = f.pool.tryGet()
		f.at = 0
	}
	return f.p.Len() > 0
}

// end sends what is in hand if r has panicked, and gives the long buffer up.
func (f *feed) end() {
	if f.have > 0 {
		_ = f.send(false)
	}
	f.release()
}

// release gives the long buffer up, of which nothing is in hand.
func (f *feed) release() {
	f.p.Release()
	f.p = Pinned{}
}

// read reads into b, and learns from it.
func (f *feed) read(b []byte) (n int, err error) {
	began := clock()
	n, err = f.readUnlocked(b)
	took := clock() - began
	switch {
	case n == len(b):
		f.next = lentRead
	case n > idleRead:
		f.next = plainRead
	default:
		f.next = idleRead
	}
	switch {
	case took > longestHold:
		f.prompt = 0
	case n < len(b):
		f.prompt++
	}
	return n, err
}

func (f *feed) readUnlocked(b []byte) (int, error) {
	f.mu.Unlock()
	defer f.mu.Lock()
	return f.r.Read(b)
}

// sendCopied sends a copy of what it reads into b.
func (f *feed) sendCopied(b []byte) error {
	n, err := f.read(b)
	if n == 0 {
		return err
	}
	if _, writeErr := f.s.writeShort(Pin(b[:n])); writeErr != nil {
		f.total += queuedOf(writeErr)
		return writeErr
	}
	f.total += int64(n)
	return err
}

// sendLent reads into the long buffer, and sends or holds back what is in hand.
func (f *feed) sendLent() error {
	n, err := f.read(f.p.Slice(f.at+f.have, f.p.Len()).Bytes())
	if f.failed != nil {
		return f.failed
	}
	held := f.have > 0
	f.have += n
	enough := f.have >= min(f.s.cfg.Threshold, f.p.Len()) || f.at+f.have == f.p.Len()
	if f.have > 0 && !enough && f.gathers() && err == nil {
		f.hold(held)
		return nil
	}
	if held && enough {
		f.patience = max(f.patience/2, firstPatience)
	}
	if writeErr := f.send(false); writeErr != nil {
		return writeErr
	}
	if f.p.Len()-f.at < max(min(f.s.cfg.Threshold, f.p.Len()), page) {
		f.release()
	}
	return err
}

// hold has what is in hand wait for more, but not for long.
func (f *feed) hold(already bool) {
	switch {
	case f.timer == nil:
		f.timer = time.AfterFunc(longestHold, f.late)
	case !already:
		f.timer.Reset(longestHold)
	}
}

// late sends what is in hand while r keeps ReadFrom waiting.
func (f *feed) late() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.have == 0 {
		return
	}
	f.prompt = 0
	f.patience = min(2*f.patience, mostPatience)
	f.failed = f.send(true)
}

// send sends what is in hand. If that was copied after all, its place, which is
// in the cache, is free for the next Read, unless r is reading behind it
// already.
func (f *feed) send(reading bool) error {
	if f.timer != nil {
		f.timer.Stop()
	}
	n := f.have
	f.have = 0
	ticket, err := f.c.WritePinned(f.p.Slice(f.at, f.at+n))
	if err != nil {
		f.total += queuedOf(err)
		return err
	}
	f.total += int64(n)
	if reading || ticket.pending() {
		f.at += n
	}
	return nil
}

// queuedOf returns how much of a failed write is in the stream.
func queuedOf(err error) int64 {
	if we, ok := errors.AsType[*WriteError](err); ok {
		return we.Queued
	}
	return 0
}
