package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// This file builds what runs elsewhere. Without cgo programs are static: they need nothing but a kernel.

// The packages that are built.
const (
	library = "github.com/zcnet-go/zcnet"
	guest   = library + "/cmd/zcvm/guest"
)

// A builder builds for one processor into a directory.
type builder struct{ dir, arch string }

// program builds a command and returns the file.
func (b builder) program(ctx context.Context, pkg string) (string, error) {
	file := filepath.Join(b.dir, filepath.Base(pkg))
	return file, b.run(ctx, "build", "-ldflags=-s -w", "-o", file, pkg)
}

// tests builds the test binary of a package and returns the file.
func (b builder) tests(ctx context.Context, pkg string) (string, error) {
	file := filepath.Join(b.dir, b.arch+".test")
	return file, b.run(ctx, "test", "-c", "-ldflags=-s -w", "-o", file, pkg)
}

func (b builder) run(ctx context.Context, args ...string) error {
	env := []string{"GOOS=linux", "GOARCH=" + b.arch, "CGO_ENABLED=0"}
	if _, err := output(ctx, "", "env", append(append(env, "go"), args...)...); err != nil {
		return fmt.Errorf("build for %s: %w", b.arch, err)
	}
	return nil
}

// sourceDir returns the directory of a package.
func sourceDir(ctx context.Context, pkg string) (string, error) {
	out, err := output(ctx, "", "go", "list", "-f", "{{.Dir}}", pkg)
	if err != nil {
		return "", fmt.Errorf("find the source of %s, which zcvm has to be run inside of: %w", pkg, err)
	}
	return strings.TrimSpace(out), nil
}

// readAll reads files of a directory, to lie in dir of a machine.
func readAll(from, dir string, names ...string) (files []guestFile, err error) {
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return nil, err
		}
		files = append(files, guestFile{name: dir + "/" + name, mode: 0o644, data: data})
	}
	return files, nil
}
