package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// This file asks Debian's package manager.

// apt is the package manager, with options that say which index of packages to look at.
type apt struct{ options []string }

// systemApt looks at the index that the machine keeps.
func systemApt() apt { return apt{} }

// ownApt looks at an index of the same sources that zcvm keeps for itself in dir: the machine's own may be old or empty,
// and takes root to renew.
func ownApt(dir string) (apt, error) {
	for _, sub := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return apt{}, err
		}
	}
	return apt{options: []string{
		"-o", "Dir::State::lists=" + filepath.Join(dir, "lists"),
		"-o", "Dir::Cache=" + filepath.Join(dir, "cache"),
	}}, nil
}

// update renews the index.
func (a apt) update(ctx context.Context) error {
	_, err := a.run(ctx, "", "apt-get", "update", "-qq")
	return err
}

// names returns the packages whose names match a regular expression.
func (a apt) names(ctx context.Context, pattern string) (names []string, err error) {
	out, err := a.run(ctx, "", "apt-cache", "search", "--names-only", pattern)
	for line := range strings.Lines(out) {
		if name, _, ok := strings.Cut(line, " - "); ok {
			names = append(names, name)
		}
	}
	return names, err
}

// version returns the version of a package that would be downloaded.
func (a apt) version(ctx context.Context, name string) (string, error) {
	out, err := a.run(ctx, "", "apt-cache", "show", "--no-all-versions", name)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if v, ok := strings.CutPrefix(line, "Version: "); ok {
			return strings.TrimSpace(v), nil
		}
	}
	return "", fmt.Errorf("apt-cache tells no version of %s", name)
}

// download fetches a package into dir, which has to be empty, and returns the file.
func (a apt) download(ctx context.Context, dir, name string) (string, error) {
	options := a.options
	if os.Getuid() == 0 {
		// Otherwise apt-get warns that its unprivileged user cannot write to the directory.
		options = append(options[:len(options):len(options)], "-o", "APT::Sandbox::User=root")
	}
	if _, err := (apt{options}).run(ctx, dir, "apt-get", "download", "-qq", name); err != nil {
		return "", err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(files) != 1 {
		return "", fmt.Errorf("apt-get download %s has left %d packages, want one", name, len(files))
	}
	return files[0], nil
}

// run runs one of the package manager's commands in dir and returns what it prints.
func (a apt) run(ctx context.Context, dir, name string, args ...string) (string, error) {
	if _, err := exec.LookPath(name); err != nil {
		return "", fmt.Errorf("%w: kernels come from Debian's packages, so zcvm needs Debian or a system like it, or -kernel FILE.deb", err)
	}
	return output(ctx, dir, name, append(args, a.options...)...)
}

// output runs a command in dir and returns what it prints. Its error has what the command says.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	if ctx.Err() != nil {
		err = errors.Join(ctx.Err(), err)
	}
	return stdout.String(), err
}
