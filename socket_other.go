//go:build !linux

package zcnet

import (
	"errors"
	"runtime"
	"syscall"
)

// This file stands in for the system calls where there is no MSG_ZEROCOPY. NewConn fails there, so that none of the
// functions below takeSocket is ever reached.

const (
	msgZeroCopy = 0
	msgMore     = 0
)

func takeSocket(raw syscall.RawConn) (cookie uint64, err error) { return 0, probeZeroCopy(raw) }

func forget(uint64) {}

func probeZeroCopy(syscall.RawConn) error {
	return unsupported(runtime.GOOS + " has no MSG_ZEROCOPY for TCP: it needs Linux 4.17 or later")
}

func setUserTimeout(syscall.RawConn, int) error { return errNoZeroCopy }

var errNoZeroCopy = errors.ErrUnsupported

type message struct{ n, size int }

func (m *message) clear()                         { *m = message{} }
func (m *message) add(b []byte)                   { m.n++; m.size += len(b) }
func (m *message) send(uintptr, int) (int, error) { return 0, errNoZeroCopy }

func receiveNow(uintptr, []byte) (int, error) { return 0, errNoZeroCopy }

type lingeringClose struct{}

// completionKernel is empty, for there are no completions.
type completionKernel interface{}

func (s *socket) expectCompletion(uintptr) error      { return errNoZeroCopy }
func (s *socket) drain(uintptr) uint64                { return 0 }
func (s *socket) awaitRead() (<-chan struct{}, error) { return nil, errNoZeroCopy }
func (s *socket) await()                              {}
func (s *socket) detachOwn()                          {}
func awaitMemory() (stop func())                      { return func() {} }
func (s *socket) close() error                        { return s.tc.Close() }

func (s *socket) ending() bool { return false }

type grace struct{}

func (s *socket) grace() grace                               { return grace{} }
func (s *socket) awaitRelease(<-chan struct{}, grace) string { return "" }

func probeSystem(r *Report)                { r.System = runtime.GOOS }
func probeSocket(*Report, syscall.RawConn) {}

func readLimits() *limits { l := noLimits; return &l }

func optionMemory(uintptr) (bytes int64, ok bool) { return 0, false }
func inOurNamespace(uintptr) bool                 { return false }
func roomToPin(int64) int64                       { return unknown }
