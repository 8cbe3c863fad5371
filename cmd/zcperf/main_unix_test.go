//go:build unix

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/zcnet-go/zcnet/internal/cli"
	"github.com/zcnet-go/zcnet/internal/perf"
)

// This file tests what takes signals and users.

// A process is the program, running. Its standard error is read line by line.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdout bytes.Buffer
	stderr *bufio.Scanner
	said   []string
}

func start(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: zcperf(t, args...)}
	p.cmd.Stdout = &p.stdout
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stderr = bufio.NewScanner(stderr)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// await reads standard error up to a line with this prefix, and returns what follows it.
func (p *process) await(prefix string) string {
	p.t.Helper()
	for p.stderr.Scan() {
		line := p.stderr.Text()
		p.said = append(p.said, line)
		if rest, ok := strings.CutPrefix(line, prefix); ok {
			return rest
		}
	}
	p.t.Fatalf("the program ended without saying %q; it said %q", prefix, p.said)
	return ""
}

// interrupt sends a signal and returns what came of it.
func (p *process) interrupt(sig os.Signal) outcome {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
	for p.stderr.Scan() {
		p.said = append(p.said, p.stderr.Text())
	}
	p.cmd.Wait()
	return outcome{p.cmd.ProcessState.ExitCode(), p.stdout.String(), strings.Join(p.said, "\n")}
}

func TestServeAndSend(t *testing.T) {
	for _, test := range []struct{ flag, want string }{
		{"-verify", "30000000 bytes, all checked and right"},
		{"-discard", "30000000 bytes, not checked"},
		{"", "30000000 bytes, not checked"},
	} {
		serve := start(t, slices.DeleteFunc([]string{"serve", "-addr", "127.0.0.1:0", test.flag}, isEmpty)...)
		addr := serve.await("listening on ")
		sent := 0
		for _, m := range allModes(nil) {
			for _, n := range []string{"64KiB", "1000001"} {
				got := execute(t, zcperf(t, "send", "-to", addr, "-mode", m.name, "-size", n, "-total", "30MB", "-region", "8MiB", "-json"))
				if strings.Contains(got.stderr, errNoMode.Error()) || strings.Contains(got.stderr, perf.ErrNoCompiler.Error()) {
					continue
				}
				if got.status != cli.OK {
					t.Errorf("mode %s, writes of %s: status %d, stderr %q; want 0", m.name, n, got.status, got.stderr)
					continue
				}
				sent++
				checked := map[string]int64{"-verify": 30e6}[test.flag]
				for _, r := range parseJSON(t, got.stdout) {
					if r.Link != addr || r.Mode != m.name || r.Bytes != 30e6 || r.Checked != checked || r.Wrong != 0 {
						t.Errorf("mode %s, writes of %s: got %+v, want 30 MB to %s, %d bytes checked", m.name, n, r, addr, checked)
					}
				}
			}
		}
		got := serve.interrupt(os.Interrupt)
		if got.status != cli.Interrupted || strings.Count(got.stdout, test.want+", in ") != sent {
			t.Errorf("serve %s: status %d and the lines\n%swant status 130 and %d lines with %q", test.flag, got.status, got.stdout, sent, test.want)
		}
	}
}

func isEmpty(s string) bool { return s == "" }

func TestSendTable(t *testing.T) {
	serve := start(t, "serve", "-addr", "127.0.0.1:0", "-verify")
	got := execute(t, zcperf(t, "send", "-to", serve.await("listening on "), "-total", "1MiB"))
	if got.status != cli.OK || !strings.HasPrefix(got.stdout, "control") || !strings.Contains(got.stdout, "The receiver got 1048576 bytes, all checked and right") {
		t.Errorf("status %d, stdout %s; want status 0, a table and what the receiver got", got.status, got.stdout)
	}
	if got := serve.interrupt(syscall.SIGTERM); got.status != cli.Interrupted {
		t.Errorf("serve: status %d after SIGTERM, want 130", got.status)
	}
}

