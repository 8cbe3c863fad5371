package main

import (
	"bytes"
	"context"
	"reflect"
	"strings"
	"testing"

	"github.com/zcnet-go/zcnet/internal/cli"
)

// rightFigures are those of a run without any fault.
func rightFigures() *figures { return &figures{Seed: 7, CheckedBytes: 1 << 20} }

func TestExitStatusOfAReport(t *testing.T) {
	cfg, err := parseFlags([]string{"-seed", "7"})
	check(t, err)
	var stdout, stderr bytes.Buffer
	if status := conclude(cfg, rightFigures(), &stdout, &stderr); status != cli.OK || strings.Contains(stdout.String(), "WRONG") {
		t.Errorf("of right figures: %d\n%s", status, &stdout)
	}
	for i, v := range rightFigures().verdicts() {
		f := rightFigures()
		field := verdictField(t, f, i)
		field.SetInt(3)
		stdout.Reset()
		stderr.Reset()
		status := conclude(cfg, f, &stdout, &stderr)
		if status != cli.Failed || !strings.Contains(stdout.String(), "WRONG") || !strings.Contains(stderr.String(), "zcsoak -seed 7 ") {
			t.Errorf("3 %s: status %d, want %d, WRONG and the seed\n%s%s", v.name, status, cli.Failed, &stdout, &stderr)
		}
	}
	for name, f := range map[string]*figures{
		"nothing checked": {},
		"a problem":       {CheckedBytes: 1, Problems: []string{"something"}},
	} {
		if status := conclude(cfg, f, &stdout, &stderr); status != cli.Failed {
			t.Errorf("%s: status %d, want %d", name, status, cli.Failed)
		}
	}
}

// verdictField finds the field of figures that the i-th verdict is about.
func verdictField(t *testing.T, f *figures, i int) reflect.Value {
	t.Helper()
	fields := reflect.ValueOf(f).Elem()
	for j := range fields.NumField() {
		field := fields.Field(j)
		if field.Kind() != reflect.Int64 {
			continue
		}
		before := field.Int()
		field.SetInt(99)
		found := f.verdicts()[i].value == 99
		field.SetInt(before)
		if found {
			return field
		}
	}
	t.Fatalf("no field is verdict %d", i)
	return reflect.Value{}
}

func TestWrongCommandLines(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"-frobnicate", "-frobnicate: the flags are -conns, -fault, -for, -json, -link, -seed"},
		{"extra", `unexpected argument "extra"`},
		{"-for 3", "want a time such as 30s"},
		{"-for -3s", "want a time such as 30s"},
		{"-seed -1", "want a whole number from 0 on"},
		{"-conns 0", "want a whole number from 1 on"},
		{"-link wifi", `there is no link "wifi": it is one of loopback, lab`},
		{"-fault flood", `there is no fault "flood": it is one of reset, close, `},
		{"-fault none,gc", "exclude each other"},
	} {
		status, stdout, stderr := execute(context.Background(), strings.Fields(tt.args)...)
		oneLine := strings.Count(stderr, "\n") == 1 && strings.HasPrefix(stderr, "zcsoak: ")
		if status != cli.Usage || stdout != "" || !oneLine || !strings.Contains(stderr, tt.want) {
			t.Errorf("zcsoak %s: status %d, stdout %q, stderr %q; want status 2 and one line with %q", tt.args, status, stdout, stderr, tt.want)
		}
	}
}

func TestHelp(t *testing.T) {
	status, stdout, stderr := execute(context.Background(), "-h")
	if status != cli.OK || stderr != "" || !strings.Contains(stdout, "usage: zcsoak [-for 1m]") || !strings.Contains(stdout, "-fault faults") {
		t.Errorf("status %d, stdout %q, stderr %q", status, stdout, stderr)
	}
}

func TestFaultsByName(t *testing.T) {
	cfg, err := parseFlags([]string{"-fault", "gc, reset,gc"})
	check(t, err)
	if got := cfg.faults.String(); got != "reset,gc" {
		t.Errorf("%q", got)
	}
	cfg, err = parseFlags([]string{"-fault", "none"})
	check(t, err)
	if got := cfg.faults.String(); got != "none" || len(cfg.faults.on) != 0 {
		t.Errorf("%q", got)
	}
}
