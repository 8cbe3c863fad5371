package testlog

import (
	"errors"
	"io"
	"os/exec"
	"time"
)

// Run runs a test binary to its end, copies what it prints to shown, and returns what came of it. Failed tests are no
// error: they are in the summary.
func Run(cmd *exec.Cmd, shown io.Writer) (*Summary, error) {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = cmd.Stdout
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s, err := Read(io.TeeReader(out, shown))
	waitErr := cmd.Wait()
	s.Took = time.Since(start)
	if failed := (*exec.ExitError)(nil); errors.As(waitErr, &failed) && len(s.Failed) > 0 {
		waitErr = nil
	}
	return s, errors.Join(err, waitErr)
}
