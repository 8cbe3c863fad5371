package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// This file is one transfer: a region's content sent by one mode over one connection, timed until the receiver has
// said that it has arrived.

const (
	// answerTimeout is how long a receiver may take to empty the buffers on the way and answer, once a transfer with
	// a time limit has ended.
	answerTimeout = 4 * time.Second
	// interruptTimeout is the same once the user waits for the program to end.
	interruptTimeout = time.Second
)

// A transfer is what is to be sent.
type transfer struct {
	region region // sent from its beginning to its end, and again; filled with the pattern
	write  int    // bytes of one write, of which the region is a multiple
	total  int64
	work   work      // asked of the receiver
	until  time.Time // when to stop sending, if not before; zero for no limit
	show   *progress

	congestion string // the control to use; empty for the system's
	clocks     clocks
}

// A result is what a transfer has come to. Its JSON is part of what -json
// prints.
type result struct {
	Link     string   `json:"link"`
	Inline   string   `json:"inline,omitempty"` // why the receiving end worked at the sender's expense
	Mode     string   `json:"mode"`
	Size     size     `json:"size"` // of one write
	Control  string   `json:"congestion_control,omitempty"`
	Memory   string   `json:"memory"`
	Busy     bool     `json:"busy"`     // a busy loop ran beside the sender
	Receiver string   `json:"receiver"` // what it did with the content
	Bytes    int64    `json:"bytes"`
	Seconds  float64  `json:"seconds"`
	GBPerS   float64  `json:"gb_per_s"`
	SideCPU  *float64 `json:"side_cpu_s_per_gb"` // of the sender's side; null where it cannot be told
	ProcCPU  *float64 `json:"proc_cpu_s_per_gb"` // of the sending process; null where it cannot be measured
	SysCPU   *float64 `json:"sys_cpu_s_per_gb"`  // of the whole machine; so too
	Writes   int64    `json:"writes"`
	Allocs   float64  `json:"allocs_per_write"` // heap objects of the whole process
	Wakeups  *float64 `json:"wakeups_per_gb"`   // of the library's poller; null in modes without it
	Syscalls *float64 `json:"syscalls_per_gb"`  // to send and to hear of completions; null where they are not counted
	Rounds   int      `json:"rounds"`           // of which this is the median
	Checked  int64    `json:"checked_bytes"`    // compared by the receiver, in this transfer or a separate one
	Wrong    int64    `json:"wrong_bytes"`      // of them
	CutShort bool     `json:"cut_short"`        // fewer bytes than asked for were sent: the time was up, or an interrupt came
	counts

	answer trailer // the receiver's
	round  int     // of a bench, from 0
}

// over makes the transfer over a new connection, which it closes.
func (t transfer) over(ctx context.Context, c net.Conn, m mode) (result, error) {
	control := congestion(c)
	s, err := openSender(m, c)
	if err != nil {
		return result{}, err
	}
	r, err := t.run(ctx, s)
	r.Control = control
	return r, err
}

// run sends over s until everything is sent, the time is up or ctx ends, and closes s. The last two shorten the
// transfer; they are no errors. What arrives wrong is none either: the result says so.
func (t transfer) run(ctx context.Context, s sender) (result, error) {
	defer s.Close()
	// Without a deadline: it fits any socket's buffer, and the receiver must know what it is to answer.
	if err := writeHeader(s, t.header()); err != nil {
		return result{}, err
	}
	if err := t.setDeadlines(s); err != nil {
		return result{}, err
	}
	stop := context.AfterFunc(ctx, func() {
		s.SetWriteDeadline(time.Now())
		s.SetReadDeadline(time.Now().Add(interruptTimeout))
	})
	defer stop()

	start := t.clocks.start()
	bytes, writes, err := t.sendAll(s)
	if err != nil {
		return result{}, fmt.Errorf("after %d bytes: %w", bytes, err)
	}
	answer, err := finish(ctx, s)
	if err != nil {
		return result{}, err
	}
	end := t.clocks.stop()
	r := measure(start, end, bytes, writes)
	r.counts = s.counts()
	r.Wakeups, r.Syscalls = countPerGB(r.wakeups, bytes), countPerGB(r.syscalls, bytes)
	return r, r.complete(t, answer)
}

