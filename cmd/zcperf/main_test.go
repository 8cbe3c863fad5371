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
		{"-frobnicate", "-frobnicate: the flags are -budget, -busy, -congestion, -json, -link, -memory, -mode, -read, -region, -rounds, -size, -total"},
		{"bench extra", `unexpected argument "extra"`},
		{"-size", "needs an argument: -size"},
		{"-size 0", "must be more than 0"},
		{"-size 64Kx", "want a whole number and perhaps a unit"},
		{"-size 64KiB,", "want a whole number and perhaps a unit"},
		{"-size 99999999T", "too large"},
		{"-total 1.5GiB", "want a whole number and perhaps a unit"},
		{"-mode fast", `there is no mode "fast": it is one of copy, naive, zcnet, least, c, c-write`},
		{"-mode copy,fast", `there is no mode "fast": it is one of copy, naive, zcnet`},
		{"-link wifi", `there is no link "wifi": it is one of loopback, lab, lab-inline`},
		{"-memory tiny", `there is no memory "tiny": it is one of huge, small, heap`},
		{"-memory huge,small", `there is no memory "huge,small"`},
		{"-congestion ,", `"" is not a name`},
		{"-congestion ../x", `"../x" is not a name`},
		{"-busy=perhaps", "want true or false"},
		{"-read=perhaps", "want true or false"},
		{"-rounds 0", "want a whole number from 1 on"},
		{"-rounds some", "want a whole number from 1 on"},
		{"-budget 3", "want a time such as 25s"},
		{"-json=perhaps", "want true or false"},
		{"-region 4KiB -size 8KiB", "a write of 8KiB does not fit -region 4KiB"},
		{"serve", "-addr HOST:PORT is missing"},
		{"serve -addr here", `"here" is not an address: want HOST:PORT`},
		{"serve -addr localhost:http", "is not an address: want HOST:PORT"},
		{"serve -addr localhost:0 -verify -discard", "exclude each other"},
		{"serve -addr localhost:0 -verify -raw", "exclude each other"},
		{"serve -addr localhost:0 -raw=perhaps", "want true or false"},
		{"serve -to localhost:1", "the flags are -addr, -discard, -raw, -verify"},
		{"send", "-to HOST:PORT is missing"},
		{"send -to localhost", "is not an address: want HOST:PORT"},
		{"send -to localhost:0", "lacks a host or a port"},
		{"send -to :4000", "lacks a host or a port"},
		{"send -to localhost:65536", "is not an address: want HOST:PORT"},
		{"send -to localhost:1 -mode copy,naive", "it is one of copy, naive, zcnet"},
		{"send -to localhost:1 -size 2MiB -region 1MiB", "does not fit"},
		{"send -to localhost:1 -memory tiny", `there is no memory "tiny"`},
		{"sweep -congestion cubic/bbr", "is not a name"},
		{"sweep -link lab,lab-inline", `there is no link "lab,lab-inline"`},
		{"sweep extra", `unexpected argument "extra"`},
		{"sweep -frobnicate", "the flags are -budget, -busy, -congestion, -json, -link, -memory, -mode, -read, -region, -rounds, -size, -svg, -to, -total"},
		{"sweep -to localhost", "is not an address: want HOST:PORT"},
		{"sweep -to localhost:1 -link lab", "-to and -link exclude each other"},
		{"sweep -link loopback,lab", `there is no link "loopback,lab": it is one of loopback, lab, lab-inline`},
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
		"bench -help": "c is a MSG_ZEROCOPY loop in C",
		"-json -help": "-rounds number",
		"serve -h":    "-raw",
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
	"link", "mode", "size", "memory", "busy", "receiver", "bytes", "seconds", "gb_per_s",
	"side_cpu_s_per_gb", "proc_cpu_s_per_gb", "sys_cpu_s_per_gb", "sends",
	"zerocopied_bytes", "maybe_copied_bytes", "copied_bytes", "enobufs", "allocs_per_write",
	"side_ratio", "side_ratio_low", "side_ratio_high", "proc_ratio", "proc_ratio_low", "proc_ratio_high",
	"throughput_ratio", "throughput_ratio_low", "throughput_ratio_high",
}

