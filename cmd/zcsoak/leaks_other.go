//go:build !linux

package main

// On other systems there is no telling, and the library maps nothing.

func descriptors() map[string]string { return nil }

func mappings() int { return 0 }

func threads() int { return 0 }

func readMemory(uintptr, []byte) bool { return false }
