// Package perf holds what measurements of package zcnet are made with, by its
// benchmarks and by cmd/zcperf: the clocks of the processors, senders to compare
// with, in Go and in C, and the receiver that drops what arrives.
//
// It does not import zcnet, so that zcnet's own benchmarks can import it.
package perf

import "errors"

// ErrUnavailable is matched by the errors of a way to send that cannot work
// here, whatever is done.
var ErrUnavailable = errors.New("this mode cannot be measured here")

// NaiveCounts is what a [Naive] knows of its sending.
type NaiveCounts struct {
	Sends       uint64 // calls with MSG_ZEROCOPY that queued something
	ZeroCopied  int64  // bytes sent by these of which the kernel reported no copy
	MaybeCopied int64  // bytes sent by these of which the kernel reported a copy
	Enobufs     uint64 // calls that failed with ENOBUFS
}
