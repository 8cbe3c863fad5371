package main

import (
	"strings"
)

// list splits comma-separated values, and drops empty ones.
func list(s string) (values []string) {
	for v := range strings.SplitSeq(s, ",") {
		if v = strings.TrimSpace(v); v != "" {
			values = append(values, v)
		}
	}
	return values
}
