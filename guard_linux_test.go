package zcnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Guard mode: that mistakes are caught, and that nothing else is.

var guarded = &Config{Threshold: 1, Guard: true, CloseTimeout: 2 * time.Second}

func init() {
	for name, child := range map[string]func() error{
		"guard: Alloc":      guardAllocChild,
		"guard: Pool":       guardPoolChild,
		"guard: ReadFrom":   guardReadFromChild,
		"guard: sent twice": guardTwiceChild,
	} {
		children[name] = child
	}
}

// nextLine returns the line after the one that it is called on, as file:line.
func nextLine() string {
	_, file, line, _ := runtime.Caller(1)
	return fmt.Sprintf("%s:%d", file, line+1)
}

// lendMuch is pendingWrite for a child, and returns where it lent the memory.
func lendMuch(c *Conn, p Pinned) (site string, err error) {
	if err := c.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		return "", err
	}
	site = nextLine()
	ticket, err := c.WritePinned(p)
	if !errors.Is(err, os.ErrDeadlineExceeded) || ticket.Ready() {
		return "", fmt.Errorf("the write: %v, ready %v; want a timeout with bytes in flight", err, ticket.Ready())
	}
	return site, nil
}

func guardAllocChild() error {
	c, far, err := childPair(&Config{Guard: true})
	if err != nil {
		return err
	}
	defer far.Close()
	p, err := Alloc(16 << 20)
	if err != nil {
		return err
	}
	lent, err := lendMuch(c, p)
	if err != nil {
		return err
	}
	fmt.Printf("WritePinned of 16777216 bytes at %s (\n%s\n", lent, nextLine())
	p.Bytes()[100_000]++
	return nil
}

func guardPoolChild() error {
	c, far, err := childPair(&Config{Guard: true})
	if err != nil {
		return err
	}
	defer far.Close()
	pool, err := NewPool(16<<20, 2)
	if err != nil {
		return err
	}
	p, err := pool.Get(context.Background())
	if err != nil {
		return err
	}
	lent, err := lendMuch(c, p)
	if err != nil {
		return err
	}
	fmt.Printf("WritePinned of 16777216 bytes at %s (\n%s\n", lent, nextLine())
	copy(p.Bytes()[12345:], make([]byte, 100_000))
	return nil
}

func guardReadFromChild() error {
	c, far, err := childPair(&Config{Guard: true})
	if err != nil {
		return err
	}
	defer far.Close()
	if err := c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		return err
	}
	var last lastBuffer
	lent := nextLine()
	_, err = io.Copy(c, &last)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("the copy: %v, want a timeout", err)
	}
	fmt.Printf("ReadFrom of %d bytes at %s (\n%s\n", readBufferSize, lent, nextLine())
	last.before[0]++
	return nil
}

// lastBuffer is an endless reader that keeps the buffer before the last one.
type lastBuffer struct{ before, last []byte }

func (l *lastBuffer) Read(b []byte) (int, error) {
	l.before, l.last = l.last, b
	return len(b), nil
}

func guardTwiceChild() error {
	c, far, err := childPair(&Config{Guard: true})
	if err != nil {
		return err
	}
	defer far.Close()
	p, err := Alloc(16 << 20)
	if err != nil {
		return err
	}
	first, err := c.WritePinned(p.Slice(0, 64<<10)) // the peer's socket takes it
	if err != nil {
		return err
	}
	lent, err := lendMuch(c, p)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	if err := first.Wait(ctx); err != nil {
		return err
	}
	fmt.Printf("WritePinned of 16777216 bytes at %s (\n%s\n", lent, nextLine())
	p.Bytes()[1000]++
	return nil
}

func TestGuardedMemoryFaultsAtTheStrayWriteAndNamesTheLender(t *testing.T) {
	for _, name := range []string{"guard: Alloc", "guard: Pool", "guard: ReadFrom", "guard: sent twice"} {
		t.Run(strings.TrimPrefix(name, "guard: "), func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(testContext(t), os.Args[0])
			cmd.Env = append(os.Environ(), childEnv+"="+name)
			var out, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &stderr
			err := cmd.Run()
			if _, ok := errors.AsType[*exec.ExitError](err); !ok {
				t.Fatalf("%v, want a crash\n%s%s", err, &out, &stderr)
			}
			wants := strings.Split(strings.TrimSpace(out.String()), "\n")
			if len(wants) != 2 {
				t.Fatalf("it did not come to the stray write: %s", &out)
			}
			if runtime.GOARCH == "amd64" {
				wants[0] = "lent by " + wants[0]
			} else {
				wants = wants[1:]
			}
			for _, want := range append(wants, "unexpected fault address", "fatal error: fault") {
				if !strings.Contains(stderr.String(), want) {
					t.Errorf("standard error lacks %q:\n%s", want, &stderr)
				}
			}
			t.Logf("%s", &stderr)
		})
	}
}

