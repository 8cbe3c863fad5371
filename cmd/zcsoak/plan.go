package main

import (
	"math"
	"math/rand/v2"
	"time"

	"github.com/zcnet-go/zcnet"
)

// This file makes the plan of a conversation, which is one connection from dialling to the last close. It follows from
// the seed, the conversation's number and the faults alone.

// A plan is what both ends of a connection will do.
type plan struct {
	id     int64
	family int // index into the link's families, modulo their number
	ends   [2]endPlan
	ending ending
	closer int           // the end that the ending begins with
	after  int64         // bytes that this end, or the other if the ending says so, receives before
	delay  time.Duration // or more time
}

// The ends of a connection.
const (
	dialler  = 0
	acceptor = 1
)

// An ending is how a connection ends.
type ending int

const (
	// endInOrder ends both streams (CloseWrite), reads both to the end, and closes.
	endInOrder ending = iota
	// endInFlight closes right behind the last writes. The other end has ended its stream before, so that all must arrive.
	endInFlight
	// endBesideWrite is the same, but it closes while another goroutine is writing.
	endBesideWrite
	// endLinger is endInFlight with SO_LINGER, so that Close waits.
	endLinger
	// endReset resets the connection while both ends send.
	endReset
	// endGivenUp closes towards a peer that has stopped reading, with a short Config.CloseTimeout.
	endGivenUp
	endingCount
)

func (e ending) String() string {
	return [endingCount]string{"in order", "in flight", "beside a write", "lingering", "reset", "given up"}[e]
}

// whole reports whether everything that was queued must arrive.
func (e ending) whole() bool { return e != endReset && e != endGivenUp }

// endPlan is one end's part.
type endPlan struct {
	wrapped  bool // else it stays what package net made it
	config   zcnet.Config
	sendBuf  int // SO_SNDBUF; 0 leaves it
	recvBuf  int
	slabs    int // buffers that are used again and again
	slabSize int
	steps    []step
	reading  reading
	meddling uint64 // seed of what other goroutines do meanwhile
}

// A step is one write call.
type step struct {
	call     call
	memory   memory
	size     int
	seed     uint64        // of the step's own details, such as where it is cut
	deadline time.Duration // for the write; 0 is none
	both     bool          // the deadline is set for reading, too
	watch    watch
	then     then
	pause    time.Duration
}

// A watch is how somebody finds out that a ticket is done.
type watch int

const (
	watchWait watch = iota
	watchDone
	watchReady
	watchCount
)

// A then is what the sender does before the next step.
type then int

const (
	thenNothing then = iota
	thenFlush
	thenFlushBriefly // with a context that may end first
	thenFlushAll
	thenPause
)

// reading is how an end receives.
type reading struct {
	chunk    int
	whole    bool          // by io.Copy and not by Read
	deadline time.Duration // of each; 0 is none
	stalls   []stall
}

// A stall is a pause of a receiver.
type stall struct {
	at   int64 // stream position
	time time.Duration
}

// Bounds of what is planned.
const (
	maxSteps   = 60
	finalSteps = 4
	finalSlab  = 1 << 20
	maxWrite   = 4 << 20
	maxStream  = 24 << 20  // of steps; what is planned beyond is left out
	easyBuffer = 192 << 10 // SO_RCVBUF from which on a stream flows well
	hardStream = 128 << 10 // of steps, where it does not
	maxStall   = 300 * time.Millisecond
	maxPause   = 5 * time.Millisecond
	closeTime  = 20 * time.Second       // Config.CloseTimeout, well below the patience with tickets
	giveUpTime = 400 * time.Millisecond // Config.CloseTimeout of endGivenUp
)

// planner draws from a random source.
type planner struct {
	*rand.Rand
	faults map[string]bool
}

// newPlan makes the plan of conversation id.
func newPlan(seed uint64, id int64, faults map[string]bool) *plan {
	p := planner{rand.New(rand.NewPCG(seed, uint64(id))), faults}
	c := &plan{id: id, family: p.IntN(64), closer: p.IntN(2), ending: p.ending()}
	c.after = p.upTo(64<<10, maxStream)
	c.delay = time.Duration(p.upTo(1, int64(2*time.Second)))
	for i := range c.ends {
		c.ends[i] = p.end()
	}
	if p.IntN(4) == 0 {
		c.ends[p.IntN(2)].steps = nil // traffic in one direction only
	}
	p.settle(c)
	for i := range c.ends {
		c.ends[i].spare(&c.ends[1-i])
	}
	return c
}

// spare leaves out most of what a receiver with a small buffer would take too long for: a window of less than a segment,
// which on these links is 64 KiB, is filled by the sender's persist timer only (RFC 9293, section 3.8.6).
func (e *endPlan) spare(receiver *endPlan) {
	if receiver.recvBuf == 0 || receiver.recvBuf >= easyBuffer {
		return
	}
	for i := range e.steps {
		e.steps[i].size = min(e.steps[i].size, hardStream/4)
	}
	e.steps = within(e.steps, hardStream)
}

