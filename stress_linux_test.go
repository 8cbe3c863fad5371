package zcnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/zcnet-go/zcnet/internal/lab"
)

// Thousands of connections that live briefly, beside a few that live long.
// Whatever a connection does, and whenever it is closed, every ticket is done,
// every Flush and every blocked Read return, every buffer goes back to its
// pool, and a connection that has ended takes no more time of the processor.
//
// These tests use the public interface only, so that they hold for any way in
// which completions may be read.

const (
	// stressConns is how many short connections a test makes over each link
	// at most; see also stressPlan.time.
	stressConns = 10_000

	// stressBound is how long a wait may take before it counts as one that
	// does not end. They take milliseconds.
	stressBound = 5 * time.Second

	// stressCloseTimeout is beyond stressBound, so that it ends no wait.
	stressCloseTimeout = 4 * stressBound

	// stressWrite is how many bytes a connection sends at a time.
	stressWrite = page

	// stressMuch is how many it sends to have memory in flight at its end.
	stressMuch = 256 << 10
)

var (
	// learning turns to plain sends where the path copies.
	learning = &Config{Threshold: 1, CloseTimeout: stressCloseTimeout}
	// insisting never does.
	insisting = &Config{Threshold: 1, CloseTimeout: stressCloseTimeout, insist: true}
)

// TestEveryWaitEnds runs over loopback, where the kernel copies, and again with
// as many connections over the link where it does not. All connections of a
// process share what reads completions, so that those of one link could
// disturb those of the other.
func TestEveryWaitEnds(t *testing.T) {
	t.Run("loopback", func(t *testing.T) {
		runStress(t, manyLives, newLoopbackStress(t))
	})
	t.Run("loopback and copy-free link", func(t *testing.T) {
		runStress(t, manyLivesOnTwoLinks, newLoopbackStress(t), newLabStress(t))
	})
}

// TestEveryWaitEndsBesideOneThatIsClosedAtOnce closes connections within a
// microsecond of the end of their last ticket, when what has read its
// completion is still at work for them. There is one of them at a time, so that
// nothing else makes up for what that leaves behind.
func TestEveryWaitEndsBesideOneThatIsClosedAtOnce(t *testing.T) {
	runStress(t, closedAtOnce, newLoopbackStress(t))
}

// A stressPlan says which connections there are on each link.
type stressPlan struct {
	long  []*Config // of one connection each
	short []*Config // in turn
	lives []life    // of the short ones, in turn
	most  int       // how many short ones there are at a time: from 1 to most, in turn
	time  time.Duration
}

var (
	manyLives = &stressPlan{
		long:  []*Config{insisting},
		short: []*Config{learning, insisting},
		lives: lives,
		most:  6,
		time:  6 * time.Second,
	}
	manyLivesOnTwoLinks = &stressPlan{
		long:  []*Config{insisting, learning},
		short: []*Config{learning, insisting},
		lives: lives,
		most:  6,
		time:  7 * time.Second,
	}
	closedAtOnce = &stressPlan{
		long:  []*Config{insisting},
		short: []*Config{learning},
		lives: lives[:1], // the one that is closed as soon as its last ticket is done
		most:  1,
		time:  3 * time.Second,
	}
)

// A stressLink makes connections over one link, quicker than a pairMaker and
// with nothing to clean up for each.
type stressLink struct {
	name string

	// in calls f where connections can be dialled, which takes a while.
	in func(f func() error) error

	// listeners are several, because the addresses of a connection that was
	// closed cannot be used again for a while.
	listeners []net.Listener

	mu    sync.Mutex
	spare []stressPair
}

type stressPair struct{ near, far *net.TCPConn }

const (
	stressListeners = 4
	stressSpare     = 32 // connections that are made at a time
)

func newLoopbackStress(t *testing.T) *stressLink {
	t.Helper()
	l := &stressLink{name: "loopback", in: func(f func() error) error { return f() }}
	l.listen(t, func(i int) (net.Listener, error) {
		return net.Listen("tcp4", fmt.Sprintf("127.0.0.%d:0", 1+i))
	})
	return l
}

