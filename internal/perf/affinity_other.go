//go:build !linux

package perf

import "errors"

// RunOn is for Linux only.
func RunOn([]int) (restore func(), err error) { return nil, errors.ErrUnsupported }
