// Package testlog reads what a Go test binary prints under -test.v while it runs, on a machine that has no go command
// to read it.
package testlog

import (
	"bufio"
	"io"
	"regexp"
	"strings"
	"time"
)

// A Summary is what came of the top-level tests of a binary.
type Summary struct {
	Passed  int
	Failed  []Test
	Skipped []Test
	Ended   bool // the binary came to its last line, and said PASS
	Took    time.Duration
}

// A Test is one that did not pass.
type Test struct {
	Name string
	Why  string // what it logged last
}

// OK reports whether something was tested, and nothing failed.
func (s *Summary) OK() bool { return s.Ended && s.Passed > 0 && len(s.Failed) == 0 }

// result is the line that ends a top-level test; those of subtests are indented.
var result = regexp.MustCompile(`^--- (PASS|FAIL|SKIP): (\S+) \(`)

// Read reads the output of a test binary to its end.
func Read(r io.Reader) (*Summary, error) {
	s := &Summary{}
	why := ""
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		switch m := result.FindStringSubmatch(line); {
		case m != nil:
			s.add(m[1], Test{Name: m[2], Why: why})
			why = ""
		case strings.HasPrefix(line, "=== RUN"):
			why = ""
		case strings.HasPrefix(line, "    ") && !strings.HasPrefix(strings.TrimSpace(line), "---"):
			why = strings.TrimSpace(line)
		case strings.HasPrefix(line, "panic:"):
			s.Failed = append(s.Failed, Test{Name: "the test binary", Why: line})
		case line == "PASS":
			s.Ended = true
		}
	}
	return s, lines.Err()
}

func (s *Summary) add(verdict string, t Test) {
	switch verdict {
	case "PASS":
		s.Passed++
	case "FAIL":
		s.Failed = append(s.Failed, t)
	case "SKIP":
		s.Skipped = append(s.Skipped, t)
	}
}
