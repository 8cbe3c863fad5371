package zcnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/zcnet-go/zcnet/internal/lab"
	"github.com/zcnet-go/zcnet/internal/perf"
)

// Benchmarks of what the library is for. Their names say what is compared, in the way of benchstat:
//
//	go test -run '^$' -bench . -count 6 . >new.txt
//	benchstat -col /mode new.txt
//
// Mode copy is a plain *net.TCPConn, mode naive is MSG_ZEROCOPY without any care (internal/perf), mode zcnet is a Conn.
// On a machine that changes its pace, many runs with -count 1 compare better than one run with a higher count, which
// repeats one mode before it comes to the next.
//
// Beside the time each reports processor seconds per 10^9 bytes, of this process (cpu-s/GB) and of the sender's side
// (side-cpu-s/GB): what the machine was busy, less the receiving process and the thread of the link's receiving end. The
// receiver is in a process of its own, as on another host it is, but that of BenchmarkRequestResponse.
// ZCNET_BENCH_CONGESTION chooses the congestion control.

// A benchLink is where a benchmark runs.
type benchLink struct {
	name   string
	pair   pairMaker
	listen func(t testing.TB) (net.Listener, dialer)
}

// onEachBenchLink runs a benchmark over loopback, where there is nothing to be gained, and over the link on which what
// near sends is not copied. Unlike onEachLink's, the buffers are the system's.
func onEachBenchLink(b *testing.B, bench func(b *testing.B, on benchLink)) {
	b.Run("link=loopback", func(b *testing.B) {
		bench(b, benchLink{"loopback", loopbackPair, func(t testing.TB) (net.Listener, dialer) {
			l, err := net.Listen("tcp4", "127.0.0.1:0")
			check(t, err)
			return l, loopbackDialer{}
		}})
	})
	b.Run("link=lab", func(b *testing.B) {
		link := lab.ForTest(b)
		pair := func(t testing.TB) (near, far *net.TCPConn) { return labPair(t, link) }
		bench(b, benchLink{"lab", pair, func(t testing.TB) (net.Listener, dialer) {
			l, err := link.Receiver.ListenAddr("tcp4", net.JoinHostPort(link.Receiver.IPv4().String(), "0"))
			check(t, err)
			return l, labDialer{link}
		}})
	})
}

// A benchMode is one of the ways to send that are compared.
type benchMode struct {
	name string
	open func(b *testing.B, c *net.TCPConn) benchSender
}

// A benchSender is a connection and a way to send over it.
type benchSender struct {
	net.Conn
	send  func(p Pinned) error // p may be the kernel's until flush returns
	flush func() error
}

var (
	modeCopy  = benchMode{"copy", openBenchCopy}
	modeNaive = benchMode{"naive", openBenchNaive}
	modeZcnet = benchMode{"zcnet", openBenchZcnet(nil)}
	// modeInsist goes on sending zero-copy where the kernel copies: it shows over loopback, which hardly loses anything, what the
	// completions cost.
	modeInsist = benchMode{"insist", openBenchZcnet(insist)}
)

func openBenchCopy(_ *testing.B, c *net.TCPConn) benchSender {
	return benchSender{
		Conn:  c,
		send:  func(p Pinned) error { _, err := c.Write(p.Bytes()); return err },
		flush: func() error { return nil },
	}
}

func openBenchNaive(b *testing.B, c *net.TCPConn) benchSender {
	s, err := perf.OpenNaive(c)
	check(b, err)
	return benchSender{
		Conn:  s,
		send:  func(p Pinned) error { _, err := s.Send(p.Bytes()); return err },
		flush: func() error { return s.Flush(context.Background()) },
	}
}

func openBenchZcnet(cfg *Config) func(*testing.B, *net.TCPConn) benchSender {
	return func(b *testing.B, c *net.TCPConn) benchSender {
		zc := wrap(b, c, cfg)
		return benchSender{
			Conn:  zc,
			send:  func(p Pinned) error { _, err := zc.WritePinned(p); return err },
			flush: func() error { return zc.Flush(context.Background()) },
		}
	}
}

// benchRegionSize is how much memory the benchmarks send from: more than the caches next to a processor hold.
const benchRegionSize = 64 << 20

