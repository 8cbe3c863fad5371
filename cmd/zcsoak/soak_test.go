package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/zcnet-go/zcnet"
	"github.com/zcnet-go/zcnet/internal/cli"
	"github.com/zcnet-go/zcnet/internal/lab"
)

// execute runs a command line.
func execute(ctx context.Context, args ...string) (status int, stdout, stderr string) {
	var out, errs bytes.Buffer
	status = run(ctx, args, &out, &errs)
	return status, out.String(), errs.String()
}

func TestSoakOverLoopback(t *testing.T) {
	status, stdout, stderr := execute(t.Context(), "-for", "2s", "-link", "loopback", "-seed", "1", "-json")
	var f figures
	if err := json.Unmarshal([]byte(stdout), &f); status != cli.OK || err != nil {
		t.Fatalf("status %d, %v; stdout %s\nstderr %s", status, err, stdout, stderr)
	}
	if f.Seed != 1 || f.CheckedBytes == 0 || f.Conversations["loopback"] == 0 {
		t.Errorf("%+v", f)
	}
}

func TestSoakOverTheLab(t *testing.T) {
	lab.ForTest(t)
	status, stdout, stderr := execute(t.Context(), "-for", "2s", "-link", "lab", "-seed", "1", "-json")
	var f figures
	if err := json.Unmarshal([]byte(stdout), &f); status != cli.OK || err != nil {
		t.Fatalf("status %d, %v; stdout %s\nstderr %s", status, err, stdout, stderr)
	}
	if f.ZeroCopiedBytes == 0 {
		t.Errorf("nothing was sent without copy: %+v", f)
	}
}

func TestInterruptEndsWithTheReport(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	status, stdout, stderr := execute(ctx, "-for", "48h", "-link", "loopback", "-conns", "4")
	if status != cli.OK || !strings.Contains(stdout, "lost tickets") {
		t.Errorf("status %d, stdout %s\nstderr %s", status, stdout, stderr)
	}
}

// TestMemoryWrittenTooEarlyIsFound has senders overwrite memory before its ticket is done, as a program does that does
// not wait, or a library whose tickets are done too early.
func TestMemoryWrittenTooEarlyIsFound(t *testing.T) {
	for _, name := range linkNames {
		t.Run(name, func(t *testing.T) {
			if name == "lab" {
				lab.ForTest(t)
			}
			if runtime.GOOS != "linux" {
				t.Skip("where everything is copied, nothing is written too early")
			}
			cfg, err := parseFlags([]string{"-for", "3s", "-link", name, "-fault", "stall", "-seed", "1"})
			check(t, err)
			cfg.breakIt = true
			var stdout, stderr bytes.Buffer
			f, err := soak(t.Context(), cfg, &stderr)
			check(t, err)
			if f.WrongBytes == 0 || conclude(cfg, f, &stdout, &stderr) != cli.Failed {
				t.Fatalf("it was not found: %+v", f)
			}
			if !strings.Contains(stdout.String(), "still sent from it") || !strings.Contains(stderr.String(), "zcsoak -seed 1 ") {
				t.Errorf("want what was wrong and the seed, got:\n%s\n%s", &stdout, &stderr)
			}
			if f.LostTickets != 0 || f.WrongOutcomes != 0 || f.MissingBytes != 0 {
				t.Errorf("what was planted is wrong bytes only: %+v", f)
			}
		})
	}
}

// newSoaking returns a run that does nothing by itself.
func newSoaking(t *testing.T) *soaking {
	t.Helper()
	cfg, err := parseFlags([]string{"-fault", "none"})
	check(t, err)
	pool, err := newSharedPool()
	check(t, err)
	t.Cleanup(func() { pool.Close() })
	return &soaking{
		cfg: cfg, tally: newTally(1, t.Logf), pool: pool, stop: t.Context(),
		live: live{all: make(map[*conversation]struct{})},
	}
}

// simplePlan is a connection that ends in order.
func simplePlan() *plan {
	p := newPlan(1, 1, nil)
	for i := range p.ends {
		p.ends[i] = endPlan{wrapped: true, slabs: 2, slabSize: 256 << 10, reading: reading{chunk: 64 << 10}}
		for range 8 {
			p.ends[i].steps = append(p.ends[i].steps, step{call: callPinned, memory: memorySlab, size: 200_000})
		}
	}
	p.ending = endInOrder
	return p
}

