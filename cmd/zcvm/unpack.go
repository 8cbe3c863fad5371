package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// This file unpacks of a kernel's package what a machine with a network device needs: a twentieth of it.

// wanted matches the files of a package that are kept: the kernel, the list of what is built into it, and the modules
// that the devices of the table in device.go, and the link of the library's tests, can depend on.
var wanted = regexp.MustCompile(`^\./(usr/)?(boot/vmlinuz-[^/]+|lib/modules/[^/]+/modules\.builtin|` +
	`lib/modules/[^/]+/kernel/(net/core|net/sched|drivers/virtio|drivers/ptp|drivers/pps|drivers/net|` +
	`drivers/net/ethernet/(intel|realtek)(/[^/]+)?)/[^/]+\.ko(\.xz)?)$`)

// unpack unpacks a package into dir of the cache, whole or not at all.
func (c *cache) unpack(ctx context.Context, file, dir string) (*kernel, error) {
	c.log("unpacking %s", filepath.Base(file))
	tmp, err := os.MkdirTemp(c.dir, "unpack")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	if err := unpackTo(ctx, file, tmp); err != nil {
		return nil, fmt.Errorf("unpack %s: %w", file, err)
	}
	if _, err := openKernel(tmp); err != nil {
		return nil, fmt.Errorf("%s is not a package with a kernel and its modules: %w", file, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return nil, err
	}
	return openKernel(dir)
}

func unpackTo(ctx context.Context, file, dir string) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", file)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = keepWanted(tar.NewReader(out), dir)
	_, _ = io.Copy(io.Discard, out) // so that the command ends by itself
	if waitErr := cmd.Wait(); waitErr != nil {
		return fmt.Errorf("dpkg-deb: %w: %s", waitErr, strings.TrimSpace(stderr.String()))
	}
	return err
}

// keepWanted writes the files of an archive that are wanted below dir. Where they lie in usr they are found without it.
func keepWanted(archive *tar.Reader, dir string) error {
	for {
		hdr, err := archive.Next()
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		case hdr.Typeflag != tar.TypeReg || !wanted.MatchString(hdr.Name):
			continue
		}
		name := strings.TrimPrefix(strings.TrimPrefix(hdr.Name, "./"), "usr/")
		if err := keep(archive, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
}

func keep(r io.Reader, name string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}
