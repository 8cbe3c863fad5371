package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/zcnet-go/zcnet/cmd/zcvm/internal/plan"
	"github.com/zcnet-go/zcnet/cmd/zcvm/internal/testlog"
)

// This file runs the library's tests.

// runTests runs the test binary where the files lie that its tests read, and shows what it prints on the console too.
// Whether tests have failed is for the host to judge.
func runTests(args []string, r *plan.Report) (err error) {
	cmd := exec.Command(plan.TestBinary, args...)
	cmd.Dir = filepath.Dir(plan.TestBinary)
	if r.Tests, err = testlog.Run(cmd, os.Stdout); err != nil {
		return fmt.Errorf("run the tests: %w", err)
	}
	return nil
}
