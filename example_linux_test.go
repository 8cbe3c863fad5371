package zcnet_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"strings"

	"github.com/zcnet-go/zcnet"
)

// An embeddingConn counts what is written, and misses most of it: everything
// but Write goes past it, by the methods of the Conn that it embeds.
type embeddingConn struct {
	*zcnet.Conn
	writes *int
}

func (c embeddingConn) Write(b []byte) (int, error) {
	*c.writes++
	return c.Conn.Write(b)
}

// A countingConn has the Conn in an interface, and so no method by which it
// could be gone past. What else it needs of the Conn it passes on by hand.
type countingConn struct {
	net.Conn
	writes *int
}

func (c countingConn) Write(b []byte) (int, error) {
	*c.writes++
	return c.Conn.Write(b)
}

func (c countingConn) CloseWrite() error {
	return c.Conn.(interface{ CloseWrite() error }).CloseWrite()
}

// A type that has a Write of its own embeds the interface net.Conn, not the Conn.
func ExampleConn_overridingWrite() {
	l := listen()
	defer l.Close()
	received := receive(l)
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	conn, err := zcnet.NewConn(c.(*net.TCPConn), nil)
	if err != nil {
		log.Fatal(err)
	}

	writes := 0
	for _, c := range []net.Conn{embeddingConn{conn, &writes}, countingConn{conn, &writes}} {
		writes = 0
		w := zcnet.NewWriter(c) // the embedded Conn itself, or a writer that calls Write
		data := []byte("all the same")
		c.Write(data)
		io.Copy(c, io.LimitReader(strings.NewReader("all the same"), 12))
		(&net.Buffers{data}).WriteTo(c)
		w.WritePinned(zcnet.Pin(data))
		w.WritePinnedBuffers([]zcnet.Pinned{zcnet.Pin(data)})
		w.(zcnet.FrameWriter).WriteFrame(data[:3], zcnet.Pin(data[3:]))
		fmt.Printf("%T: %d of 6 writes seen\n", c, writes)
	}
	conn.Close()
	fmt.Println(<-received, "bytes received")
	// Output:
	// zcnet_test.embeddingConn: 1 of 6 writes seen
	// zcnet_test.countingConn: 6 of 6 writes seen
	// 144 bytes received
}

// The barrier of a replication or a migration: everything written so far, by
// whatever call, has arrived.
func ExampleConn_Acknowledged() {
	l := listen()
	defer l.Close()
	received := receive(l)
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	zc, err := zcnet.NewConn(c.(*net.TCPConn), nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprintln(zc, "a header, which is copied")
	if _, err := zc.WritePinned(zcnet.Pin(make([]byte, 1<<20))); err != nil {
		log.Fatal(err)
	}
	if err := zc.Acknowledged(context.Background()); err != nil {
		log.Fatal(err)
	}
	fmt.Println("the peer's kernel has it all")
	zc.Close()
	fmt.Println(<-received, "bytes received")
	// Output:
	// the peer's kernel has it all
	// 1048602 bytes received
}
