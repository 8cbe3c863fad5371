//go:build !linux

package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"time"
)

// errNotLinux is the answer on every system but Linux.
var errNotLinux = fmt.Errorf("lab: network namespaces, veth and XDP exist on Linux only, this is %s: %w",
	runtime.GOOS, errors.ErrUnsupported)

func newLink() (*Link, error) { return nil, errNotLinux }

func newInlineLink() (*Link, error) { return nil, errNotLinux }

func (l *Link) receivingTime() (time.Duration, error) { return 0, errNotLinux }

func startOn([]int, *exec.Cmd) error { return errNotLinux }

func inNamespace(*os.File, func() error) error { return errNotLinux }