// What had been sent by the time of the interrupt has arrived, and is what the result is about.
func TestInterruptedSend(t *testing.T) {
	l, err := listenLoopback()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	arriving := make(chan struct{})
	go serveOnce(l, func() { close(arriving) })
	send := start(t, "send", "-to", l.Addr().String(), "-total", "1000TiB", "-region", "16MiB", "-json")
	<-arriving
	got := send.interrupt(os.Interrupt)
	if got.status != cli.Interrupted || !strings.HasSuffix(got.stderr, "zcperf: interrupted") {
		t.Errorf("status %d, stderr %q; want 130 and a word of it", got.status, got.stderr)
	}
	results := parseJSON(t, got.stdout)
	if len(results) != 1 || !results[0].CutShort || results[0].Bytes < 1<<20 || results[0].Checked != results[0].Bytes || results[0].Wrong != 0 {
		t.Errorf("got %+v, want one transfer, cut short, checked and right", results)
	}
}

// serveOnce receives from one sender, and calls arriving when a mebibyte has arrived.
func serveOnce(l net.Listener, arriving func()) {
	c, err := l.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	h, err := readHeader(c)
	if err != nil {
		return
	}
	arrived := sync.OnceFunc(arriving)
	check := checker{region: h.Region}
	receive(c.(*net.TCPConn), func(b []byte) {
		if check.check(b); check.pos >= 1<<20 {
			arrived()
		}
	})
	writeTrailer(c, trailer{Received: check.pos, Checked: true, Wrong: check.wrong})
}

func TestInterruptedBench(t *testing.T) {
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		p := start(t, "-link", "loopback", "-mode", "copy,zcnet", "-size", "64KiB", "-total", "16MiB", "-rounds", "1000000", "-json")
		p.await("round 3 of 1000000")
		got := p.interrupt(sig)
		if got.status != cli.Interrupted || !strings.HasSuffix(got.stderr, "zcperf: interrupted") {
			t.Errorf("%v: status %d, stderr ends in %q; want 130 and a word of it", sig, got.status, p.said[len(p.said)-1])
		}
		results := parseJSON(t, got.stdout)
		if len(results) != 2 || results[0].Rounds < 2 {
			t.Errorf("%v: got %+v, want the results of at least 2 rounds in 2 modes", sig, results)
		}
	}
}

func TestBenchInterruptedBeforeItHasAResult(t *testing.T) {
	p := start(t, "-link", "loopback", "-region", "1GiB", "-total", "1TiB", "-json")
	p.await("filling")
	got := p.interrupt(os.Interrupt)
	if got.status != cli.Interrupted || got.stdout != "" || !strings.HasSuffix(got.stderr, "zcperf: interrupted") {
		t.Errorf("status %d, stdout %q, stderr %q; want 130 and a word of it", got.status, got.stdout, got.stderr)
	}
}

// A sweep that is interrupted prints and draws the sizes it has.
func TestInterruptedSweep(t *testing.T) {
	svg := filepath.Join(t.TempDir(), "sweep.svg")
	p := start(t, "sweep", "-link", "loopback", "-mode", "copy,zcnet", "-size", "64KiB,128KiB", "-total", "16MiB", "-rounds", "1000000", "-svg", svg)
	p.await("round 3 of 1000000")
	got := p.interrupt(os.Interrupt)
	if got.status != cli.Interrupted || !strings.HasSuffix(got.stderr, "zcperf: interrupted") {
		t.Errorf("status %d, stderr ends in %q; want 130 and a word of it", got.status, p.said[len(p.said)-1])
	}
	for _, want := range []string{"64KiB", "128KiB", "Of 1000000 rounds ", "\nThreshold: none: "} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("want %q in:\n%s", want, got.stdout)
		}
	}
	parseSVG(t, svg)
}

func TestSweepInterruptedBeforeItHasAResult(t *testing.T) {
	svg := filepath.Join(t.TempDir(), "sweep.svg")
	p := start(t, "sweep", "-link", "loopback", "-region", "1GiB", "-total", "1TiB", "-svg", svg)
	p.await("filling")
	got := p.interrupt(os.Interrupt)
	if got.status != cli.Interrupted || got.stdout != "" || !strings.HasSuffix(got.stderr, "zcperf: interrupted") {
		t.Errorf("status %d, stdout %q, stderr %q; want 130 and a word of it", got.status, got.stdout, got.stderr)
	}
	if _, err := os.Stat(svg); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a picture (%v), want none", err)
	}
}

