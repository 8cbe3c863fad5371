package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zcnet-go/zcnet/internal/cli"
	"github.com/zcnet-go/zcnet/internal/lab"
)

// program is the path of zcperf, built once for all tests.
var program string

func TestMain(m *testing.M) {
	if hired() {
		return
	}
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "zcperf")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o755) // tests run the program as another user too
	program = filepath.Join(dir, "zcperf")
	if runtime.GOOS == "windows" {
		program += ".exe"
	}
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// outcome is what the program did.
type outcome struct {
	status         int
	stdout, stderr string
}

// zcperf returns the program with arguments, not started. It cannot outlive the test.
func zcperf(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return exec.CommandContext(ctx, program, args...)
}

// execute runs the program to its end.
func execute(t *testing.T, cmd *exec.Cmd) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return outcome{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func TestWrongCommandLines(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"frobnicate", `there is no command "frobnicate": it is one of bench, serve, send, sweep, probe`},
		{"-frobnicate", "-frobnicate: the flags are -budget, -congestion, -json, -link, -mode, -region, -rounds, -size, -total"},
		{"bench extra", `unexpected argument "extra"`},
		{"-size", "needs an argument: -size"},
		{"-size 0", "must be more than 0"},
		{"-size 64Kx", "want a whole number and perhaps a unit"},
		{"-size 64KiB,", "want a whole number and perhaps a unit"},
		{"-size 99999999T", "too large"},
		{"-total 1.5GiB", "want a whole number and perhaps a unit"},
		{"-mode fast", `there is no mode "fast": it is one of copy, naive, zcnet`},
		{"-mode copy,fast", `there is no mode "fast": it is one of copy, naive, zcnet`},
		{"-link wifi", `there is no link "wifi": it is one of loopback, lab`},
		{"-rounds 0", "want a whole number from 1 on"},
		{"-rounds some", "want a whole number from 1 on"},
		{"-budget 3", "want a time such as 25s"},
		{"-json=perhaps", "want true or false"},
		{"-region 4KiB -size 8KiB", "a write of 8KiB does not fit -region 4KiB"},
		{"serve", "-addr HOST:PORT is missing"},
		{"serve -addr here", `"here" is not an address: want HOST:PORT`},
		{"serve -addr localhost:http", "is not an address: want HOST:PORT"},
		{"serve -addr localhost:0 -verify -discard", "exclude each other"},
		{"serve -to localhost:1", "the flags are -addr, -discard, -verify"},
		{"send", "-to HOST:PORT is missing"},
		{"send -to localhost", "is not an address: want HOST:PORT"},
		{"send -to localhost:0", "lacks a host or a port"},
		{"send -to :4000", "lacks a host or a port"},
		{"send -to localhost:65536", "is not an address: want HOST:PORT"},
		{"send -to localhost:1 -mode copy,naive", "it is one of copy, naive, zcnet"},
		{"send -to localhost:1 -size 2MiB -region 1MiB", "does not fit"},
		{"sweep extra", `unexpected argument "extra"`},
		{"sweep -frobnicate", "the flags are -budget, -congestion, -json, -link, -mode, -region, -rounds, -size, -svg, -to, -total"},
		{"sweep -to localhost", "is not an address: want HOST:PORT"},
		{"sweep -to localhost:1 -link lab", "-to and -link exclude each other"},
		{"sweep -link loopback,lab", `there is no link "loopback,lab": it is one of loopback, lab`},
		{"sweep -mode naive,zcnet", "-mode lacks copy or zcnet"},
		{"sweep -mode copy", "-mode lacks copy or zcnet"},
		{"sweep -size 64KiB,2MiB -region 1MiB", "a write of 2MiB does not fit -region 1MiB"},
		{"sweep -size 64KiB,2MiB -total 1MiB", "a write of 2MiB does not fit -total 1MiB"},
		{"sweep -size 0", "must be more than 0"},
		{"sweep -svg", "needs an argument: -svg"},
		{"probe here", "is not an address: want HOST:PORT"},
		{"probe localhost:1 localhost:2", `unexpected argument "localhost:2"`},
		{"probe -json", "the flags are none"},
	} {
		got := execute(t, zcperf(t, strings.Fields(test.args)...))
		oneLine := strings.Count(got.stderr, "\n") == 1 && strings.HasPrefix(got.stderr, "zcperf: ")
		if got.status != cli.Usage || got.stdout != "" || !oneLine || !strings.Contains(got.stderr, test.want) {
			t.Errorf("zcperf %s: status %d, stdout %q, stderr %q; want status 2 and one line with %q",
				test.args, got.status, got.stdout, got.stderr, test.want)
		}
	}
}