func newLabStress(t *testing.T) *stressLink {
	t.Helper()
	link := lab.ForTest(t)
	check(t, link.Receiver.Do(acknowledgeAtOnce))
	l := &stressLink{name: "copy-free link", in: link.Sender.Do}
	l.listen(t, func(int) (net.Listener, error) {
		return link.Receiver.ListenAddr("tcp4", net.JoinHostPort(link.Receiver.IPv4().String(), "0"))
	})
	return l
}

// acknowledgeAtOnce has the host in which it is called not delay what it
// acknowledges: else each completion of a lone write comes up to 40 ms late.
func acknowledgeAtOnce() error {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list the routes of a host: %w", err)
	}
	for _, route := range routes {
		route.QuickACK = 1
		if err := netlink.RouteReplace(&route); err != nil {
			return fmt.Errorf("change route %v: %w", route, err)
		}
	}
	return nil
}

func (l *stressLink) listen(t *testing.T, listen func(i int) (net.Listener, error)) {
	t.Helper()
	for i := range stressListeners {
		listener, err := listen(i)
		check(t, err)
		t.Cleanup(func() { listener.Close() })
		l.listeners = append(l.listeners, listener)
	}
	t.Cleanup(func() {
		for _, p := range l.spare {
			p.near.Close()
			p.far.Close()
		}
	})
}

// pair returns the two ends of a new connection. The near one can send without
// copying.
func (l *stressLink) pair() (p stressPair, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.spare) == 0 {
		if err := l.in(l.fill); err != nil {
			return p, err
		}
	}
	last := len(l.spare) - 1
	p, l.spare = l.spare[last], l.spare[:last]
	return p, nil
}

// fill makes spare connections. l.mu is held.
func (l *stressLink) fill() error {
	for i := range stressSpare {
		listener := l.listeners[i%len(l.listeners)]
		near, err := net.Dial("tcp4", listener.Addr().String())
		if err != nil {
			return err
		}
		far, err := listener.Accept()
		if err != nil {
			near.Close()
			return err
		}
		l.spare = append(l.spare, stressPair{near.(*net.TCPConn), far.(*net.TCPConn)})
	}
	return nil
}

// A stressRun is what all connections of one test share.
type stressRun struct {
	// ctx ends when a wait has not ended in time, and with it all others.
	ctx    context.Context
	cancel context.CancelFunc

	plan   *stressPlan
	memory Pinned // what most connections send, or a part of it
	pool   *Pool  // of fewer buffers than are asked for

	spinning sync.Mutex // held by the one that spins

	mu       sync.Mutex
	failures []string

	// What has happened, to show that the test meets what it is about.
	ended, learned, closedInFlight, slowReads atomic.Int64
}

// stressPool is how many buffers the short connections have together.
const stressPool = 4

func runStress(t *testing.T, plan *stressPlan, links ...*stressLink) {
	run := &stressRun{plan: plan, memory: Pin(noise(stressMuch, 1))}
	run.ctx, run.cancel = context.WithCancel(context.Background())
	defer run.cancel()
	var err error
	run.pool, err = NewPool(stressWrite, stressPool)
	check(t, err)

	ended := make(chan struct{})
	go func() {
		defer close(ended)
		run.liveAll(links)
		run.endPool()
	}()
	select {
	case <-ended:
	case <-run.ctx.Done():
		run.awaitEnd(t, ended)
	}
	run.report(t)
}

// awaitEnd waits for what has been told to end because a wait did not.
func (run *stressRun) awaitEnd(t *testing.T, ended <-chan struct{}) {
	t.Helper()
	select {
	case <-ended:
	case <-time.After(stressBound):
		stacks := make([]byte, 1<<20)
		t.Errorf("some waits do not end when all connections are closed, either:\n%s", stacks[:runtime.Stack(stacks, true)])
	}
}

// liveAll has all connections live.
func (run *stressRun) liveAll(links []*stressLink) {
	var short, long sync.WaitGroup
	var over atomic.Bool
	for _, link := range links {
		for _, cfg := range run.plan.long {
			long.Go(func() { run.liveLong(link, cfg, &over) })
		}
		short.Go(func() { run.liveShort(link) })
	}
	short.Wait()
	over.Store(true)
	long.Wait()
}

