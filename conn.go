package zcnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
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

	// CloseTimeout is how long Close goes on, in the background, to deliver
	// what is in flight before it resets the connection, if the peer takes it,
	// however slowly; after [Conn.File], before it gives up the memory. 0 means
	// DefaultCloseTimeout.
	CloseTimeout time.Duration

	// StallTimeout is how long, within CloseTimeout, Close waits for a peer
	// that takes nothing: it has not acknowledged a byte, because it does not
	// read or is gone. 0 means DefaultStallTimeout; a StallTimeout of
	// CloseTimeout or more has no effect. While a goroutine waits in [Pool.Get]
	// for memory that the closed connection holds, a peer has at most two
	// seconds, and the time before Close counts for which its window has been
	// closed. It always has four round trips. A peer that reads steadily, but
	// less than its window opens by at a time, cannot be told from one that
	// does not: a segment, or a sixteenth of its receive buffer.
	StallTimeout time.Duration

	// UserTimeout bounds how long lent memory waits for a peer that acknowledges
	// nothing: one that has vanished, or does not read. When bytes have waited
	// that long the kernel ends the connection with ETIMEDOUT, and gives its
	// memory up (TCP_USER_TIMEOUT, tcp(7); without it that takes a quarter of an
	// hour, and has no end for a peer that answers and does not read). It holds
	// after Close, too, and for bytes that were copied.
	//
	// It is set when the connection is wrapped, in milliseconds, rounded up.
	// Kernels before 4.19, and before 5.11 where the peer does not read, notice
	// that it has passed only when they send or probe again. 0 leaves the socket's
	// own setting alone. NewConn returns an error if it is negative, or more than
	// the 24 days that the option can hold.
	UserTimeout time.Duration

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
	// at a time for one connection. A goroutine of the library calls it, for which
	// nothing waits: it may block, and call Close, but meanwhile further messages of
	// the connection pile up in memory.
	//
	// The library reads the error queue of a connection from its first zero-copy
	// send on; no other code may. With ErrorQueue it does so until Close. Without
	// it the queue is read only while memory is in flight: other messages that are
	// found then are counted in Stats, logged and dropped, and those that come
	// later count against the receive buffer, as on any socket whose error queue
	// is not read.
	ErrorQueue func(c *net.TCPConn, m ErrorQueueMessage)

	// Logger is told what is rare: zero-copy going off and on, memory whose
	// release was never proven, and at debug level messages for want of an
	// ErrorQueue. It may be called inside of a write, and must not use the
	// connection. nil logs nothing, except that the first connection of the
	// process whose completions turn out to be wrong tells slog.Default().
	Logger *slog.Logger

	// insist keeps flagging on a path that copies: for tests of completions over loopback.
	insist bool
	// patience is how long a completion may be missing of what the peer has
	// acknowledged.
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
	// DefaultStallTimeout lets TCP send again a few times, a little later each
	// time, what the network has lost.
	DefaultStallTimeout = 5 * time.Second
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
	if full.StallTimeout <= 0 {
		full.StallTimeout = DefaultStallTimeout
	}
	full.insist = full.insist || full.Guard
	return &full
}

// errConfig is matched by the errors of Configs that are not valid.
var errConfig = errors.New("zcnet: Config is not valid")

// maxUserTimeout is the longest time that TCP_USER_TIMEOUT takes, an int of
// milliseconds.
const maxUserTimeout = math.MaxInt32 * time.Millisecond

func (cfg *Config) validate() error {
	if cfg != nil && (cfg.UserTimeout < 0 || cfg.UserTimeout > maxUserTimeout) {
		return fmt.Errorf("%w: UserTimeout is %v: set it to between 1ms and %v, or to 0, which leaves the socket's own setting alone", errConfig, cfg.UserTimeout, maxUserTimeout)
	}
	return nil
}

// milliseconds rounds up, so that a short time does not become none.
func milliseconds(d time.Duration) int { return int((d + time.Millisecond - 1) / time.Millisecond) }

// Wrap returns a [*Conn] that sends over c, if c is a *net.TCPConn whose socket
// can send without copying; otherwise it returns c itself, unchanged. [Probe]
// says why. The result replaces c, which must not be used for reading or
// closing any more. Deadlines that were set before still hold; set them on the
// result from then on. Setting ZCNET_DISABLE=1 in the environment makes Wrap
// return its input always. Of a cfg that is not valid, which NewConn returns an
// error for, cfg.Logger is told.
func Wrap(c net.Conn, cfg *Config) net.Conn {
	tc, ok := c.(*net.TCPConn)
	if !ok {
		return c
	}
	zc, err := NewConn(tc, cfg)
	if err != nil {
		if errors.Is(err, errConfig) && cfg.Logger != nil {
			cfg.Logger.Error("zcnet: a connection is not wrapped", "error", err)
		}
		return c
	}
	return zc
}

