package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/zcnet-go/zcnet/internal/cli"
)

// This file is the command line.

// config is what a run is asked to do.
type config struct {
	duration time.Duration
	seed     uint64
	conns    int
	links    []string
	insist   bool // the links were asked for by name: a run without one of them is none
	faults   faultSet
	json     bool

	patience time.Duration // how long anything that must happen may take
	breakIt  bool          // for a test of the soak itself: memory is overwritten before its ticket is done
}

// Defaults of the flags.
const (
	defaultDuration = time.Minute
	defaultConns    = 12
	defaultPatience = time.Minute
)

var errHelp = errors.New("help")

// parseFlags makes a config of the arguments.
func parseFlags(args []string) (*config, error) {
	cfg := &config{
		duration: defaultDuration,
		seed:     rand.Uint64N(1 << 32), // short enough to be typed again
		conns:    defaultConns,
		links:    slices.Clone(linkNames),
		faults:   defaultFaults(),
		patience: defaultPatience,
	}
	fs := newFlags(cfg)
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return nil, errHelp
	case err != nil:
		return nil, cli.Explain(fs, err)
	case fs.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument %q: usage is zcsoak %s", fs.Arg(0), synopsis)
	}
	return cfg, nil
}

const synopsis = "[-for 1m] [-seed N] [-conns N] [-link loopback,lab] [-fault list] [-json]"

func newFlags(cfg *config) *flag.FlagSet {
	fs := cli.NewFlags("zcsoak")
	fs.Func("for", "`time` to run, such as 30s, 10m or 48h (default "+defaultDuration.String()+")", func(s string) (err error) {
		if cfg.duration, err = time.ParseDuration(s); err != nil || cfg.duration <= 0 {
			return errors.New("want a time such as 30s, 10m or 48h")
		}
		return nil
	})
	fs.Func("seed", "`number` from which the plan is made (default: another one each time)", func(s string) (err error) {
		if cfg.seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			return errors.New("want a whole number from 0 on")
		}
		return nil
	})
	fs.Func("conns", "`number` of connections at a time (default "+strconv.Itoa(defaultConns)+")", func(s string) (err error) {
		if cfg.conns, err = strconv.Atoi(s); err != nil || cfg.conns < 1 {
			return errors.New("want a whole number from 1 on")
		}
		return nil
	})
	fs.Func("link", "comma-separated `links`: "+strings.Join(linkNames, ", ")+" (default: all that can be had; one that is named must be)", func(s string) (err error) {
		cfg.links, err = names("link", s, linkNames)
		cfg.insist = err == nil
		return err
	})
	fs.Func("fault", "comma-separated `faults`: "+strings.Join(faultNames, ", ")+", or none (default: all that can be had; memlock only without CAP_IPC_LOCK, which it gives up if it is named)", func(s string) error {
		chosen, err := names("fault", s, append(slices.Clone(faultNames), "none"))
		if err == nil {
			cfg.faults, err = chosenFaults(chosen)
		}
		return err
	})
	fs.BoolVar(&cfg.json, "json", false, "print the report as one JSON object")
	return fs
}

// names parses comma-separated names out of all, each once.
func names(what, s string, all []string) (chosen []string, err error) {
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		if !slices.Contains(all, part) {
			return nil, fmt.Errorf("there is no %s %q: it is one of %s", what, part, strings.Join(all, ", "))
		}
		if !slices.Contains(chosen, part) {
			chosen = append(chosen, part)
		}
	}
	return chosen, nil
}

func printHelp(w io.Writer) {
	fmt.Fprintf(w, "Zcsoak sends random traffic through zcnet, disturbs it, and checks every byte.\n\nusage: zcsoak %s\n", synopsis)
	fs := newFlags(&config{})
	fs.SetOutput(w)
	fs.PrintDefaults()
}

// commandLine returns the arguments that make the same plan.
func (cfg *config) commandLine() string {
	args := fmt.Sprintf("-seed %d -for %v -conns %d", cfg.seed, cfg.duration, cfg.conns)
	if cfg.insist {
		args += " -link " + strings.Join(cfg.links, ",")
	}
	if cfg.faults.named != nil {
		args += " -fault " + cfg.faults.String()
	}
	return args
}
