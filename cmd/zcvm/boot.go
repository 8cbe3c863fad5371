package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/zcnet-go/zcnet/cmd/zcvm/internal/plan"
	"github.com/zcnet-go/zcnet/internal/cli"
)

// This file is the command boot: which machines it boots, with what in them.

const (
	defaultKernels = "6.1,6.12"
	defaultDevices = "e1000,virtio-net"
	// defaultTimeout is twice what the slowest machine takes on two old cores.
	defaultTimeout = 6 * time.Minute
	// transferWrite has 20 as common divisor with 1460, the bytes in a full
	// packet: where a write ends in the middle of a packet, there are at least
	// 20 in it. One of 1 to 5 bytes is shorter than Ethernet allows. The driver
	// fills it up, for which the kernel copies its bytes (__skb_pad in
	// net/core/skbuff.c), and the completion of all calls that it was merged
	// with says "copied".
	transferWrite = 120 << 10
	// transferBytes is enough for completions to come while there is still much to send, and not a whole number of
	// writes.
	transferBytes = 400*transferWrite + 12345
)

// testModules are those that the library's tests use where they are there: a pair of devices between two network
// namespaces, and a queue that sends slowly.
var testModules = []string{"veth", "sch_tbf"}

const bootSynopsis = "[-kernel LIST] [-device LIST] [-run REGEXP] [-all] [-accel tcg] [-timeout TIME] [-keep] [-v]"

// bootConfig is what the flags of boot say.
type bootConfig struct {
	kernels []string
	devices []device
	tests   string // what of the tests to run, a regular expression; "" for none
	all     bool   // also what takes long, or is known to fail
	accel   string
	timeout time.Duration
	keep    bool
	verbose bool
}

func parseBoot(args []string) (bootConfig, error) {
	var cfg bootConfig
	fs := cli.NewFlags("boot")
	kernels := fs.String("kernel", defaultKernels, "`kernels` to boot: series of Debian's, or packages as files, FILE.deb")
	names := fs.String("device", defaultDevices, "`devices` to send through: e1000, e1000e, virtio-net")
	fs.StringVar(&cfg.tests, "run", ".", "run the library's tests that match this `regexp`, once with each kernel; empty for none")
	fs.BoolVar(&cfg.all, "all", false, "run also the tests that are excluded otherwise (see exclude.go)")
	fs.StringVar(&cfg.accel, "accel", "tcg", "what runs the machine's processors: `tcg`, which works everywhere, or kvm")
	fs.DurationVar(&cfg.timeout, "timeout", defaultTimeout, "`time` after which a machine is ended")
	fs.BoolVar(&cfg.keep, "keep", false, "keep the files of the machines, and say where they are")
	fs.BoolVar(&cfg.verbose, "v", false, "show the machines' consoles")
	if err := cli.Parse(fs, args, 0); err != nil {
		return cfg, err
	}
	cfg.kernels = list(*kernels)
	for _, name := range list(*names) {
		d, err := findDevice(name)
		if err != nil {
			return cfg, cli.Usagef("boot: -device: %v", err)
		}
		cfg.devices = append(cfg.devices, d)
	}
	return cfg, cfg.check(fs)
}

// check refuses what leaves nothing to do.
func (cfg *bootConfig) check(fs *flag.FlagSet) error {
	switch {
	case len(cfg.kernels) == 0:
		return cli.Usagef("%s: -kernel: want at least one, such as %s", fs.Name(), defaultKernels)
	case len(cfg.devices) == 0:
		return cli.Usagef("%s: -device: want at least one, such as %s", fs.Name(), defaultDevices)
	case cfg.timeout <= 0:
		return cli.Usagef("%s: -timeout: want a time such as %v", fs.Name(), defaultTimeout)
	}
	return nil
}

func runBoot(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	cfg, err := parseBoot(args)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "zcvm")
	if err != nil {
		return err
	}
	if cfg.keep {
		fmt.Fprintln(stderr, "files of the machines:", dir)
	} else {
		defer os.RemoveAll(dir)
	}
	b := &booter{cfg: cfg, dir: dir, console: io.Discard, log: func(format string, args ...any) {
		fmt.Fprintf(stderr, format+"\n", args...)
	}}
	if cfg.verbose {
		b.console = stderr
	}
	rows, err := b.bootAll(ctx)
	return errors.Join(err, printRows(stdout, rows), judge(rows))
}

// A booter is one execution of the command.
type booter struct {
	cfg     bootConfig
	dir     string // for files
	console io.Writer
	log     func(format string, args ...any)
	base    []guestFile // what lies in each machine
}

