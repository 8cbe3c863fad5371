package zcnet

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"time"
	"unsafe"
)

// This file is the guard mode: it finds who writes to memory in flight. What can be write-protected is, and the rest is
// summed when it is lent and again when it comes back. How pages are protected is in guard_linux.go, how a fault gets its
// message in guardtrap_linux_amd64.go.

// ErrChangedInFlight is what a [Ticket] reports under Config.Guard when its
// memory was written to before it was done. The memory is free and the
// connection is healthy, but the peer may have received either content of each
// byte.
var ErrChangedInFlight = errors.New("memory was changed while in flight, and the peer may have received either content")

// A guard watches over the memory of one write, from before the first flagged call until the last completion. It is
// touched by the writer before the claim is sealed, and by the one who settles the claim after.
type guard struct {
	s     *socket
	call  string // which method lent the memory
	site  string // and where that was called: file:line (function)
	bytes int64  // of the write
	since time.Time
	parts []guardedPart
}

// A guardedPart is memory that is guarded in one way.
type guardedPart struct {
	b   []byte
	off int64 // of b in the write

	r    *region // if b is whole pages of it that are write-protected
	trap int     // the place of b among the ranges that a fault is looked up in; negative if it has none

	sums []uint64 // otherwise: one for each block of b
}

// sumBlock is how exactly a change is located.
const sumBlock = 4 << 10

// sumSeed lets sums of one process be compared.
var sumSeed = maphash.MakeSeed()

// guard begins to guard what is left to send of the write. What is copied anyway is nobody's but the caller's.
func (w *write) guard() *guard {
	g := &guard{s: w.s, bytes: w.total, since: realTime()}
	g.call, g.site = callSite()
	off, skip := w.queued, w.off
	for i := w.at; i < len(w.bufs); i++ {
		p := &w.bufs[i]
		if w.lends(i) {
			g.add(p.r, p.b[skip:], off)
		}
		off += int64(len(p.b) - skip)
		skip = 0
	}
	return g
}

// unguard ends what guard began, unless it is still lent: of a write that failed only the bytes that are queued are.
func (w *progress) unguard() {
	if w.claim != nil && w.claim.loan.guard != nil && w.queued < w.total {
		w.claim.loan.guard.cut(w.queued)
	}
}

// add guards b, which is memory of r, or of the caller if r is nil. Only whole pages can be protected: what else is in the
// first and the last one may be written to by whoever it belongs to.
func (g *guard) add(r *region, b []byte, off int64) {
	lo, hi := 0, 0
	if r != nil {
		lo, hi = wholePages(b)
	}
	if lo >= hi || !g.protect(r, b[lo:hi], off+int64(lo)) {
		g.sum(b, off)
		return
	}
	g.sum(b[:lo], off)
	g.sum(b[hi:], off+int64(hi))
}

// wholePages returns between which indices b consists of whole pages of the system; lo >= hi if it has none.
func wholePages(b []byte) (lo, hi int) {
	size := uintptr(os.Getpagesize())
	begin := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	end := begin + uintptr(len(b))
	return int(-begin & (size - 1)), len(b) - int(end&(size-1))
}

// protect write-protects b, whole pages of r, and reports false if that cannot be done.
func (g *guard) protect(r *region, b []byte, off int64) bool {
	message := g.message(b)
	trap := setTrap(b, message) // first, so that no fault goes without
	if !r.protect(b) {
		clearTrap(trap)
		return false
	}
	if trap < 0 {
		g.s.log(slog.LevelDebug, strings.TrimSpace(message))
	}
	g.parts = append(g.parts, guardedPart{b: b, off: off, r: r, trap: trap})
	return true
}

// message is what a fault in b is told with.
func (g *guard) message(b []byte) string {
	begin := uintptr(unsafe.Pointer(&b[0]))
	return fmt.Sprintf("zcnet guard: memory in flight is write-protected: 0x%x to 0x%x, lent by %s of %d bytes at %s, on %v, not completed yet\n",
		begin, begin+uintptr(len(b)), g.call, g.bytes, g.site, g.since.Format(guardTime))
}

const guardTime = "2006-01-02 15:04:05.000000"

// sum notes what is in b.
func (g *guard) sum(b []byte, off int64) {
	if len(b) == 0 {
		return
	}
	part := guardedPart{b: b, off: off, sums: make([]uint64, 0, (len(b)+sumBlock-1)/sumBlock)}
	if readable(func() {
		for block := range part.blocks() {
			part.sums = append(part.sums, maphash.Bytes(sumSeed, block))
		}
	}) {
		g.parts = append(g.parts, part)
	} // else the kernel will say EFAULT
}

// blocks yields the blocks of b in order.
func (p *guardedPart) blocks() func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for at := 0; at < len(p.b); at += sumBlock {
			if !yield(p.b[at:min(at+sumBlock, len(p.b))]) {
				return
			}
		}
	}
}

// readable runs f, which reads memory of the caller's, and reports whether all of it was there.
func readable(f func()) (ok bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if !ok {
			_ = recover()
		}
	}()
	f()
	return true
}

