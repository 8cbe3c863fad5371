package main

import (
	"slices"
	"testing"
)

// The control is set before there is a connection, so that one which paces does
// not leave that behind.
func TestDialControlled(t *testing.T) {
	l, err := listenLoopback()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, want := range tcpSysctl("available_congestion_control") {
		c, err := dialControlled(t.Context(), l.Addr().String(), want)
		if err != nil {
			t.Fatal(err)
		}
		if got := congestion(c); got != want {
			t.Errorf("the connection is under %q, want %q", got, want)
		}
		c.Close()
	}
}

func TestUsualControls(t *testing.T) {
	system, available := tcpSysctl("congestion_control"), tcpSysctl("available_congestion_control")
	got := usualControls()
	if len(got) == 0 || got[0] != system[0] || len(got) > 2 {
		t.Fatalf("got %q, want %q first, and one more at most", got, system)
	}
	for _, other := range []string{"cubic", "bbr"} {
		if slices.Contains(available, other) && !slices.Contains(got, other) && len(got) == 1 {
			t.Errorf("got %q, want one of cubic and bbr beside it: there are %q", got, available)
		}
	}
}