func TestHelp(t *testing.T) {
	for args, want := range map[string]string{
		"-h":          "zcperf serve -addr HOST:PORT",
		"-help":       "zcperf serve -addr HOST:PORT",
		"--help":      "zcperf serve -addr HOST:PORT",
		"bench -h":    "-rounds number",
		"-json -help": "-rounds number",
		"serve -h":    "-verify",
		"send -h":     "-region size",
		"sweep -h":    "-svg file",
		"probe -h":    "usage: zcperf probe [HOST:PORT]",
	} {
		got := execute(t, zcperf(t, strings.Fields(args)...))
		if got.status != cli.OK || got.stderr != "" || !strings.Contains(got.stdout, want) {
			t.Errorf("zcperf %s: status %d, stdout %q, stderr %q; want status 0 and help with %q",
				args, got.status, got.stdout, got.stderr, want)
		}
	}
}

func TestFailuresAreOneLine(t *testing.T) {
	l, err := listenLoopback()
	if err != nil {
		t.Fatal(err)
	}
	used := l.Addr().String()
	defer l.Close()
	for _, args := range [][]string{
		{"send", "-to", "127.0.0.1:1", "-total", "4KiB"},
		{"serve", "-addr", used},
		{"sweep", "-to", "127.0.0.1:1", "-size", "4KiB", "-total", "4KiB", "-svg", ""},
		{"sweep", "-svg", filepath.Join(t.TempDir(), "missing", "sweep.svg")},
		{"sweep", "-svg", t.TempDir()},
		{"probe", "127.0.0.1:1"},
	} {
		got := execute(t, zcperf(t, args...))
		lines := strings.Split(strings.TrimSpace(got.stderr), "\n")
		said := slices.ContainsFunc(lines, func(s string) bool { return strings.HasPrefix(s, "zcperf: ") })
		if got.status != cli.Failed || got.stdout != "" || !said || !strings.HasPrefix(lines[len(lines)-1], "zcperf: ") {
			t.Errorf("zcperf %s: status %d, stdout %q, stderr %q; want status 1 and a last line that says why",
				strings.Join(args, " "), got.status, got.stdout, got.stderr)
		}
	}
}

// fields are what every object of -json has.
var fields = []string{
	"link", "mode", "size", "bytes", "seconds", "gb_per_s", "proc_cpu_s_per_gb", "sys_cpu_s_per_gb", "sends",
	"zerocopied_bytes", "maybe_copied_bytes", "copied_bytes", "enobufs", "allocs_per_write",
}

// parseJSON parses the output of -json and checks that nothing is missing.
func parseJSON(t *testing.T, stdout string) (results []result) {
	t.Helper()
	for line := range strings.Lines(stdout) {
		var object map[string]any
		var r result
		if err := json.Unmarshal([]byte(line), &object); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		for _, field := range fields {
			if _, ok := object[field]; !ok {
				t.Errorf("there is no %q in %s", field, line)
			}
		}
		results = append(results, r)
	}
	return results
}

func TestBenchJSON(t *testing.T) {
	got := execute(t, zcperf(t, "-link", "loopback", "-size", "64K,4096", "-total", "8MB", "-rounds", "3", "-json"))
	if got.status != cli.OK {
		t.Fatalf("status %d, stderr %q; want 0", got.status, got.stderr)
	}
	var found []string
	withoutNaive := strings.Contains(got.stderr, "without mode naive") // at one size at least
	for _, r := range parseJSON(t, got.stdout) {
		if r.Mode == "naive" && withoutNaive {
			continue
		}
		found = append(found, fmt.Sprintf("%s %v %s", r.Link, r.Size, r.Mode))
		if r.Bytes != 8e6 || r.Checked != 8e6 || r.Wrong != 0 || r.Rounds != 3 || r.ZeroCopied+r.MaybeCopied+r.Copied != r.Bytes {
			t.Errorf("got %+v, want the median of 3 rounds of 8 MB, all accounted for, checked and right", r)
		}
		if (r.Mode == "copy") != (r.Copied == r.Bytes) && r.Mode != "zcnet" {
			t.Errorf("got %+v: %d bytes copied in mode %s", r, r.Copied, r.Mode)
		}
		if runtime.GOOS == "linux" && (r.ProcCPU == nil || r.SysCPU == nil) {
			t.Errorf("got %+v, want processor times", r)
		}
	}
	want := []string{"copy", "naive", "zcnet"}
	if withoutNaive {
		want = []string{"copy", "zcnet"}
	}
	var lines []string
	for _, n := range []string{"64KiB", "4KiB"} {
		for _, m := range want {
			lines = append(lines, "loopback "+n+" "+m)
		}
	}
	if !slices.Equal(found, lines) {
		t.Errorf("got %q, want %q", found, lines)
	}
}

