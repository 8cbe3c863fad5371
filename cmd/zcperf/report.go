package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// This file prints results: as JSON, or as tables and what they mean.

// report prints what there is of the results, which may be nothing.
func (b *bench) report(stdout, stderr io.Writer) error {
	return b.reportWith(stdout, stderr, checks(b.rows()))
}

// reportWith is report with more lines at the end.
func (b *bench) reportWith(stdout, stderr io.Writer, last []string) error {
	rows := b.rows()
	switch {
	case len(rows) == 0:
		return nil
	case b.cfg.json:
		for _, line := range slices.Concat(b.shortfalls(), b.disturbance(), last) {
			fmt.Fprintln(stderr, line)
		}
		return printJSON(stdout, rows)
	}
	var text strings.Builder
	for _, p := range b.paths {
		b.reportPath(&text, p)
	}
	for _, line := range slices.Concat([]string{legend}, b.shortfalls(), b.disturbance(), last) {
		fmt.Fprintln(&text, line)
	}
	_, err := io.WriteString(stdout, text.String())
	return err
}

const legend = "Ratios are to copy, plain Write: the median of the rounds' own ratios, and in brackets their quartiles. Level means\n" +
	"that 1 is between the quartiles. CPU is processor time per byte, of the sender's side and of the sending process."

// reportPath prints what was measured on a path.
func (b *bench) reportPath(w io.Writer, p *path) {
	var rows []row
	for _, g := range b.groups {
		if g.path == p {
			rows = append(rows, g.rows()...)
		}
	}
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(w, "%s%s\n\n", p.setting(), b.circumstances())
	printTable(w, rows)
	fmt.Fprintln(w)
	printPeers(w, rows)
	for _, line := range meanings(rows) {
		fmt.Fprintln(w, line)
	}
	fmt.Fprintln(w)
}

// setting says in a sentence who is charged for what on a path.
func (p *path) setting() string {
	switch {
	case p.isRemote():
		return capitalized(p.where()) + ": the receiving end is somewhere else, so that the sender's side cannot be told apart: the process's CPU stands for it."
	case p.inline != "":
		return fmt.Sprintf("On %s the receiving end works INLINE, inside the sender's calls (%s): the sender pays for most of the other host's work.", p.name, p.inline)
	case p.receiving == nil:
		return fmt.Sprintf("On %s the kernel copies whatever is sent, and some of its work for the receiving end is charged to the sender.", p.name)
	}
	return fmt.Sprintf("On %s the receiving end works on a processor of its own, as another host does: the side's CPU is what the sending host pays.", p.name)
}

// circumstances says what is unusual about the measurement.
func (b *bench) circumstances() string {
	var s strings.Builder
	if b.cfg.memory.name != "" && b.cfg.memory.name != memoryKinds()[0].name {
		fmt.Fprintf(&s, " The memory is of the kind %s.", b.cfg.memory)
	}
	if b.cfg.busy {
		s.WriteString(" A busy loop runs beside the sender; its time is not counted.")
	}
	if b.cfg.read {
		s.WriteString(" The receiver reads what arrives.")
	}
	return s.String()
}

// printJSON prints one object a line.
func printJSON(w io.Writer, rows []row) error {
	enc := json.NewEncoder(w)
	for _, r := range rows {
		if err := enc.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

// A row is one line of the table.
type row struct {
	result
	comparison                       // to mode copy
	Peers      map[string]comparison `json:"zcnet_to,omitempty"` // of mode zcnet to the modes that flag without any layer
}

// rows returns the cells that have a result.
func (b *bench) rows() (rows []row) {
	for _, g := range b.groups {
		rows = append(rows, g.rows()...)
	}
	return rows
}

func (g *group) rows() (rows []row) {
	var base []result
	for _, c := range g.cells {
		if c.mode.name == modeCopy {
			base = c.results
		}
	}
	for _, c := range g.cells {
		r, ok := c.median()
		if !ok {
			continue
		}
		line := row{result: r, comparison: compare(c.results, base)}
		if c.mode.name == modeZcnet {
			line.Peers = g.peers(c)
		}
		rows = append(rows, line)
	}
	return rows
}

// peers compares zcnet with the modes that are not copy.
func (g *group) peers(zc *cell) map[string]comparison {
	peers := make(map[string]comparison)
	for _, c := range g.cells {
		if c != zc && c.mode.name != modeCopy && len(c.results) > 0 {
			peers[c.mode.name] = compare(zc.results, c.results)
		}
	}
	return peers
}

// printTable prints rows of one path for people. Figures have the same width in each row, for tabwriter aligns all
// columns to the same side.
func printTable(w io.Writer, rows []row) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "control\twrites of\tmode\tside's CPU\tprocess's CPU\tthroughput\tside s/GB\tprocess s/GB\tGB/s\tuncopied")
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%v\t%s\t%s\t%s\t%s\t%s\t%s\t%5.2f\t%8s\n", r.control(), r.Size, r.Mode,
			ratioText(r.side()), ratioText(r.proc()), ratioText(r.throughput()), cpu(r.SideCPU), cpu(r.ProcCPU), r.GBPerS, r.uncopied())
	}
	t.Flush()
}

