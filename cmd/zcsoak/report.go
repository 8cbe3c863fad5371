package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// This file prints the report.

// printJSON prints it as one object.
func printJSON(w io.Writer, f *figures) error { return json.NewEncoder(w).Encode(f) }

// printReport prints it for people.
func printReport(w io.Writer, f *figures) error {
	var text strings.Builder
	tab := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(tab, "%s\t%s\n", name, strings.TrimSpace(fmt.Sprintf(format, args...)))
	}
	took := time.Duration(f.Seconds * float64(time.Second)).Round(100 * time.Millisecond)
	line("run", "seed %d, %v", f.Seed, took)
	line("connections", "%d: %s", f.ended(), list(f.Conversations))
	line("endings", "%s", list(f.Endings))
	line("bytes", "%s sent, %s received and checked", bytesOf(f.SentBytes), bytesOf(f.CheckedBytes))
	line("", "%s sent without copy, %s perhaps copied by the kernel, %s copied by zcnet", bytesOf(f.ZeroCopiedBytes), bytesOf(f.MaybeCopiedBytes), bytesOf(f.CopiedBytes))
	line("calls", "%s", list(f.Calls))
	line("memory", "%s", list(f.Memory))
	line("tickets", "%d waited for, of which %d reported a connection that had been cut; %d dropped", f.Tickets, f.FailedTickets, f.Forgotten)
	line("faults", "%s", list(f.Faults))
	line("met", "ENOBUFS by optmem %d, by memlock %d; reads that the runtime's poller refused %d", f.EnobufsOptmem, f.EnobufsMemlock, f.SlowReads)
	line("process", "%d mappings before, %d after, the Go runtime's included; %d threads before, %d after", f.MappingsBefore, f.MappingsAfter, f.ThreadsBefore, f.ThreadsAfter)
	for _, v := range f.verdicts() {
		mark := ""
		if v.value != 0 {
			mark = "WRONG"
		}
		line(v.name, "%d  %s", v.value, mark)
	}
	if err := tab.Flush(); err != nil {
		return err
	}
	for _, p := range f.Problems {
		fmt.Fprintf(&text, "WRONG: %s\n", p)
	}
	if f.CheckedBytes == 0 {
		fmt.Fprintln(&text, "WRONG: nothing was checked")
	}
	_, err := io.WriteString(w, text.String())
	return err
}

// list returns counts by name.
func list(counts map[string]int64) string {
	if len(counts) == 0 {
		return "none"
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, counts[name]))
	}
	return strings.Join(parts, ", ")
}

// bytesOf returns a number of bytes in the unit that suits it.
func bytesOf(n int64) string {
	for _, u := range []struct {
		name  string
		bytes int64
	}{{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}} {
		if n >= u.bytes {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.bytes), u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
