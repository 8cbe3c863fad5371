package zcnet

import (
	"fmt"
	"os"
	"strings"
)

// openSockets lists what the tests should have closed: sockets, and epoll descriptors but the runtime's.
func openSockets() (open []string) {
	entries, _ := os.ReadDir("/proc/self/fd")
	epolls := 0
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil {
			continue
		}
		if strings.HasPrefix(target, "socket:") {
			open = append(open, fmt.Sprintf("descriptor %s: %s", e.Name(), target))
		}
		if strings.Contains(target, "[eventpoll]") {
			if epolls++; epolls > 1 {
				open = append(open, fmt.Sprintf("descriptor %s: %s", e.Name(), target))
			}
		}
	}
	return open
}
