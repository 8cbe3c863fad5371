package perf

import (
	"runtime"
	"strings"
	"testing"
)

func stacks() string {
	b := make([]byte, 1<<20)
	return string(b[:runtime.Stack(b, true)])
}

// Idlers wait as a server's do, and leave nothing behind.
func TestIdlers(t *testing.T) {
	stop, err := StartIdlers()
	if err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(stacks(), "net.(*TCPListener).Accept") || !strings.Contains(stacks(), "perf.tickUntil") {
		runtime.Gosched() // until both idle, or the test is killed
	}
	stop()
	if got := stacks(); strings.Contains(got, "idlers.go") {
		t.Errorf("something idles on:\n%s", got)
	}
}
