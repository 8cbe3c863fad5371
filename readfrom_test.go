package zcnet

import (
	"bytes"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"sync"
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
		if got := zc.Stats(); (got.CopiedBytes == int64(len(content))) != test.copies || (got.CopiedBytes == 0) == test.copies {
			t.Errorf("threshold %d: %d of %d bytes copied, want all: %v", test.threshold, got.CopiedBytes, len(content), test.copies)
		}
	}
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

func TestReadFromNeverWaitsForSomebodyElsesPeer(t *testing.T) {
	var held []Pinned // as if other connections' peers did not read
	for p, ok := readBuffers().tryGet(); ok; p, ok = readBuffers().tryGet() {
		held = append(held, p)
	}
	defer func() {
		for _, p := range held {
			p.Release()
		}
	}()
	c, s := loopbackPair(t)
	zc := wrap(t, c, insist)
	content := noise(2<<20, 1)
	var reading sync.WaitGroup
	reading.Go(func() { expect(t, s, content) })
	if n, err := io.Copy(zc, in(content, 100000, nil)); err != nil || n != int64(len(content)) {
		t.Errorf("%d of %d bytes, %v", n, len(content), err)
	}
	reading.Wait()
}
