package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// This file shows what is going on: on a terminal in one line that is drawn again and again, elsewhere in one line per
// step.

// redrawEvery is how often the line on a terminal is drawn.
const redrawEvery = 100 * time.Millisecond

// progress shows steps, and within a step transfers. A nil *progress shows nothing.
type progress struct {
	w    io.Writer
	live bool // w is a terminal

	sent, total atomic.Int64 // bytes of the transfer

	mu       sync.Mutex
	step     string
	transfer string
	drawn    int // characters on the line
	quit     chan struct{}
	stopped  sync.WaitGroup
}

// newProgress begins to show progress on w. It must be ended by close.
func newProgress(w io.Writer) *progress {
	p := &progress{w: w, live: isTerminal(w), quit: make(chan struct{})}
	if p.live {
		p.stopped.Go(p.redraw)
	}
	return p
}

// isTerminal reports whether w is a device that shows characters.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// begin begins a step.
func (p *progress) begin(format string, args ...any) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.step, p.transfer = fmt.Sprintf(format, args...), ""
	if p.live {
		p.draw()
		return
	}
	fmt.Fprintln(p.w, p.step)
}

// beginTransfer begins a transfer of total bytes within the step.
func (p *progress) beginTransfer(name string, total int64) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.transfer = name
	p.sent.Store(0)
	p.total.Store(total)
}

// add adds n bytes to the transfer.
func (p *progress) add(n int64) {
	if p != nil {
		p.sent.Add(n)
	}
}

// note prints a line that stays.
func (p *progress) note(format string, args ...any) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	fmt.Fprintf(p.w, format+"\n", args...)
}

// close ends it, and leaves nothing of the line on a terminal.
func (p *progress) close() {
	if p == nil {
		return
	}
	close(p.quit)
	p.stopped.Wait()
	p.erase()
}

// redraw draws the line until close.
func (p *progress) redraw() {
	tick := time.NewTicker(redrawEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.quit:
			return
		case <-tick.C:
			p.mu.Lock()
			p.draw()
			p.mu.Unlock()
		}
	}
}

// draw draws the line over itself. p.mu is held.
func (p *progress) draw() {
	text := p.step
	if total := p.total.Load(); p.transfer != "" && total > 0 {
		text = fmt.Sprintf("%s: %s %d%%", p.step, p.transfer, 100*p.sent.Load()/total)
	}
	fmt.Fprintf(p.w, "\r%-*s", p.drawn, text)
	p.drawn = len(text)
}

// erase leaves the line empty. p.mu is held, or nobody draws any more.
func (p *progress) erase() {
	if p.drawn > 0 {
		fmt.Fprintf(p.w, "\r%s\r", strings.Repeat(" ", p.drawn))
		p.drawn = 0
	}
}
