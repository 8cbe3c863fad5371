package zcnet

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// in returns a reader that returns content in pieces of n bytes, and then err.
func in(content []byte, n int, err error) io.Reader {
	r := io.Reader(bytes.NewReader(content))
	if err != nil {
		r = io.MultiReader(r, failing{err})
	}
	return &pieces{r, n}
}

type pieces struct {
	r io.Reader
	n int
}

func (p *pieces) Read(b []byte) (int, error) { return p.r.Read(b[:min(p.n, len(b))]) }

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestReadFromSendsWhateverTheReaderGives(t *testing.T) {
	for _, cfg := range []struct {
		name string
		cfg  *Config
	}{{"adapting", nil}, {"always without copy", insist}} {
		for _, piece := range []int{1, 4096, 50000, 256 << 10, 1 << 30} {
			content := noise(min(3<<20, 5000*piece), uint64(piece))
			c, s := loopbackPair(t)
			zc := wrap(t, c, cfg.cfg)
			var reading sync.WaitGroup
			reading.Go(func() {
				expect(t, s, content)
				expectEOF(t, s)
			})
			n, err := io.Copy(zc, in(content, piece, nil))
			if err != nil || n != int64(len(content)) {
				t.Errorf("%s, pieces of %d: %d of %d bytes, %v", cfg.name, piece, n, len(content), err)
			}
			check(t, zc.Close())
			reading.Wait()
			check(t, zc.Flush(testContext(t)))
		}
	}
	eventually(t, "all buffers come back", func() bool { return len(readBuffers().free) == readBufferCount })
}

// A threshold that is longer than the library's buffers is no reason to copy everything; one that no write reaches is a
// way to have that.
func TestReadFromWithALongThreshold(t *testing.T) {
	for _, test := range []struct {
		threshold int
		copies    bool
	}{{2 * readBufferSize, false}, {longestReadBuffer, false}, {longestReadBuffer + 1, true}, {math.MaxInt, true}} {
		c, s := loopbackPair(t)
		zc := wrap(t, c, &Config{Threshold: test.threshold, insist: true})
		content := noise(4*min(test.threshold, longestReadBuffer), 1)
		var reading sync.WaitGroup
		reading.Go(func() { expect(t, s, content) })
		_, err := zc.ReadFrom(in(content, 1<<30, nil))
		check(t, err)
		reading.Wait()
		got, all := zc.Stats().CopiedBytes, int64(len(content))
		if test.copies && got != all || !test.copies && got > all/2 {
			t.Errorf("threshold %d: %d of %d bytes copied, want all: %v", test.threshold, got, all, test.copies)
		}
	}
	eventually(t, "all buffers come back", func() bool { return len(longReadBuffers().free) == longReadBufferCount })
}

func TestReadFromReportsErrorsOfBothSides(t *testing.T) {
	c, s := loopbackPair(t)
	zc := wrap(t, c, insist)
	content := noise(1<<20, 1)
	mine := errors.New("the reader's own error")
	var reading sync.WaitGroup
	reading.Go(func() { expect(t, s, content) })
	if n, err := zc.ReadFrom(in(content, 100000, mine)); err != mine || n != int64(len(content)) {
		t.Errorf("%d bytes, %v; want %d and the reader's error", n, err, len(content))
	}
	reading.Wait()

	tooMuch := in(noise(64<<20, 2), 1<<20, nil)
	check(t, zc.SetWriteDeadline(time.Now().Add(50*time.Millisecond)))
	sent, err := zc.ReadFrom(tooMuch)
	if !errors.Is(err, os.ErrDeadlineExceeded) || sent == 0 {
		t.Errorf("a peer that does not read: %d bytes, %v; want some, and a timeout", sent, err)
	}
	check(t, zc.CloseWrite())
	if got, err := io.Copy(io.Discard, s); got != sent || err != nil {
		t.Errorf("the peer received %d bytes and %v, ReadFrom said %d", got, err, sent)
	}
	check(t, zc.Close())
	if _, err := zc.ReadFrom(in(content, 100, nil)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v, want net.ErrClosed", err)
	}
	eventually(t, "all buffers come back", func() bool { return len(readBuffers().free) == readBufferCount })
}

