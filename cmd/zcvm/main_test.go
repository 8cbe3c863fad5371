package main

import (
	"bytes"
	"net"
	"strings"
	"testing"

	"github.com/zcnet-go/zcnet/cmd/zcvm/internal/plan"
	"github.com/zcnet-go/zcnet/internal/cli"
)

func TestCommandLines(t *testing.T) {
	for _, test := range []struct {
		args           string
		status         int
		stdout, stderr string // parts of
	}{
		{"-h", cli.OK, "-kernel", ""},
		{"boot -h", cli.OK, "usage: zcvm boot", ""},
		{"user -h", cli.OK, "-arch", ""},
		{"fly", cli.Usage, "", `there is no command "fly": it is one of boot, user`},
		{"boot now", cli.Usage, "", `unexpected argument "now"`},
		{"-device ne2000", cli.Usage, "", `there is no device "ne2000": it is one of e1000, e1000e`},
		{"-device ,", cli.Usage, "", "-device: want at least one"},
		{"-kernel ,", cli.Usage, "", "-kernel: want at least one"},
		{"-timeout 0s", cli.Usage, "", "-timeout: want a time"},
		{"-turbo", cli.Usage, "", "-turbo"},
		{"user -arch vax", cli.Usage, "", `there is no processor "vax": it is one of arm64, s390x`},
		{"user -arch ,", cli.Usage, "", "-arch: want at least one"},
	} {
		var stdout, stderr bytes.Buffer
		status := commands().Run(t.Context(), strings.Fields(test.args), &stdout, &stderr)
		if status != test.status || !strings.Contains(stdout.String(), test.stdout) || !strings.Contains(stderr.String(), test.stderr) {
			t.Errorf("zcvm %s: status %d, want %d\nstdout %q, want %q\nstderr %q, want %q",
				test.args, status, test.status, &stdout, test.stdout, &stderr, test.stderr)
		}
	}
}

func TestReceiverComparesOneStream(t *testing.T) {
	r, err := listen()
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", r.l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 3000)
	plan.Fill(b, 0)
	b[2000]++
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(b); n != 0 || err == nil {
		t.Errorf("the receiver sent %d bytes, %v; want the end of the stream", n, err)
	}
	if got, err := r.close(); err != nil || got != (plan.Checker{Bytes: 3000, Wrong: 1, First: 2000}) {
		t.Errorf("received %+v, %v", got, err)
	}
}

func TestReceiverThatNobodyCalls(t *testing.T) {
	r, err := listen()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.close(); err == nil || got.Bytes != 0 {
		t.Errorf("received %+v, %v; want an error", got, err)
	}
}
