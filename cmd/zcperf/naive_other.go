//go:build !linux

package main

import (
	"fmt"
	"net"
	"runtime"
)

func openNaive(*net.TCPConn) (sender, error) {
	return nil, fmt.Errorf("%s has no MSG_ZEROCOPY for TCP: %w", runtime.GOOS, errNoMode)
}

func openLeast(c *net.TCPConn) (sender, error) { return openNaive(c) }
