package main

import (
	"context"
	"fmt"
	"io"

	"github.com/zcnet-go/zcnet/internal/cli"
)

// This file is the command send.

const sendSynopsis = "-to HOST:PORT [-mode zcnet] [-size 1MiB] [-total 1GiB] [-region 1GiB] [-congestion NAME] [-json]"

const (
	defaultSendSize   = 1 << 20
	defaultSendRegion = 1 << 30
)

// sendConfig is what the flags of send say.
type sendConfig struct {
	to                  string
	mode                mode
	size, total, region size
	congestion          string
	json                bool
}

func parseSend(args []string) (sendConfig, error) {
	cfg := sendConfig{size: defaultSendSize, total: defaultTotal}
	fs := cli.NewFlags("send")
	fs.Func("to", "`HOST:PORT` of a zcperf serve", one(&cfg.to, parseRemoteAddr))
	fs.Func("mode", "`mode` to send by: copy, naive or zcnet (default zcnet)", one(&cfg.mode, named("mode", modes())))
	fs.Func("size", "`size` of one write (default 1MiB)", one(&cfg.size, parseMemorySize))
	fs.Func("total", "`size` of everything (default 1GiB)", one(&cfg.total, parseSize))
	fs.Func("region", "`size` of the memory to send from (default 1GiB)", one(&cfg.region, parseMemorySize))
	fs.StringVar(&cfg.congestion, "congestion", "", congestionUsage)
	fs.BoolFunc("json", "print a JSON object", yes(&cfg.json))
	if err := cli.Parse(fs, args, 0); err != nil {
		return cfg, err
	}
	if cfg.to == "" {
		return cfg, cli.Usagef("send: -to HOST:PORT is missing")
	}
	if cfg.mode.name == "" {
		cfg.mode, _ = named("mode", modes())("zcnet")
	}
	if cfg.region == 0 {
		cfg.region = max(defaultSendRegion, cfg.size)
	}
	return cfg, checkRegion("send", cfg.region, cfg.size)
}

func runSend(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	cfg, err := parseSend(args)
	if err != nil {
		return err
	}
	show := newProgress(stderr)
	r, err := cfg.send(ctx, show)
	show.close()
	if err != nil {
		return err
	}
	if err := cfg.report(stdout, r); err != nil {
		return err
	}
	switch {
	case r.Wrong > 0:
		return fmt.Errorf("the receiver got %v", r.answer)
	case r.CutShort:
		return cli.ErrInterrupted
	}
	return nil
}

// send makes the transfer, or as much of it as there is until ctx ends.
func (cfg sendConfig) send(ctx context.Context, show *progress) (result, error) {
	n := regionFor(cfg.region, cfg.total, cfg.size)
	show.begin("filling %v of memory", size(n))
	region, err := newRegion(ctx, n)
	if err != nil {
		return result{}, err
	}
	defer region.Release()
	show.begin("sending %v to %s by %s, in writes of %v", cfg.total, cfg.to, cfg.mode.name, cfg.size)
	r, err := cfg.transfer(ctx, newTransfer(region, cfg.size, cfg.total), show)
	if err != nil && ctx.Err() != nil {
		return result{}, cli.ErrInterrupted
	}
	r.Link, r.Mode, r.Size = cfg.to, cfg.mode.name, cfg.size
	return r, err
}

func (cfg sendConfig) transfer(ctx context.Context, t transfer, show *progress) (result, error) {
	c, err := dialTCP(ctx, cfg.to)
	if err != nil {
		return result{}, err
	}
	show.beginTransfer("sent", t.total)
	t.show, t.congestion = show, cfg.congestion
	return t.over(ctx, c, cfg.mode)
}

// report prints the result.
func (cfg sendConfig) report(stdout io.Writer, r result) error {
	rows := []row{{result: r, lowest: r.GBPerS, highest: r.GBPerS}}
	if cfg.json {
		return printJSON(stdout, rows)
	}
	printTable(stdout, rows)
	_, err := fmt.Fprintf(stdout, "\nThe receiver got %v, in %.3f s.\n", r.answer, r.Seconds)
	return err
}
