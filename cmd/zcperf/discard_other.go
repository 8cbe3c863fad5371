//go:build !linux

package main

import "net"

// discard reads what arrives until the end of the stream, and returns how much that was: dropping it unread is for
// Linux only.
func discard(c *net.TCPConn) (received int64, err error) {
	err = receive(c, func(b []byte) { received += int64(len(b)) })
	return received, err
}
