//go:build !linux

package zcnet

// childMain runs the part of a test that needs a process of its own; none does here.
func childMain() bool { return false }

// openSockets cannot tell here what is open.
func openSockets() []string { return nil }
