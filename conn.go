package zcnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Config holds what may be set about a connection. The zero value, and a nil *Config, are the default. A Config may
// be shared by many connections and must not be changed once it is in use.
type Config struct {
	// Threshold is the length in bytes from which a write is sent without copying; shorter ones are copied, which is
	// faster for them, and so is whatever is shorter than a page of 4 KiB. 0 means DefaultThreshold.
	Threshold int

	// MaxInFlight bounds the bytes sent without copying whose completions have not come. A part of a write that would
	// exceed it is copied; it does not wait. 0 means no bound but the socket's send buffer.
	MaxInFlight int64

	// CloseTimeout is how long Close goes on, in the background, to deliver what is in flight before it resets the
	// connection. 0 means DefaultCloseTimeout.
	CloseTimeout time.Duration

	// Guard finds who writes to memory in flight, as the package comment shows. It is for tests and for the hunt after such
	// a mistake. Each write costs mprotect calls, which split huge pages, or two checksums, and some allocations; off, it
	// costs nothing.
	//
	// Memory of Alloc or of a Pool is write-protected from before it is sent until it is the caller's again. A write to it
	// faults, which ends the program, unless runtime/debug.SetPanicOnFault makes a panic of it; a system call that would
	// write to it, as Read does, fails with EFAULT. Memory of Pin, and pages of which only a part is lent, are checksummed
	// instead. If they have changed at completion, the ticket reports [ErrChangedInFlight] with what, where and when, and so
	// does Logger, or slog.Default() if that is nil, at level error. Memory that must be written to in flight, as in live
	// migration, is not for a guarded connection.
	//
	// On linux/amd64 a line on standard error tells who has lent the memory, before the runtime tells of the fault: for
	// that the first guarded write puts a handler in front of the runtime's for SIGSEGV. On other architectures there is no
	// such line, but Logger hears, at debug level, of each range that is protected.
	//
	// So that mistakes show over loopback, too, a guarded connection goes on sending without copying where the kernel
	// copies. What the library copies, below Threshold for example, is not in flight and not guarded.
	Guard bool

	// ErrorQueue is called with each message of the socket's error queue that is
	// not a zero-copy completion, such as a transmit timestamp (SO_TIMESTAMPING)
	// or an ICMP error (IP_RECVERR), in the order of the queue, and never twice
	// at a time for one connection. It is called by the goroutine that reads the
	// queue: the library's poller, which serves all connections, one inside a
	// write, Wait, Done, Ready, Flush or Close of this one, or one that waits in
	// Pool.Get. It must not block.
	//
	// The library reads the error queue of a connection from its first zero-copy
	// send on; no other code may. With ErrorQueue it does so until Close. Without
	// it the queue is read only while memory is in flight: other messages that are
	// found then are counted in Stats, logged and dropped, and those that come
	// later count against the receive buffer, as on any socket whose error queue
	// is not read.
	ErrorQueue func(c *net.TCPConn, m ErrorQueueMessage)

	// Logger hears of what is rare: zero-copy going off and on, memory whose release was never proven, and at debug level
	// messages for want of an ErrorQueue. It may be called inside of a write, and must not use the connection. nil logs
	// nothing.
	Logger *slog.Logger

	// insist keeps flagging on a path that copies: for tests of completions over loopback.
	insist bool
	// patience is how long a completion may be missing of what the peer has acknowledged.
	patience time.Duration
	filled   bool // by withDefaults
}

// Defaults of [Config].
const (
	// DefaultThreshold is the size from which on sending without a copy costs
	// less than the copy under either usual congestion control, or as much.
	// Under CUBIC alone it pays from 16 KiB on; see docs/performance.md.
	DefaultThreshold = 64 << 10
	// DefaultCloseTimeout lets a slow receiver empty a full send buffer.
	DefaultCloseTimeout = time.Minute
)

// defaultConfig is that of all connections that are wrapped without one.
var defaultConfig = Config{}.fill()

// withDefaults returns cfg with every default filled in: a copy, unless it is so
// already.
func (cfg *Config) withDefaults() *Config {
	switch {
	case cfg == nil:
		return defaultConfig
	case cfg.filled:
		return cfg
	}
	return cfg.fill()
}

func (full Config) fill() *Config {
	full.filled = true
	if full.Threshold <= 0 {
		full.Threshold = DefaultThreshold
	}
	if full.CloseTimeout <= 0 {
		full.CloseTimeout = DefaultCloseTimeout
	}
	if full.patience <= 0 {
		full.patience = completionTimeout
	}
	full.insist = full.insist || full.Guard
	return &full
}

