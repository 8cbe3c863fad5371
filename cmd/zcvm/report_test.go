package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zcnet-go/zcnet"
	"github.com/zcnet-go/zcnet/cmd/zcvm/internal/plan"
	"github.com/zcnet-go/zcnet/cmd/zcvm/internal/testlog"
)

// goodRow returns what should come of a machine with the named device.
func goodRow(t *testing.T, name string) row {
	t.Helper()
	d, err := findDevice(name)
	if err != nil {
		t.Fatal(err)
	}
	r := row{device: d, received: plan.Checker{Bytes: transferBytes}, report: &plan.Report{
		Kernel: "6.1.0-50-amd64", Driver: strings.ReplaceAll(name, "-", "_"), ScatterGather: !d.copies,
	}}
	s := &r.report.Stats
	s.Writes, s.ZeroCopiedBytes = 385, transferBytes
	if d.copies {
		s.MaybeCopiedBytes, s.CopiedBytes = 10<<20, 20<<20
		s.ZeroCopiedBytes -= s.MaybeCopiedBytes + s.CopiedBytes
		s.Fallbacks.Path = 100
	}
	return r
}

func TestProblems(t *testing.T) {
	for _, test := range []struct {
		name, device string
		change       func(r *row)
		want         string // part of what is said; "" for nothing
	}{
		{"uncopied by a driver with scatter-gather", "e1000", func(r *row) {}, ""},
		{"copied by one without", "virtio-net", func(r *row) {}, ""},
		{"an error of the guest", "e1000", func(r *row) { r.report.Error = "no route" }, "the guest: no route"},
		{"an error of the host", "e1000", func(r *row) { r.err = errors.New("reset") }, "receiving: reset"},
		{"a wrong byte", "e1000", func(r *row) { r.received.Wrong, r.received.First = 1, 77 }, "1 bytes arrived wrong, the first at position 77"},
		{"a byte too few", "e1000", func(r *row) { r.received.Bytes-- }, "bytes arrived, want"},
		{"a kernel that copies all the same", "e1000", func(r *row) {
			r.report.Stats.MaybeCopiedBytes = 3 << 20
			r.report.Stats.ZeroCopiedBytes -= 3 << 20
		}, "the kernel has copied up to 3145728 bytes"},
		{"a packet that was filled up", "e1000", func(r *row) {
			r.report.Stats.MaybeCopiedBytes = 512 << 10
			r.report.Stats.ZeroCopiedBytes -= 512 << 10
		}, ""},
		{"a library that copies all the same", "e1000", func(r *row) {
			r.report.Stats = zcnet.Stats{CopiedBytes: transferBytes}
		}, "0 of 49164345 bytes were sent without a copy"},
		{"no scatter-gather", "e1000", func(r *row) { r.report.ScatterGather = false }, "scatter-gather is off, want on"},
		{"scatter-gather", "virtio-net", func(r *row) { r.report.ScatterGather = true }, "scatter-gather is on, want off"},
		{"no completion that says copied", "virtio-net", func(r *row) {
			r.report.Stats.ZeroCopiedBytes += r.report.Stats.MaybeCopiedBytes
			r.report.Stats.MaybeCopiedBytes = 0
		}, "no completion says that the kernel copied"},
		{"a library that does not adapt", "virtio-net", func(r *row) { r.report.Stats.Fallbacks.Path = 0 }, "zcnet has not noticed"},
		{"bytes lost in the accounts", "virtio-net", func(r *row) { r.report.Stats.CopiedBytes-- }, "bytes are accounted for"},
		{"a rejected completion", "e1000", func(r *row) { r.report.Stats.RejectedNotifications = 2 }, "completions: 2 were rejected"},
		{"a missing completion", "e1000", func(r *row) { r.report.Stats.IDsInFlight = 3 }, "3 are missing"},
		{"tests that did not run", "e1000", func(r *row) { r.tests = true }, "the tests did not run"},
		{"a failed test", "e1000", func(r *row) {
			r.tests = true
			r.report.Tests = &testlog.Summary{Passed: 5, Failed: []testlog.Test{{Name: "TestA", Why: "1, want 2"}}}
		}, "TestA failed: 1, want 2"},
		{"tests cut short", "e1000", func(r *row) {
			r.tests = true
			r.report.Tests = &testlog.Summary{Passed: 5}
		}, "5 passed until then"},
		{"good tests", "e1000", func(r *row) {
			r.tests = true
			r.report.Tests = &testlog.Summary{Passed: 5, Ended: true}
		}, ""},
	} {
		r := goodRow(t, test.device)
		test.change(&r)
		got := strings.Join(r.problems(), "\n")
		if !strings.Contains(got, test.want) || test.want == "" && got != "" {
			t.Errorf("%s: the problems are %q, want %q", test.name, got, test.want)
		}
		if err := judge([]row{goodRow(t, "e1000"), r}); (err == nil) != (got == "") {
			t.Errorf("%s: judged %v with the problems %q", test.name, err, got)
		}
	}
}

func TestTableSaysWhatIsNotAsExpected(t *testing.T) {
	good, bad := goodRow(t, "virtio-net"), goodRow(t, "e1000")
	bad.received.Wrong = 3
	bad.report.Tests = &testlog.Summary{Passed: 2, Skipped: []testlog.Test{{Name: "TestB", Why: "takes a moon"}}}
	var out bytes.Buffer
	if err := printRows(&out, []row{good, bad}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	for i, want := range map[int][]string{
		1: {"virtio_net", "49164345", "21.3%", "42.7%", "100 of 385", "as expected"},
		2: {"e1000", "49164342", "100%", "2 passed, 0 failed, 1 skipped", "NOT AS EXPECTED"},
	} {
		for _, text := range want {
			if !strings.Contains(lines[i], text) {
				t.Errorf("line %d lacks %q: %s", i, text, lines[i])
			}
		}
	}
	for _, want := range []string{"6.1.0-50-amd64, e1000: NOT AS EXPECTED: 3 bytes arrived wrong", "TestB was skipped: takes a moon"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, &out)
		}
	}
}

func TestReadReport(t *testing.T) {
	for _, test := range []struct{ name, text, kernel string }{
		{"whole, over a serial line", "{\"Kernel\":\"6.1\"}\r\n", "6.1"},
		{"nothing", "", ""},
		{"cut short", `{"Kernel":"6.1`, ""},
	} {
		file := filepath.Join(t.TempDir(), "report")
		if err := os.WriteFile(file, []byte(test.text), 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := readReport(file)
		switch {
		case test.kernel == "" && (err == nil || !strings.Contains(err.Error(), "without a whole report")):
			t.Errorf("%s: %+v, %v; want an error that says what is missing", test.name, r, err)
		case test.kernel != "" && (err != nil || r.Kernel != test.kernel):
			t.Errorf("%s: %+v, %v", test.name, r, err)
		}
	}
}