// A change is what was found.
type change struct {
	lo, hi int64 // the first block that is not as it was: offsets in the write
	blocks int   // how many are not
	gone   bool  // memory can no longer be read
}

// find adds to c what has changed in p.
func (c *change) find(p *guardedPart) {
	i := 0
	if !readable(func() {
		for block := range p.blocks() {
			if maphash.Bytes(sumSeed, block) != p.sums[i] {
				lo := p.off + int64(i)*sumBlock
				if c.blocks == 0 || lo < c.lo {
					c.lo, c.hi = lo, lo+int64(len(block))
				}
				c.blocks++
			}
			i++
		}
	}) {
		c.gone = true
	}
}

// cut ends the guard of all but the first n bytes of the write.
func (g *guard) cut(n int64) {
	parts := g.parts
	g.parts = nil
	for _, p := range parts {
		keep := int(min(max(n-p.off, 0), int64(len(p.b))))
		switch {
		case keep == len(p.b):
			g.parts = append(g.parts, p)
		case p.r != nil:
			g.cutPages(p, keep)
		case keep > 0:
			g.cutSums(p, keep)
		}
	}
}

// cutPages protects the whole pages among the first keep bytes of p only, and sums the rest of those.
func (g *guard) cutPages(p guardedPart, keep int) {
	pages := keep &^ (os.Getpagesize() - 1)
	p.r.unprotect(p.b[pages:])
	g.sum(p.b[pages:keep], p.off+int64(pages))
	if pages == 0 {
		clearTrap(p.trap)
		return
	}
	p.b = p.b[:pages]
	shortenTrap(p.trap, p.b)
	g.parts = append(g.parts, p)
}

// cutSums keeps the sums of the first keep bytes of p. A last block that has changed already keeps its sum, which the
// shorter one will not have either.
func (g *guard) cutSums(p guardedPart, keep int) {
	last := (keep - 1) / sumBlock
	readable(func() {
		if maphash.Bytes(sumSeed, p.b[last*sumBlock:min((last+1)*sumBlock, len(p.b))]) == p.sums[last] {
			p.sums[last] = maphash.Bytes(sumSeed, p.b[last*sumBlock:keep])
		}
	})
	p.b, p.sums = p.b[:keep], p.sums[:last+1]
	g.parts = append(g.parts, p)
}

// lift ends the guard, before the memory is anybody's again, and adds to the ticket's error what it has found.
func (g *guard) lift(err error) error {
	var c change
	for i := range g.parts {
		switch p := &g.parts[i]; {
		case p.r != nil:
			p.r.unprotect(p.b)
			clearTrap(p.trap)
		default:
			c.find(p)
		}
	}
	g.parts = nil
	if c.blocks == 0 && !c.gone {
		return err
	}
	changed := g.report(c)
	if err != nil {
		return fmt.Errorf("%w; %w", err, changed)
	}
	return changed
}

// report tells of a change, and returns it as an error.
func (g *guard) report(c change) error {
	g.s.stats.guardViolations.Add(1)
	what := fmt.Sprintf("bytes %d to %d of it", c.lo, c.hi-1)
	switch {
	case c.gone:
		what = "it can no longer be read"
	case c.blocks > 1:
		what += fmt.Sprintf(" and %d more blocks", c.blocks-1)
	}
	found := realTime()
	logger := g.s.cfg.Logger
	if logger == nil {
		logger = slog.Default() // who asked for a guard wants to hear it
	}
	logger.Log(context.Background(), slog.LevelError, "zcnet: "+ErrChangedInFlight.Error(), "changed", what,
		"lent_by", g.call+" at "+g.site, "bytes", g.bytes, "lent", g.since, "found", found,
		"local", g.s.tc.LocalAddr(), "remote", g.s.tc.RemoteAddr())
	return fmt.Errorf("%w: %s, lent by %s at %s, on %s, found on %s", ErrChangedInFlight, what, g.call, g.site,
		g.since.Format(guardTime), found.Format(guardTime))
}

// callSite returns which method of this package was called, and where, as file:line (function).
func callSite() (call, site string) {
	var pcs [32]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(1, pcs[:])])
	f, more := frames.Next()
	own := packageOf(f.Function) // a vendored package has another name
	for call = "a write"; more; {
		f, more = frames.Next()
		switch packageOf(f.Function) {
		case own:
			if strings.HasSuffix(f.File, "_test.go") { // a caller, though of the same package
				return call, describeFrame(f)
			}
			call = f.Function[strings.LastIndexByte(f.Function, '.')+1:]
		case "net", "internal/poll", "io": // between the call and here: RawConn.Write, io.Copy
		default:
			return call, describeFrame(f)
		}
	}
	return call, "an unknown place"
}

func describeFrame(f runtime.Frame) string {
	return fmt.Sprintf("%s:%d (%s)", f.File, f.Line, f.Function)
}

// packageOf returns the import path of a function as the runtime names it.
func packageOf(function string) string {
	base := strings.LastIndexByte(function, '/') + 1
	name, _, _ := strings.Cut(function[base:], ".")
	return function[:base] + name
}
