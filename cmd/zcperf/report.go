package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
)

// This file prints results: as JSON, or as a table and what it means.

// report prints what there is of the results, which may be nothing.
func (b *bench) report(stdout, stderr io.Writer) error {
	rows := b.rows()
	switch {
	case len(rows) == 0:
		return nil
	case b.cfg.json:
		for _, line := range b.shortfalls() {
			fmt.Fprintln(stderr, line)
		}
		return printJSON(stdout, rows)
	}
	var text strings.Builder
	printTable(&text, rows)
	fmt.Fprintln(&text)
	for _, line := range slices.Concat(b.meanings(), checks(rows), b.shortfalls(), disturbance(rows)) {
		fmt.Fprintln(&text, line)
	}
	_, err := io.WriteString(stdout, text.String())
	return err
}

// printJSON prints one object a line.
func printJSON(w io.Writer, rows []row) error {
	enc := json.NewEncoder(w)
	for _, r := range rows {
		if err := enc.Encode(r.result); err != nil {
			return err
		}
	}
	return nil
}

// A row is one line of the table.
type row struct {
	result
	lowest, highest float64 // GB/s of the rounds
	ofCopy          float64 // GB/s as a multiple of mode copy's; 0 if that is not known
}

// rows returns the cells that have a result.
func (b *bench) rows() (rows []row) {
	for _, g := range b.groups {
		rows = append(rows, g.rows()...)
	}
	return rows
}

func (g *group) rows() (rows []row) {
	var copied float64
	for _, c := range g.cells {
		r, ok := c.median()
		if !ok {
			continue
		}
		if c.mode.name == "copy" {
			copied = r.GBPerS
		}
		rows = append(rows, row{
			result:  r,
			lowest:  slices.MinFunc(c.results, byThroughput).GBPerS,
			highest: slices.MaxFunc(c.results, byThroughput).GBPerS,
		})
	}
	for i := range rows {
		if copied > 0 {
			rows[i].ofCopy = rows[i].GBPerS / copied
		}
	}
	return rows
}

// printTable prints rows for people. Figures have the same width in each row, for tabwriter aligns all columns to the
// same side.
func printTable(w io.Writer, rows []row) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "link\twrites of\tmode\tGB/s\tlowest to highest\tof copy\tsender's CPU/GB\tsystem CPU/GB\tuncopied")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%v\t%s\t%5.2f\t%5.2f to %5.2f\t%s\t%s\t%s\t%8s\n", r.Link, r.Size, r.Mode,
			r.GBPerS, r.lowest, r.highest, times(r.ofCopy), cpu(r.ProcCPU), cpu(r.SysCPU), r.uncopied())
	}
	t.Flush()
}

func times(ratio float64) string {
	if ratio == 0 {
		return "    -"
	}
	return fmt.Sprintf("%5.2fx", ratio)
}

func cpu(secondsPerGB *float64) string {
	if secondsPerGB == nil {
		return "     -"
	}
	return fmt.Sprintf("%5.2f s", *secondsPerGB)
}

// uncopied returns the share of bytes that were sent without a copy. Only all is 100%, and only nothing 0%.
func (r result) uncopied() string {
	switch r.ZeroCopied {
	case 0:
		return "0%"
	case r.Bytes:
		return "100%"
	}
	return fmt.Sprintf("%.1f%%", min(max(100*r.share(), 0.1), 99.9))
}

func (r result) share() float64 { return float64(r.ZeroCopied) / float64(max(r.Bytes, 1)) }

// meanings says in a sentence or two for each link what the figures mean.
func (b *bench) meanings() (lines []string) {
	for _, p := range b.paths {
		by := make(map[string][]row)
		for _, g := range b.groups {
			for _, r := range g.rows() {
				if g.path == p {
					by[r.Mode] = append(by[r.Mode], r)
				}
			}
		}
		if len(by["zcnet"]) > 0 {
			lines = append(lines, capitalized(p.where())+" "+meaning(by["copy"], by["naive"], by["zcnet"])+by["zcnet"][0].controlled())
		}
	}
	return lines
}

// controlled says in a sentence how TCP was controlled, where that is known.
func (r result) controlled() string {
	if r.Control == "" {
		return ""
	}
	return " Congestion control was " + r.Control + "."
}

