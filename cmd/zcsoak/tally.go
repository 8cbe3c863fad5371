package main

import (
	"fmt"
	"sync"
	"time"

	"github.com/zcnet-go/zcnet"
)

// This file counts.

// figures are the report of a run.
type figures struct {
	Seed    uint64  `json:"seed"`
	Seconds float64 `json:"seconds"`

	Conversations map[string]int64 `json:"conversations"` // that have ended, by link
	Endings       map[string]int64 `json:"endings"`       // of them, by how they ended
	Calls         map[string]int64 `json:"calls"`         // write calls
	Memory        map[string]int64 `json:"memory"`        // what calls with a ticket sent from
	Faults        map[string]int64 `json:"faults"`        // how often each happened

	SentBytes        int64 `json:"sent_bytes"`
	CheckedBytes     int64 `json:"checked_bytes"`
	ZeroCopiedBytes  int64 `json:"zerocopied_bytes"`
	MaybeCopiedBytes int64 `json:"maybe_copied_bytes"`
	CopiedBytes      int64 `json:"copied_bytes"`
	Tickets          int64 `json:"tickets"`        // that were waited for
	FailedTickets    int64 `json:"failed_tickets"` // of them, as they should: the connection had been reset
	Forgotten        int64 `json:"forgotten"`      // writes whose ticket was dropped
	EnobufsOptmem    int64 `json:"enobufs_optmem"`
	EnobufsMemlock   int64 `json:"enobufs_memlock"`
	SlowReads        int64 `json:"slow_reads"`
	MappingsBefore   int   `json:"mappings_before"` // of the process, the Go runtime's included
	MappingsAfter    int   `json:"mappings_after"`
	ThreadsBefore    int   `json:"threads_before"`
	ThreadsAfter     int   `json:"threads_after"`

	// What must be 0.
	WrongBytes            int64 `json:"wrong_bytes"`
	MissingBytes          int64 `json:"missing_bytes"`
	LostTickets           int64 `json:"lost_tickets"`
	WrongOutcomes         int64 `json:"wrong_outcomes"`
	MiscountedBytes       int64 `json:"miscounted_bytes"`
	BytesInFlight         int64 `json:"bytes_in_flight"`
	IDsInFlight           int64 `json:"ids_in_flight"`
	UnprovenBytes         int64 `json:"unproven_bytes"`
	RejectedNotifications int64 `json:"rejected_notifications"`
	LeakedGoroutines      int64 `json:"leaked_goroutines"`
	LeakedDescriptors     int64 `json:"leaked_descriptors"`
	LeakedMappings        int64 `json:"leaked_mappings"`
	LeakedBuffers         int64 `json:"leaked_buffers"`

	Problems []string `json:"problems,omitempty"` // the first of them
}

// A verdict is a figure that must be 0.
type verdict struct {
	name  string
	value int64
}

func (f *figures) verdicts() []verdict {
	return []verdict{
		{"wrong bytes", f.WrongBytes},
		{"missing bytes", f.MissingBytes},
		{"lost tickets", f.LostTickets},
		{"wrong errors and outcomes", f.WrongOutcomes},
		{"bytes miscounted by Stats", f.MiscountedBytes},
		{"bytes left in flight", f.BytesInFlight},
		{"IDs left in flight", f.IDsInFlight},
		{"bytes unproven", f.UnprovenBytes},
		{"notifications rejected", f.RejectedNotifications},
		{"leaked goroutines", f.LeakedGoroutines},
		{"leaked descriptors", f.LeakedDescriptors},
		{"leaked mappings", f.LeakedMappings},
		{"leaked heap buffers", f.LeakedBuffers},
	}
}

// right reports whether the run found nothing wrong. A run that checked nothing has found out nothing.
func (f *figures) right() bool {
	for _, v := range f.verdicts() {
		if v.value != 0 {
			return false
		}
	}
	return f.CheckedBytes > 0 && len(f.Problems) == 0
}

// shownProblems is how many problems are described. The rest is counted.
const shownProblems = 20

// tally is the figures while they grow.
type tally struct {
	mu  sync.Mutex
	f   figures
	say func(format string, args ...any)
}

func newTally(seed uint64, say func(string, ...any)) *tally {
	return &tally{say: say, f: figures{
		Seed:          seed,
		Conversations: make(map[string]int64),
		Endings:       make(map[string]int64),
		Calls:         make(map[string]int64),
		Memory:        make(map[string]int64),
		Faults:        make(map[string]int64),
	}}
}

// add changes figures.
func (t *tally) add(change func(f *figures)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change(&t.f)
}

// fault counts a fault that has happened.
func (t *tally) fault(name string, n int64) {
	t.add(func(f *figures) { f.Faults[name] += n })
}

// problem describes something that is wrong. The caller counts it.
func (t *tally) problem(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	t.mu.Lock()
	shown := len(t.f.Problems) < shownProblems
	if shown {
		t.f.Problems = append(t.f.Problems, text)
	}
	t.mu.Unlock()
	if shown {
		t.say("WRONG: %s", text)
	}
}

// stats adds what a connection counted, of which own bytes were sent by calls that Stats counts.
func (t *tally) stats(s zcnet.Stats, own int64) {
	t.add(func(f *figures) {
		f.ZeroCopiedBytes += s.ZeroCopiedBytes
		f.MaybeCopiedBytes += s.MaybeCopiedBytes
		f.CopiedBytes += s.CopiedBytes
		f.EnobufsOptmem += int64(s.EnobufsOptmem)
		f.EnobufsMemlock += int64(s.EnobufsMemlock)
		f.SlowReads += int64(s.SlowReads)
		f.BytesInFlight += magnitude(s.BytesInFlight)
		f.IDsInFlight += int64(s.IDsInFlight)
		f.UnprovenBytes += s.UnprovenBytes
		f.RejectedNotifications += int64(s.RejectedNotifications)
		f.MiscountedBytes += magnitude(own - s.ZeroCopiedBytes - s.MaybeCopiedBytes - s.CopiedBytes - s.UnprovenBytes)
	})
}

func magnitude(n int64) int64 { return max(n, -n) }

// soFar returns one line about what has been done.
func (t *tally) soFar() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var faults, wrong int64
	for _, n := range t.f.Faults {
		faults += n
	}
	for _, v := range t.f.verdicts() {
		wrong += v.value
	}
	return fmt.Sprintf("%d connections, %s checked, %d tickets, %d faults, wrong %d",
		t.f.ended(), bytesOf(t.f.CheckedBytes), t.f.Tickets, faults, wrong)
}

// ended returns how many conversations have.
func (f *figures) ended() (n int64) {
	for _, k := range f.Conversations {
		n += k
	}
	return n
}

// finish returns the figures of a run that has ended.
func (t *tally) finish(took time.Duration) *figures {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.f.Seconds = took.Seconds()
	return &t.f
}