// Wrap returns a [*Conn] that sends over c, if c is a *net.TCPConn whose socket can send without copying; otherwise it
// returns c itself, unchanged. [Probe] says why. The result replaces c, which must not be used for reading or
// closing any more. Deadlines that were set before still hold; set them on the result from then on. Setting
// ZCNET_DISABLE=1 in the environment makes Wrap return its input always.
func Wrap(c net.Conn, cfg *Config) net.Conn {
	tc, ok := c.(*net.TCPConn)
	if !ok {
		return c
	}
	zc, err := NewConn(tc, cfg)
	if err != nil {
		return c
	}
	return zc
}

// NewConn is the strict form of [Wrap]: where zero-copy is not to be had it returns an error that says why and that
// matches errors.ErrUnsupported, and leaves c as it was. A nil or closed connection is another error.
//
// A socket can be wrapped once in its life, also through duplicates of its descriptor, because the kernel counts
// completions by the socket. One on which SO_ZEROCOPY is set already, by its listener or its dialer, can be wrapped if
// no other code has sent with MSG_ZEROCOPY on it. Before Linux 4.17 that is the only way: the kernel takes the option
// only before a socket is connected, in net.ListenConfig.Control or net.Dialer.Control.
func NewConn(c *net.TCPConn, cfg *Config) (*Conn, error) {
	if c == nil {
		return nil, errors.New("zcnet: NewConn of a nil *net.TCPConn")
	}
	if err := disabled(); err != nil {
		return nil, err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("zcnet: %w", err)
	}
	cookie, err := takeSocket(raw)
	if err != nil {
		return nil, err
	}
	conn := &Conn{TCPConn: c, s: &socket{tc: c, raw: raw, kernel: system{c}, cfg: cfg.withDefaults(), cookie: cookie}}
	runtime.AddCleanup(conn, (*socket).dropped, conn.s)
	return conn, nil
}

const disableEnv = "ZCNET_DISABLE"

func disabled() error {
	if os.Getenv(disableEnv) == "1" {
		return unsupported("it is turned off by " + disableEnv + "=1 in the environment")
	}
	return nil
}

// unsupported makes the error of a connection that cannot send without copying.
func unsupported(why string) error {
	return fmt.Errorf("zcnet: zero-copy sends are not available on this connection: %s: %w", why, errors.ErrUnsupported)
}

// NewListener returns a listener whose Accept returns [Wrap] of what l accepts.
func NewListener(l net.Listener, cfg *Config) net.Listener {
	return &listener{Listener: l, cfg: cfg.withDefaults()}
}

type listener struct {
	net.Listener
	cfg *Config
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return Wrap(c, l.cfg), nil
}

var (
	_ net.Conn       = &Conn{}
	_ ZeroCopyWriter = &Conn{}
	_ io.ReaderFrom  = &Conn{}
	_ io.WriterTo    = &Conn{}
	_ syscall.Conn   = &Conn{}
)

// Conn is a TCP connection that can send without copying: a net.Conn and a [ZeroCopyWriter]. It embeds the
// *net.TCPConn, so that net.Buffers, sendfile and splice keep their fast paths and every option can be set. All its
// methods may be called by many goroutines at once.
//
// It deviates from *net.TCPConn in this:
//
//   - WritePinned, WritePinnedBuffers, WriteFrame and Flush are new. Write copies, as ever.
//   - ReadFrom, and so io.Copy to a Conn, sends without copying what it reads from readers other than files and
//     connections; see [Conn.ReadFrom].
//   - Close returns at once, as ever, but while memory is in flight the connection is delivered, or reset, in the
//     background; see [Conn.Close].
//   - The library reads the socket's error queue; see Config.ErrorQueue.
//   - Reading from, setting deadlines of or closing the embedded *net.TCPConn directly, or reading through SyscallConn,
//     goes round the library. Such a read can fail with "not pollable" while completions arrive, and such a Close
//     breaks the promise about memory in flight.
//   - A Conn that is dropped without Close lives on until nothing is in flight, and is closed after Config.CloseTimeout at
//     the latest; see [LogDropped].
//   - io.Copy from a Conn splices as a whole. Through an io.LimitReader, as io.CopyN uses, it copies.
type Conn struct {
	*net.TCPConn
	s *socket
}

// socket is everything about a Conn but its face. The poller refers to it while completions are expected.
type socket struct {
	tc     *net.TCPConn
	raw    syscall.RawConn
	kernel kernel
	cfg    *Config

	cookie  uint64                 // see wrapped
	books   atomic.Pointer[ledger] // see ledger
	plain   plainBytes
	path    pathState
	stats   counters
	foreign foreignQueue
	refused atomic.Pointer[error] // why flagged calls do not work here after all; nil if they do
	watch   watch                 // who reads the error queue, and who waits for data
	stall   stall
	calls   int // flagged calls since the writer last read the error queue; the writer's
	invalid int // flagged calls that failed where Write may not; the writer's
	optmem  optmemBound

	drainMu   sync.Mutex                     // one goroutine reads the error queue at a time
	closeMu   sync.Mutex                     // one Close at a time
	lingering atomic.Pointer[lingeringClose] // the descriptor that outlives Close while memory is in flight
}