// capitalized makes a text the beginning of a sentence.
func capitalized(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// meaning puts the rows of one link, by mode, into words. Those of zcnet there are.
func meaning(copied, naive, zc []row) string {
	var s strings.Builder
	least, most := extremes(zc, result.share)
	switch why := zc[0].whyCopied; {
	case least == 1:
		s.WriteString("zcnet sends everything without a copy.")
	case least > 0.5:
		fmt.Fprintf(&s, "zcnet sends at least %.1f%% without a copy.", 100*least)
	case most > 0.5:
		fmt.Fprintf(&s, "zcnet sends %.1f%% to %.1f%% without a copy, depending on the size of a write.", 100*least, 100*most)
	case why != "":
		fmt.Fprintf(&s, "next to nothing is sent without a copy: %s.", why)
	default:
		s.WriteString("next to nothing is sent without a copy.")
	}
	if often, ok := countSpan(zc, func(r result) *float64 { return r.Wakeups }); ok {
		fmt.Fprintf(&s, " Its poller is woken %s times per GB", often)
		if calls, ok := countSpan(zc, func(r result) *float64 { return r.Syscalls }); ok {
			fmt.Fprintf(&s, ", and it makes %s system calls", calls)
		}
		s.WriteString(".")
	}
	if len(copied) == 0 {
		return s.String()
	}
	fmt.Fprintf(&s, " It has %s the throughput of plain Write", throughput(zc))
	if cost := processorTime(zc, copied); cost != "" {
		fmt.Fprintf(&s, " and takes %s the processor time in the sender", cost)
	}
	s.WriteString(".")
	if len(naive) > 0 {
		fmt.Fprintf(&s, " The naive loop has %s the throughput.", throughput(naive))
	}
	return s.String()
}

// throughput returns the range of throughputs as multiples of copy's.
func throughput(rows []row) string {
	var ratios []float64
	for _, r := range rows {
		ratios = append(ratios, r.ofCopy)
	}
	return span(ratios)
}

// processorTime returns the range of the sender's time per byte as multiples of that of base, size by size, or
// nothing where it is not known. The system's time would be more complete, but others use it too, and its clock is
// coarse.
func processorTime(rows, base []row) string {
	var ratios []float64
	for i := range min(len(rows), len(base)) {
		r, c := rows[i].ProcCPU, base[i].ProcCPU
		if r == nil || c == nil || *c == 0 {
			return ""
		}
		ratios = append(ratios, *r / *c)
	}
	return span(ratios)
}

// span returns the range of one or more ratios in words.
func span(ratios []float64) string {
	low, high := fmt.Sprintf("%.2f", slices.Min(ratios)), fmt.Sprintf("%.2f", slices.Max(ratios))
	if low == high {
		return low + " times"
	}
	return low + " to " + high + " times"
}

// countSpan returns the range of a count per GB in words, and whether it is known.
func countSpan(rows []row, count func(result) *float64) (words string, ok bool) {
	for _, r := range rows {
		if count(r.result) == nil {
			return "", false
		}
	}
	least, most := extremes(rows, func(r result) float64 { return *count(r) })
	low, high := fmt.Sprintf("%.0f", least), fmt.Sprintf("%.0f", most)
	if low == high {
		return low, true
	}
	return low + " to " + high, true
}

func extremes(rows []row, f func(result) float64) (least, most float64) {
	least, most = f(rows[0].result), f(rows[0].result)
	for _, r := range rows {
		least, most = min(least, f(r.result)), max(most, f(r.result))
	}
	return least, most
}

// checks says how much was compared.
func checks(rows []row) []string {
	var sum int64
	for _, r := range rows {
		if r.Checked == 0 {
			return []string{fmt.Sprintf("Not everything was checked for want of time: not %s by %s in writes of %v.", r.Link, r.Mode, r.Size)}
		}
		sum += r.Checked
	}
	return []string{fmt.Sprintf("Checked at the receiver, byte by byte and by position: %d MB, all right.", sum/1e6)}
}

// shortfalls says what was left out for want of time.
func (b *bench) shortfalls() (lines []string) {
	if b.rounds < b.cfg.rounds {
		lines = append(lines, fmt.Sprintf("Of %d rounds %d were completed.", b.cfg.rounds, b.rounds))
	}
	if b.cutShort {
		lines = append(lines, "Transfers were cut short.")
	}
	if len(lines) > 0 && b.cfg.budget > 0 {
		lines = append(lines, fmt.Sprintf("That keeps the time budget of %v; -budget sets another.", b.cfg.budget))
	}
	return lines
}

// disturbance says so if others kept the processors busy.
func disturbance(rows []row) []string {
	var others, capacity float64
	for _, r := range rows {
		if r.ProcCPU == nil || r.receiverCPU == nil || r.SysCPU == nil {
			return nil
		}
		others += (*r.SysCPU - *r.ProcCPU - *r.receiverCPU) * float64(r.Bytes) / 1e9
		capacity += r.Seconds * float64(runtime.NumCPU())
	}
	if share := others / capacity; share > tolerableShare && others > coarse {
		return []string{fmt.Sprintf("Others took %.0f%% of the processors meanwhile: a quiet machine gives better figures.", 100*share)}
	}
	return nil
}

// tolerableShare is how much of the processors others may take before it is worth a word, and coarse how many seconds of them
// are no more than the clocks' hundredths.
const (
	tolerableShare = 0.1
	coarse         = 0.1
)