// liveShort has all short connections of a link live, so many at a time and
// then so many: what the end of one leaves behind may matter only when there
// is a certain number of others.
func (run *stressRun) liveShort(link *stressLink) {
	const round = 40 // connections
	end := time.Now().Add(run.plan.time)
	for first := 0; first < stressConns && time.Now().Before(end) && run.ctx.Err() == nil; first += round {
		var made atomic.Int64
		var living sync.WaitGroup
		for range 1 + first/round%run.plan.most {
			living.Go(func() {
				for n := made.Add(1); n <= round && run.ctx.Err() == nil; n = made.Add(1) {
					run.liveBriefly(link, first+int(n))
				}
			})
		}
		living.Wait()
	}
}

// endPool checks that every buffer has come back.
func (run *stressRun) endPool() {
	const who = "pool that nobody uses any more"
	var back []Pinned
	for i := range stressPool {
		what := fmt.Sprintf("Get of buffer %d of %d", i+1, stressPool)
		run.during(who, what, nil, func() {
			p, err := run.pool.Get(run.ctx)
			run.expect(who, what, err)
			back = append(back, p)
		})
	}
	for _, p := range back {
		p.Release()
	}
	run.expect(who, "Close", run.pool.Close())
}

func (run *stressRun) report(t *testing.T) {
	t.Helper()
	run.mu.Lock()
	defer run.mu.Unlock()
	t.Logf("%d short connections: %d had learned that the path copies, %d were closed with memory in flight, %d slow reads",
		run.ended.Load(), run.learned.Load(), run.closedInFlight.Load(), run.slowReads.Load())
	if len(run.failures) > 0 {
		t.Errorf("after %d connections:\n%s", run.ended.Load(), strings.Join(run.failures, "\n"))
		return
	}
	if run.learned.Load() == 0 {
		t.Error("no connection has learned that its path copies")
	}
	wantRest(t, fmt.Sprintf("%d connections have ended", run.ended.Load()))
	if run.plan != closedAtOnce && run.closedInFlight.Load() == 0 {
		t.Error("no connection was closed with memory in flight")
	}
}

// fail takes note of a failure, and ends everything soon: not at once, so that
// what else does not come to an end is told, too.
func (run *stressRun) fail(who, format string, args ...any) {
	run.mu.Lock()
	defer run.mu.Unlock()
	if run.ctx.Err() != nil {
		return // this has come of the end
	}
	if len(run.failures) == 0 {
		time.AfterFunc(stressBound/5, run.cancel)
	}
	run.failures = append(run.failures, who+": "+fmt.Sprintf(format, args...))
}

// during calls f, which waits for what. If f does not return in time it fails
// the test, and ends everything, f included.
func (run *stressRun) during(who, what string, c *Conn, f func()) {
	watch := time.AfterFunc(stressBound, func() {
		state := ""
		if c != nil {
			state = ": " + briefly(c.Stats())
		}
		run.fail(who, "no end of %s after %v%s", what, stressBound, state)
	})
	defer watch.Stop()
	f()
}

// expect checks the error of a wait.
func (run *stressRun) expect(who, what string, err error) {
	if err != nil {
		run.fail(who, "%s: %v", what, err)
	}
}

// briefly returns the part of s that tells why a wait may not end.
func briefly(s Stats) string {
	return fmt.Sprintf("%d writes in %d sends, %d tickets done, %d IDs and %d bytes in flight, %d completions in %d drains, %d wakeups, path copies %v, failed %v",
		s.Writes, s.Sends, s.Released, s.IDsInFlight, s.BytesInFlight, s.Notifications, s.Drains, s.Wakeups, s.PathCopies, s.ConnectionFailed)
}

// A stressConn is the near end of a connection.
type stressConn struct {
	*Conn
	run *stressRun
	who string
	far *net.TCPConn
}

