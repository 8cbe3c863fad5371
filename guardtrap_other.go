//go:build !(linux && amd64)

package zcnet

// Here a fault has the message of the runtime only.

func setTrap([]byte, string) int { return -1 }
func shortenTrap(int, []byte)    {}
func clearTrap(int)              {}