// faults reports whether f faults.
func faults(f func()) (faulted bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if err, ok := recover().(error); ok {
			faulted = strings.Contains(err.Error(), "invalid memory address")
		}
	}()
	f()
	return false
}

func TestGuardForbidsNothingButWritesToMemoryInFlight(t *testing.T) {
	near, far := narrowPair(t)
	c := wrap(t, near, guarded)
	p, want := allocNoise(t, 16<<20, 1)
	defer p.Release()
	const from = 100 << 10
	lent := p.Slice(from+10, 15<<20)
	ticket, queued := pendingWrite(t, c, lent)
	b := p.Bytes()
	if !bytes.Equal(b, want) {
		t.Error("it does not read as before")
	}
	for _, tt := range []struct {
		what  string
		at    int
		fault bool
	}{
		{"before", 0, false},
		{"in the first page that is lent in part, before it", from + 9, false},
		{"the first page that is lent whole", from + page, true},
		{"in the middle", from + queued/2, true},
		{"in the last page that is queued whole", (from+10+queued)&^(page-1) - 1, true},
		{"where the write did not come to", from + 10 + queued, false},
		{"after", 15 << 20, false},
	} {
		if got := faults(func() { b[tt.at]++ }); got != tt.fault {
			t.Errorf("a write %s: fault %v, want %v", tt.what, got, tt.fault)
		}
	}
	expect(t, far, want[from+10:from+10+queued])
	check(t, ticket.Wait(testContext(t)))
	if faults(func() { clear(b) }) {
		t.Error("a write after completion faults")
	}
	if n := c.Stats().GuardViolations; n != 0 {
		t.Errorf("%d violations, want none", n)
	}
}

func TestGuardFollowsEachLoanOfAPage(t *testing.T) {
	near, far := narrowPair(t)
	c := wrap(t, near, guarded)
	p, want := allocNoise(t, 16<<20, 1)
	first, err := c.WritePinned(p.Slice(0, 16<<10)) // the peer's socket takes it
	check(t, err)
	second, queued := pendingWrite(t, c, p.Slice(8<<10, p.Len()))
	check(t, first.Wait(testContext(t)))
	b := p.Bytes()
	if faults(func() { b[0]++ }) {
		t.Error("what only the first write had faults after it")
	}
	if !faults(func() { b[12<<10]++ }) {
		t.Error("what both had does not fault while the second is in flight")
	}
	expect(t, far, want[:16<<10])
	expect(t, far, want[8<<10:8<<10+queued])
	check(t, second.Wait(testContext(t)))
	if faults(func() { clear(b) }) {
		t.Error("a write after both faults")
	}
	p.Release()
}

func TestGuardedPoolBufferComesBackWritable(t *testing.T) {
	near, far := narrowPair(t)
	c := wrap(t, near, guarded)
	go io.Copy(io.Discard, far)
	pool, err := NewPool(100_000, 2)
	check(t, err)
	defer pool.Close()
	for range 200 {
		p, err := pool.Get(testContext(t))
		check(t, err)
		clear(p.Bytes())
		_, err = c.WritePinned(p)
		check(t, err)
		p.Release()
	}
	check(t, c.Flush(testContext(t)))
}

func TestKernelCannotReadIntoGuardedMemory(t *testing.T) {
	near, far := narrowPair(t)
	c := wrap(t, near, guarded)
	p, want := allocNoise(t, 16<<20, 1)
	defer p.Release()
	ticket, queued := pendingWrite(t, c, p)
	_, err := far.Write([]byte("stray"))
	check(t, err)
	if n, err := c.Read(p.Bytes()); !errors.Is(err, syscall.EFAULT) {
		t.Errorf("a read into memory in flight: %d, %v; want EFAULT", n, err)
	}
	expect(t, far, want[:queued])
	check(t, ticket.Wait(testContext(t)))
	if n, err := c.Read(p.Bytes()); n != 5 || err != nil {
		t.Errorf("a read after completion: %d, %v; want 5 bytes", n, err)
	}
}