func TestReadFromFilesAndConnectionsUsesTheKernel(t *testing.T) {
	content := noise(1<<20, 1)
	path := filepath.Join(t.TempDir(), "content")
	check(t, os.WriteFile(path, content, 0o600))
	sources := map[string]func(t *testing.T) io.Reader{
		"file": func(t *testing.T) io.Reader {
			f, err := os.Open(path)
			check(t, err)
			t.Cleanup(func() { f.Close() })
			return f
		},
		"limited file": func(t *testing.T) io.Reader {
			f, err := os.Open(path)
			check(t, err)
			t.Cleanup(func() { f.Close() })
			return io.LimitReader(f, int64(len(content)))
		},
		"TCP": func(t *testing.T) io.Reader {
			near, far := loopbackPair(t)
			go func() { far.Write(content); far.Close() }()
			return near
		},
		"Conn": func(t *testing.T) io.Reader {
			near, far := loopbackPair(t)
			go func() { far.Write(content); far.Close() }()
			return wrap(t, near, insist)
		},
	}
	for name, source := range sources {
		t.Run(name, func(t *testing.T) {
			c, s := loopbackPair(t)
			zc := wrap(t, c, insist)
			var reading sync.WaitGroup
			reading.Go(func() { expect(t, s, content) })
			n, err := io.Copy(zc, source(t))
			if err != nil || n != int64(len(content)) {
				t.Errorf("%d of %d bytes, %v", n, len(content), err)
			}
			reading.Wait()
			if w := zc.Stats().Writes; w != 0 {
				t.Errorf("%d writes of the library; sendfile or splice should have moved it all", w)
			}
		})
	}
}

// When all buffers are in flight ReadFrom neither waits nor makes more.
func TestReadFromCopiesWhenItsBuffersAreInFlight(t *testing.T) {
	for _, test := range []struct {
		pool      *Pool
		threshold int
	}{{readBuffers(), 0}, {longReadBuffers(), longestReadBuffer}} {
		var held []Pinned // as if other connections' peers did not read
		for p, ok := test.pool.tryGet(); ok; p, ok = test.pool.tryGet() {
			held = append(held, p)
		}
		c, s := loopbackPair(t)
		zc := wrap(t, c, &Config{Threshold: test.threshold, insist: true})
		content := noise(2<<20, 1)
		var reading sync.WaitGroup
		reading.Go(func() { expect(t, s, content) })
		if n, err := zc.ReadFrom(bytes.NewReader(content)); err != nil || n != int64(len(content)) {
			t.Errorf("%d of %d bytes, %v", n, len(content), err)
		}
		reading.Wait()
		if got := zc.Stats(); got.CopiedBytes != int64(len(content)) || got.Writes != uint64(len(content)/plainRead+1) {
			t.Errorf("%d of %d bytes copied in %d writes, want all in pieces of %d", got.CopiedBytes, len(content), got.Writes, plainRead)
		}
		for _, p := range held {
			p.Release()
		}
	}
}

// A script is a reader that returns pieces of given lengths, before each of
// which it calls before.
type script struct {
	pieces []int
	before func(i int)
	i      int
}

func (s *script) Read(b []byte) (int, error) {
	if s.i == len(s.pieces) {
		return 0, io.EOF
	}
	s.before(s.i)
	n := min(s.pieces[s.i], len(b))
	if s.pieces[s.i] -= n; s.pieces[s.i] == 0 {
		s.i++
	}
	clear(b[:n])
	return n, nil
}

// repeated returns n times v.
func repeated(n, v int) []int { return slices.Repeat([]int{v}, n) }

