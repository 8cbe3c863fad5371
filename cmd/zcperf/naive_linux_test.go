package main

import (
	"testing"

	"github.com/zcnet-go/zcnet/internal/lab"
)

// Where the kernel has room for few notifications only, the naive loop waits for them, and gets through.
func TestNaiveWaitsForRoom(t *testing.T) {
	l := lab.ForTest(t)
	if err := l.Sender.SetSysctl("net.core.optmem_max", "2000"); err != nil {
		t.Fatal(err)
	}
	way := labLink("lab", l)
	listener, err := way.listen()
	if err != nil {
		t.Fatal(err)
	}
	p := newPath(way, listener, &receiver{})
	t.Cleanup(func() { p.close() })
	tr := newTransfer(testRegion(t, 4<<20), 16<<10, 32<<20)
	tr.work = workVerify
	r, err := p.transfer(t.Context(), mode{name: "naive", open: openNaive}, tr)
	if err != nil {
		t.Fatal(err)
	}
	if r.Checked != r.Bytes || r.Wrong != 0 || r.ZeroCopied != r.Bytes || r.Enobufs == 0 {
		t.Errorf("got %+v, want a transfer with ENOBUFS, all sent without a copy, checked and right", r)
	}
}
