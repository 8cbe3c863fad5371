package zcnet_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/zcnet-go/zcnet"
)

// receive accepts one connection on a loopback listener, reads it to its end and returns how much came.
func receive(l net.Listener) <-chan int64 {
	total := make(chan int64, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		defer c.Close()
		n, err := io.Copy(io.Discard, c)
		if err != nil {
			log.Fatal(err)
		}
		total <- n
	}()
	return total
}

func listen() net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	return l
}

// The example of README.md.
func Example() {
	l := listen()
	defer l.Close()
	received := receive(l)
	addr := l.Addr().String()
	ctx := context.Background()

	conn, err := net.Dial("tcp", addr)
	if err != nil {
		log.Fatal(err)
	}
	conn = zcnet.Wrap(conn, nil) // still a net.Conn: Read, Write, deadlines, Close as before
	w := zcnet.NewWriter(conn)   // zero-copy where this connection can, copying where it cannot

	buf, err := zcnet.Alloc(8 << 20) // or zcnet.Pin(yourBytes)
	if err != nil {
		log.Fatal(err)
	}
	fill(buf.Bytes())

	ticket, err := w.WritePinned(buf) // queued; the kernel reads buf from now on
	if err != nil {
		log.Fatal(err)
	}
	if err := ticket.Wait(ctx); err != nil { // or w.Flush(ctx): all tickets so far
		log.Fatal(err)
	}
	fill(buf.Bytes()) // the memory is ours again
	buf.Release()
	conn.Close()

	fmt.Println(<-received, "bytes received")
	// Output: 8388608 bytes received
}

func fill(b []byte) {
	for i := range b {
		b[i]++
	}
}

// A connection is wrapped where it is made, and asked for the capability where it matters.
func ExampleWrap() {
	l := listen()
	defer l.Close()
	received := receive(l)

	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	conn = zcnet.Wrap(conn, nil) // still a net.Conn

	data := make([]byte, 1<<20)
	if zw, ok := conn.(zcnet.ZeroCopyWriter); ok {
		ticket, err := zw.WritePinned(zcnet.Pin(data))
		if err != nil {
			log.Fatal(err)
		}
		if err := ticket.Wait(context.Background()); err != nil {
			log.Fatal(err)
		}
	} else if _, err := conn.Write(data); err != nil {
		log.Fatal(err)
	}
	clear(data) // the memory is ours again
	conn.Close()
	fmt.Println(<-received, "bytes received")
	// Output: 1048576 bytes received
}

// Two buffers take turns: while the kernel sends from one, the other is filled. A buffer is filled again only when the
// ticket of its last write is done.
func ExampleConn_WritePinned() {
	l := listen()
	defer l.Close()
	received := receive(l)
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	c = zcnet.Wrap(c, nil)
	conn := zcnet.NewWriter(c) // c itself, or a writer that copies

	var buffers [2]zcnet.Pinned
	var tickets [2]zcnet.Ticket // the zero Ticket is done
	for i := range buffers {
		if buffers[i], err = zcnet.Alloc(256 << 10); err != nil {
			log.Fatal(err)
		}
		defer buffers[i].Release() // unmapped after the last completion
	}
	for block := range 10 {
		i := block % len(buffers)
		if err := tickets[i].Wait(context.Background()); err != nil {
			log.Fatal(err)
		}
		b := buffers[i].Bytes()
		for j := range b {
			b[j] = byte(block)
		}
		if tickets[i], err = conn.WritePinned(buffers[i]); err != nil {
			log.Fatal(err)
		}
	}
	if err := conn.Flush(context.Background()); err != nil {
		log.Fatal(err)
	}
	c.Close()
	fmt.Println(<-received, "bytes received")
	// Output: 2621440 bytes received
}

// Many writes, one wait: after Flush every buffer is free.
func ExampleConn_Flush() {
	l := listen()
	defer l.Close()
	received := receive(l)
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	c = zcnet.Wrap(c, nil)
	w := zcnet.NewWriter(c)
	memory := make([]byte, 8<<20)
	for page := range 8 {
		if _, err := w.WritePinned(zcnet.Pin(memory[page<<20 : (page+1)<<20])); err != nil {
			log.Fatal(err)
		}
	}
	if err := w.Flush(context.Background()); err != nil {
		log.Fatal(err)
	}
	clear(memory)
	c.Close()
	fmt.Println(<-received, "bytes received")
	// Output: 8388608 bytes received
}

