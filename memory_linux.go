package zcnet

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePage is the size of a transparent huge page where pages are 4 KiB (Documentation/admin-guide/mm/transhuge.rst).
const hugePage = 2 << 20

// mapMemory maps zeroed memory for n bytes, page-aligned; from a huge page on it is aligned and advised for those.
func mapMemory(n int) ([]byte, error) {
	if n < hugePage {
		return mapAnonymous(n)
	}
	size := (n + hugePage - 1) &^ (hugePage - 1)
	if size < n {
		return nil, os.NewSyscallError("mmap", unix.ENOMEM)
	}
	mem, err := mapAligned(size)
	if err != nil {
		return nil, err
	}
	// Advice is all it is: a kernel without transparent huge pages answers EINVAL, and small pages work too.
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE)
	return mem, nil
}

func mapAnonymous(n int) ([]byte, error) {
	mem, err := unix.MmapPtr(-1, 0, nil, uintptr(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return unsafe.Slice((*byte)(mem), n), nil
}

// mapAligned maps size bytes, a multiple of a huge page, that begin on a huge page: it maps one more and unmaps
// what sticks out.
func mapAligned(size int) ([]byte, error) {
	wide, err := mapAnonymous(size + hugePage)
	if err != nil {
		return nil, err
	}
	lead := int(-uintptr(unsafe.Pointer(&wide[0])) & (hugePage - 1))
	unmapMemory(wide[:lead])
	unmapMemory(wide[lead+size:])
	return wide[lead : lead+size : lead+size], nil
}

// unmapMemory returns memory of mapMemory to the system. The pages that the kernel is still sending stay alive by
// its own references to them.
func unmapMemory(mem []byte) {
	if len(mem) == 0 {
		return
	}
	switch err := unix.MunmapPtr(unsafe.Pointer(&mem[0]), uintptr(len(mem))); err {
	case nil:
	case unix.ENOMEM:
		// It lies inside of a larger mapping, and the process has vm.max_map_count of them. Give the pages back at
		// least; what is lost is address space.
		_ = unix.Madvise(mem, unix.MADV_DONTNEED)
	default:
		panic("zcnet: " + os.NewSyscallError("munmap", err).Error())
	}
}
