package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"github.com/zcnet-go/zcnet"
	"github.com/zcnet-go/zcnet/internal/perf"
)

// This file is about the modes, the ways to send that are compared. Those
// without any layer are in naive_linux.go, those in C in cmode.go.

// A mode is a way to send.
type mode struct {
	name string
	// open makes a sender of a connection, which is the sender's from then on,
	// unless it fails.
	open func(*net.TCPConn) (sender, error)
	// c is for modes that are a process of their own, and nil for the others.
	c *cMode
}

func (m mode) String() string { return m.name }

// The modes that others refer to by name.
const (
	modeCopy  = "copy"
	modeZcnet = "zcnet"
)

// usualModes returns the modes that are measured if none are asked for. The
// first is what the others are compared with.
func usualModes(cfg *zcnet.Config) []mode {
	zc := func(c *net.TCPConn) (sender, error) { return openZcnet(c, cfg) }
	return []mode{{name: modeCopy, open: openCopy}, {name: "naive", open: openNaive}, {name: modeZcnet, open: zc}}
}

// allModes returns all modes. The configuration is for zcnet.
func allModes(cfg *zcnet.Config) []mode {
	return append(usualModes(cfg),
		mode{name: "least", open: openLeast},
		mode{name: "c", c: &cMode{zeroCopy: true}},
		mode{name: "c-write", c: &cMode{}},
	)
}

// goModes returns the modes that send from this process.
func goModes() []mode {
	return slices.DeleteFunc(allModes(nil), func(m mode) bool { return m.c != nil })
}

// errNoMode is matched by the errors of a mode that cannot work here, whatever is done.
var errNoMode = perf.ErrUnavailable

// A sender is a connection and a mode to send over it. One goroutine uses it.
type sender interface {
	io.ReadWriteCloser
	CloseWrite() error
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error

	// send sends p and returns how much of it is in the stream. The memory may be the kernel's until flush returns.
	send(p zcnet.Pinned) (int64, error)
	// flush waits until the kernel has given all memory back.
	flush(ctx context.Context) error
	// counts tells what has happened so far. After flush nothing is missing.
	counts() counts
}

// counts is what a sender knows of its sending.
type counts struct {
	Sends       uint64 `json:"sends"`              // calls with MSG_ZEROCOPY that queued something
	ZeroCopied  int64  `json:"zerocopied_bytes"`   // sent by these, and the kernel reported no copy
	MaybeCopied int64  `json:"maybe_copied_bytes"` // sent by these, and the kernel reported a copy
	Copied      int64  `json:"copied_bytes"`       // sent by plain calls
	Enobufs     uint64 `json:"enobufs"`            // calls that failed with ENOBUFS

	wakeups   *uint64 // of the library's poller; nil if the mode does not know
	syscalls  *uint64 // so too
	whyCopied string  // in words, if the mode knows
}

// copySender is mode copy: net.Conn's own Write.
type copySender struct {
	*net.TCPConn
	copied int64
}

func openCopy(c *net.TCPConn) (sender, error) { return &copySender{TCPConn: c}, nil }

func (s *copySender) send(p zcnet.Pinned) (int64, error) {
	n, err := s.Write(p.Bytes())
	s.copied += int64(n)
	return int64(n), err
}

func (s *copySender) flush(context.Context) error { return nil }
func (s *copySender) counts() counts              { return counts{Copied: s.copied} }

// zcnetSender is mode zcnet: what a program does that uses the package.
type zcnetSender struct {
	net.Conn
	tcp *net.TCPConn
	w   zcnet.ZeroCopyWriter
	n   int64
}

func openZcnet(c *net.TCPConn, cfg *zcnet.Config) (sender, error) {
	conn := zcnet.Wrap(c, cfg)
	return &zcnetSender{Conn: conn, tcp: c, w: zcnet.NewWriter(conn)}, nil
}

func (s *zcnetSender) send(p zcnet.Pinned) (int64, error) {
	_, err := s.w.WritePinned(p)
	n := int64(p.Len())
	if err != nil {
		n = queued(err)
	}
	s.n += n
	return n, err
}

// queued returns how much of a failed write is in the stream.
func queued(err error) int64 {
	var short *zcnet.WriteError
	if errors.As(err, &short) {
		return short.Queued
	}
	return 0
}

func (s *zcnetSender) CloseWrite() error               { return s.tcp.CloseWrite() }
func (s *zcnetSender) flush(ctx context.Context) error { return s.w.Flush(ctx) }

func (s *zcnetSender) counts() counts {
	conn, ok := s.Conn.(*zcnet.Conn)
	if !ok {
		return counts{Copied: s.n, whyCopied: zcnet.Probe(s.Conn).Reason}
	}
	stats := conn.Stats()
	return counts{
		Sends:       stats.Sends,
		ZeroCopied:  stats.ZeroCopiedBytes,
		MaybeCopied: stats.MaybeCopiedBytes,
		Copied:      stats.CopiedBytes,
		Enobufs:     stats.EnobufsOptmem + stats.EnobufsMemlock + stats.EnobufsOther,
		wakeups:     &stats.Wakeups,
		syscalls:    &stats.Syscalls,
		whyCopied:   zcnet.Probe(conn).Reason,
	}
}

// openSender makes a sender of a new connection, or closes it.
func openSender(m mode, c net.Conn) (sender, error) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("a %T is not a TCP connection", c)
	}
	s, err := m.open(tcp)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("mode %s: %w", m.name, err)
	}
	return s, nil
}