// NewConn is the strict form of [Wrap]: where zero-copy is not to be had it
// returns an error that says why and that matches errors.ErrUnsupported, and
// leaves c as it was. A nil or closed connection, or a Config that is not
// valid, is another error.
//
// A socket can be wrapped once in its life, also through duplicates of its
// descriptor, because the kernel counts completions by the socket. One on which
// SO_ZEROCOPY is set already, by its listener or its dialer, can be wrapped if
// no other code has sent with MSG_ZEROCOPY on it. Before Linux 4.17 that is the
// only way: the kernel takes the option only before a socket is connected, in
// net.ListenConfig.Control or net.Dialer.Control.
func NewConn(c *net.TCPConn, cfg *Config) (*Conn, error) {
	if c == nil {
		return nil, errors.New("zcnet: NewConn of a nil *net.TCPConn")
	}
	if err := disabled(); err != nil {
		return nil, err
	}
	if err := cfg.validate(); err != nil {
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
	if cfg != nil && cfg.UserTimeout > 0 {
		if err := setUserTimeout(raw, milliseconds(cfg.UserTimeout)); err != nil {
			forget(cookie)
			return nil, fmt.Errorf("zcnet: Config.UserTimeout of %v: %w", cfg.UserTimeout, err)
		}
	}
	conn := &Conn{TCPConn: c, s: &socket{tc: c, raw: raw, kernel: system{c}, cfg: cfg.withDefaults(), cookie: cookie}}
	runtime.AddCleanup(conn, func(s *socket) { go s.dropped() }, conn.s) // see startOuter
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
//
// It keeps what l has beside net.Listener's methods, for callers who ask by
// type assertion: of a *net.TCPListener everything, SetDeadline, File,
// SyscallConn and AcceptTCP among it; of any other listener SetDeadline, File
// and SyscallConn if it has all three. AcceptTCP goes past the library, as its
// type says: it returns the *net.TCPConn, not wrapped. A *net.UnixListener,
// which never accepts what can be wrapped, is returned itself. What is not kept
// can be called on l; deadlines and Close of either hold for both.
func NewListener(l net.Listener, cfg *Config) net.Listener {
	switch l := l.(type) {
	case *net.UnixListener:
		return l
	case *net.TCPListener:
		return &tcpListener{l, cfg}
	case systemListener:
		return &wrappingSystemListener{l, cfg}
	}
	return &listener{l, cfg}
}

// A listener wraps what a net.Listener accepts.
type listener struct {
	net.Listener
	cfg *Config
}

func (l *listener) Accept() (net.Conn, error) { return acceptFrom(l.Listener, l.cfg) }

// A tcpListener wraps what a *net.TCPListener accepts.
type tcpListener struct {
	*net.TCPListener
	cfg *Config
}

func (l *tcpListener) Accept() (net.Conn, error) { return acceptFrom(l.TCPListener, l.cfg) }

// A systemListener has the methods of a *net.TCPListener that others than
// package net have, too, such as a struct that embeds one.
type systemListener interface {
	net.Listener
	syscall.Conn
	SetDeadline(t time.Time) error
	File() (*os.File, error)
}

// A wrappingSystemListener wraps what a systemListener accepts.
type wrappingSystemListener struct {
	systemListener
	cfg *Config
}

func (l *wrappingSystemListener) Accept() (net.Conn, error) {
	return acceptFrom(l.systemListener, l.cfg)
}

func acceptFrom(l net.Listener, cfg *Config) (net.Conn, error) {
	c, err := l.Accept()
	if err != nil {
		return nil, err
	}
	return Wrap(c, cfg), nil
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
//   - WritePinned, WritePinnedBuffers, WriteFrame, Flush and Acknowledged are
//     new. Write copies, as ever.
//   - ReadFrom, and so io.Copy to a Conn, sends without copying what it reads from readers other than files and
//     connections; see [Conn.ReadFrom].
//   - Close returns at once, as ever, but while memory is in flight the connection is delivered, or reset, in the
//     background; see [Conn.Close].
//   - The library reads the socket's error queue; see Config.ErrorQueue.
//   - SyscallConn returns a raw connection whose Read survives completions; see
//     [Conn.SyscallConn].
//   - After File the connection copies, and its Close leaves the stream to the
//     other owner; see [Conn.File].
//   - A Conn that is dropped without Close lives on until nothing is in flight,
//     and is closed after Config.CloseTimeout, or Config.StallTimeout without
//     progress, at the latest; see [LogDropped].
//   - io.Copy from a Conn splices as a whole. Through an io.LimitReader, as io.CopyN uses, it copies.
//
// # Code that asks for a *net.TCPConn
//
// A Conn is not a *net.TCPConn. Code that decides by the type assertion
// c.(*net.TCPConn) takes it for something else, mostly without a word. Known to
// do so are gRPC, which sets TCP_USER_TIMEOUT on a *net.TCPConn only, and for
// it alone has a reader that holds no buffer while idle; TCPConn of
// go-proxyproto; switches on the type in NATS; and handlers that expect one of
// net/http's Hijack. Options belong to the socket, so set them before it is
// wrapped (in the Control function of a net.Dialer or net.ListenConfig, for
// example), by Config.UserTimeout, or on the embedded connection:
//
//	if zc, ok := c.(*zcnet.Conn); ok {
//		tc := zc.TCPConn // for options, addresses and TCP_INFO
//		...
//	}
//
// An assertion to an interface, such as interface{ SetNoDelay(bool) error } or
// syscall.Conn, works.
//
// # What goes past the library
//
// These are the *net.TCPConn's own, and right as they are: net.Buffers, which
// copies and is in order with all other writes; SetWriteDeadline; CloseWrite,
// after which completions go on; CloseRead, which ends Reads of every kind;
// LocalAddr, RemoteAddr, MultipathTCP (never in use), SetLinger, SetNoDelay,
// SetKeepAlive and the like, SetReadBuffer and SetWriteBuffer.
//
// Reading from the embedded *net.TCPConn, by its Read, WriteTo or SyscallConn,
// can fail with "not pollable" while completions arrive. A deadline for reading
// that is set on it is not seen by a blocked Read of the Conn. Closing it
// breaks the promise about memory in flight, and its File is not known to
// Close: nor is a descriptor that was duplicated, or passed to another process,
// by way of SyscallConn.
//
// # Embedding a Conn
//
// A struct that embeds a *Conn and overrides Write, to count, limit or encrypt
// what is sent, is gone past: io.Copy to it finds the ReadFrom of the Conn,
// net.Buffers.WriteTo its writev, and NewWriter its WritePinned,
// WritePinnedBuffers and WriteFrame. The same is true for Read and WriteTo.
// Embed the interface net.Conn instead, with the Conn in it: it has no other
// way to write, so that everything, the writer of [NewWriter] included, comes
// by Write. See the example. Add what is to be kept, such as CloseWrite, by
// hand.
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
	resumes atomic.Int64 // when flagged calls may be made again, by clock; 0 if at once
	calls   int          // flagged calls since the writer last read the error queue; the writer's
	invalid int          // flagged calls that failed where Write may not; the writer's
	enobufs bound        // notifications in flight, by net.core.optmem_max
	givenUp string       // why a dropped connection waits for its peer no longer; set before it is closed

	readMu    sync.Mutex                     // one Read of any kind at a time, as the runtime has it
	drainMu   sync.Mutex                     // one goroutine reads the error queue at a time
	closeMu   sync.Mutex                     // one Close at a time
	shared    atomic.Bool                    // File has made another owner of the stream; set under closeMu
	connected atomic.Bool                    // the kernel tells what is unacknowledged, as it does not before the handshake
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
	if errors.Is(err, syscall.EPIPE) && s.ending() {
		err = s.opError("write", net.ErrClosed)
	}
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
		s.log(slog.LevelWarn, turnedOff, "error", err)
	}
}

// distrust is called with proof that completions do not tell what is in flight.
// From here on they finish no ticket, and every write copies.
func (s *socket) distrust(why error) {
	if !s.ledger().distrust() {
		return
	}
	s.refused.CompareAndSwap(nil, &why)
	if s.cfg.Logger != nil || distrustTold.Swap(true) {
		s.log(slog.LevelError, turnedOff, "error", why)
		return
	}
	slog.Error("zcnet: "+turnedOff, "error", why, "local", s.tc.LocalAddr(), "remote", s.tc.RemoteAddr())
}

// distrustTold is set when a connection without a Logger has told slog.Default()
// that its completions are not believed. One is enough: it may be so with all.
var distrustTold atomic.Bool

const turnedOff = "zero-copy sends turned off"

// Why completions are not believed.
var (
	errMiscounted = errors.New("completions do not match the calls that were made: " +
		"another program sends with MSG_ZEROCOPY on this socket, reads its error queue, or has put it into a BPF sockmap")
	errNoCompletions = errors.New("completions do not come, though the kernel takes SO_ZEROCOPY: " +
		"a sandbox stands in for the kernel, or another program has cleared the option or reads the socket's error queue")
	errUnreadable = errors.New("completions cannot be read: a filter of system calls forbids poll, or recvmsg with MSG_ERRQUEUE")
)

// plainFor is how long a connection makes no flagged call after one whose
// completion could not be waited for.
const plainFor = time.Second

// postpone turns flagged calls off for a while.
func (s *socket) postpone(now time.Duration, err error) {
	if s.resumes.Swap(int64(now+plainFor)) == 0 {
		s.log(slog.LevelWarn, "zero-copy sends turned off until completions can be waited for", "error", err)
	}
}

// resume takes that back, once a completion is waited for again.
func (s *socket) resume() {
	if s.resumes.Load() != 0 {
		s.resumes.Store(0)
	}
}

// postponed reports whether flagged calls are off.
func (s *socket) postponed(now time.Duration) bool {
	until := s.resumes.Load()
	return until != 0 && now < time.Duration(until)
}

func (s *socket) log(level slog.Level, msg string, args ...any) {
	if s.cfg.Logger != nil {
		s.cfg.Logger.Log(context.Background(), level, "zcnet: "+msg, append(args, "local", s.tc.LocalAddr(), "remote", s.tc.RemoteAddr())...)
	}
}

// SetDeadline sets the read and write deadlines, as of any net.Conn. Tickets and Flush have none: they take a
// context.
func (c *Conn) SetDeadline(t time.Time) error {
	return c.s.watch.setDeadline(t, c.TCPConn.SetDeadline)
}

// SetReadDeadline sets the deadline of Read, WriteTo and io.Copy from the connection.
func (c *Conn) SetReadDeadline(t time.Time) error {
	return c.s.watch.setDeadline(t, c.TCPConn.SetReadDeadline)
}

// Close closes the connection, as of any net.Conn: blocked reads and writes return, and later ones fail with
// net.ErrClosed.
//
// If memory is in flight the socket lives on in the background until its
// completions have come: the queued bytes and the end of the stream are
// delivered, and tickets, Wait and Flush go on working. A peer that takes
// nothing for Config.StallTimeout, or not everything within
// Config.CloseTimeout, loses the rest: the connection is reset, which makes the
// kernel give the memory up, and tickets report [ErrConnFailed]. What a device
// still holds after another CloseTimeout at the latest is given up for lost:
// tickets report [ErrReleaseUnproven], Stats says how many bytes, and the
// memory is never used again. Stats counts the closed connections of the
// process that hold memory, how much, and those that had to be reset; Logger is
// told of each of them.
//
// Close needs no descriptor to spare: at the limit of the process it keeps the
// connection's own in use for as long. Where connect(2), by which the library
// resets, is forbidden, as by a seccomp filter, the connection times out
// instead, which takes up to two minutes.
//
// SetLinger keeps its meaning: with 0 the connection is reset at once, with n >
// 0 Close waits up to n seconds for what is in flight, and returns an error
// that matches [ErrConnFailed] if the connection has failed meanwhile. A peer
// that sends more after Close makes its kernel's and ours reset the connection,
// as ever. Unlike *net.TCPConn's, this Close delivers what is in flight before
// it resets a connection of which received bytes were left unread. After
// [Conn.File] it leaves the stream alone.
func (c *Conn) Close() error {
	defer runtime.KeepAlive(c) // or it would count as dropped meanwhile
	return c.s.close()
}

// File returns a duplicate of the connection's descriptor, as that of
// *net.TCPConn does: for another owner of the stream, in this process
// (net.FileConn) or in another (exec.Cmd.ExtraFiles). It does not block.
//
// From then on the stream is not this connection's alone. Writes that begin
// later are copied, because completions would disturb the other owner, and
// Close neither ends the stream nor resets it, whatever SetLinger says: it goes
// on with the other owner, and ends with the last descriptor. What is in flight
// is waited for in the background as ever, through a descriptor that counts as
// one. Memory that the kernel has not given up after Config.CloseTimeout, as for
// a peer that does not read, is given up for lost instead: the kernel goes on
// sending it, and its tickets report [ErrReleaseUnproven]. Config.UserTimeout
// can end such a connection before.
//
// Completions that come while the send buffer is full make reads of the other
// owner fail with "not pollable", if it is a Go program. So let them come before
// it begins to read:
//
//	f, err := conn.File()   // nothing more is lent
//	err = conn.Flush(ctx)   // and nothing is in flight
//	next, err := net.FileConn(f)
//	err = errors.Join(f.Close(), conn.Close())
//
// The other owner must not read the error queue before the tickets of this
// connection are done. Fd of the file, which ExtraFiles uses, puts the socket
// in blocking mode for both owners, as ever: deadlines are not kept then.
func (c *Conn) File() (*os.File, error) {
	defer runtime.KeepAlive(c)
	s := c.s
	s.closeMu.Lock() // Close sees the mark, or File fails
	defer s.closeMu.Unlock()
	f, err := c.TCPConn.File()
	if err != nil {
		return nil, err
	}
	s.shared.Store(true)
	s.refuse(errShared)
	return f, nil
}

var errShared = errors.New("File was called: the stream has another owner, whom completions would disturb")
