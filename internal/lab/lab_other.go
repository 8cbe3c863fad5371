//go:build !linux

package lab

import (
	"errors"
	"fmt"
	"os"
	"runtime"
)

// errNotLinux is the answer on every system but Linux.
var errNotLinux = fmt.Errorf("lab: network namespaces, veth and XDP exist on Linux only, this is %s: %w",
	runtime.GOOS, errors.ErrUnsupported)

func newLink() (*Link, error) { return nil, errNotLinux }

func inNamespace(*os.File, func() error) error { return errNotLinux }