// printPeers prints how zcnet compares with modes that were asked for beside the usual ones.
func printPeers(w io.Writer, rows []row) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "control\twrites of\tzcnet to\tside's CPU\tprocess's CPU\tthroughput")
	some := false
	for _, r := range rows {
		for _, m := range allModes(nil) {
			if c, ok := r.Peers[m.name]; ok {
				fmt.Fprintf(t, "%s\t%v\t%s\t%s\t%s\t%s\n", r.control(), r.Size, m.name, ratioText(c.side()), ratioText(c.proc()), ratioText(c.throughput()))
				some = some || m.name != "naive"
			}
		}
	}
	if some {
		t.Flush()
		fmt.Fprintln(w)
	}
}

// control returns the name of the congestion control.
func (r result) control() string {
	if r.Control == "" {
		return "-"
	}
	return r.Control
}

func ratioText(s spread, known bool) string {
	if !known {
		return "-"
	}
	return s.String()
}

func cpu(secondsPerGB *float64) string {
	if secondsPerGB == nil {
		return "    -"
	}
	return fmt.Sprintf("%5.2f", *secondsPerGB)
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

// meanings says in a line for each congestion control what the figures mean.
func meanings(rows []row) (lines []string) {
	var controls []string
	for _, r := range rows {
		if !slices.Contains(controls, r.Control) {
			controls = append(controls, r.Control)
		}
	}
	for _, control := range controls {
		by := make(map[string][]row)
		for _, r := range rows {
			if r.Control == control {
				by[r.Mode] = append(by[r.Mode], r)
			}
		}
		if zc := by[modeZcnet]; len(zc) > 0 {
			lines = append(lines, controlled(control)+meaning(by["naive"], zc))
		}
	}
	return lines
}

// controlled begins a sentence with how TCP was controlled, where that is known.
func controlled(control string) string {
	if control == "" {
		return "Here "
	}
	return "Under " + control + " "
}

// capitalized makes a text the beginning of a sentence.
func capitalized(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// meaning puts the rows of one link and control into words. Those of zcnet there
// are.
func meaning(naive, zc []row) string {
	var s strings.Builder
	s.WriteString(uncopiedWords(zc))
	if words := comparisonWords(zc); words != "" {
		fmt.Fprintf(&s, " Its ratios to Write: %s.", words)
	}
	if words := comparisonWords(naive); words != "" {
		fmt.Fprintf(&s, " The naive loop's: %s.", words)
	}
	if often, ok := countSpan(zc, func(r result) *float64 { return r.Wakeups }); ok {
		fmt.Fprintf(&s, " zcnet's poller is woken %s times per GB", often)
		if calls, ok := countSpan(zc, func(r result) *float64 { return r.Syscalls }); ok {
			fmt.Fprintf(&s, ", and it makes %s system calls", calls)
		}
		s.WriteString(".")
	}
	return s.String()
}

// uncopiedWords says in a sentence how much zcnet sends without a copy.
func uncopiedWords(zc []row) string {
	least, most := extremes(zc, result.share)
	switch why := zc[0].whyCopied; {
	case least == 1:
		return "zcnet sends everything without a copy."
	case least > 0.5:
		return fmt.Sprintf("zcnet sends at least %.1f%% without a copy.", 100*least)
	case most > 0.5:
		return fmt.Sprintf("zcnet sends %.1f%% to %.1f%% without a copy, depending on the size of a write.", 100*least, 100*most)
	case why != "":
		return fmt.Sprintf("next to nothing is sent without a copy: %s.", why)
	}
	return "next to nothing is sent without a copy."
}

// comparisonWords says how rows compare with copy. It is empty if nothing is
// known.
func comparisonWords(rows []row) string {
	var parts []string
	for _, part := range []struct {
		what  string
		ratio func(comparison) (spread, bool)
	}{
		{"side's CPU", comparison.side},
		{"process's CPU", comparison.proc},
		{"throughput", comparison.throughput},
	} {
		var all []spread
		for _, r := range rows {
			if s, ok := part.ratio(r.comparison); ok {
				all = append(all, s)
			}
		}
		if len(all) > 0 && len(all) == len(rows) {
			parts = append(parts, part.what+" "+span(all))
		}
	}
	return strings.Join(parts, ", ")
}

// span returns the range of one or more ratios in words.
func span(all []spread) string {
	words := func(ratio float64) string {
		if ratio == 1 {
			return "level"
		}
		return fmt.Sprintf("%.2f", ratio)
	}
	least, most := math.Inf(1), math.Inf(-1)
	for _, s := range all {
		ratio := s.median
		if s.isLevel() {
			ratio = 1
		}
		least, most = min(least, ratio), max(most, ratio)
	}
	low, high := words(least), words(most)
	if low == high {
		return low
	}
	return low + " to " + high
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
func (b *bench) disturbance() []string {
	if b.others < tolerableShare {
		return nil
	}
	return []string{fmt.Sprintf("Others took %.0f%% of the processors before or after: a quiet machine gives better figures.", 100*b.others)}
}

// tolerableShare is how much of the processors others may take before it is
// worth a word.
const tolerableShare = 0.1
