package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// This file makes a system of a bare kernel: file systems and modules.

// mounts are the file systems that Go programs, and the tests, expect.
var mounts = []struct{ kind, dir string }{
	{"proc", "/proc"},
	{"sysfs", "/sys"},
	{"devtmpfs", "/dev"},
	{"tmpfs", "/tmp"},
}

func mountAll() error {
	for _, m := range mounts {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	return os.Chmod("/tmp", 0o1777)
}

// settings are those of the kernel that the tests expect. Some send megabytes to a peer that does not read yet, and some
// have more in flight than the default of optmem_max before Linux 6.9 allows.
var settings = map[string]string{
	"/proc/sys/net/core/optmem_max": "131072",
	"/proc/sys/net/core/wmem_max":   "16777216",
	"/proc/sys/net/core/rmem_max":   "16777216",
}

func applySettings() error {
	for file, value := range settings {
		if err := os.WriteFile(file, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// loadModules loads kernel modules in the order in which they depend on each other.
func loadModules(files []string) error {
	for _, name := range files {
		if err := loadModule(name); err != nil {
			return fmt.Errorf("load the module %s: %w", strings.TrimPrefix(name, "/"), err)
		}
	}
	return nil
}

func loadModule(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return os.NewSyscallError("finit_module", unix.FinitModule(int(f.Fd()), "", 0))
}