func TestReadFromHoldsLittleWhileItsReaderWaits(t *testing.T) {
	const copies = 2 * readBufferCount
	for _, test := range []struct {
		name   string
		pieces []int // before it waits
		long   int   // the most long buffers that may be held
		heap   int   // for each
	}{
		{"from the beginning", nil, 0, 10 << 10},
		{"after a few bytes", []int{10, 100}, 0, 10 << 10},
		{"after pages", repeated(3, 4<<10), 0, 10 << 10},
		{"after records", repeated(3, 16<<10), 0, 50 << 10},
		{"after pieces of io.Copy", repeated(5, 32<<10), 0, 50 << 10},
		{"after a long message", []int{600 << 10}, 0, 50 << 10},
		{"after many prompt records", repeated(40, 16<<10), readBufferCount / 2, 50 << 10},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, s := loopbackPair(t)
			zc := wrap(t, c, &Config{insist: true})
			var reading, copying sync.WaitGroup
			reading.Go(func() { io.Copy(io.Discard, s) })
			var waiting atomic.Int32
			end := make(chan struct{})
			before := heapInUse()
			for range copies {
				r := &script{pieces: append(slices.Clone(test.pieces), 1), before: func(i int) {
					if i == len(test.pieces) {
						waiting.Add(1)
						<-end
					}
				}}
				copying.Go(func() { _, _ = zc.ReadFrom(r) })
			}
			eventually(t, "all wait", func() bool { return waiting.Load() == copies })
			eventually(t, "the buffers come back", func() bool { return readBufferCount-len(readBuffers().free) <= test.long })
			if grown := heapInUse() - before; grown > int64(copies*test.heap) {
				t.Errorf("%d copies that wait hold %d KiB of heap, want at most %d", copies, grown>>10, copies*test.heap>>10)
			}
			close(end)
			copying.Wait()
			check(t, zc.Close())
			reading.Wait()
		})
	}
}

// What has been read arrives while the reader waits, however prompt it has been.
func TestReadFromSendsWhatItHasWhileItsReaderWaits(t *testing.T) {
	pipes := map[string]func() (io.ReadCloser, io.WriteCloser){
		"io.Pipe":  func() (io.ReadCloser, io.WriteCloser) { return io.Pipe() },
		"net.Pipe": func() (io.ReadCloser, io.WriteCloser) { return net.Pipe() },
	}
	for name, pipe := range pipes {
		for _, piece := range []int{1, idleRead, 16 << 10, plainRead, 100 << 10} {
			t.Run(fmt.Sprintf("%s, %d bytes", name, piece), func(t *testing.T) {
				c, s := loopbackPair(t)
				zc := wrap(t, c, nil)
				r, w := pipe()
				var copying sync.WaitGroup
				copying.Go(func() { io.Copy(zc, r) })
				check(t, s.SetReadDeadline(time.Now().Add(testTimeout)))
				for i, burst := range []int{1, 1, 30, 1, 30, 1} {
					content := noise(burst*piece, uint64(i))
					copying.Go(func() {
						for at := 0; at < len(content); at += piece {
							_, _ = w.Write(content[at : at+piece])
						}
					})
					expect(t, s, content)
				}
				check(t, w.Close())
				copying.Wait()
			})
		}
	}
}

// newFeed returns a ReadFrom that has not begun.
func newFeed(c *Conn, r io.Reader) *feed {
	return &feed{s: c.s, c: c, r: r, pool: c.s.readPool(), patience: firstPatience}
}

func TestReadFromHoldsNothingBackFromAReaderThatIsNotPrompt(t *testing.T) {
	c, s := loopbackPair(t)
	zc := wrap(t, c, nil)
	go io.Copy(io.Discard, s)
	f := newFeed(zc, &script{pieces: repeated(50, 16<<10), before: func(int) { time.Sleep(longestHold) }})
	if err := f.run(); err != io.EOF || f.total != 50*16<<10 || f.timer != nil {
		t.Errorf("%v after %d bytes, held something back: %v", err, f.total, f.timer != nil)
	}
}

// A reader that is prompt after each answer of the peer only waits whenever
// something is held back.
func TestReadFromGivesUpGatheringWhatTheReaderWaitsFor(t *testing.T) {
	c, s := loopbackPair(t)
	check(t, s.SetReadDeadline(time.Now().Add(testTimeout)))
	zc := wrap(t, c, nil)
	piece := make([]byte, 100)
	f := newFeed(zc, &script{pieces: repeated(1000, len(piece)), before: func(i int) {
		if i > 0 {
			expect(t, s, piece)
		}
	}})
	if err := f.run(); err != io.EOF {
		t.Error(err)
	}
	if f.timer != nil && f.patience == firstPatience {
		t.Error("something was held back each time, and the reader waited each time")
	}
}

