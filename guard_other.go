//go:build !linux

package zcnet

// guardedPages would count loans: where nothing is lent to the kernel nothing is guarded.
type guardedPages struct{}

func (r *region) protect([]byte) bool { return false }
func (r *region) unprotect([]byte)    {}
