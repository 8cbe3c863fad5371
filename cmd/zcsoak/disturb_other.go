//go:build !linux

package main

import "errors"

func systemDisturbances() []disturbance { return nil }

func processWithout() map[string]error {
	return map[string]error{faultMemlock: errors.New("RLIMIT_MEMLOCK bounds what is in flight on Linux only")}
}

func giveUpLockRight() error { return nil }
