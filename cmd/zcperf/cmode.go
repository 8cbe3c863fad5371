package main

import (
	"bytes"
	"context"
	"sync"
	"time"

	"github.com/zcnet-go/zcnet/internal/perf"
)

// This file is about the modes in C: what sending costs without Go. They have
// the memory, the receiver and the congestion control of the others.

// A cMode sends by a process in C.
type cMode struct {
	zeroCopy bool // with MSG_ZEROCOPY, or plainly
}

// compileC compiles the program once. It has no name, and needs no cleaning up.
var compileC = sync.OnceValues(perf.CompileC)

// transfer makes one transfer over a connection of the process's own.
func (m *cMode) transfer(ctx context.Context, p *path, t transfer) (result, error) {
	program, err := compileC()
	if err != nil {
		return result{}, err
	}
	header, err := t.header().bytes()
	if err != nil {
		return result{}, err
	}
	if !t.until.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, t.until.Add(answerTimeout))
		defer cancel()
	}
	s, err := program.Start(ctx, perf.CTransfer{
		ZeroCopy:   m.zeroCopy,
		Addr:       p.addr,
		Write:      int64(t.write),
		Total:      t.total,
		Region:     int64(t.region.Len()),
		Memory:     t.region.kind.name,
		Congestion: t.congestion,
		Header:     header,
		Limit:      t.limit(),
	}, p.startSender)
	if err != nil {
		return result{}, err
	}
	defer s.Close()
	start := t.clocks.start()
	sent, err := s.Send()
	end := t.clocks.stop()
	if err != nil {
		return result{}, err
	}
	return m.result(t, sent, start, end)
}

// result is what a transfer has come to. The clocks are this process's, which
// does nothing meanwhile; the sending process tells its own time.
func (m *cMode) result(t transfer, sent perf.CResult, start, end reading) (result, error) {
	answer, err := readTrailer(bytes.NewReader(sent.Answer))
	if err != nil {
		return result{}, err
	}
	cpu := sent.CPU / (float64(max(sent.Bytes, 1)) / 1e9)
	took := time.Duration(sent.Seconds * float64(time.Second))
	r := result{
		Control: sent.Control,
		Bytes:   sent.Bytes,
		Seconds: sent.Seconds,
		GBPerS:  gbPerS(sent.Bytes, took),
		SideCPU: perGB(start.side, end.side, sent.Bytes),
		ProcCPU: &cpu,
		SysCPU:  perGB(start.system, end.system, sent.Bytes),
		Writes:  sent.Writes,
		counts:  m.counts(sent),
	}
	return r, r.complete(t, answer)
}

func (m *cMode) counts(sent perf.CResult) counts {
	if !m.zeroCopy {
		return counts{Copied: sent.Copied}
	}
	return counts{Sends: sent.Calls, ZeroCopied: sent.Uncopied, MaybeCopied: sent.Copied, Enobufs: sent.Enobufs}
}

// limit returns how long the transfer may send, 0 for no limit.
func (t transfer) limit() time.Duration {
	if t.until.IsZero() {
		return 0
	}
	return max(time.Until(t.until), time.Millisecond)
}
