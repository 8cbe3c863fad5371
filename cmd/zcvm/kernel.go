package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// This file finds kernels and fetches them into the cache.

// A kernel is one that was unpacked.
type kernel struct {
	image   string // the file to boot
	modules string // the directory of its modules
}

// release returns the kernel's own name for itself, uname -r.
func (k *kernel) release() string { return filepath.Base(k.modules) }

// A cache is where kernels are kept.
type cache struct {
	dir string
	log func(format string, args ...any)
}

// openCache makes the directory, unless it is there.
func openCache(log func(format string, args ...any)) (*cache, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("there is no directory to keep kernels in: %w", err)
	}
	dir = filepath.Join(dir, "zcvm")
	return &cache{dir, log}, os.MkdirAll(dir, 0o755)
}

// kernel returns the kernel that was asked for: the newest of a series such as 6.1, or the one of a package that is a
// file.
func (c *cache) kernel(ctx context.Context, asked string) (*kernel, error) {
	if strings.HasSuffix(asked, ".deb") {
		return c.ofFile(ctx, asked)
	}
	from, name, err := c.find(ctx, asked)
	if err != nil {
		return nil, err
	}
	version, err := from.version(ctx, name)
	if err != nil {
		return nil, err
	}
	dir := c.entry(name, version)
	if k, err := openKernel(dir); err == nil {
		return k, nil
	}
	c.log("fetching %s %s", name, version)
	tmp, err := os.MkdirTemp(c.dir, "download")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	file, err := from.download(ctx, tmp, name)
	if err != nil {
		return nil, err
	}
	return c.unpack(ctx, file, dir)
}

// ofFile returns the kernel of a package that was downloaded before.
func (c *cache) ofFile(ctx context.Context, file string) (*kernel, error) {
	out, err := output(ctx, "", "dpkg-deb", "--show", "--showformat=${Package} ${Version}", file)
	if err != nil {
		return nil, err
	}
	name, version, _ := strings.Cut(out, " ")
	dir := c.entry(name, version)
	if k, err := openKernel(dir); err == nil {
		return k, nil
	}
	return c.unpack(ctx, file, dir)
}

// entry returns the directory of a package in the cache.
func (c *cache) entry(name, version string) string {
	return filepath.Join(c.dir, name+"_"+strings.ReplaceAll(version, ":", "%3a"))
}

// find returns the newest package of a series, and the index that has it: the machine's own, or a fresh one.
func (c *cache) find(ctx context.Context, series string) (apt, string, error) {
	from := systemApt()
	name, err := newest(ctx, from, series)
	if err != nil || name != "" {
		return from, name, err
	}
	c.log("the machine's package index has no kernel %s: fetching an index", series)
	if from, err = ownApt(filepath.Join(c.dir, "apt")); err != nil {
		return from, "", err
	}
	if err := from.update(ctx); err != nil {
		return from, "", err
	}
	name, err = newest(ctx, from, series)
	if err == nil && name == "" {
		err = fmt.Errorf("the package sources of this machine have no kernel %s (no package linux-image-%s…-amd64): "+
			"add a release of Debian that has it (6.1: bookworm; 6.12: trixie, or bookworm's security updates) to them, "+
			"or give the package as a file, -kernel FILE.deb", series, series)
	}
	return from, name, err
}

// newest returns the newest package of a series in an index, or "".
func newest(ctx context.Context, from apt, series string) (string, error) {
	names, err := from.names(ctx, "^linux-image-"+regexp.QuoteMeta(series))
	if err != nil {
		return "", err
	}
	return newestOf(names, series), nil
}

// newestOf returns the name of the newest kernel of a series among names of packages. The signed ones of the general
// flavour count, not the variants (cloud, rt), debug symbols or packages that only depend on others.
func newestOf(names []string, series string) (name string) {
	// Such as 6.1.0-56 of Debian's releases, and 6.12.117+deb12 since.
	kind := regexp.MustCompile(`^linux-image-` + regexp.QuoteMeta(series) + `\.[0-9]+(-[0-9]+|\+deb[0-9]+(\.[0-9]+)?)?-amd64$`)
	for _, n := range names {
		if kind.MatchString(n) && (name == "" || slices.Compare(numbers(n), numbers(name)) > 0) {
			name = n
		}
	}
	return name
}

// numbers returns the numbers in the name of a kernel's package.
func numbers(name string) (ns []int) {
	name = strings.TrimSuffix(name, "-amd64")
	for _, digits := range regexp.MustCompile(`[0-9]+`).FindAllString(name, -1) {
		n, _ := strconv.Atoi(digits) // as long as fits, which is all that names of packages have
		ns = append(ns, n)
	}
	return ns
}

// openKernel returns the kernel that lies unpacked in dir.
func openKernel(dir string) (*kernel, error) {
	images, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	modules, _ := filepath.Glob(filepath.Join(dir, "lib", "modules", "*"))
	if len(images) != 1 || len(modules) != 1 {
		return nil, errors.New("want one boot/vmlinuz-* and one lib/modules/* in " + dir)
	}
	return &kernel{images[0], modules[0]}, nil
}
