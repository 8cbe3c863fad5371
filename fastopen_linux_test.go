package zcnet

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// With TCP Fast Open the first bytes go out in the SYN. Until that is answered
// SIOCOUTQ tells 0 (tcp_ioctl in net/ipv4/tcp.c), which is no acknowledgement.
func TestFastOpenToABusyServer(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(t, err)
	defer unix.Close(fd)
	check(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	check(t, unix.Listen(fd, 0))
	name, err := unix.Getsockname(fd)
	check(t, err)
	addr := (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: name.(*unix.SockaddrInet4).Port}).String()
	first, err := net.Dial("tcp4", addr) // fills the backlog
	check(t, err)
	defer first.Close()
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		return errors.Join(raw.Control(func(fd uintptr) {
			err = errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_FASTOPEN_NO_COOKIE, 1))
		}), err)
	}}
	d.SetMultipathTCP(false)
	near, err := d.Dial("tcp4", addr)
	check(t, err)
	defer near.Close()
	var log syncBuffer
	cfg := *insist
	cfg.patience = 100 * time.Millisecond
	c := wrap(t, near.(*net.TCPConn), logging(&log, cfg))
	p, want := allocNoise(t, 8<<10, 1)
	written := beginCall(func() error { return second(c.WritePinned(p)) })
	time.Sleep(5 * checkEvery)
	if n := unacknowledged(t, c); n != 0 || c.Stats().Sends == 0 {
		t.Logf("the kernel tells of %d bytes, after %d calls: it does otherwise than it did", n, c.Stats().Sends)
	}
	a, _, err := unix.Accept(fd)
	check(t, err)
	unix.Close(a)
	b, _, err := unix.Accept(fd)
	check(t, err)
	defer unix.Close(b)
	got := make([]byte, len(want))
	for n := 0; n < len(got); {
		k, err := unix.Read(b, got[n:])
		check(t, err)
		if k == 0 {
			t.Fatal(io.ErrUnexpectedEOF)
		}
		n += k
	}
	check(t, <-written)
	if err := c.Flush(testContext(t)); err != nil {
		t.Errorf("Flush: %v", err)
	}
	if s := c.Stats(); s.CompletionsDistrusted || s.UnprovenBytes > 0 {
		t.Errorf("distrusted %v, %d bytes unproven: %s", s.CompletionsDistrusted, s.UnprovenBytes, log.String())
	}
	p.Release()
}