// A barrier over several connections: the memory of all of them is free.
func ExampleFlushAll() {
	ctx := context.Background()
	var writers []zcnet.ZeroCopyWriter
	var received []<-chan int64
	var conns []net.Conn
	for range 2 {
		l := listen()
		defer l.Close()
		received = append(received, receive(l))
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			log.Fatal(err)
		}
		c = zcnet.Wrap(c, nil)
		conns = append(conns, c)
		writers = append(writers, zcnet.NewWriter(c))
	}

	memory := make([]byte, 8<<20)
	half := len(memory) / 2
	for i, w := range writers {
		if _, err := w.WritePinned(zcnet.Pin(memory[i*half : (i+1)*half])); err != nil {
			log.Fatal(err)
		}
	}
	if err := zcnet.FlushAll(ctx, writers...); err != nil {
		log.Fatal(err)
	}
	fmt.Fprint(conns[0], "device state")
	for i, c := range conns {
		c.Close()
		fmt.Println(<-received[i])
	}
	// Output:
	// 4194316
	// 4194304
}

// One code path for every connection: this one cannot send without copying, and its tickets are done at once.
func ExampleNewWriter() {
	near, far := net.Pipe()
	received := make(chan string)
	go func() {
		b, _ := io.ReadAll(far)
		received <- string(b)
	}()

	w := zcnet.NewWriter(near)
	ticket, err := w.WritePinned(zcnet.Pin([]byte("all the same")))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(ticket.Ready(), ticket.Outcome())
	near.Close()
	fmt.Println(<-received)
	// Output:
	// true copied by zcnet
	// all the same
}

// Under an http.Server every connection is wrapped. A handler that has much memory to send takes the connection over;
// all others work as ever.
func ExampleNewListener() {
	l := zcnet.NewListener(listen(), nil)
	memory := make([]byte, 4<<20)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer c.Close() // in the background, until the memory is free
		fmt.Fprintf(rw, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", len(memory))
		rw.Flush()
		if _, err := zcnet.NewWriter(c).WritePinned(zcnet.Pin(memory)); err != nil {
			log.Print(err)
		}
	})}
	go server.Serve(l)
	defer server.Close()

	resp, err := http.Get("http://" + l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	fmt.Println(n, err)
	// Output: 4194304 <nil>
}

// Buffers of a pool come back by themselves, when they are released and the kernel has sent them. Get waits for one, and so
// keeps the producer from running ahead of the network.
func ExamplePool() {
	l := listen()
	defer l.Close()
	received := receive(l)
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	c = zcnet.Wrap(c, nil)
	w := zcnet.NewWriter(c).(zcnet.FrameWriter)
	pool, err := zcnet.NewPool(128<<10, 4)
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()

	header := make([]byte, 8)
	for block := range 20 {
		body, err := pool.Get(context.Background())
		if err != nil {
			log.Fatal(err)
		}
		fill(body.Bytes())
		header[0] = byte(block) // copied: ours again at once
		if _, err := w.WriteFrame(header, body); err != nil {
			log.Fatal(err)
		}
		body.Release()
	}
	c.Close()
	fmt.Println(<-received, "bytes received")
	// Output: 2621600 bytes received
}

func ExampleProbe() {
	near, _ := net.Pipe()
	report := zcnet.Probe(near)
	fmt.Println(report.ZeroCopy, report.Reason)
	// Output: false only TCP can send without copying, and this is a *net.pipe
}

// TestReadmeShowsTestedCode holds README.md to code that was compiled and run: its Go block is a part of Example.
func TestReadmeShowsTestedCode(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(readme), "```go\n")[1:]
	if len(blocks) == 0 {
		t.Fatal("README.md has no Go block")
	}
	for _, b := range blocks {
		code, _, _ := strings.Cut(b, "```")
		for line := range strings.Lines(code) {
			if line = strings.TrimSpace(line); !strings.Contains(string(source), line) {
				t.Errorf("README.md shows a line that no example has: %s", line)
			}
		}
	}
}
