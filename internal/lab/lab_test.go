package lab

import (
	"errors"
	"runtime"
	"testing"
)

var _ TB = testing.TB(nil)

func TestNewSaysWhyNotElsewhere(t *testing.T) {
	if runtime.GOOS == "linux" {
		t.Skip("this is Linux")
	}
	for name, build := range map[string]func() (*Link, error){"New": New, "NewInline": NewInline} {
		if l, err := build(); l != nil || !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s() = %v, %v; want nil and an error that is errors.ErrUnsupported", name, l, err)
		}
	}
}

func TestCheckLiteral(t *testing.T) {
	for _, test := range []struct {
		addr string
		ok   bool
	}{
		{"10.203.0.2:80", true},
		{"[fd5a:6370::2]:0", true},
		{":80", true},
		{"localhost:80", false},
		{"receiver:80", false},
		{"10.203.0.2", false},
		{"", false},
	} {
		if err := checkLiteral(test.addr); (err == nil) != test.ok {
			t.Errorf("checkLiteral(%q) = %v, want ok: %v", test.addr, err, test.ok)
		}
	}
}

func TestSysctlPath(t *testing.T) {
	for _, test := range []struct{ key, path string }{
		{"net.core.optmem_max", "/proc/sys/net/core/optmem_max"},
		{"net.ipv4.conf.veth0.forwarding", "/proc/sys/net/ipv4/conf/veth0/forwarding"},
		{"net.../kernel", "/proc/sys/net////kernel"},
		{"vm.swappiness", ""},
		{"network", ""},
		{"", ""},
	} {
		path, err := sysctlPath(test.key)
		if path != test.path || (err == nil) != (test.path != "") {
			t.Errorf("sysctlPath(%q) = %q, %v; want %q", test.key, path, err, test.path)
		}
	}
}
