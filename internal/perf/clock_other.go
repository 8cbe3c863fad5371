//go:build !linux

package perf

import (
	"errors"
	"time"
)

func processTimeOf(int) (time.Duration, error) { return 0, errors.ErrUnsupported }

func pause(d time.Duration) { time.Sleep(d) }