// newStressConn makes a connection. A wait of it that does not end by itself
// ends when the run does. release must be called when it is over.
func (run *stressRun) newStressConn(link *stressLink, cfg *Config, who string) (c *stressConn, release func()) {
	pair, err := link.pair()
	if err != nil {
		run.fail(who, "connect: %v", err)
		return nil, nil
	}
	near, far := pair.near, pair.far
	zc, err := NewConn(near, cfg)
	if err != nil {
		near.Close()
		far.Close()
		run.fail(who, "wrap: %v", err)
		return nil, nil
	}
	c = &stressConn{Conn: zc, run: run, who: who, far: far}
	stop := context.AfterFunc(run.ctx, func() {
		_ = near.SetLinger(0)
		zc.Close()
		far.Close()
	})
	return c, func() { stop(); zc.Close(); far.Close() }
}

func (c *stressConn) during(what string, f func()) { c.run.during(c.who, what, c.Conn, f) }

func (c *stressConn) expect(what string, err error) { c.run.expect(c.who, what, err) }

// write sends a little.
func (c *stressConn) write() Ticket { return c.writeFirst(stressWrite) }

// writeMuch sends more than the peer's kernel takes before the peer reads.
func (c *stressConn) writeMuch() Ticket { return c.writeFirst(stressMuch) }

// writeFirst sends the first n bytes of the memory that all share.
func (c *stressConn) writeFirst(n int) (ticket Ticket) {
	var err error
	c.during("WritePinned", func() { ticket, err = c.WritePinned(c.run.memory.Slice(0, n)) })
	c.expect("WritePinned", err)
	return ticket
}

// writeFew sends a little a few times.
func (c *stressConn) writeFew() (tickets [fewWrites]Ticket) {
	for i := range tickets {
		tickets[i] = c.write()
	}
	return tickets
}

// writeUntilClosed sends until Close of the connection ends it.
func (c *stressConn) writeUntilClosed() (tickets []Ticket) {
	for {
		ticket, err := c.WritePinned(c.run.memory.Slice(0, stressWrite))
		tickets = append(tickets, ticket)
		if errors.Is(err, net.ErrClosed) {
			return tickets
		}
		if err != nil {
			c.expect("WritePinned of a connection that is closed meanwhile", err)
			return tickets
		}
	}
}

// writeFromPool sends a buffer of the pool, and forgets it and its ticket.
func (c *stressConn) writeFromPool(pool *Pool) {
	var p Pinned
	var err error
	c.during("Pool.Get", func() { p, err = pool.Get(c.run.ctx) })
	if err != nil {
		c.expect("Pool.Get", err)
		return
	}
	c.during("WritePinned", func() { _, err = c.WritePinned(p) })
	c.expect("WritePinned", err)
	p.Release()
}

// The ways to wait for a ticket.

func (c *stressConn) wait(ticket Ticket) {
	c.during("Wait", func() { c.expect("Wait", ticket.Wait(c.run.ctx)) })
}

func (c *stressConn) done(ticket Ticket) {
	c.during("Done", func() {
		select {
		case <-ticket.Done():
			c.expect("a ticket that is done", ticket.Wait(c.run.ctx))
		case <-c.run.ctx.Done():
		}
	})
}

func (c *stressConn) poll(ticket Ticket) {
	c.during("asking Ready", func() {
		for !ticket.Ready() && c.run.ctx.Err() == nil {
			time.Sleep(20 * time.Microsecond)
		}
	})
}

func (c *stressConn) flush() {
	c.during("Flush", func() { c.expect("Flush", c.Flush(c.run.ctx)) })
}

// close closes the connection.
func (c *stressConn) close() {
	if c.Stats().IDsInFlight > 0 {
		c.run.closedInFlight.Add(1)
	}
	c.during("Close", func() { c.expect("Close", c.Close()) })
}

// closeWhenDone closes the connection within a microsecond of the end of its
// last ticket, when what has read the completion is still at it.
func (c *stressConn) closeWhenDone(ticket Ticket) {
	done := ticket.Done() // from here on the completion is read when it comes
	c.during("Done, and then Close", func() {
		c.run.spin(func() bool { return ticket.Outcome() != OutcomePending })
		select {
		case <-done:
		case <-c.run.ctx.Done():
		}
		c.expect("Close", c.Close())
	})
}