// ledger returns the connection's accounts, which are made when they are first needed: of many connections most are
// idle.
func (s *socket) ledger() *ledger {
	if l := s.books.Load(); l != nil {
		return l
	}
	s.books.CompareAndSwap(nil, &ledger{reader: s, total: &inProcess, gated: true, plain: &s.plain})
	return s.books.Load()
}

// Write sends b as *net.TCPConn does: it copies, whatever the length.
func (c *Conn) Write(b []byte) (int, error) {
	defer runtime.KeepAlive(c)
	return c.s.write(b)
}

func (s *socket) write(b []byte) (n int, err error) {
	s.plain.begin(len(b))
	n, err = s.kernel.write(b)
	s.plain.end(len(b), n)
	return n, err
}

// opError makes the error that a *net.TCPConn would return.
func (s *socket) opError(op string, err error) error {
	if errno, ok := err.(syscall.Errno); ok {
		err = os.NewSyscallError(syscallOf[op], errno)
	}
	return &net.OpError{Op: op, Net: networkOf(s.tc), Source: s.tc.LocalAddr(), Addr: s.tc.RemoteAddr(), Err: err}
}

// networkOf returns the network that c was made with, such as "tcp4". Package net tells it in errors only, so one is
// made, by sending from a reader that fails at once.
func networkOf(c *net.TCPConn) string {
	_, err := c.ReadFrom(&io.LimitedReader{R: failingReader{}, N: 1})
	if op, ok := err.(*net.OpError); ok {
		return op.Net
	}
	return "tcp"
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// syscallOf names the system call behind an operation.
var syscallOf = map[string]string{"read": "read", "write": "sendmsg"}

// cause takes the *net.OpError off an error of package net.
func cause(err error) error {
	if op, ok := err.(*net.OpError); ok {
		return op.Err
	}
	return err
}

// refuse turns flagged calls off for good.
func (s *socket) refuse(err error) {
	if s.refused.CompareAndSwap(nil, &err) {
		s.log(slog.LevelWarn, "zero-copy sends turned off", "error", err)
	}
}

// distrust is called with proof that completions do not tell what is in flight.
// From here on they finish no ticket, and every write copies.
func (s *socket) distrust(why error) {
	if s.ledger().distrust() {
		s.refuse(why)
	}
}

// Why completions are not believed.
var (
	errMiscounted = errors.New("completions do not match the calls that were made: " +
		"another program sends with MSG_ZEROCOPY on this socket, reads its error queue, or has put it into a BPF sockmap")
	errNoCompletions = errors.New("completions do not come, though the kernel takes SO_ZEROCOPY: " +
		"a sandbox stands in for the kernel, or another program has cleared the option or reads the socket's error queue")
)

func (s *socket) log(level slog.Level, msg string, args ...any) {
	if s.cfg.Logger != nil {
		s.cfg.Logger.Log(context.Background(), level, "zcnet: "+msg, append(args, "local", s.tc.LocalAddr(), "remote", s.tc.RemoteAddr())...)
	}
}

// SetDeadline sets the read and write deadlines, as of any net.Conn. Tickets and Flush have none: they take a
// context.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.TCPConn.SetDeadline(t); err != nil {
		return err
	}
	c.s.watch.setDeadline(t)
	return nil
}

// SetReadDeadline sets the deadline of Read, WriteTo and io.Copy from the connection.
func (c *Conn) SetReadDeadline(t time.Time) error {
	if err := c.TCPConn.SetReadDeadline(t); err != nil {
		return err
	}
	c.s.watch.setDeadline(t)
	return nil
}

// Close closes the connection, as of any net.Conn: blocked reads and writes return, and later ones fail with
// net.ErrClosed.
//
// If memory is in flight the socket lives on in the background until its completions have come: the queued bytes and
// the end of the stream are delivered, and tickets, Wait and Flush go on working. After Config.CloseTimeout the
// connection is reset, which makes the kernel give the memory up; tickets then report [ErrConnFailed]. What a device
// still holds after as long again is given up for lost: tickets report [ErrReleaseUnproven], Stats says how many
// bytes, and the memory is never used again.
//
// SetLinger keeps its meaning: with 0 the connection is reset at once, with n > 0 Close waits up to n seconds for what is
// in flight. A peer that sends more after Close makes its kernel's and ours reset the connection, as ever. Unlike
// *net.TCPConn's, this Close delivers what is in flight before it resets a connection of which received bytes were left
// unread, and it ends the connection also for a duplicate of the descriptor that File has made.
func (c *Conn) Close() error {
	defer runtime.KeepAlive(c) // or it would count as dropped meanwhile
	return c.s.close()
}
