package zcnet

import (
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// This file finds out what bears on zero-copy on Linux. What cannot be read stays empty.

func probeSystem(r *Report) {
	r.System = kernelName()
	r.MemlockLimit, r.MemlockLimited = memlockLimit()
	r.OptmemMax, _ = strconv.Atoi(readSetting("/proc/sys/net/core/optmem_max"))
	r.HugePages = chosen(readSetting("/sys/kernel/mm/transparent_hugepage/enabled"))
}

func kernelName() string {
	var uts unix.Utsname
	if unix.Uname(&uts) != nil {
		return "Linux"
	}
	return "Linux " + unix.ByteSliceToString(uts.Release[:])
}

func probeSocket(r *Report, raw syscall.RawConn) {
	_ = raw.Control(func(fd uintptr) {
		r.Family = familyOf(int(fd))
		r.MPTCP = protocolOf(int(fd)) == unix.IPPROTO_MPTCP
	})
}

func familyOf(fd int) string {
	sa, err := unix.Getpeername(fd)
	if err != nil {
		return ""
	}
	sa6, ok := sa.(*unix.SockaddrInet6)
	switch {
	case !ok:
		return "IPv4"
	case strings.HasPrefix(string(sa6.Addr[:]), v4InV6):
		return "IPv4 in IPv6"
	}
	return "IPv6"
}

const v4InV6 = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff"

func readSetting(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// chosen returns the word in brackets, as in "always [madvise] never".
func chosen(setting string) string {
	_, rest, _ := strings.Cut(setting, "[")
	word, _, _ := strings.Cut(rest, "]")
	return word
}