// spin returns as soon as ready holds, or after a while. While it waits it has
// one processor to itself, but leaves the others to those that it waits for.
func (run *stressRun) spin(ready func() bool) {
	run.spinning.Lock()
	defer run.spinning.Unlock()
	const tries = 20_000 // about a millisecond
	for range tries {
		if ready() {
			return
		}
	}
}

// blockedRead begins a Read of which nothing comes but the end, by Close.
func (c *stressConn) blockedRead() (wait func()) {
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		if n, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			c.run.fail(c.who, "Read of a connection that is closed meanwhile: %d bytes and %v, want net.ErrClosed", n, err)
		}
	}()
	return func() { c.during("Read", func() { <-returned }) }
}

// A life is what a short connection does. It ends with Close.
type life struct {
	name string
	live func(c *stressConn)
	peer func(far *net.TCPConn)
	// forgets tells that nobody waits for the tickets, not even afterwards.
	forgets bool
	// fails tells that the connection may fail.
	fails bool
}

// copiesToLearn is how many writes it takes until a connection whose path
// copies turns to plain sends. The end of the last of them is the moment after
// which nothing is awaited of the socket any more.
const copiesToLearn = 8

// fewWrites is how often most connections send.
const fewWrites = 3

var lives = []life{
	{name: "is closed as soon as its last ticket is done", peer: readAll, live: func(c *stressConn) {
		for range copiesToLearn - 1 {
			c.wait(c.write())
		}
		c.closeWhenDone(c.write())
	}},
	{name: "asks Ready", peer: readAll, live: func(c *stressConn) {
		for range fewWrites {
			c.poll(c.write())
		}
		c.close()
	}},
	{name: "waits by Wait", peer: readAll, live: func(c *stressConn) {
		for range fewWrites {
			c.wait(c.write())
		}
		c.close()
	}},
	{name: "waits by Done", peer: readAll, live: func(c *stressConn) {
		for range fewWrites {
			c.done(c.write())
		}
		c.close()
	}},
	{name: "waits by Flush", peer: readAll, live: func(c *stressConn) {
		c.writeFew()
		c.flush()
		c.close()
	}},
	{name: "waits for memory", peer: readAll, forgets: true, live: func(c *stressConn) {
		for range stressPool + fewWrites {
			c.writeFromPool(c.run.pool)
		}
		c.close()
	}},
	{name: "waits after Close", peer: readLate, live: func(c *stressConn) {
		tickets := c.writeFew()
		c.close()
		c.wait(tickets[2])
		c.done(tickets[1])
		c.poll(tickets[0])
	}},
	{name: "is closed while others wait", peer: readLate, live: func(c *stressConn) {
		much := c.writeMuch()
		tickets := c.writeFew()
		read := c.blockedRead()
		var waiting sync.WaitGroup
		waiting.Go(func() { c.wait(tickets[0]) })
		waiting.Go(func() { c.done(tickets[1]) })
		waiting.Go(func() { c.poll(tickets[2]) })
		waiting.Go(func() { c.wait(much) })
		waiting.Go(c.flush)
		c.close()
		read()
		waiting.Wait()
	}},
	{name: "is closed while it writes", peer: readAll, live: func(c *stressConn) {
		var tickets []Ticket
		writing := make(chan struct{})
		go func() {
			defer close(writing)
			tickets = c.writeUntilClosed()
		}()
		c.done(c.write())
		c.close()
		c.during("WritePinned", func() { <-writing })
		for _, ticket := range tickets {
			c.wait(ticket)
		}
	}},
	{name: "is forgotten in flight", peer: readLate, forgets: true, live: func(c *stressConn) {
		c.writeFromPool(c.run.pool)
		c.writeMuch()
		c.writeFromPool(c.run.pool)
		c.close()
	}},
	{name: "leaves bytes unread", peer: sayAndReadLate, live: func(c *stressConn) {
		c.during("Read", func() { // what is left unread has arrived then, too
			_, err := c.Read(make([]byte, 1))
			c.expect("Read", err)
		})
		c.writeMuch()
		c.writeFew()
		c.close()
	}},
	{name: "is reset by its peer", peer: readAndReset, fails: true, live: func(c *stressConn) {
		var tickets []Ticket
		for range copiesToLearn {
			ticket, err := c.WritePinned(c.run.memory.Slice(0, stressWrite))
			if err != nil {
				break
			}
			tickets = append(tickets, ticket)
		}
		for _, ticket := range tickets {
			c.during("Wait", func() { _ = ticket.Wait(c.run.ctx) })
		}
		c.during("Close", func() { _ = c.Close() })
	}},
}

