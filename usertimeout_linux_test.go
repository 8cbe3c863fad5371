package zcnet

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// userTimeout returns TCP_USER_TIMEOUT in milliseconds.
func userTimeout(t *testing.T, c *net.TCPConn) (ms int) {
	t.Helper()
	raw, err := c.SyscallConn()
	check(t, err)
	check(t, raw.Control(func(fd uintptr) { ms, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) }))
	check(t, err)
	return ms
}

func TestUserTimeoutIsSetWhenWrapping(t *testing.T) {
	for timeout, want := range map[time.Duration]int{
		0:                       1234, // as it was
		1:                       1,
		time.Millisecond:        1,
		1500 * time.Microsecond: 2,
		20 * time.Second:        20000,
		maxUserTimeout:          1<<31 - 1,
	} {
		near, _ := loopbackPair(t)
		check(t, setUserTimeoutOf(near, 1234))
		wrap(t, near, &Config{UserTimeout: timeout})
		if got := userTimeout(t, near); got != want {
			t.Errorf("UserTimeout of %v: TCP_USER_TIMEOUT is %d, want %d", timeout, got, want)
		}
	}
}

func setUserTimeoutOf(c *net.TCPConn, ms int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return setUserTimeout(raw, ms)
}

func TestUserTimeoutThatIsNotValid(t *testing.T) {
	for _, timeout := range []time.Duration{-1, -time.Hour, maxUserTimeout + 1} {
		near, _ := loopbackPair(t)
		var log bytes.Buffer
		cfg := &Config{UserTimeout: timeout, Logger: slog.New(slog.NewTextHandler(&log, nil))}
		if _, err := NewConn(near, cfg); err == nil || errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "UserTimeout") {
			t.Errorf("NewConn with a UserTimeout of %v: %v, want an error that says what is wrong", timeout, err)
		}
		if c := Wrap(near, cfg); c != near || !strings.Contains(log.String(), "UserTimeout") {
			t.Errorf("Wrap with a UserTimeout of %v: a %T, and the log says %q", timeout, c, log.String())
		}
		wrap(t, near, nil) // it was left as it was
	}
}

// A peer that acknowledges nothing any more holds lent memory for UserTimeout,
// before Close and after it.
func TestUserTimeoutGivesLentMemoryBack(t *testing.T) {
	for name, end := range map[string]func(*Conn) error{
		"open":   func(*Conn) error { return nil },
		"closed": (*Conn).Close,
		"another owner": func(c *Conn) error {
			f, err := c.File()
			if err != nil {
				return err
			}
			t.Cleanup(func() { f.Close() })
			return c.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			near, _ := narrowPair(t)
			cfg := *hourly
			cfg.UserTimeout = 300 * time.Millisecond
			c := wrap(t, near, &cfg)
			p, _ := allocNoise(t, 16<<20, 1)
			ticket, _ := fillUp(t, c, p)
			p.Release()
			check(t, end(c))
			wantFailed(t, ticket)
			wantFreed(t, p)
			if name == "open" {
				if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.ETIMEDOUT) && !errors.Is(err, syscall.EPIPE) {
					t.Errorf("Write: %v, want a timeout of the connection", err)
				}
			}
		})
	}
}