func benchRegion(b *testing.B) Pinned {
	b.Helper()
	p, _ := allocNoise(b, benchRegionSize, 1)
	b.Cleanup(p.Release)
	return p
}

// A cycle goes through memory from its beginning to its end, and again.
type cycle struct {
	p  Pinned
	at int
}

func (c *cycle) next(n int) Pinned {
	if c.at+n > c.p.Len() {
		c.at = 0
	}
	c.at += n
	return c.p.Slice(c.at-n, c.at)
}

// byteSize names a size as zcperf does.
func byteSize(n int) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%dMiB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%dKiB", n>>10)
	}
	return fmt.Sprintf("%dB", n)
}

// measured runs op, which sends bytes bytes over c, as long as the benchmark
// lasts, and settle, which waits until all has arrived, and reports processor
// time.
func measured(b *testing.B, c *crowd, bytes int64, op, settle func() error) {
	b.Helper()
	stop, err := perf.StartIdlers()
	check(b, err)
	defer stop()
	b.SetBytes(bytes)
	clock := c.side()
	side, err := clock.Read()
	check(b, err)
	process := processTime(b)
	for b.Loop() {
		check(b, op())
	}
	b.StartTimer()
	check(b, settle())
	b.StopTimer()
	gb := float64(bytes) * float64(b.N) / 1e9
	b.ReportMetric((processTime(b)-process).Seconds()/gb, "cpu-s/GB")
	end, err := clock.Read()
	check(b, err)
	b.ReportMetric(end.Sub(side).Side.Seconds()/gb, "side-cpu-s/GB")
}

func processTime(b *testing.B) time.Duration {
	b.Helper()
	process, err := perf.ProcessTime()
	check(b, err)
	return process
}

// arrived waits until the peer's kernel has acknowledged what was sent over c.
func arrived(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	for {
		left := 0
		if ctlErr := raw.Control(func(fd uintptr) { left, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); ctlErr != nil {
			return ctlErr
		}
		if err != nil || left == 0 {
			return err
		}
		time.Sleep(20 * time.Microsecond)
	}
}

// discarded returns a connection whose other end drops what arrives.
func (on benchLink) discarded(b *testing.B) *crowd {
	l, d := on.listen(b)
	return newCrowd(b, 1, "discard", l, d)
}

// BenchmarkWrite sends by one call after the other, from memory that is cycled through.
func BenchmarkWrite(b *testing.B) {
	region := benchRegion(b)
	onEachBenchLink(b, func(b *testing.B, on benchLink) {
		for _, size := range []int{4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 16 << 20} {
			for _, mode := range []benchMode{modeCopy, modeNaive, modeZcnet} {
				b.Run(fmt.Sprintf("size=%s/mode=%s", byteSize(size), mode.name), func(b *testing.B) {
					c := on.discarded(b)
					near := c.near[0]
					s := mode.open(b, near)
					memory := cycle{p: region}
					measured(b, c, int64(size), func() error { return s.send(memory.next(size)) },
						func() error { return errors.Join(s.flush(), arrived(near)) })
				})
			}
		}
	})
}

// BenchmarkCopy is io.Copy to a connection from a reader that is nothing else, as of a decompressor or a cipher.
func BenchmarkCopy(b *testing.B) {
	region := benchRegion(b)
	onEachBenchLink(b, func(b *testing.B, on benchLink) {
		for _, mode := range []benchMode{modeCopy, modeZcnet} {
			b.Run("mode="+mode.name, func(b *testing.B) {
				c := on.discarded(b)
				near := c.near[0]
				s := mode.open(b, near)
				measured(b, c, int64(region.Len()), func() error {
					_, err := io.Copy(s.Conn, struct{ io.Reader }{bytes.NewReader(region.Bytes())})
					return err
				}, func() error { return errors.Join(s.flush(), arrived(near)) })
			})
		}
	})
}

// What BenchmarkRequestResponse sends at times.
const (
	bulkEvery = 64 // exchanges
	bulkSize  = 256 << 10
)

// BenchmarkRequestResponse sends a request and reads a response of the same size. Every bulkEvery-th request follows a
// long write, whose memory nobody waits for: the completions of that one come while the connection reads. The time of
// that write is part of that exchange's.
func BenchmarkRequestResponse(b *testing.B) {
	region := benchRegion(b)
	onEachBenchLink(b, func(b *testing.B, on benchLink) {
		for _, size := range []int{64, 16 << 10} {
			for _, mode := range []benchMode{modeCopy, modeZcnet} {
				b.Run(fmt.Sprintf("size=%s/mode=%s", byteSize(size), mode.name), func(b *testing.B) {
					var responding sync.WaitGroup
					b.Cleanup(responding.Wait) // after the connection was closed
					near, far := on.pair(b)
					responding.Go(func() { respond(far, size) })
					exchange(b, mode.open(b, near), region, size)
				})
			}
		}
	})
}

// exchange makes requests, and reports how long most of them and nearly all took.
func exchange(b *testing.B, s benchSender, region Pinned, size int) {
	memory, request, response := cycle{p: region}, make([]byte, size), make([]byte, size)
	took := make([]time.Duration, 0, 1<<20)
	for b.Loop() {
		start := time.Now()
		if len(took)%bulkEvery == bulkEvery-1 {
			check(b, s.send(memory.next(bulkSize)))
		}
		_, err := s.Write(request)
		check(b, err)
		_, err = io.ReadFull(s, response)
		check(b, err)
		took = append(took, time.Since(start))
	}
	check(b, s.flush())
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2]), "p50-ns")
	b.ReportMetric(float64(took[len(took)*99/100]), "p99-ns")
}