// The peers of short connections. None goes on for longer than its connection.

func readAll(far *net.TCPConn) {
	_, _ = io.Copy(io.Discard, far)
}

func readLate(far *net.TCPConn) {
	time.Sleep(time.Millisecond)
	readAll(far)
}

func sayAndReadLate(far *net.TCPConn) {
	_, _ = far.Write([]byte("never read"))
	readLate(far)
}

func readAndReset(far *net.TCPConn) {
	_, _ = io.ReadFull(far, make([]byte, stressWrite))
	_ = far.SetLinger(0)
}

// liveBriefly makes the nth short connection of a link, and has it live.
func (run *stressRun) liveBriefly(link *stressLink, n int) {
	plan := run.plan
	l := &plan.lives[n%len(plan.lives)]
	cfg := plan.short[n/len(plan.lives)%len(plan.short)]
	c, release := run.newStressConn(link, cfg, fmt.Sprintf("%s, short connection %d, which %s", link.name, n, l.name))
	if c == nil {
		return
	}
	defer release()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.peer(c.far)
		c.far.Close()
	}()
	l.live(c)
	c.during("what its peer reads", func() { <-ended })
	if !l.forgets {
		c.afterwards(l.fails)
	}
	if c.Stats().PathCopies {
		run.learned.Add(1)
	}
	run.ended.Add(1)
}

// afterwards checks that a connection that was closed holds nothing any more.
func (c *stressConn) afterwards(fails bool) {
	c.during("Flush after Close", func() {
		if err := c.Flush(c.run.ctx); !fails {
			c.expect("Flush after Close", err)
		}
	})
	if s := c.Stats(); s.IDsInFlight != 0 || s.BytesInFlight != 0 || s.UnprovenBytes != 0 {
		c.run.fail(c.who, "after its end: %s, %d bytes unproven", briefly(s), s.UnprovenBytes)
	}
}

const (
	longBurst   = 40 // how often a long connection sends before it waits
	longPool    = 32 // from how many buffers
	longPause   = 20 * time.Millisecond
	longUnasked = 4 // after every so many bursts it does not ask for completions
)

// liveLong has a connection send and read until the short ones are over. Its
// peer answers each write with one byte, and reads slowly: so the send buffer
// is full when completions come, and the runtime's poller refuses some reads
// of the answers, which then wait for the library's.
func (run *stressRun) liveLong(link *stressLink, cfg *Config, over *atomic.Bool) {
	c, release := run.newStressConn(link, cfg, link.name+", long connection")
	if c == nil {
		return
	}
	defer release()
	c.expect("SetWriteBuffer", c.SetWriteBuffer(longPool*stressWrite/2))
	c.expect("SetReadBuffer", c.far.SetReadBuffer(64<<10))
	pool, err := NewPool(stressWrite, longPool)
	if err != nil {
		c.expect("NewPool", err)
		return
	}
	defer pool.Close()
	var answered atomic.Int64
	var others sync.WaitGroup
	others.Go(func() { c.expect("answering", answer(c.far)) })
	others.Go(func() { c.readAnswers(&answered) })
	for burst := 1; !over.Load() && run.ctx.Err() == nil; burst++ {
		for range longBurst {
			c.writeFromPool(pool)
		}
		if burst%longUnasked == 0 {
			c.awaitUnasked()
		} else {
			c.wait(c.write())
		}
		time.Sleep(longPause)
		c.awaitAnswers(&answered)
	}
	c.flush()
	c.expect("CloseWrite", c.CloseWrite())
	c.during("Read of the end of the stream", others.Wait)
	run.slowReads.Add(int64(c.Stats().SlowReads))
	c.close()
	c.afterwards(false)
}