func TestReadFromGathersWhatAPromptReaderReturnsInPieces(t *testing.T) {
	content := make([]byte, 16<<20)
	var zipped bytes.Buffer
	z, err := gzip.NewWriterLevel(&zipped, gzip.NoCompression)
	check(t, err)
	_, err = z.Write(content)
	check(t, errors.Join(err, z.Close()))
	sources := map[string]func() io.Reader{
		"records": func() io.Reader { return in(content, 16<<10, nil) },
		"bytes":   func() io.Reader { return in(content, 1000, nil) },
		"gzip": func() io.Reader {
			r, err := gzip.NewReader(bytes.NewReader(zipped.Bytes()))
			check(t, err)
			return r
		},
	}
	for name, source := range sources {
		t.Run(name, func(t *testing.T) {
			// On a busy machine no reader is prompt all the time.
			eventually(t, "most of it is sent without a copy", func() bool {
				c, s := loopbackPair(t)
				zc := wrap(t, c, &Config{insist: true})
				var reading sync.WaitGroup
				reading.Go(func() { expect(t, s, content) })
				n, err := io.Copy(zc, source())
				if err != nil || n != int64(len(content)) {
					t.Errorf("%d of %d bytes, %v", n, len(content), err)
				}
				reading.Wait()
				check(t, zc.Close())
				return zc.Stats().CopiedBytes < n/4
			})
		})
	}
}

func TestReadFromWhoseReaderPanicsSendsWhatWasRead(t *testing.T) {
	c, s := loopbackPair(t)
	zc := wrap(t, c, insist)
	zc.s.cfg.Threshold = DefaultThreshold
	content := noise(100*1000, 1)
	var read atomic.Int64
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the reader's panic did not come through")
			}
		}()
		_, _ = zc.ReadFrom(io.TeeReader(in(content, 1000, nil), writerFunc(func(b []byte) (int, error) {
			if read.Add(int64(len(b))) > 50*1000 {
				panic("the reader's own")
			}
			return len(b), nil
		})))
	}()
	expect(t, s, content[:50*1000])
	check(t, zc.Close())
	expectEOF(t, s)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestReadFromReportsThatAHeldPieceCouldNotBeSent(t *testing.T) {
	c, _ := loopbackPair(t)
	zc := wrap(t, c, nil)
	var f *feed
	held := func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.have > 0
	}
	f = newFeed(zc, &script{pieces: repeated(10000, 100), before: func(int) {
		if held() {
			check(t, zc.SetWriteDeadline(time.Unix(1, 0)))
			eventually(t, "the piece is not held any longer", func() bool { return !held() })
			check(t, zc.SetWriteDeadline(time.Time{})) // what follows must not be sent all the same
		}
	}})
	if err := f.run(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v after %d bytes, want the timeout", err, f.total)
	}
}

// Sources that tell how much they have are read with a long buffer at once.
func TestReadFromOfMemoryIsOneWrite(t *testing.T) {
	content := noise(100<<10, 1)
	buffered := bufio.NewReaderSize(struct{ io.Reader }{bytes.NewReader(content)}, len(content))
	_, err := buffered.Peek(len(content))
	check(t, err)
	for name, source := range map[string]io.Reader{
		"bytes.Reader":                  bytes.NewReader(content),
		"bytes.Buffer":                  bytes.NewBuffer(bytes.Clone(content)),
		"strings.Reader":                strings.NewReader(string(content)),
		"io.LimitReader":                io.LimitReader(bytes.NewReader(content), 1<<20),
		"bufio.Reader with all at hand": buffered,
	} {
		c, s := loopbackPair(t)
		zc := wrap(t, c, &Config{insist: true})
		n, err := zc.ReadFrom(source)
		if got := zc.Stats(); err != nil || n != int64(len(content)) || got.Writes != 1 || got.CopiedBytes != 0 {
			t.Errorf("%s: %d bytes, %v, %d of them copied, in %d writes; want one without a copy", name, n, err, got.CopiedBytes, got.Writes)
		}
		expect(t, s, content)
	}
}
