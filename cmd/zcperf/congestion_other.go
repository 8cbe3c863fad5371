//go:build !linux

package main

import (
	"fmt"
	"net"
	"runtime"
	"syscall"
)

func setCongestion(syscall.RawConn, string) error {
	return fmt.Errorf("-congestion is for Linux only: %s has no TCP_CONGESTION", runtime.GOOS)
}

func congestion(net.Conn) string { return "" }

func usualControls() []string { return []string{""} }