func TestBenchTable(t *testing.T) {
	got := execute(t, zcperf(t, "bench", "-link", "loopback", "-mode", "copy,zcnet,copy", "-size", "1MiB", "-total", "16MiB", "-rounds", "1"))
	if got.status != cli.OK {
		t.Fatalf("status %d, stderr %q; want 0", got.status, got.stderr)
	}
	lines := strings.Split(got.stdout, "\n")
	if len(lines) < 6 || !strings.HasPrefix(lines[0], "link") || !strings.HasPrefix(lines[1], "loopback  1MiB") || lines[3] != "" {
		t.Errorf("want a table of two lines below its head, got:\n%s", got.stdout)
	}
	for _, want := range []string{"On loopback next to nothing is sent without a copy", "33 MB, all right"} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("want %q in:\n%s", want, got.stdout)
		}
	}
	for _, want := range []string{"checking loopback, writes of 1MiB\n", "round 1 of 1: loopback, writes of 1MiB\n"} {
		if !strings.Contains(got.stderr, want) {
			t.Errorf("want %q in:\n%s", want, got.stderr)
		}
	}
}

func TestCongestionControl(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("it can be chosen on Linux only")
	}
	args := []string{"-link", "loopback", "-mode", "copy,zcnet", "-size", "64KiB", "-total", "1MiB", "-rounds", "1", "-congestion"}
	got := execute(t, zcperf(t, append(args, "reno")...))
	if got.status != cli.OK || !strings.Contains(got.stdout, " Congestion control was reno.") {
		t.Errorf("status %d, stderr %q; want 0 and the name of the control in:\n%s", got.status, got.stderr, got.stdout)
	}
	got = execute(t, zcperf(t, append(args, "nosuch")...))
	if got.status != cli.Failed || got.stdout != "" || !strings.Contains(got.stderr, `congestion control "nosuch"`) || !strings.Contains(got.stderr, "this system has") || !strings.Contains(got.stderr, "reno") {
		t.Errorf("status %d, stdout %q, stderr %q; want 1, and what there is", got.status, got.stdout, got.stderr)
	}
}

// A receiving process takes its connections and its listener with it.
func TestReceivingProcessEndsWhenItIsFired(t *testing.T) {
	l, err := listenLoopback()
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if !canHire {
		t.Skip("processes cannot inherit a listener here")
	}
	_, fire, err := hire(l)
	if err != nil {
		t.Fatal(err)
	}
	c, err := dialTCP(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fire()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("a connection to a receiver that has ended: %v, want it to have ended too", err)
	}
	if c, err := dialTCP(t.Context(), addr); err == nil {
		c.Close()
		t.Error("somebody still listens")
	}
}

// What is switched off by the environment is copied, and the table says why.
func TestBenchDisabled(t *testing.T) {
	cmd := zcperf(t, "-link", "loopback", "-mode", "zcnet", "-size", "1MiB", "-total", "4MiB", "-rounds", "1")
	cmd.Env = append(os.Environ(), "ZCNET_DISABLE=1")
	got := execute(t, cmd)
	if got.status != cli.OK || runtime.GOOS == "linux" && !strings.Contains(got.stdout, "ZCNET_DISABLE=1") {
		t.Errorf("status %d, stdout %s, stderr %s; want status 0 and the reason", got.status, got.stdout, got.stderr)
	}
}

// On the lab's link zcnet copies nothing, and says so.
func TestBenchLab(t *testing.T) {
	lab.ForTest(t)
	got := execute(t, zcperf(t, "-link", "lab", "-size", "1MiB", "-total", "64MiB", "-rounds", "1", "-json"))
	if got.status != cli.OK {
		t.Fatalf("status %d, stderr %q; want 0", got.status, got.stderr)
	}
	results := parseJSON(t, got.stdout)
	if len(results) != 3 {
		t.Fatalf("got %d results, want 3: %s", len(results), got.stdout)
	}
	for _, r := range results {
		if r.Link != "lab" || r.Checked != r.Bytes || r.Wrong != 0 {
			t.Errorf("got %+v, want a result of the lab, checked and right", r)
		}
		if (r.Wakeups != nil) != (r.Mode == "zcnet") {
			t.Errorf("mode %s: wake-ups per GB: %v, want them of zcnet only", r.Mode, r.Wakeups)
		}
		if (r.Syscalls != nil) != (r.Mode == "zcnet") {
			t.Errorf("mode %s: system calls per GB: %v, want them of zcnet only", r.Mode, r.Syscalls)
		}
		if want := map[string]int64{"naive": r.Bytes, "zcnet": r.Bytes}[r.Mode]; r.ZeroCopied != want {
			t.Errorf("mode %s: %d of %d bytes are sent without a copy, want %d", r.Mode, r.ZeroCopied, r.Bytes, want)
		}
	}
}

func TestProbe(t *testing.T) {
	got := execute(t, zcperf(t, "probe"))
	if got.status != cli.OK || !strings.HasPrefix(got.stdout, "zero-copy:") || got.stderr != "" {
		t.Errorf("status %d, stdout %q, stderr %q; want status 0 and a report", got.status, got.stdout, got.stderr)
	}
	l, err := listenLoopback()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got = execute(t, zcperf(t, "probe", l.Addr().String()))
	if got.status != cli.OK || !strings.HasPrefix(got.stdout, "zero-copy:") || got.stderr != "" {
		t.Errorf("of an address: status %d, stdout %q, stderr %q; want status 0 and a report", got.status, got.stdout, got.stderr)
	}
}