// awaitUnasked returns when all completions have been read, without asking for
// them: Stats only tells.
func (c *stressConn) awaitUnasked() {
	c.during("what is in flight, while nobody waits for it", func() {
		for c.Stats().IDsInFlight > 0 && c.run.ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
	})
}

// awaitAnswers returns when each write has been answered.
func (c *stressConn) awaitAnswers(answered *atomic.Int64) {
	c.during("Read of the answers", func() {
		for answered.Load() < int64(c.Stats().Writes) && c.run.ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
	})
}

// answer reads writes from c and answers each.
func answer(c *net.TCPConn) error {
	b := make([]byte, stressWrite)
	for n := 1; ; n++ {
		if _, err := io.ReadFull(c, b); err == io.EOF {
			return c.Close()
		} else if err != nil {
			return err
		}
		if _, err := c.Write(b[:1]); err != nil {
			return err
		}
		if n%longPool == 0 {
			time.Sleep(time.Millisecond)
		}
	}
}

// readAnswers reads until the end, and counts what comes.
func (c *stressConn) readAnswers(answered *atomic.Int64) {
	b := make([]byte, 16)
	for {
		n, err := c.Read(b)
		answered.Add(int64(n))
		if err == io.EOF {
			return
		}
		if err != nil {
			c.expect("Read", err)
			return
		}
	}
}

// TestConnectionsThatHaveEndedCostNothing ends connections in the way that takes
// Close the longest: with memory in flight, and received bytes that were never
// read. What is called afterwards fails, and must not bring Close to work again.
func TestConnectionsThatHaveEndedCostNothing(t *testing.T) {
	const conns = 40
	for range conns {
		endWithUnreadBytes(t)
	}
	wantRest(t, fmt.Sprintf("%d connections have ended that left received bytes unread", conns))
}

// endWithUnreadBytes makes a connection, and returns when it has ended.
func endWithUnreadBytes(t *testing.T) {
	t.Helper()
	near, far := narrowPair(t)
	socket := descriptorOf(t, near)
	c := wrap(t, near, insisting)
	_, err := far.Write([]byte("ab"))
	check(t, err)
	expect(t, c, []byte("a")) // so that the rest has arrived
	memory := Pin(make([]byte, 256<<10))
	ticket, err := c.WritePinned(memory)
	check(t, err)
	if c.Stats().IDsInFlight == 0 {
		t.Fatal("nothing is in flight")
	}
	check(t, c.Close())
	if n, err := io.Copy(io.Discard, far); n != int64(memory.Len()) {
		t.Fatalf("the peer read %d bytes and %v, want %d", n, err, memory.Len())
	}
	check(t, ticket.Wait(testContext(t)))
	eventually(t, "the last descriptor is closed", func() bool { return !isOpen(socket) })

	if _, err := c.WritePinned(memory); !errors.Is(err, net.ErrClosed) {
		t.Errorf("WritePinned after the end: %v, want net.ErrClosed", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read after the end: %v, want net.ErrClosed", err)
	}
	if err := c.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a second Close: %v, want net.ErrClosed", err)
	}
	check(t, c.Flush(testContext(t)))
}

// wantRest checks that nothing is done in this process any more, after what has
// just ended: its threads sleep. What is at work every 10 ms or oftener is found
// by how often a thread goes to sleep again.
func wantRest(t *testing.T, ended string) {
	t.Helper()
	const (
		windows = 5 // of time, for what earlier tests and the runtime have to finish
		window  = 300 * time.Millisecond
		quiet   = int64(window / (10 * time.Millisecond)) // an idle process is at 3 to 7
	)
	least := int64(math.MaxInt64)
	for range windows {
		before := voluntarySwitches(t)
		time.Sleep(window)
		if least = min(least, voluntarySwitches(t)-before); least < quiet {
			return
		}
	}
	t.Errorf("%s, but in each of %d times %v threads went to sleep at least %d times, want less than %d: something is still done for them, again and again",
		ended, windows, window, least, quiet)
}