func TestRightConversation(t *testing.T) {
	s := newSoaking(t)
	l, err := openLoopback()
	check(t, err)
	s.converse(l, simplePlan())
	if f := s.tally.finish(0); !f.right() || f.CheckedBytes != 2*8*200_000 {
		t.Errorf("%+v", f)
	}
}

// tamper is what a network does to a stream that it must not.
type tamper func(to io.Writer, from io.Reader) error

// TestTamperedConversationIsWrong has the connection go through somebody who changes it.
func TestTamperedConversationIsWrong(t *testing.T) {
	const at = 1_000_000
	for _, tt := range []struct {
		name   string
		tamper tamper
		found  func(f *figures) bool
	}{
		{"nothing is changed", func(to io.Writer, from io.Reader) error {
			_, err := io.Copy(to, from)
			return err
		}, (*figures).right},
		{"a bit is flipped", func(to io.Writer, from io.Reader) error {
			b, err := io.ReadAll(from)
			b[at] ^= 1
			_, werr := to.Write(b)
			return errors.Join(err, werr)
		}, func(f *figures) bool { return f.WrongBytes == 2 && f.MissingBytes == 0 }}, // in both directions
		{"the end is missing", func(to io.Writer, from io.Reader) error {
			b, err := io.ReadAll(from)
			_, werr := to.Write(b[:at])
			return errors.Join(err, werr)
		}, func(f *figures) bool { return f.WrongBytes == 0 && f.MissingBytes == 2*(8*200_000-at) }},
		{"a byte is left out", func(to io.Writer, from io.Reader) error {
			b, err := io.ReadAll(from)
			_, werr := to.Write(append(b[:at:at], b[at+1:]...))
			return errors.Join(err, werr)
		}, func(f *figures) bool { return f.WrongBytes > 1_000_000 && f.MissingBytes == 2 }},
		{"a byte is added at the end", func(to io.Writer, from io.Reader) error {
			b, err := io.ReadAll(from)
			_, werr := to.Write(append(b, 0))
			return errors.Join(err, werr)
		}, func(f *figures) bool { return f.WrongBytes >= 1 && f.MissingBytes == 2 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSoaking(t)
			proxied, err := openLoopback()
			check(t, err)
			var forwarding sync.WaitGroup
			direct := proxied.ways[0]
			proxied.ways = []way{{listen: direct.listen, dial: func(ctx context.Context, to net.Addr) (net.Conn, error) {
				l, err := direct.listen()
				if err != nil {
					return nil, err
				}
				defer l.Close()
				near, err := direct.dial(ctx, l.Addr())
				if err != nil {
					return nil, err
				}
				in, err := l.Accept()
				if err != nil {
					return nil, err
				}
				out, err := direct.dial(ctx, to)
				if err != nil {
					return nil, err
				}
				forwarding.Go(func() { forward(in.(*net.TCPConn), out.(*net.TCPConn), tt.tamper) })
				return near, nil
			}}}
			s.converse(proxied, simplePlan())
			forwarding.Wait()
			f := s.tally.finish(0)
			if !tt.found(f) || f.WrongOutcomes != 0 || f.LostTickets != 0 {
				t.Errorf("%+v", f)
			}
		})
	}
}

// forward carries both directions.
func forward(a, b *net.TCPConn, how tamper) {
	defer a.Close()
	defer b.Close()
	var both sync.WaitGroup
	for _, way := range [][2]*net.TCPConn{{a, b}, {b, a}} {
		both.Go(func() {
			_ = how(way[1], way[0])
			_ = way[1].CloseWrite()
		})
	}
	both.Wait()
}

// TestConversationThatStandsStillIsWrong has a receiver stop for longer than there is patience.
func TestConversationThatStandsStillIsWrong(t *testing.T) {
	s := newSoaking(t)
	s.cfg.patience = 300 * time.Millisecond
	l, err := openLoopback()
	check(t, err)
	p := simplePlan()
	for i := range p.ends {
		p.ends[i].recvBuf = easyBuffer
		p.ends[i].reading.stalls = []stall{{at: 1, time: 2 * time.Second}}
		for j := range p.ends[i].steps {
			p.ends[i].steps[j].size = p.ends[i].slabSize
		}
		for range 5 {
			p.ends[i].steps = append(p.ends[i].steps, p.ends[i].steps...) // more than any socket buffer
		}
	}
	s.converse(l, p)
	if f := s.tally.finish(0); f.WrongOutcomes != 2 || !strings.Contains(fmt.Sprint(f.Problems), "nothing has moved") {
		t.Errorf("%+v", f)
	}
}