func TestSweepToAServe(t *testing.T) {
	serve := start(t, "serve", "-addr", "127.0.0.1:0", "-discard")
	addr := serve.await("listening on ")
	svg := filepath.Join(t.TempDir(), "sweep.svg")
	got := execute(t, zcperf(t, "sweep", "-to", addr, "-mode", "zcnet,copy", "-size", "1MiB,64KiB", "-total", "4MiB", "-rounds", "2", "-json", "-svg", svg))
	if got.status != cli.OK || !strings.Contains(got.stderr, "\nThreshold: ") {
		t.Errorf("status %d, stderr %q; want 0 and the threshold", got.status, got.stderr)
	}
	var found []string
	for _, r := range parseJSON(t, got.stdout) {
		found = append(found, fmt.Sprintf("%v %s", r.Size, r.Mode))
		if r.Link != addr || r.Bytes != 4<<20 || r.Rounds != 2 || r.SideCPU != nil || r.Side != nil || r.ProcCPU == nil {
			t.Errorf("got %+v, want 4 MiB to %s, twice, with the process's time and none of the side", r, addr)
		}
	}
	if want := []string{"64KiB zcnet", "64KiB copy", "1MiB zcnet", "1MiB copy"}; !slices.Equal(found, want) {
		t.Errorf("got %q, want %q", found, want)
	}
	title := func(s string) bool { return strings.HasPrefix(s, "Throughput by size of write, to "+addr) }
	if texts := parseSVG(t, svg); !slices.ContainsFunc(texts, title) {
		t.Errorf("the picture has the texts %q, want a title with %s", texts, addr)
	}
	serve.interrupt(os.Interrupt)
}

// A raw serve takes any program's bytes.
func TestRawServe(t *testing.T) {
	for _, args := range [][]string{{"-raw"}, {"-raw", "-discard"}} {
		serve := start(t, append([]string{"serve", "-addr", "127.0.0.1:0"}, args...)...)
		c, err := net.Dial("tcp", serve.await("listening on "))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(make([]byte, 1000001)); err != nil {
			t.Fatal(err)
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if answer, err := io.ReadAll(c); err != nil || len(answer) > 0 {
			t.Errorf("serve %q answered %q (%v), want nothing but the end", args, answer, err)
		}
		c.Close()
		got := serve.interrupt(os.Interrupt)
		if got.status != cli.Interrupted || strings.Count(got.stdout, ": 1000001 bytes, not checked, in ") != 1 {
			t.Errorf("serve %q: status %d and the lines\n%swant status 130 and one line with 1000001 bytes", args, got.status, got.stdout)
		}
	}
}

// asNobody makes a program run without rights.
func asNobody(cmd *exec.Cmd) *exec.Cmd {
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		cmd.Dir = "/"
	}
	return cmd
}

func TestBenchWithoutRights(t *testing.T) {
	got := execute(t, asNobody(zcperf(t, "-total", "1MiB", "-rounds", "1", "-json")))
	if got.status != cli.OK || strings.Count(got.stderr, "without link lab: ") != 1 {
		t.Errorf("status %d, stderr %q; want 0 and one line about the lab", got.status, got.stderr)
	}
	for _, r := range parseJSON(t, got.stdout) {
		if r.Link != "loopback" {
			t.Errorf("got %+v, want results of loopback only", r)
		}
	}
	got = execute(t, asNobody(zcperf(t, "sweep", "-size", "64KiB", "-total", "1MiB", "-rounds", "1", "-svg", "", "-json")))
	if got.status != cli.OK || strings.Count(got.stderr, "without link lab: ") != 1 || !strings.Contains(got.stdout, `"link":"loopback"`) {
		t.Errorf("sweep: status %d, stdout %q, stderr %q; want 0, one line about the lab, and results of loopback", got.status, got.stdout, got.stderr)
	}
	got = execute(t, asNobody(zcperf(t, "-link", "lab", "-total", "1MiB", "-rounds", "1", "-json")))
	lines := strings.Split(strings.TrimSpace(got.stderr), "\n")
	if got.status != cli.Failed || got.stdout != "" || !strings.HasPrefix(lines[len(lines)-1], "zcperf: link lab: ") {
		t.Errorf("-link lab: status %d, stdout %q, stderr %q; want 1 and the reason", got.status, got.stdout, got.stderr)
	}
}
