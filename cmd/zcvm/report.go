package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/zcnet-go/zcnet/cmd/zcvm/internal/plan"
	"github.com/zcnet-go/zcnet/cmd/zcvm/internal/testlog"
)

// This file prints what came of the machines, and says where that is not what it should be.

// A row is what came of one machine, and one line of the table.
type row struct {
	device   device
	report   *plan.Report
	received plan.Checker
	err      error // of receiving
	tests    bool  // they should have run
	excluded []exclusion
	took     time.Duration
}

// problems says what is not as expected.
func (r *row) problems() (texts []string) {
	say := func(format string, args ...any) { texts = append(texts, fmt.Sprintf(format, args...)) }
	if r.report.Error != "" {
		say("the guest: %s", r.report.Error)
	}
	if r.err != nil {
		say("receiving: %v", r.err)
	}
	if r.received.Wrong > 0 {
		say("%d bytes arrived wrong, the first at position %d", r.received.Wrong, r.received.First)
	}
	if r.received.Bytes != transferBytes {
		say("%d bytes arrived, want %d", r.received.Bytes, int64(transferBytes))
	}
	for _, text := range r.device.unexpected(r.report) {
		say("%s", text)
	}
	for _, text := range testProblems(r.report.Tests, r.tests) {
		say("%s", text)
	}
	return texts
}

// paddedBytes may be marked as copied though the path does not copy: a receive
// window, too, can cut a packet so short that it has to be filled up (see
// transferWrite), which marks up to half a megabyte (msg_zerocopy_realloc in
// net/core/skbuff.c). A path that copies marks everything.
const paddedBytes = transferBytes / 20

// unexpected says how the stream travelled otherwise than it should through the device.
func (d device) unexpected(r *plan.Report) (texts []string) {
	s := r.Stats
	say := func(format string, args ...any) { texts = append(texts, fmt.Sprintf(format, args...)) }
	if s.RejectedNotifications > 0 || s.IDsInFlight > 0 || s.UnprovenBytes > 0 {
		say("completions: %d were rejected, %d are missing, and %d bytes were never proven free; want none",
			s.RejectedNotifications, s.IDsInFlight, s.UnprovenBytes)
	}
	if sum := s.ZeroCopiedBytes + s.MaybeCopiedBytes + s.CopiedBytes; sum != transferBytes {
		say("%d bytes are accounted for, want %d", sum, int64(transferBytes))
	}
	if r.ScatterGather == d.copies {
		say("scatter-gather is %s, want %s", onOff(r.ScatterGather), onOff(!d.copies))
	}
	switch {
	case d.copies && s.MaybeCopiedBytes == 0:
		say("no completion says that the kernel copied: it has to for %s", d.name)
	case d.copies && s.Fallbacks.Path == 0:
		say("zcnet has not noticed that the kernel copies: no write was sent plainly for that")
	case !d.copies && s.ZeroCopiedBytes < transferBytes/2:
		say("%d of %d bytes were sent without a copy: want more than half", s.ZeroCopiedBytes, int64(transferBytes))
	case !d.copies && (s.MaybeCopiedBytes > paddedBytes || s.PathCopies):
		say("the kernel has copied up to %d bytes: it need not for %s", s.MaybeCopiedBytes, d.name)
	}
	return texts
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// testProblems says what is wrong with the library's tests, if they should have run.
func testProblems(s *testlog.Summary, wanted bool) (texts []string) {
	switch {
	case !wanted:
		return nil
	case s == nil:
		return []string{"the tests did not run"}
	}
	for _, t := range s.Failed {
		texts = append(texts, fmt.Sprintf("%s failed: %s", t.Name, t.Why))
	}
	if len(texts) == 0 && !s.OK() {
		texts = append(texts, fmt.Sprintf("the tests did not come to their end: %d passed until then", s.Passed))
	}
	return texts
}

// printRows prints the table, which tests were left out and why, and what is not as expected.
func printRows(w io.Writer, rows []row) error {
	if len(rows) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "kernel\tdriver\tscatter-gather\tbytes right\tuncopied\tcopied by the kernel\tby zcnet\tplain writes\ttests\ttook\t")
	for _, r := range rows {
		s := r.report.Stats
		fmt.Fprintf(t, "%s\t%s\t%s\t%11d\t%8s\t%20s\t%8s\t%6d of %d\t%s\t%4.0f s\t%s\n",
			r.report.Kernel, r.report.Driver, onOff(r.report.ScatterGather), r.received.Bytes-r.received.Wrong,
			share(s.ZeroCopiedBytes), share(s.MaybeCopiedBytes), share(s.CopiedBytes), s.Fallbacks.Path, s.Writes,
			testCounts(r.report.Tests), r.took.Seconds(), verdict(r.problems()))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, "\nUncopied and copied by the kernel are what its completions say; plain writes were sent so because they said copied.")
	for _, r := range rows {
		where := fmt.Sprintf("%s, %s", r.report.Kernel, r.device.name)
		for _, e := range r.excluded {
			fmt.Fprintf(w, "%s: %v\n", where, e)
		}
		printNotes(w, where, r.report.Tests, r.problems())
	}
	return nil
}

// printNotes prints which tests were skipped, and what is not as expected.
func printNotes(w io.Writer, where string, tests *testlog.Summary, problems []string) {
	if tests != nil {
		for _, t := range tests.Skipped {
			fmt.Fprintf(w, "%s: %s was skipped: %s\n", where, t.Name, t.Why)
		}
	}
	for _, text := range problems {
		fmt.Fprintf(w, "%s: NOT AS EXPECTED: %s\n", where, text)
	}
}

// share prints part of the transfer. Only all is 100%, and only nothing 0%.
func share(n int64) string {
	switch n {
	case 0:
		return "0%"
	case transferBytes:
		return "100%"
	}
	return fmt.Sprintf("%.1f%%", min(max(100*float64(n)/transferBytes, 0.1), 99.9))
}

// testCounts prints how many tests passed.
func testCounts(s *testlog.Summary) string {
	if s == nil {
		return "-"
	}
	return fmt.Sprintf("%d passed, %d failed, %d skipped", s.Passed, len(s.Failed), len(s.Skipped))
}

func verdict(problems []string) string {
	if len(problems) > 0 {
		return "NOT AS EXPECTED"
	}
	return "as expected"
}

// judge returns an error if any of several things is not as expected.
func judge(rows []row) error {
	for _, r := range rows {
		if len(r.problems()) > 0 {
			return errNotAsExpected
		}
	}
	return nil
}