// settle makes the ends fit the ending.
func (p planner) settle(c *plan) {
	closer, other := &c.ends[c.closer], &c.ends[1-c.closer]
	switch c.ending {
	case endInFlight, endBesideWrite, endLinger:
		p.finale(closer, other)
	case endReset:
		if p.IntN(2) == 0 { // while much is in flight
			p.finale(closer, other)
			p.finale(other, closer)
			other.reading.stalls = []stall{{at: 1, time: maxStall}}
		}
	case endGivenUp:
		c.after = p.upTo(1, 1<<20)
		closer.config.CloseTimeout = giveUpTime
		p.finale(closer, other)
		other.reading.stalls = []stall{{at: c.after, time: 2 * giveUpTime}}
	}
}

// finale has the last steps of an end queue more than its peer takes at once.
func (p planner) finale(e, peer *endPlan) {
	peer.recvBuf = easyBuffer
	e.slabSize = max(e.slabSize, finalSlab)
	for range finalSteps {
		s := p.step(e)
		s.memory = memories[p.IntN(4)] // of which somebody waits for the tickets
		s.size = min(int(p.upTo(128<<10, maxWrite)), s.call.most(), s.memory.most(e))
		e.steps = append(e.steps, s)
	}
}

func (p planner) ending() ending {
	choices := []ending{endInOrder, endInOrder}
	if p.faults[faultClose] {
		choices = append(choices, endInFlight, endBesideWrite, endLinger, endGivenUp)
	}
	if p.faults[faultReset] {
		choices = append(choices, endReset, endReset)
	}
	return choices[p.IntN(len(choices))]
}

func (p planner) end() endPlan {
	e := endPlan{
		wrapped:  p.IntN(8) != 0,
		slabs:    1 + p.IntN(6),
		meddling: p.Uint64(),
	}
	e.config.CloseTimeout = closeTime
	e.slabSize = int(p.upTo(4<<10, int64(8<<20/e.slabs)))
	if p.IntN(3) == 0 {
		e.config.Threshold = 1 + p.IntN(64<<10)
	}
	if p.IntN(5) == 0 {
		e.config.MaxInFlight = p.upTo(64<<10, 8<<20)
	}
	if p.IntN(4) == 0 {
		e.sendBuf = int(p.upTo(16<<10, 8<<20))
	}
	if p.IntN(4) == 0 {
		e.recvBuf = int(p.upTo(16<<10, 4<<20))
	}
	for range 1 + p.IntN(maxSteps) {
		e.steps = append(e.steps, p.step(&e))
	}
	e.steps = within(e.steps, p.upTo(64<<10, maxStream))
	e.reading = p.reading()
	return e
}

// within returns the first of steps, as many as together send no more than max bytes, but one at least.
func within(steps []step, max int64) []step {
	for i, s := range steps {
		if max -= int64(s.size); max < 0 && i > 0 {
			return steps[:i]
		}
	}
	return steps
}

func (p planner) step(e *endPlan) step {
	s := step{
		call:   calls[p.IntN(len(calls))],
		memory: memories[p.IntN(len(memories))],
		size:   int(p.upTo(1, maxWrite)),
		seed:   p.Uint64(),
		watch:  watch(p.IntN(int(watchCount))),
	}
	s.size = min(s.size, s.call.most(), s.memory.most(e))
	if p.faults[faultDeadline] && p.IntN(6) == 0 {
		s.deadline = time.Duration(p.upTo(int64(10*time.Microsecond), int64(20*time.Millisecond)))
		s.both = p.IntN(4) == 0
	}
	switch p.IntN(12) {
	case 0:
		s.then = thenFlush
	case 1:
		s.then = thenFlushBriefly
	case 2:
		s.then = thenFlushAll
	case 3, 4:
		s.then = thenPause
		s.pause = time.Duration(p.Int64N(int64(maxPause)))
	}
	return s
}

func (p planner) reading() reading {
	r := reading{chunk: int(p.upTo(2<<10, 1<<20)), whole: p.IntN(4) == 0}
	if p.faults[faultDeadline] && p.IntN(4) == 0 {
		r.deadline = time.Duration(p.upTo(int64(time.Millisecond), int64(50*time.Millisecond)))
	}
	if !p.faults[faultStall] || p.IntN(2) == 0 {
		return r
	}
	for at := int64(0); len(r.stalls) < 1+p.IntN(4); {
		at += p.upTo(1, 8<<20)
		r.stalls = append(r.stalls, stall{at: at, time: time.Duration(p.upTo(int64(time.Millisecond), int64(maxStall)))})
	}
	return r
}

// upTo returns a number from lo to hi, of which each order of magnitude is as likely as the others.
func (p planner) upTo(lo, hi int64) int64 {
	n := int64(float64(lo) * math.Exp(p.Float64()*math.Log(float64(hi)/float64(lo))))
	return min(max(n, lo), hi)
}
