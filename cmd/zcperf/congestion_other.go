//go:build !linux

package main

import (
	"fmt"
	"net"
	"runtime"
)

func setCongestion(net.Conn, string) error {
	return fmt.Errorf("-congestion is for Linux only: %s has no TCP_CONGESTION", runtime.GOOS)
}

func congestion(net.Conn) string { return "" }

func usualControls() []string { return []string{""} }