// header returns what goes before the content.
func (t transfer) header() header {
	return header{Region: int64(t.region.Len()), Total: t.total, Work: t.work}
}

// complete adds what the receiver has answered.
func (r *result) complete(t transfer, answer trailer) error {
	if answer.Received != r.Bytes {
		return fmt.Errorf("of %d bytes sent the receiver got %d", r.Bytes, answer.Received)
	}
	r.Rounds, r.CutShort, r.Memory, r.Receiver = 1, r.Bytes < t.total, t.region.kind.name, t.work.String()
	if r.answer = answer; answer.Checked {
		r.Checked, r.Wrong = answer.Received, answer.Wrong
	}
	return nil
}

func (t transfer) setDeadlines(s sender) error {
	if t.until.IsZero() {
		return nil
	}
	return errors.Join(s.SetWriteDeadline(t.until), s.SetReadDeadline(t.until.Add(answerTimeout)))
}

// sendAll sends until everything is sent or the write deadline passes.
func (t transfer) sendAll(s sender) (bytes, writes int64, err error) {
	for off := 0; bytes < t.total; {
		n := int(min(int64(t.write), t.total-bytes))
		sent, err := s.send(t.region.Slice(off, off+n))
		bytes += sent
		writes++
		t.show.add(sent)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return bytes, writes, nil
		}
		if err != nil {
			return bytes, writes, err
		}
		if off += n; off == t.region.Len() {
			off = 0
		}
	}
	return bytes, writes, nil
}

// finish ends the stream, waits for the receiver's answer, and then for the memory.
func finish(ctx context.Context, s sender) (trailer, error) {
	if err := s.CloseWrite(); err != nil {
		return trailer{}, err
	}
	answer, err := readTrailer(s)
	if err != nil {
		return trailer{}, err
	}
	// The receiver's kernel has acknowledged everything, so the memory is as good as free, even after an interrupt.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTimeout)
	defer cancel()
	if err := s.flush(ctx); err != nil {
		return trailer{}, fmt.Errorf("wait for the kernel to give the memory back: %w", err)
	}
	return answer, nil
}

// measure computes what the clocks say about a transfer.
func measure(start, end reading, bytes, writes int64) result {
	took := end.wall.Sub(start.wall)
	return result{
		Bytes:   bytes,
		Seconds: took.Seconds(),
		GBPerS:  gbPerS(bytes, took),
		SideCPU: perGB(start.side, end.side, bytes),
		ProcCPU: perGB(start.process, end.process, bytes),
		SysCPU:  perGB(start.system, end.system, bytes),
		Writes:  writes,
		Allocs:  float64(end.mallocs-start.mallocs) / float64(max(writes, 1)),
	}
}

// gbPerS returns 10^9 bytes per second, a finite number even if the clock has not moved.
func gbPerS(bytes int64, took time.Duration) float64 {
	return float64(bytes) / 1e9 / max(took, 1).Seconds()
}

// countPerGB returns a count per 10^9 bytes, or nil if it is not known.
func countPerGB(n *uint64, bytes int64) *float64 {
	if n == nil || bytes == 0 {
		return nil
	}
	perGB := float64(*n) / (float64(bytes) / 1e9)
	return &perGB
}

// newTransfer returns the transfer of total bytes by writes of n, from as much of region as such writes fill exactly.
func newTransfer(r region, n, total size) transfer {
	write := int(min(n, total))
	r.Pinned = r.Slice(0, r.Len()-r.Len()%write)
	return transfer{region: r, write: write, total: int64(total), clocks: clocksTogether()}
}
