//go:build !unix

package perf

import (
	"errors"
	"time"
)

func processTime() (time.Duration, error) { return 0, errors.ErrUnsupported }
