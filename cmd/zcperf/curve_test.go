package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
)

// textsOf returns the texts of a picture, and checks that it is well-formed.
func textsOf(t *testing.T, svg []byte) (texts []string) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(svg))
	root, inText := "", false
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("not well-formed: %v:\n%s", err, svg)
		}
		switch token := token.(type) {
		case xml.StartElement:
			if root == "" {
				root = token.Name.Local
			}
			inText = token.Name.Local == "text"
		case xml.EndElement:
			inText = false
		case xml.CharData:
			if inText {
				texts = append(texts, string(token))
			}
		}
	}
	if root != "svg" {
		t.Errorf("the picture is a %q, want an svg", root)
	}
	return texts
}

// parseSVG is textsOf a file.
func parseSVG(t *testing.T, name string) []string {
	t.Helper()
	svg, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return textsOf(t, svg)
}

func TestCurves(t *testing.T) {
	var rows []row
	for _, n := range sweepSizes() {
		for i, m := range usualModes(nil) {
			rows = append(rows, row{result: result{Mode: m.name, Size: n, GBPerS: float64(i + 1), SideCPU: new(0.1 * float64(i+1))}})
		}
	}
	svg, err := newCurves("to <host> & back", rows).svg()
	if err != nil {
		t.Fatal(err)
	}
	texts := textsOf(t, svg)
	for _, want := range []string{
		"Processor time of the sender's side by size of write, to <host> & back", "s/GB", "0.1", "0.2",
		"Throughput by size of write, to <host> & back", "GB/s", "3.0",
		"size of one write", "copy: plain Write", "naive: MSG_ZEROCOPY loop", "zcnet",
		"4KiB", "16KiB", "64KiB", "256KiB", "1MiB", "4MiB", "16MiB",
	} {
		if !slices.Contains(texts, want) {
			t.Errorf("the picture lacks %q, it has %q", want, texts)
		}
	}
	if !strings.Contains(string(svg), fontFamily) || strings.Count(string(svg), "font-family:") != strings.Count(string(svg), fontFamily) {
		t.Errorf("want each text in the fonts %q", fontFamily)
	}
}

// Where the side's time is not known the process's is drawn, and where neither
// is there is no such panel.
func TestCurvesWithoutProcessorTimes(t *testing.T) {
	titles := func(rows ...row) (titles []string) {
		for _, p := range newCurves("here", rows) {
			titles = append(titles, p.title)
		}
		return titles
	}
	process := row{result: result{Mode: modeCopy, Size: 1, GBPerS: 1, ProcCPU: new(1.0)}}
	nothing := row{result: result{Mode: modeZcnet, Size: 1, GBPerS: 1}}
	const throughput = "Throughput by size of write, here"
	if got, want := titles(process), []string{"Processor time of the sending process by size of write, here", throughput}; !slices.Equal(got, want) {
		t.Errorf("the panels are %q, want %q", got, want)
	}
	if got, want := titles(process, nothing), []string{throughput}; !slices.Equal(got, want) {
		t.Errorf("the panels are %q, want %q", got, want)
	}
}

// A sweep of few sizes, or one that was interrupted, has a picture too.
func TestCurvesOfFewPoints(t *testing.T) {
	for _, rows := range [][]row{
		{{result: result{Mode: "zcnet", Size: 64 << 10, GBPerS: 2}}},
		{{result: result{Mode: "copy", Size: 100000, GBPerS: 2}}, {result: result{Mode: "zcnet", Size: 100000, GBPerS: 3}}},
		{{result: result{Mode: "copy", Size: 1, GBPerS: 0.001}}, {result: result{Mode: "copy", Size: 3, GBPerS: 0.002}}},
		{{result: result{Mode: "c", Size: 4096, GBPerS: 2, SideCPU: new(-0.001)}}}, // too short for the clocks
	} {
		svg, err := newCurves("few", rows).svg()
		if err != nil {
			t.Errorf("%+v: %v", rows, err)
			continue
		}
		if texts := textsOf(t, svg); !slices.Contains(texts, lookOf(rows[0].Mode).name) {
			t.Errorf("the picture of %+v has the texts %q, want %q among them", rows, texts, rows[0].Mode)
		}
	}
}

// Each mode has a look of its own.
func TestLooks(t *testing.T) {
	seen := make(map[string]string)
	for _, m := range allModes(nil) {
		l := lookOf(m.name)
		key := fmt.Sprintf("%T %v", l.glyph, l.color)
		if other, ok := seen[key]; ok {
			t.Errorf("the modes %s and %s look alike: %s", other, m, key)
		}
		seen[key] = m.name
	}
}

func TestSizeTicks(t *testing.T) {
	for _, test := range []struct {
		least, most float64
		marks       int
		want        []string
	}{
		{12, 24, 13, []string{"4KiB", "16KiB", "64KiB", "256KiB", "1MiB", "4MiB", "16MiB"}},
		{16, 18, 3, []string{"64KiB", "128KiB", "256KiB"}},
		{12, 19, 8, []string{"4KiB", "8KiB", "16KiB", "32KiB", "64KiB", "128KiB", "256KiB", "512KiB"}},
		{0, 40, 41, []string{"1", "256", "64KiB", "16MiB", "4GiB", "1TiB"}},
	} {
		ticks := sizeTicks(test.least, test.most)
		var labels []string
		for _, tick := range ticks {
			if !tick.IsMinor() {
				labels = append(labels, tick.Label)
			}
		}
		if len(ticks) != test.marks || !slices.Equal(labels, test.want) {
			t.Errorf("2^%v to 2^%v: %d marks with the labels %q, want %d with %q", test.least, test.most, len(ticks), labels, test.marks, test.want)
		}
	}
}

func TestDecadeTicks(t *testing.T) {
	for _, test := range []struct {
		least, most float64
		want        []string
	}{
		{0.09, 2.6, []string{"0.1", "0.2", "0.5", "1", "2"}},
		{0.01, 0.02, []string{"0.01", "0.02"}},
		{3, 40, []string{"5", "10", "20"}},
	} {
		var labels []string
		for _, tick := range decadeTicks(test.least, test.most) {
			labels = append(labels, tick.Label)
		}
		if !slices.Equal(labels, test.want) {
			t.Errorf("%v to %v: %q, want %q", test.least, test.most, labels, test.want)
		}
	}
}

func TestStepTicks(t *testing.T) {
	for highest, want := range map[float64][]string{
		4.34:  {"0", "1", "2", "3", "4"},
		3:     {"0.0", "0.5", "1.0", "1.5", "2.0", "2.5", "3.0"},
		1.1:   {"0.0", "0.2", "0.4", "0.6", "0.8", "1.0"},
		9.9:   {"0", "2", "4", "6", "8"},
		12.5:  {"0", "5", "10"},
		0.05:  {"0.00", "0.01", "0.02", "0.03", "0.04", "0.05"},
		0.012: {"0.000", "0.002", "0.004", "0.006", "0.008", "0.010", "0.012"},
	} {
		var labels []string
		for _, tick := range stepTicks(highest) {
			labels = append(labels, tick.Label)
		}
		if !slices.Equal(labels, want) {
			t.Errorf("up to %v: %q, want %q", highest, labels, want)
		}
	}
}
