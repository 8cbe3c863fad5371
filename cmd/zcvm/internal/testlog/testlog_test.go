package testlog

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRead(t *testing.T) {
	for _, test := range []struct {
		name, log string
		want      Summary
		ok        bool
	}{
		{name: "nothing"},
		{
			name: "all passed",
			log: `=== RUN   TestA
--- PASS: TestA (0.00s)
=== RUN   TestB
=== RUN   TestB/one
    b_test.go:3: just saying
--- PASS: TestB (0.10s)
    --- PASS: TestB/one (0.10s)
PASS
`,
			want: Summary{Passed: 2, Ended: true},
			ok:   true,
		},
		{
			name: "nothing ran",
			log:  "testing: warning: no tests to run\nPASS\n",
			want: Summary{Ended: true},
		},
		{
			name: "skipped and failed, over a serial line",
			log: "=== RUN   TestA\r\n    a_test.go:7: takes root\r\n--- SKIP: TestA (0.00s)\r\n" +
				"=== RUN   TestB\r\n    b_test.go:9: first\r\n    b_test.go:10: got 1, want 2\r\n--- FAIL: TestB (0.00s)\r\n" +
				"=== RUN   TestC\r\n--- SKIP: TestC (0.00s)\r\nFAIL\r\n",
			want: Summary{
				Failed:  []Test{{"TestB", "b_test.go:10: got 1, want 2"}},
				Skipped: []Test{{"TestA", "a_test.go:7: takes root"}, {Name: "TestC"}},
			},
		},
		{
			name: "it panicked",
			log:  "=== RUN   TestA\n--- PASS: TestA (0.00s)\n=== RUN   TestB\npanic: test timed out after 1s\n",
			want: Summary{Passed: 1, Failed: []Test{{"the test binary", "panic: test timed out after 1s"}}},
		},
		{
			name: "it was cut short",
			log:  "=== RUN   TestA\n--- PASS: TestA (0.00s)\n=== RUN   TestB\n",
			want: Summary{Passed: 1},
		},
	} {
		got, err := Read(strings.NewReader(test.log))
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if diff := cmp.Diff(&test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
		if got.OK() != test.ok {
			t.Errorf("%s: OK is %v, want %v", test.name, got.OK(), test.ok)
		}
	}
}