// parseJSON parses the output of -json and checks that nothing is missing.
func parseJSON(t *testing.T, stdout string) (results []row) {
	t.Helper()
	for line := range strings.Lines(stdout) {
		var object map[string]any
		var r row
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
		if runtime.GOOS == "linux" && (r.ProcCPU == nil || r.SysCPU == nil || r.SideCPU == nil) {
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
	if len(lines) < 8 || !strings.HasPrefix(lines[0], "On loopback the kernel copies whatever is sent") ||
		!strings.HasPrefix(lines[2], "control") || lines[5] != "" {
		t.Errorf("want a sentence and a table of two lines below its head, got:\n%s", got.stdout)
	}
	for _, want := range []string{"1MiB       zcnet", "next to nothing is sent without a copy", "Its ratios to Write: ", "Ratios are to copy", "33 MB, all right"} {
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
	args := []string{"-link", "loopback", "-mode", "copy,zcnet,c", "-size", "64KiB", "-total", "1MiB", "-rounds", "1", "-json", "-congestion"}
	got := execute(t, zcperf(t, append(args, "reno,cubic,reno")...))
	if strings.Contains(got.stderr, "this system has reno\n") {
		t.Skip("there is but one")
	}
	var found []string
	for _, r := range parseJSON(t, got.stdout) {
		if r.Mode != "c" { // for which there may be no compiler
			found = append(found, r.Control+" "+r.Mode)
		}
	}
	if want := []string{"reno copy", "reno zcnet", "cubic copy", "cubic zcnet"}; got.status != cli.OK || !slices.Equal(found, want) {
		t.Errorf("status %d, stderr %q, results %q; want 0 and %q", got.status, got.stderr, found, want)
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
	w, err := hireReceiver(l, (*exec.Cmd).Start)
	if err != nil {
		t.Fatal(err)
	}
	c, err := dialTCP(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w.fire()
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

// On the lab's link nothing that is flagged is copied, and the time of the
// sender's side is known, of senders in C too.
func TestBenchLab(t *testing.T) {
	inline := lab.ForTest(t).Inline()
	got := execute(t, zcperf(t, "-link", "lab", "-mode", "copy,naive,least,zcnet,c,c-write", "-congestion", "cubic", "-size", "1MiB", "-total", "64MiB", "-rounds", "2", "-json"))
	if got.status != cli.OK {
		t.Fatalf("status %d, stderr %q; want 0", got.status, got.stderr)
	}
	results := parseJSON(t, got.stdout)
	if want := 6 - strings.Count(got.stderr, "without mode c"); len(results) != want {
		t.Fatalf("got %d results, want %d: %s", len(results), want, got.stdout)
	}
	for _, r := range results {
		if r.Link != "lab" || r.Inline != inline || r.Control != "cubic" || r.Checked != r.Bytes || r.Wrong != 0 || r.Rounds != 2 {
			t.Errorf("got %+v, want the median of 2 rounds over the lab's link, inline for %q, checked and right", r, inline)
		}
		if (r.Wakeups != nil) != (r.Mode == modeZcnet) || (r.Syscalls != nil) != (r.Mode == modeZcnet) {
			t.Errorf("mode %s: wake-ups %v and system calls %v per GB, want them of zcnet only", r.Mode, r.Wakeups, r.Syscalls)
		}
		flagged := r.Mode != modeCopy && r.Mode != "c-write"
		if want := map[bool]int64{true: r.Bytes}[flagged]; r.ZeroCopied != want || r.Copied != r.Bytes-want {
			t.Errorf("mode %s: of %d bytes %d are sent without a copy and %d plainly, want %d and the rest", r.Mode, r.Bytes, r.ZeroCopied, r.Copied, want)
		}
		if r.SideCPU == nil || r.ProcCPU == nil || r.SysCPU == nil || *r.SideCPU >= *r.SysCPU {
			t.Errorf("mode %s: side %v, process %v, system %v; want all, and less of the side than of the system", r.Mode, r.SideCPU, r.ProcCPU, r.SysCPU)
		}
		if side, ok := r.side(); !ok || (r.Mode == modeCopy) != (side == spread{1, 1, 1}) {
			t.Errorf("mode %s: the side's ratio to copy is %+v, %v; want one that is 1 for copy only", r.Mode, side, ok)
		}
		if r.Mode == modeZcnet && len(r.Peers) != len(results)-2 {
			t.Errorf("zcnet is compared with %v, want all modes but copy", r.Peers)
		}
	}
}

// On the inline link every output says so, and why.
func TestBenchInlineLab(t *testing.T) {
	lab.ForTest(t)
	args := []string{"-link", "lab-inline", "-mode", "copy,zcnet", "-congestion", "cubic", "-size", "1MiB", "-total", "16MiB", "-rounds", "1"}
	got := execute(t, zcperf(t, args...))
	if got.status != cli.OK || !strings.HasPrefix(got.stdout, "On lab-inline the receiving end works INLINE, inside the sender's calls (") || !strings.Contains(got.stderr, "lab-inline is inline") {
		t.Errorf("status %d, stderr %q; want 0, and that it is inline in:\n%s", got.status, got.stderr, got.stdout)
	}
	got = execute(t, zcperf(t, append(args, "-json")...))
	results := parseJSON(t, got.stdout)
	if len(results) != 2 || results[0].Inline == "" || results[1].Link != "lab-inline" {
		t.Errorf("got %s, want two results of the inline link that say why", got.stdout)
	}
}

// What is unusual about a measurement is in every output.
func TestBenchCircumstances(t *testing.T) {
	if !canHire {
		t.Skip("processes of this program cannot be started here")
	}
	for _, kind := range memoryKinds() {
		if kind.name == "small" && runtime.GOOS != "linux" {
			continue
		}
		args := []string{"-link", "loopback", "-mode", "copy,naive,zcnet,c", "-size", "64KiB", "-total", "8MiB", "-rounds", "2", "-memory", kind.name, "-busy", "-read"}
		got := execute(t, zcperf(t, append(args, "-json")...))
		if got.status != cli.OK {
			t.Fatalf("memory %s: status %d, stderr %q; want 0", kind, got.status, got.stderr)
		}
		for _, r := range parseJSON(t, got.stdout) {
			if r.Memory != kind.name || !r.Busy || r.Receiver != "read" || r.Checked != r.Bytes {
				t.Errorf("got %+v, want memory %s, busy, and a receiver that reads, checked", r, kind)
			}
		}
	}
	got := execute(t, zcperf(t, "-link", "loopback", "-mode", "copy", "-size", "64KiB", "-total", "8MiB", "-rounds", "1", "-memory", "heap", "-busy", "-read"))
	const want = " The memory is of the kind heap. A busy loop runs beside the sender; its time is not counted. The receiver reads what arrives.\n"
	if got.status != cli.OK || !strings.Contains(got.stdout, want) {
		t.Errorf("status %d, stderr %q; want 0 and %q in:\n%s", got.status, got.stderr, want, got.stdout)
	}
}

// A spinning process spins when it is told to, and only then.
func TestSpinner(t *testing.T) {
	if !canHire {
		t.Skip("processes of this program cannot be started here")
	}
	w, err := hire(hiredToSpin, (*exec.Cmd).Start)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.fire)
	spent := func() time.Duration {
		d, err := w.spent()
		if err != nil {
			t.Skip(err)
		}
		return d
	}
	if err := w.tell(spinOn); err != nil {
		t.Fatal(err)
	}
	const enough = 50 * time.Millisecond
	for begun := spent(); spent() < begun+enough; {
		time.Sleep(time.Millisecond) // until it has spun, or the test is killed
	}
	if err := w.tell(spinOff); err != nil {
		t.Fatal(err)
	}
	for last := spent(); ; { // until it rests
		time.Sleep(20 * time.Millisecond)
		now := spent()
		if now == last {
			return
		}
		last = now
	}
}

// A busy loop's time is not the sender's.
func TestSpinnerIsApart(t *testing.T) {
	p := loopbackPath(t)
	if !canHire {
		t.Skip("processes of this program cannot be started here")
	}
	before := len(p.clocks.machine.Apart)
	if err := p.keepBusy(); err != nil {
		t.Fatal(err)
	}
	if apart := p.clocks.machine.Apart; len(apart) != before+1 {
		t.Errorf("%d clocks are apart from the sender's with a busy loop and %d without, want one more", len(apart), before)
	}
}

// Without a compiler the modes in C are left out, with a word.
func TestBenchWithoutACompiler(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("there are modes in C on Linux only")
	}
	cmd := zcperf(t, "-link", "loopback", "-mode", "copy,c,c-write", "-size", "64KiB", "-total", "1MiB", "-rounds", "1", "-json")
	cmd.Env = append(os.Environ(), "PATH="+t.TempDir())
	got := execute(t, cmd)
	results := parseJSON(t, got.stdout)
	if got.status != cli.OK || len(results) != 1 || results[0].Mode != modeCopy || strings.Count(got.stderr, "without mode c: no C compiler") != 1 {
		t.Errorf("status %d, stdout %s, stderr %q; want 0, a result of copy, and a word about c", got.status, got.stdout, got.stderr)
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
