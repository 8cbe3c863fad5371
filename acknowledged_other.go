//go:build !linux

package zcnet

// delivery is never asked for: NewConn fails.
func (s *socket) delivery() (delivery, error) { return delivery{}, errNoZeroCopy }
