package main

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/zcnet-go/zcnet/internal/cli"
)

// This file is the command serve.

const serveSynopsis = "-addr HOST:PORT [-verify | -discard] [-raw]"

// serveConfig is what the flags of serve say.
type serveConfig struct {
	addr            string
	verify, discard bool
	raw             bool
}

func parseServe(args []string) (cfg serveConfig, err error) {
	fs := cli.NewFlags("serve")
	fs.Func("addr", "`HOST:PORT` to listen on; port 0 chooses one", one(&cfg.addr, parseListenAddr))
	fs.BoolFunc("verify", "compare every byte with what was sent, whatever the sender asks for", yes(&cfg.verify))
	fs.BoolFunc("discard", "drop what arrives without receiving it into memory (MSG_TRUNC, on Linux), whatever the sender asks for", yes(&cfg.discard))
	fs.BoolFunc("raw", "take any program's bytes, such as those of another sender to compare with: no zcperf sends here", yes(&cfg.raw))
	if err := cli.Parse(fs, args, 0); err != nil {
		return cfg, err
	}
	switch {
	case cfg.addr == "":
		return cfg, cli.Usagef("serve: -addr HOST:PORT is missing")
	case cfg.verify && cfg.discard:
		return cfg, cli.Usagef("serve: -verify and -discard exclude each other: what is discarded cannot be compared")
	case cfg.verify && cfg.raw:
		return cfg, cli.Usagef("serve: -verify and -raw exclude each other: nobody knows what any program sends")
	}
	return cfg, nil
}

// work returns what is to be done for every sender, nil for what each asks for.
func (cfg serveConfig) work() *work {
	w := workRead
	switch {
	case cfg.verify:
		w = workVerify
	case cfg.discard:
		w = workDiscard
	default:
		return nil
	}
	return &w
}

func runServe(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	cfg, err := parseServe(args)
	if err != nil {
		return err
	}
	l, err := listenTCP(cfg.addr)
	if err != nil {
		return err
	}
	fmt.Fprintln(stderr, "listening on", l.Addr())
	var mu sync.Mutex
	r := receiver{work: cfg.work(), raw: cfg.raw, done: func(c connection) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintln(stdout, c)
	}}
	if err := r.serve(ctx, l); err != nil {
		return err
	}
	return cli.ErrInterrupted
}