// respond answers requests of size bytes until the connection ends.
func respond(c *net.TCPConn, size int) {
	request, bulk := make([]byte, size), make([]byte, bulkSize)
	for i := 0; ; i++ {
		if i%bulkEvery == bulkEvery-1 {
			if _, err := io.ReadFull(c, bulk); err != nil {
				return
			}
		}
		if _, err := io.ReadFull(c, request); err != nil {
			return
		}
		if _, err := c.Write(request); err != nil {
			return
		}
	}
}

// crowdOp is what all connections of BenchmarkConns send together in one operation: the same for few as for many, so
// that their processor time can be compared.
const crowdOp int64 = 10_000 * 256 << 10

// BenchmarkConns has few and many connections send at once, each from a goroutine of its own. It takes some seconds for each: -benchtime 5s is about right.
//
// The lab's link loses segments when so many send at once, for its receiving end has a ring of 256 (VETH_RING_SIZE in
// drivers/net/veth.c). What is sent again costs time and processors, so the number is reported: runs with very
// different numbers do not compare.
func BenchmarkConns(b *testing.B) {
	region := benchRegion(b)
	onEachBenchLink(b, func(b *testing.B, on benchLink) {
		modes := []benchMode{modeCopy, modeZcnet}
		if on.name == "loopback" {
			modes = append(modes, modeInsist)
		}
		benchConns(b, region, modes, on.listen)
	})
}

func benchConns(b *testing.B, region Pinned, modes []benchMode, listen func(t testing.TB) (net.Listener, dialer)) {
	for _, size := range []int{64 << 10, 256 << 10} {
		for _, n := range []int{10, 10_000} {
			for _, mode := range modes {
				b.Run(fmt.Sprintf("size=%s/conns=%d/mode=%s", byteSize(size), n, mode.name), func(b *testing.B) {
					l, d := listen(b)
					benchCrowd(b, newCrowd(b, n, "discard", l, d), mode, region, size)
				})
			}
		}
	}
}

// benchCrowd sends over all connections of a crowd, by writes of size bytes.
func benchCrowd(b *testing.B, c *crowd, mode benchMode, region Pinned, size int) {
	senders := make([]benchSender, len(c.near))
	for i, near := range c.near {
		senders[i] = mode.open(b, near)
	}
	writes := int(crowdOp / int64(len(senders)) / int64(size))
	op := func() error { return sendAtOnce(senders, region, size, writes) }
	for range warmUps(writes, size) {
		check(b, op())
	}
	before := retransmits(b, c.near)
	measured(b, c, crowdOp, op, func() error {
		var errs []error
		for i, s := range senders {
			errs = append(errs, s.flush(), arrived(c.near[i]))
		}
		return errors.Join(errs...)
	})
	b.ReportMetric(float64(retransmits(b, c.near)-before)/(float64(crowdOp)*float64(b.N)/1e9), "retransmits/GB")
	for _, s := range senders {
		checkAllReleased(b, s.Conn)
	}
}