// bootAll boots each kernel with each device. What it has found out by the time of an error it returns too.
func (b *booter) bootAll(ctx context.Context) (rows []row, err error) {
	cache, err := openCache(b.log)
	if err != nil {
		return nil, err
	}
	if err := b.build(ctx); err != nil {
		return nil, err
	}
	kernels := make([]*kernel, len(b.cfg.kernels))
	for i, asked := range b.cfg.kernels {
		if kernels[i], err = cache.kernel(ctx, asked); err != nil {
			return nil, fmt.Errorf("kernel %s: %w", asked, err)
		}
	}
	// At the same time, because the tests wait for more than half of theirs.
	found, errs := make([][]row, len(kernels)), make([]error, len(kernels))
	var all sync.WaitGroup
	for i, k := range kernels {
		all.Go(func() { found[i], errs[i] = b.bootKernel(ctx, k, b.cfg.kernels[i]) })
	}
	all.Wait()
	return slices.Concat(found...), errors.Join(errs...)
}

// bootKernel boots a kernel with each device, one after the other.
func (b *booter) bootKernel(ctx context.Context, k *kernel, asked string) (rows []row, err error) {
	for i, d := range b.cfg.devices {
		b.log("booting %s with %s", asked, d.name)
		r, err := b.boot(ctx, k, d, i == 0 && b.cfg.tests != "")
		if err != nil {
			return rows, fmt.Errorf("kernel %s with %s: %w", asked, d.name, err)
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// build builds the programs of a machine.
func (b *booter) build(ctx context.Context) error {
	b.log("building the guest and the tests")
	build := builder{dir: b.dir, arch: "amd64"}
	source, err := sourceDir(ctx, library)
	if err != nil {
		return err
	}
	init, err := build.program(ctx, guest)
	if err != nil {
		return err
	}
	tests, err := build.tests(ctx, library)
	if err != nil {
		return err
	}
	read, err := readAll(source, filepath.Dir(plan.TestBinary), "README.md", "example_test.go")
	if err != nil {
		return err
	}
	b.base = append(read, guestFile{name: "/etc/hosts", mode: 0o644, data: []byte("127.0.0.1 localhost\n::1 localhost\n")})
	for name, file := range map[string]string{"/init": init, plan.TestBinary: tests} {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		b.base = append(b.base, guestFile{name: name, mode: 0o755, data: data})
	}
	return nil
}

// boot boots one machine, and returns what came of it.
func (b *booter) boot(ctx context.Context, k *kernel, d device, withTests bool) (row, error) {
	start := time.Now()
	r, err := listen()
	if err != nil {
		return row{}, err
	}
	defer r.close()
	p := &plan.Plan{
		Address: guestAddress,
		Gateway: hostAddress,
		Server:  fmt.Sprintf("%s:%d", hostAddress, r.port()),
		Bytes:   transferBytes,
		Write:   transferWrite,
	}
	if withTests {
		p.TestArgs = []string{"-test.v", "-test.run=" + b.cfg.tests, "-test.timeout=" + b.cfg.timeout.String()}
		if !b.cfg.all {
			p.TestArgs = append(p.TestArgs, "-test.skip="+skipPattern(excluded(k.release())))
		}
	}
	dir, err := os.MkdirTemp(b.dir, d.name)
	if err != nil {
		return row{}, err
	}
	initrd := filepath.Join(dir, "initramfs")
	if err := b.writeInitramfs(initrd, k, d, p); err != nil {
		return row{}, err
	}
	m := &machine{
		accel:   b.cfg.accel,
		kernel:  k.image,
		initrd:  initrd,
		device:  d.qemu,
		dir:     dir,
		console: b.console,
		timeout: b.cfg.timeout,
	}
	report, err := m.boot(ctx, b.cfg.verbose)
	if err != nil {
		return row{}, err
	}
	result := row{device: d, report: report, took: time.Since(start), tests: withTests}
	if withTests && !b.cfg.all {
		result.excluded = excluded(k.release())
	}
	result.received, result.err = r.close()
	return result, nil
}

// writeInitramfs writes all that is in a machine to a file.
func (b *booter) writeInitramfs(file string, k *kernel, d device, p *plan.Plan) error {
	set, err := findModules(k.modules)
	if err != nil {
		return err
	}
	names := d.modules
	if p.TestArgs != nil {
		names = append(names[:len(names):len(names)], testModules...)
	}
	modules, err := set.load(names...)
	if err != nil {
		return err
	}
	files := b.base[:len(b.base):len(b.base)]
	for _, m := range modules {
		name := "/modules/" + m.name + ".ko"
		p.Modules = append(p.Modules, name)
		files = append(files, guestFile{name: name, mode: 0o644, data: m.data})
	}
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	files = append(files, guestFile{name: plan.PlanFile, mode: 0o644, data: text})
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	return errors.Join(writeArchive(w, files), w.Flush(), f.Close())
}
