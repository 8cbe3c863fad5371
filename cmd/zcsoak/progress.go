package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// This file shows what is going on: on a terminal in one line that is drawn again and again, elsewhere in a line now and
// then.

// How often it is shown.
const (
	redrawEvery = 200 * time.Millisecond
	lineEvery   = 10 * time.Second
)

// progress shows steps.
type progress struct {
	w    io.Writer
	live bool // w is a terminal

	mu    sync.Mutex
	drawn int // characters on the line
}

func newProgress(w io.Writer) *progress { return &progress{w: w, live: isTerminal(w)} }

// isTerminal reports whether w is a device that shows characters.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// every returns how often to show the same step.
func (p *progress) every() time.Duration {
	if p.live {
		return redrawEvery
	}
	return lineEvery
}

// step shows what is being done.
func (p *progress) step(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := fmt.Sprintf(format, args...)
	if !p.live {
		fmt.Fprintln(p.w, text)
		return
	}
	fmt.Fprintf(p.w, "\r%-*s", p.drawn, text)
	p.drawn = len(text)
}

// note prints a line that stays.
func (p *progress) note(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	fmt.Fprintf(p.w, format+"\n", args...)
}

// close leaves nothing of the line on a terminal.
func (p *progress) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
}

// erase leaves the line empty. p.mu is held.
func (p *progress) erase() {
	if p.drawn > 0 {
		fmt.Fprintf(p.w, "\r%s\r", strings.Repeat(" ", p.drawn))
		p.drawn = 0
	}
}