func TestGuardReportsPinnedMemoryThatChanged(t *testing.T) {
	for _, tt := range []struct {
		name    string
		changed []int // bytes
		want    string
	}{
		{"unchanged", nil, ""},
		{"one byte", []int{10_000}, "bytes 8192 to 12287 of it, lent by WritePinned at "},
		{"the first byte", []int{0}, "bytes 0 to 4095 of it, lent by WritePinned at "},
		{"several", []int{70_001, 200_000, 200_001}, "bytes 69632 to 73727 of it and 1 more blocks, lent by WritePinned at "},
		{"where the write did not come to", []int{-1}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			near, far := narrowPair(t)
			var log syncBuffer
			cfg := *guarded
			cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
			c := wrap(t, near, &cfg)
			data := noise(16<<20, 1)
			ticket, queued := pendingWrite(t, c, Pin(data))
			for _, at := range tt.changed {
				data[(at+len(data))%len(data)]++
			}
			c.Stats() // orders the change before the check for the race detector
			_, err := io.CopyN(io.Discard, far, int64(queued))
			check(t, err)
			err = ticket.Wait(testContext(t))
			if tt.want == "" {
				if s := c.Stats(); err != nil || log.String() != "" || s.GuardViolations != 0 {
					t.Fatalf("%v, %d violations, log %q; want nothing", err, s.GuardViolations, log.String())
				}
				return
			}
			site := "hazard_linux_test.go:" // of pendingWrite
			if !errors.Is(err, ErrChangedInFlight) || errors.Is(err, ErrConnFailed) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), site) {
				t.Errorf("the ticket: %v\nwant ErrChangedInFlight with %q and %q", err, tt.want, site)
			}
			if err := c.Flush(testContext(t)); !errors.Is(err, ErrChangedInFlight) {
				t.Errorf("Flush: %v, want ErrChangedInFlight", err)
			}
			said := log.String()
			what, _, _ := strings.Cut(tt.want, ",")
			for _, want := range []string{"level=ERROR", what, site, "lent=", "found=", "remote=" + near.RemoteAddr().String()} {
				if !strings.Contains(said, want) {
					t.Errorf("the log lacks %q: %s", want, said)
				}
			}
			if s := c.Stats(); s.GuardViolations != 1 || s.ConnectionFailed {
				t.Errorf("%d violations, connection failed %v; want 1, false", s.GuardViolations, s.ConnectionFailed)
			}
			t.Logf("%v\n%s", err, said)

			// The connection goes on.
			again, err := c.WritePinned(Pin(data[:100_000]))
			check(t, err)
			expect(t, far, data[:100_000])
			check(t, again.Wait(testContext(t)))
		})
	}
}

// syncBuffer is a buffer that a logger writes to while the test reads it.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestGuardSumsWhatIsLentOfAPageInPart(t *testing.T) {
	near, far := narrowPair(t)
	cfg := *guarded
	cfg.Logger = slog.New(slog.DiscardHandler)
	c := wrap(t, near, &cfg)
	p, _ := allocNoise(t, 16<<20, 1)
	defer p.Release()
	ticket, queued := pendingWrite(t, c, p.Slice(1000, p.Len()))
	if faults(func() { p.Bytes()[1500]++ }) {
		t.Error("a page that is lent in part is protected")
	}
	c.Stats() // as above
	_, err := io.CopyN(io.Discard, far, int64(queued))
	check(t, err)
	if err := ticket.Wait(testContext(t)); !errors.Is(err, ErrChangedInFlight) || !strings.Contains(err.Error(), "bytes 0 to 3095 ") {
		t.Errorf("the ticket: %v, want ErrChangedInFlight in bytes 0 to 3095", err)
	}
}

