package zcnet

import (
	"bytes"
	"log/slog"
	"net"
	"reflect"
	"runtime"
	"strings"
	"testing"
)

func TestProbeSaysWhetherAndWhy(t *testing.T) {
	plain, _ := loopbackPair(t)
	wrapped, far := loopbackPair(t)
	zc := wrap(t, wrapped, insist)
	pipe, _ := net.Pipe()
	learned, _ := loopbackPair(t)
	copying := wrap(t, learned, nil)
	copying.s.path.learn(copiesToSwitch, true, clock())
	refusing, _ := loopbackPair(t)
	refused := wrap(t, refusing, nil)
	refused.s.refuse(net.ErrClosed)

	data := noise(100000, 1)
	_, err := zc.WritePinned(Pin(data))
	check(t, err)
	expect(t, far, data)
	check(t, zc.Flush(testContext(t)))

	for _, tt := range []struct {
		name   string
		conn   net.Conn
		on     bool
		reason string
	}{
		{"wrapped", zc, true, ""},
		{"not wrapped", plain, true, "not wrapped yet"},
		{"pipe", pipe, false, "this is a *net.pipe"},
		{"no connection", nil, false, "there is no connection"},
		{"learned to copy", copying, false, "copies on this path"},
		{"refused", refused, false, "turned off"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := Probe(tt.conn)
			on := tt.on && !(tt.conn == zc && r.Stats.PathCopies) // loopback copies
			if r.ZeroCopy != on || !strings.Contains(r.Reason, tt.reason) {
				t.Errorf("zero-copy %v because %q; want %v because of %q", r.ZeroCopy, r.Reason, on, tt.reason)
			}
			if !strings.HasPrefix(strings.ToLower(r.System), runtime.GOOS) {
				t.Errorf("system %q on %s", r.System, runtime.GOOS)
			}
			if s := r.String(); !strings.Contains(s, "zero-copy:") || !strings.Contains(s, r.System) || !strings.Contains(s, r.Reason) {
				t.Errorf("the text does not say it all:\n%s", s)
			}
		})
	}
	if r := Probe(zc); r.Stats.Sends == 0 || r.Family != "IPv4" || r.OptmemMax == 0 {
		t.Errorf("%+v", r)
	}
}

func TestProbeOfADisabledProcess(t *testing.T) {
	t.Setenv(disableEnv, "1")
	c, _ := loopbackPair(t)
	if r := Probe(c); r.ZeroCopy || (runtime.GOOS == "linux" && !strings.Contains(r.Reason, disableEnv)) {
		t.Errorf("zero-copy %v because %q", r.ZeroCopy, r.Reason)
	}
}

func TestRareEventsAreLogged(t *testing.T) {
	var text bytes.Buffer
	c, _ := loopbackPair(t)
	zc := wrap(t, c, &Config{Logger: slog.New(slog.NewTextHandler(&text, nil))})
	zc.s.refuse(net.ErrClosed)
	zc.s.refuse(net.ErrClosed)
	if got := text.String(); strings.Count(got, "zero-copy sends turned off") != 1 || !strings.Contains(got, "remote="+c.RemoteAddr().String()) {
		t.Errorf("log: %q", got)
	}
}

// TestOnlyPinnedCanBeSent: the lifetime contract lies in the types.
func TestOnlyPinnedCanBeSent(t *testing.T) {
	want := reflect.TypeFor[Pinned]()
	write, _ := reflect.TypeFor[ZeroCopyWriter]().MethodByName("WritePinned")
	if got := write.Type.In(0); got != want {
		t.Errorf("WritePinned takes a %v", got)
	}
	for i := range want.NumField() {
		if f := want.Field(i); f.IsExported() {
			t.Errorf("another package can make a Pinned of its own by the field %s", f.Name)
		}
	}
	for _, other := range []reflect.Type{reflect.TypeFor[[]byte](), reflect.TypeFor[string](), reflect.TypeFor[*Pinned]()} {
		if other.AssignableTo(want) {
			t.Errorf("a %v can be passed as a Pinned", other)
		}
	}
}

var _ map[Ticket]bool // tickets can be compared