func TestTicketThatIsNotDoneIsLost(t *testing.T) {
	s := newSoaking(t)
	c := &conversation{s: s, link: &link{name: "no link"}, plan: simplePlan()}
	e := &end{c: c, plan: &c.plan.ends[0]}
	c.ends = [2]*end{e, e}
	sl := &slab{pinned: zcnet.Pin(make([]byte, 8)), home: make(chan *slab, 1)}
	e.settled(pending{slab: sl}, context.Canceled)
	if f := s.tally.finish(0); f.LostTickets != 1 || f.right() {
		t.Errorf("%+v", f)
	}
	if len(sl.home) != 0 {
		t.Error("its memory is used again")
	}
}

func TestLeftBehindIsFound(t *testing.T) {
	before := takeStock()
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() { <-quit; close(ended) }()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	found := takeStock().leaked(before)
	if len(found.goroutines) != 1 || runtime.GOOS == "linux" && len(found.descriptors) == 0 {
		t.Errorf("found %q", found)
	}
	check(t, l.Close())
	close(quit)
	<-ended
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	// The runtime's own descriptors are made on first use, and stay.
	if !eventually(ctx, func() bool { return len(takeStock().leaked(before).goroutines) == 0 }) {
		t.Errorf("found %q", takeStock().leaked(before))
	}
}

func TestMappingsThatAddUpAreFound(t *testing.T) {
	before := stocktaking{mappings: 80, threads: 10}
	for _, tt := range []struct{ mappings, threads, want int }{
		{80, 10, 0},
		{70, 10, 0},
		{80 + mappingsOfHeap, 10, 0},
		{80 + mappingsOfHeap + 1, 10, 1},
		{80 + mappingsOfHeap + mappingsOfThread, 11, 0},
		{1000, 9, 1000 - 80 - mappingsOfHeap},
	} {
		if got := (stocktaking{mappings: tt.mappings, threads: tt.threads}).mappingsLeft(before); got != tt.want {
			t.Errorf("%d mappings and %d threads: %d left, want %d", tt.mappings, tt.threads, got, tt.want)
		}
	}
}

func TestMappedMemoryIsTold(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("it is told on Linux only")
	}
	p, err := zcnet.Alloc(100_000)
	check(t, err)
	poison(p.Bytes())
	m := markOf(p.Bytes())
	if !m.mapped() {
		t.Error("memory that is there is not found")
	}
	p.Release()
	if m.mapped() {
		t.Error("memory that is gone is found")
	}
}

func TestHeldLitterIsFound(t *testing.T) {
	var l litter
	held := l.new(1000)
	for range 3 * leastToTidy {
		_ = l.new(1000)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if !eventually(ctx, func() bool { return l.left() == 1 }) {
		t.Errorf("%d buffers are left, want the one that is held", l.left())
	}
	runtime.KeepAlive(held)
}

func TestSameSeedSamePlan(t *testing.T) {
	all := defaultFaults().on
	for id := range int64(200) {
		if a, b := newPlan(1, id, all), newPlan(1, id, all); !reflect.DeepEqual(a, b) {
			t.Fatalf("plan %d: %+v and %+v", id, a, b)
		}
	}
	if reflect.DeepEqual(newPlan(1, 7, all), newPlan(2, 7, all)) || reflect.DeepEqual(newPlan(1, 7, all), newPlan(1, 8, all)) {
		t.Error("another seed or number makes the same plan")
	}
}

// Every plan can be carried out: what a step sends fits what it sends from.
func TestPlansHoldTogether(t *testing.T) {
	seen := make(map[ending]int)
	calls := make(map[call]int)
	for id := range int64(3000) {
		p := newPlan(5, id, defaultFaults().on)
		seen[p.ending]++
		for _, e := range p.ends {
			for _, s := range e.steps {
				calls[s.call]++
				if s.size < 1 || s.size > s.call.most() || s.size > s.memory.most(&e) {
					t.Fatalf("plan %d: step %+v with slabs of %d", id, s, e.slabSize)
				}
			}
		}
	}
	if len(seen) != int(endingCount) || len(calls) != int(callFile)+1 {
		t.Errorf("endings %v, calls %v: want all", seen, calls)
	}
	for id := range int64(500) {
		if p := newPlan(5, id, nil); p.ending != endInOrder || p.ends[0].reading.stalls != nil {
			t.Fatalf("plan %d has faults: %+v", id, p)
		}
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
