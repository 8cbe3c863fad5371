//go:build !linux

package main

import "github.com/zcnet-go/zcnet/internal/lab"

// disturb has nothing to do: there is no such link on other systems.
func (l *link) disturb(*lab.Link, map[string]bool) {}
