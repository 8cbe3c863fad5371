package main

import (
	"io"
	"path"
	"slices"
	"strings"

	"github.com/cavaliergopher/cpio"
)

// This file makes the only file system that a machine has: an archive that the kernel unpacks into memory at start
// (https://docs.kernel.org/filesystems/ramfs-rootfs-initramfs.html).

// A guestFile is one of its files.
type guestFile struct {
	name string // its whole path
	mode cpio.FileMode
	data []byte
}

// writeArchive writes files to an archive, with the directories that they lie in.
func writeArchive(w io.Writer, files []guestFile) error {
	archive := cpio.NewWriter(w)
	for _, f := range slices.Concat(directories(files), files) {
		hdr := &cpio.Header{Name: strings.TrimPrefix(f.name, "/"), Mode: f.mode, Size: int64(len(f.data)), Links: 1}
		if err := archive.WriteHeader(hdr); err != nil {
			return err
		}
		if _, err := archive.Write(f.data); err != nil {
			return err
		}
	}
	return archive.Close()
}

// directories returns the directories of files, each after the one it lies in.
func directories(files []guestFile) (dirs []guestFile) {
	var names []string
	for _, f := range files {
		for dir := path.Dir(f.name); dir != "/"; dir = path.Dir(dir) {
			names = append(names, dir)
		}
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		dirs = append(dirs, guestFile{name: name, mode: cpio.TypeDir | 0o755})
	}
	return dirs
}
