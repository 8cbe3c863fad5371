package perf

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// compiled returns the sender in C, or skips a test that needs it.
func compiled(t *testing.T) *CProgram {
	t.Helper()
	p, err := CompileC()
	if errors.Is(err, ErrNoCompiler) || errors.Is(err, ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// answering returns the address of a receiver that reads all, says so, and
// closes, and what it has received.
func answering(t *testing.T, answer string) (addr string, received <-chan []byte) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	out := make(chan []byte, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		b, _ := io.ReadAll(c)
		io.WriteString(c, answer)
		out <- b
	}()
	return l.Addr().String(), out
}

// The modes in C send what the others send: the header, and the region again and
// again.
func TestCSender(t *testing.T) {
	p := compiled(t)
	for _, zeroCopy := range []bool{false, true} {
		for _, memory := range []string{"huge", "small", "heap"} {
			addr, received := answering(t, "thank you")
			s, err := p.Start(t.Context(), CTransfer{
				ZeroCopy: zeroCopy, Addr: addr, Write: 5000, Total: 3000007, Region: 20000, Memory: memory, Header: []byte{'h', 0, 0xff},
			}, (*exec.Cmd).Start)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			r, err := s.Send()
			if err != nil {
				t.Fatal(err)
			}
			if r.Bytes != 3000007 || r.Writes != 601 || r.Calls < 601 || r.Seconds <= 0 || r.Uncopied+r.Copied != r.Bytes || r.Control == "" {
				t.Errorf("zero-copy %v, memory %s: got %+v, want 3000007 bytes in 601 writes, all accounted for", zeroCopy, memory, r)
			}
			if string(r.Answer) != "thank you" {
				t.Errorf("zero-copy %v, memory %s: the answer is %q, want that of the receiver", zeroCopy, memory, r.Answer)
			}
			header, content, _ := bytes.Cut(<-received, []byte{0xff})
			if !bytes.Equal(header, []byte{'h', 0}) || len(content) != 3000007 {
				t.Errorf("zero-copy %v, memory %s: %d bytes arrived after the header %q, want 3000007 after h", zeroCopy, memory, len(content), header)
				continue
			}
			if !bytes.Equal(content[:20000], content[20000:40000]) || bytes.Equal(content[:5000], content[5000:10000]) {
				t.Errorf("zero-copy %v, memory %s: what arrived is not a region of 20000 bytes again and again", zeroCopy, memory)
			}
		}
	}
}

func TestCSenderStopsInTime(t *testing.T) {
	p := compiled(t)
	addr, received := answering(t, "")
	s, err := p.Start(t.Context(), CTransfer{Addr: addr, Write: 1000, Total: 1 << 50, Region: 1000, Memory: "heap", Limit: 5 * time.Millisecond}, (*exec.Cmd).Start)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, err := s.Send()
	if got := int64(len(<-received)); err != nil || r.Bytes != got || got == 0 {
		t.Errorf("sent %d bytes (%v), %d arrived; want as many, and some", r.Bytes, err, got)
	}
}

func TestCSenderFailures(t *testing.T) {
	p := compiled(t)
	addr, _ := answering(t, "")
	for _, test := range []struct {
		name string
		t    CTransfer
		want string
	}{
		{"nobody listens", CTransfer{Addr: "127.0.0.1:1"}, "csender: connect: "},
		{"a name", CTransfer{Addr: "localhost.invalid:1"}, "csender: address localhost.invalid: "},
		{"no port", CTransfer{Addr: "127.0.0.1"}, "missing port"},
		{"no such control", CTransfer{Addr: addr, Congestion: "nosuch"}, "csender: setsockopt TCP_CONGESTION: "},
	} {
		test.t.Write, test.t.Total, test.t.Region, test.t.Memory = 1, 1, 1, "heap"
		if _, err := p.Start(t.Context(), test.t, (*exec.Cmd).Start); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want an error with %q", test.name, err, test.want)
		}
	}
}

// A receiver that is stuck holds nobody up.
func TestCSenderEndsWithItsContext(t *testing.T) {
	p := compiled(t)
	l, err := net.Listen("tcp", "127.0.0.1:0") // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	s, err := p.Start(ctx, CTransfer{Addr: l.Addr().String(), Write: 1 << 20, Total: 1 << 40, Region: 1 << 20, Memory: "heap"}, (*exec.Cmd).Start)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	cancel()
	if r, err := s.Send(); err == nil {
		t.Errorf("got %+v, want an error", r)
	}
}

func TestNoCompiler(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := CompileC(); !errors.Is(err, ErrNoCompiler) && !errors.Is(err, ErrUnavailable) {
		t.Errorf("without gcc: %v, want %v", err, ErrNoCompiler)
	}
}