// warmUps returns how many operations it takes until every connection has had the time to learn what its path does.
func warmUps(writes, size int) int {
	return (copiesToSwitch + writes - 1) / writes
}

// sendAtOnce makes a number of writes over each of the connections.
func sendAtOnce(senders []benchSender, region Pinned, size, writes int) error {
	errs := make([]error, len(senders))
	var sending sync.WaitGroup
	for i, s := range senders {
		sending.Go(func() {
			memory := cycle{p: region, at: i * size % region.Len()}
			for range writes {
				if errs[i] = s.send(memory.next(size)); errs[i] != nil {
					return
				}
			}
		})
	}
	sending.Wait()
	return errors.Join(errs...)
}

// retransmits returns how many segments the kernel has sent again.
func retransmits(b *testing.B, conns []*net.TCPConn) (n int64) {
	b.Helper()
	for _, c := range conns {
		raw, err := c.SyscallConn()
		check(b, err)
		var info *unix.TCPInfo
		check(b, raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }))
		check(b, err)
		n += int64(info.Total_retrans)
	}
	return n
}

// checkAllReleased checks that every ticket of c is done.
func checkAllReleased(b *testing.B, c net.Conn) {
	b.Helper()
	zc, ok := c.(*Conn)
	if !ok {
		return
	}
	if s := zc.Stats(); s.IDsInFlight != 0 || s.BytesInFlight != 0 || s.ConnectionFailed {
		b.Fatalf("after Flush: %d IDs and %d bytes in flight, failed: %v", s.IDsInFlight, s.BytesInFlight, s.ConnectionFailed)
	}
}

// BenchmarkBookkeeping is what the library adds to a flagged call: everything
// but the system calls, with completions that come every reapEvery calls.
func BenchmarkBookkeeping(b *testing.B) {
	k := &instantKernel{kernel: system{}}
	s := &socket{tc: &net.TCPConn{}, raw: k, kernel: k, cfg: (*Config)(nil).withDefaults()}
	c := &Conn{TCPConn: s.tc, s: s}
	p, err := Alloc(DefaultThreshold)
	check(b, err)
	defer p.Release()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.WritePinned(p); err != nil {
			b.Fatal(err)
		}
	}
	s.reap()
	if n := c.Stats().IDsInFlight; n != 0 {
		b.Fatalf("%d IDs in flight at the end", n)
	}
}

// instantKernel queues everything at once, and completes it when the error
// queue is read.
type instantKernel struct {
	kernel
	sent, completed uint32
}

func (k *instantKernel) Control(f func(fd uintptr)) error    { f(0); return nil }
func (k *instantKernel) Read(func(fd uintptr) bool) error    { return nil }
func (k *instantKernel) Write(f func(fd uintptr) bool) error { f(0); return nil }

func (k *instantKernel) send(_ uintptr, m *message, _ int) (int, error) {
	k.sent++
	return m.size, nil
}

func (k *instantKernel) poll(_ uintptr, p *[1]unix.PollFd) error {
	p[0].Revents = 0
	if k.completed < k.sent {
		p[0].Revents = unix.POLLERR
	}
	return nil
}

func (k *instantKernel) receive(_ uintptr, hdr *unix.Msghdr) (int, error) {
	m := controlMessage(unix.SOL_IP, unix.IP_RECVERR, extendedErr(0, unix.SO_EE_ORIGIN_ZEROCOPY, 0, k.completed, k.sent-1))
	k.completed = k.sent
	hdr.SetControllen(copy(unsafe.Slice(hdr.Control, int(hdr.Controllen)), m))
	return 0, nil
}

func (k *instantKernel) join(*socket) error                         { return nil }
func (k *instantKernel) arm(uintptr, *socket, interest, bool) error { return nil }
func (k *instantKernel) disarm(uintptr, *socket)                    {}
func (k *instantKernel) setDeferred(*socket, bool)                  {}
func (k *instantKernel) remove(uintptr, *socket, bool)              {}