func TestGuardWithoutMappingsToSpareSums(t *testing.T) {
	calls := 0
	mprotect = func(b []byte, prot int) error {
		if calls++; prot == unix.PROT_READ {
			return unix.ENOMEM
		}
		return unix.Mprotect(b, prot)
	}
	defer func() { mprotect = unix.Mprotect }()
	near, far := narrowPair(t)
	cfg := *guarded
	cfg.Logger = slog.New(slog.DiscardHandler)
	c := wrap(t, near, &cfg)
	p, _ := allocNoise(t, 16<<20, 1)
	defer p.Release()
	ticket, queued := pendingWrite(t, c, p)
	p.Bytes()[10_000]++
	c.Stats() // as above
	_, err := io.CopyN(io.Discard, far, int64(queued))
	check(t, err)
	if err := ticket.Wait(testContext(t)); !errors.Is(err, ErrChangedInFlight) || calls == 0 {
		t.Errorf("the ticket after %d calls of mprotect: %v, want ErrChangedInFlight", calls, err)
	}
}

func TestGuardWithoutMappingsToSpareLeavesNothingProtected(t *testing.T) {
	pool, err := NewPool(64<<10, 3)
	check(t, err)
	defer pool.Close()
	ps := make([]Pinned, 3)
	for i := range ps {
		ps[i], err = pool.Get(testContext(t))
		check(t, err)
		defer ps[i].Release()
		if !ps[i].r.protect(ps[i].Bytes()) {
			t.Fatal("it cannot be protected")
		}
	}
	mprotect = func(b []byte, prot int) error {
		if len(b) < len(pool.memory) {
			return unix.ENOMEM // the kernel would have to cut a mapping in three
		}
		return unix.Mprotect(b, prot)
	}
	defer func() { mprotect = unix.Mprotect }()
	for i := range ps {
		if ps[i].r.unprotect(ps[i].Bytes()); faults(func() { clear(ps[i].Bytes()) }) {
			t.Errorf("buffer %d stays protected", i)
		}
	}
}

func TestUnprovenMemoryStaysProtected(t *testing.T) {
	near, _ := narrowPair(t)
	c := wrap(t, near, guarded)
	p, _ := allocNoise(t, 16<<20, 1)
	ticket, _ := pendingWrite(t, c, p)
	c.s.ledger().abandon()
	if err := ticket.Wait(testContext(t)); !errors.Is(err, ErrReleaseUnproven) {
		t.Fatalf("the ticket: %v, want ErrReleaseUnproven", err)
	}
	if !faults(func() { p.Bytes()[0]++ }) {
		t.Error("a write to memory that may still be sent does not fault")
	}
}

// TestGuardKeepsTheRuntimesFaultHandling looks at faults that have nothing to do with the guard once its handler is there.
func TestGuardKeepsTheRuntimesFaultHandling(t *testing.T) {
	clearTrap(setTrap(make([]byte, page), "nothing\n"))
	var nothing *[1 << 20]byte
	if !faults(func() { nothing[0]++ }) {
		t.Error("no panic by a nil pointer")
	}
	mem, err := unix.Mmap(-1, 0, page, unix.PROT_READ, unix.MAP_ANON|unix.MAP_PRIVATE)
	check(t, err)
	defer unix.Munmap(mem)
	if !faults(func() { mem[0]++ }) {
		t.Error("no panic by read-only memory of somebody else")
	}
}

func TestMoreGuardedLoansThanTraps(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("there are no traps here")
	}
	b := make([]byte, page)
	var set []int
	for {
		i := setTrap(b, strings.Repeat("long ", 200))
		if i < 0 {
			break
		}
		set = append(set, i)
	}
	for _, i := range set {
		clearTrap(i)
	}
	if again := setTrap(b, "x\n"); again < 0 || len(set) == 0 {
		t.Errorf("%d traps, then none after they were cleared", len(set))
	} else {
		clearTrap(again)
	}
}

func BenchmarkGuard(b *testing.B) {
	for _, memory := range []string{"own", "pin"} {
		for _, guard := range []bool{false, true} {
			b.Run(fmt.Sprintf("memory=%s/guard=%s", memory, map[bool]string{false: "off", true: "on"}[guard]), func(b *testing.B) {
				near, far := loopbackPair(b)
				go io.Copy(io.Discard, far)
				c := wrap(b, near, &Config{insist: true, Guard: guard})
				const size = 256 << 10
				p := Pin(noise(size, 1))
				if memory == "own" {
					own, _ := allocNoise(b, size, 1)
					defer own.Release()
					p = own
				}
				b.SetBytes(size)
				b.ReportAllocs()
				for b.Loop() {
					ticket, err := c.WritePinned(p)
					check(b, err)
					check(b, ticket.Wait(context.Background()))
				}
			})
		}
	}
}