// voluntarySwitches returns how often threads of this process went to sleep.
func voluntarySwitches(t *testing.T) int64 {
	t.Helper()
	var usage unix.Rusage
	check(t, unix.Getrusage(unix.RUSAGE_SELF, &usage))
	return int64(usage.Nvcsw) // of another type on 32-bit systems
}

// TestADescriptorThatIsUsedAgain closes the embedded *net.TCPConn of a
// connection, which goes round the library. The kernel gives the descriptor's
// number to the next connection, whose completions must be heard all the same.
func TestADescriptorThatIsUsedAgain(t *testing.T) {
	for _, first := range []struct {
		name    string
		cfg     *Config
		prepare func(t *testing.T, c *Conn)
	}{
		{"after one whose path copies", learning, func(t *testing.T, c *Conn) {
			ctx := testContext(t)
			for range copiesToLearn {
				ticket, err := c.WritePinned(Pin(make([]byte, stressWrite)))
				check(t, err)
				check(t, ticket.Wait(ctx))
			}
			time.Sleep(20 * time.Millisecond) // until what has read the last completion has done with it
		}},
		{"after one that has memory in flight", insisting, func(t *testing.T, c *Conn) {
			_, err := c.WritePinned(Pin(make([]byte, 256<<10)))
			check(t, err)
			if c.Stats().IDsInFlight == 0 {
				t.Fatal("nothing is in flight")
			}
		}},
	} {
		t.Run(first.name, func(t *testing.T) {
			near, far := narrowPair(t)
			stale := wrap(t, near, first.cfg)
			first.prepare(t, stale)
			next, nextFar := pairInPlaceOf(t, stale)
			c := wrap(t, next, insisting)
			checkService(t, c, nextFar)
			check(t, far.Close())
			_ = stale.Close() // its descriptor is another's now
			checkService(t, c, nextFar)
		})
	}
}

// pairInPlaceOf closes the embedded *net.TCPConn of c and returns a connection
// of which the near end has got the number of its descriptor.
func pairInPlaceOf(t *testing.T, c *Conn) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	number := descriptorNumber(t, c.TCPConn)
	check(t, c.TCPConn.Close())
	const tries = 100 // of which each takes the lowest number that is free
	for range tries {
		n, err := net.Dial("tcp4", l.Addr().String())
		check(t, err)
		t.Cleanup(func() { n.Close() })
		near = n.(*net.TCPConn)
		if descriptorNumber(t, near) == number {
			break
		}
	}
	if descriptorNumber(t, near) != number {
		t.Fatalf("none of %d connections has got descriptor %d", tries, number)
	}
	for {
		f, err := l.Accept()
		check(t, err)
		t.Cleanup(func() { f.Close() })
		if f.RemoteAddr().String() == near.LocalAddr().String() {
			return near, f.(*net.TCPConn)
		}
	}
}

func descriptorNumber(t *testing.T, c *net.TCPConn) (number uintptr) {
	t.Helper()
	raw, err := c.SyscallConn()
	check(t, err)
	check(t, raw.Control(func(fd uintptr) { number = fd }))
	return number
}

// checkService checks that c sends, is told of completions, and reads.
func checkService(t *testing.T, c *Conn, far *net.TCPConn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), stressBound)
	defer cancel()
	want := noise(stressWrite, 1)
	for i := range 2 * copiesToLearn {
		ticket, err := c.WritePinned(Pin(want))
		check(t, err)
		expect(t, far, want)
		if err := ticket.Wait(ctx); err != nil {
			t.Fatalf("Wait for write %d of the connection that has got a closed one's descriptor: %v: %s", i+1, err, briefly(c.Stats()))
		}
	}
	_, err := c.WritePinned(Pin(want))
	check(t, err)
	expect(t, far, want)
	if err := c.Flush(ctx); err != nil {
		t.Fatalf("Flush of the connection that has got a closed one's descriptor: %v: %s", err, briefly(c.Stats()))
	}
	_, err = far.Write(want[:1])
	check(t, err)
	check(t, c.SetReadDeadline(time.Now().Add(stressBound)))
	expect(t, c, want[:1])
}
