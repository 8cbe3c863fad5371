//go:build !linux

package main

import (
	"fmt"
	"runtime"

	"github.com/zcnet-go/zcnet"
)

func allocateSmall(int) (zcnet.Pinned, func(), error) {
	return zcnet.Pinned{}, nil, fmt.Errorf("-memory small is for Linux only: %s is not asked for huge pages", runtime.GOOS)
}
