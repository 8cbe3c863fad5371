package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/zcnet-go/zcnet"
)

// allocateSmall returns mapped memory that the kernel may not make huge pages
// of, as much memory is that programs map.
func allocateSmall(n int) (zcnet.Pinned, func(), error) {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return zcnet.Pinned{}, nil, fmt.Errorf("map %d bytes: %w", n, os.NewSyscallError("mmap", err))
	}
	// A kernel without huge pages does not know the advice, and needs none.
	if err := unix.Madvise(b, unix.MADV_NOHUGEPAGE); err != nil && err != unix.EINVAL {
		unix.Munmap(b)
		return zcnet.Pinned{}, nil, os.NewSyscallError("madvise MADV_NOHUGEPAGE", err)
	}
	p := zcnet.Pin(b)
	free := func() {
		p.Release()
		unix.Munmap(b)
	}
	return p, free, nil
}
