package main

import (
	"context"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// connectTo returns a connection to a receiver over loopback.
func connectTo(t *testing.T, r *receiver) *net.TCPConn {
	t.Helper()
	l, err := listenLoopback()
	if err != nil {
		t.Fatal(err)
	}
	p := newPath(localLink("loopback"), l, r)
	t.Cleanup(func() { p.close() })
	c, err := dialTCP(t.Context(), p.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

// converse sends a stream by hand and returns the receiver's answer.
func converse(t *testing.T, c *net.TCPConn, h header, content []byte) trailer {
	t.Helper()
	if err := writeHeader(c, h); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := readTrailer(c)
	if err != nil {
		t.Fatal(err)
	}
	answer.Magic = [8]byte{}
	return answer
}

func TestReceiverDoesWhatIsAskedFor(t *testing.T) {
	const region, total = 10000, 1 << 20
	right := stream(t, region, total)
	flipped := slices.Clone(right)
	flipped[777777] ^= 1
	force := func(w work) *work { return &w }
	for _, test := range []struct {
		name    string
		force   *work
		ask     work
		content []byte
		want    trailer
	}{
		{"verify", nil, workVerify, right, trailer{Received: total, Checked: true}},
		{"verify a flipped byte", nil, workVerify, flipped, trailer{Received: total, Checked: true, Wrong: 1, First: 777777}},
		{"read", nil, workRead, flipped, trailer{Received: total}},
		{"discard", nil, workDiscard, flipped, trailer{Received: total}},
		{"verify although discard is asked for", force(workVerify), workDiscard, flipped, trailer{Received: total, Checked: true, Wrong: 1, First: 777777}},
		{"discard although verify is asked for", force(workDiscard), workVerify, flipped, trailer{Received: total}},
		{"nothing arrives", nil, workVerify, nil, trailer{Checked: true}},
		{"less than announced arrives", nil, workVerify, right[:1001], trailer{Received: 1001, Checked: true}},
	} {
		c := connectTo(t, &receiver{work: test.force})
		got := converse(t, c, header{Region: region, Total: total, Work: test.ask}, test.content)
		if got != test.want {
			t.Errorf("%s: the answer is %+v, want %+v", test.name, got, test.want)
		}
	}
}

func TestReceiverRefusesStrangers(t *testing.T) {
	done := make(chan connection, 1)
	c := connectTo(t, &receiver{done: func(c connection) { done <- c }})
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: example.com\r\nUser-Agent: none\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, c) // ends when the receiver closes
	if got := (<-done).String(); !strings.Contains(got, errNotSender.Error()) || strings.Contains(got, "\n") {
		t.Errorf("the receiver says %q, want one line with %q", got, errNotSender)
	}
}

func TestReceiverEndsWithItsContext(t *testing.T) {
	l, err := listenLoopback()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- (&receiver{}).serve(ctx, l) }()
	c, err := dialTCP(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := writeHeader(c, header{Region: 8, Total: 8}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond) // to have it wait for content, not for a connection; it has to end either way
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("serve: %v", err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if answer, err := readTrailer(c); err == nil {
		t.Errorf("the receiver answered %+v, want a closed connection", answer)
	}
}

func TestConnectionLine(t *testing.T) {
	from := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 99}
	h := header{Region: 1, Total: 2e9}
	for want, c := range map[string]connection{
		"192.0.2.1:99: 2000000000 bytes, not checked, in 0.500 s, 4.00 GB/s":                                               {begun: true, header: h, answer: trailer{Received: 2e9}, took: time.Second / 2},
		"192.0.2.1:99: 3000000000 bytes, not checked, in 0.500 s, 6.00 GB/s":                                               {begun: true, answer: trailer{Received: 3e9}, took: time.Second / 2},
		"192.0.2.1:99: 2000000000 bytes, all checked and right, in 0.500 s, 4.00 GB/s":                                     {begun: true, header: h, answer: trailer{Received: 2e9, Checked: true}, took: time.Second / 2},
		"192.0.2.1:99: 2000000000 bytes, 3 of them WRONG, the first at position 7, in 0.500 s, 4.00 GB/s":                  {begun: true, header: h, answer: trailer{Received: 2e9, Checked: true, Wrong: 3, First: 7}, took: time.Second / 2},
		"192.0.2.1:99: 1000000000 bytes, not checked, in 0.500 s, 2.00 GB/s; cut short by the sender, of 2000000000 bytes": {begun: true, header: h, answer: trailer{Received: 1e9}, took: time.Second / 2},
		"192.0.2.1:99: 1000000000 bytes, not checked, in 0.500 s, 2.00 GB/s; ended early: unexpected EOF":                  {begun: true, header: h, answer: trailer{Received: 1e9}, took: time.Second / 2, err: io.ErrUnexpectedEOF},
		"192.0.2.1:99: not a zcperf sender of this version":                                                                {err: errNotSender},
	} {
		c.from = from
		if got := c.String(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}
