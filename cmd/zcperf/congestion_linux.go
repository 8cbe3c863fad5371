package main

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// This file is about the congestion control of TCP, which decides more than many a library about how fast a fast link is.

// setCongestion has a socket controlled by the algorithm of this name.
func setCongestion(socket syscall.RawConn, name string) error {
	var err error
	if ctlErr := socket.Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, name)
	}); ctlErr != nil {
		return ctlErr
	}
	if err != nil {
		return fmt.Errorf("congestion control %q: %w (this system has %s)", name, os.NewSyscallError("setsockopt TCP_CONGESTION", err), congestionControls())
	}
	return nil
}

// congestion returns the name of the algorithm that controls c, or nothing if it cannot be read.
func congestion(c net.Conn) (name string) {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return ""
	}
	if ctlErr := raw.Control(func(fd uintptr) {
		name, err = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	}); ctlErr != nil || err != nil {
		return ""
	}
	return name
}

// congestionControls lists the algorithms that there are.
func congestionControls() string {
	if names := tcpSysctl("available_congestion_control"); names != nil {
		return strings.Join(names, ", ")
	}
	return "those of sysctl net.ipv4.tcp_available_congestion_control"
}

// usualControls returns the system's control, and CUBIC or BBR beside it where
// there is one that is not the system's: senders cost very differently under
// these two.
func usualControls() []string {
	system := tcpSysctl("congestion_control")
	if len(system) != 1 {
		return []string{""}
	}
	available := tcpSysctl("available_congestion_control")
	for _, name := range []string{"cubic", "bbr"} {
		if name != system[0] && slices.Contains(available, name) {
			return append(system, name)
		}
	}
	return system
}

// tcpSysctl returns the words of a setting of TCP, nil if there is no such one.
func tcpSysctl(name string) []string {
	b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_" + name)
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}
