package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ulikunitz/xz"
)

// This file finds kernel modules, and the order in which they can be loaded. A package has no modules.dep (depmod makes
// it where the package is installed), but each module names those that it needs.

// A module is one that can be loaded.
type module struct {
	name string
	data []byte // the ELF file
}

// A moduleSet is the modules of one kernel.
type moduleSet struct {
	files   map[string]string // by name
	builtin []string          // names of those that are part of the kernel
}

// findModules lists the modules below dir.
func findModules(dir string) (*moduleSet, error) {
	s := &moduleSet{files: make(map[string]string)}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if base, ok := moduleFile(path); ok {
			s.files[base] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	list, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for path := range strings.FieldsSeq(string(list)) {
		if base, ok := moduleFile(path); ok {
			s.builtin = append(s.builtin, base)
		}
	}
	return s, nil
}

// moduleFile returns the name of the module in a file: the kernel writes it with underscores where the file may have
// dashes.
func moduleFile(path string) (name string, ok bool) {
	base := strings.TrimSuffix(filepath.Base(path), ".xz")
	name, ok = strings.CutSuffix(base, ".ko")
	return strings.ReplaceAll(name, "-", "_"), ok
}

// load returns the named modules and all that they need, each after those.
func (s *moduleSet) load(names ...string) ([]module, error) {
	var loaded []module
	var add func(name string, trail []string) error
	add = func(name string, trail []string) error {
		switch {
		case slices.Contains(trail, name):
			return fmt.Errorf("modules need each other: %s", strings.Join(append(trail, name), ", "))
		case slices.Contains(s.builtin, name), slices.ContainsFunc(loaded, func(m module) bool { return m.name == name }):
			return nil
		}
		data, err := s.read(name)
		if err != nil {
			return fmt.Errorf("module %s: %w", strings.Join(append(trail, name), " needs "), err)
		}
		needs, err := dependencies(data)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, n := range needs {
			if err := add(n, append(trail, name)); err != nil {
				return err
			}
		}
		loaded = append(loaded, module{name, data})
		return nil
	}
	for _, name := range names {
		if err := add(name, nil); err != nil {
			return nil, err
		}
	}
	return loaded, nil
}

// read returns the ELF file of a module.
func (s *moduleSet) read(name string) ([]byte, error) {
	path, ok := s.files[name]
	if !ok {
		return nil, errors.New("the kernel's package has no such module, or zcvm does not keep it (see unpack.go)")
	}
	data, err := os.ReadFile(path)
	if err != nil || !strings.HasSuffix(path, ".xz") {
		return data, err
	}
	r, err := xz.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// dependencies returns the names of the modules that one needs, from its section .modinfo: strings KEY=VALUE, each
// ended by a zero byte (include/linux/moduleparam.h).
func dependencies(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("it has no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	return dependsOf(info), nil
}

func dependsOf(info []byte) (names []string) {
	for line := range bytes.SplitSeq(info, []byte{0}) {
		if value, ok := bytes.CutPrefix(line, []byte("depends=")); ok {
			for _, name := range list(string(value)) {
				names = append(names, strings.ReplaceAll(name, "-", "_"))
			}
		}
	}
	return names
}
