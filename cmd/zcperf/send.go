package main

import (
	"context"
	"fmt"
	"io"

	"github.com/zcnet-go/zcnet/internal/cli"
	"github.com/zcnet-go/zcnet/internal/perf"
)

// This file is the command send.

const sendSynopsis = "-to HOST:PORT [-mode zcnet] [-size 1MiB] [-total 1GiB] [-region 1GiB] [-congestion NAME] [-memory huge] [-json]"

const (
	defaultSendSize   = 1 << 20
	defaultSendTotal  = 1 << 30
	defaultSendRegion = 1 << 30
)

// sendConfig is what the flags of send say.
type sendConfig struct {
	to                  string
	mode                mode
	size, total, region size
	congestion          string
	memory              memoryKind
	json                bool
}

func parseSend(args []string) (sendConfig, error) {
	cfg := sendConfig{size: defaultSendSize, total: defaultSendTotal, memory: memoryKinds()[0]}
	fs := cli.NewFlags("send")
	fs.Func("to", "`HOST:PORT` of a zcperf serve", one(&cfg.to, parseRemoteAddr))
	fs.Func("mode", fmt.Sprintf("`mode` to send by: %s (default %s).\n%s", names(allModes(nil)), modeZcnet, modeUsage), one(&cfg.mode, named("mode", allModes(nil))))
	fs.Func("size", "`size` of one write (default 1MiB)", one(&cfg.size, parseMemorySize))
	fs.Func("total", "`size` of everything (default 1GiB)", one(&cfg.total, parseSize))
	fs.Func("region", "`size` of the memory to send from (default 1GiB)", one(&cfg.region, parseMemorySize))
	fs.Func("congestion", congestionUsage, one(&cfg.congestion, parseName))
	fs.Func("memory", memoryUsage, one(&cfg.memory, named("memory", memoryKinds())))
	fs.BoolFunc("json", "print a JSON object", yes(&cfg.json))
	if err := cli.Parse(fs, args, 0); err != nil {
		return cfg, err
	}
	if cfg.to == "" {
		return cfg, cli.Usagef("send: -to HOST:PORT is missing")
	}
	if cfg.mode.name == "" {
		cfg.mode, _ = named("mode", usualModes(nil))(modeZcnet)
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
	region, err := newRegion(ctx, cfg.memory, n)
	if err != nil {
		return result{}, err
	}
	defer region.free()
	show.begin("sending %v to %s by %s, in writes of %v", cfg.total, cfg.to, cfg.mode.name, cfg.size)
	r, err := cfg.transfer(ctx, newTransfer(region, cfg.size, cfg.total), show)
	if err != nil && ctx.Err() != nil {
		return result{}, cli.ErrInterrupted
	}
	r.Link, r.Mode, r.Size = cfg.to, cfg.mode.name, cfg.size
	return r, err
}

func (cfg sendConfig) transfer(ctx context.Context, t transfer, show *progress) (result, error) {
	stop, err := perf.StartIdlers()
	if err != nil {
		return result{}, err
	}
	defer stop()
	show.beginTransfer("sent", t.total)
	t.show, t.congestion = show, cfg.congestion
	return remotePath(cfg.to).transfer(ctx, cfg.mode, t)
}

// report prints the result.
func (cfg sendConfig) report(stdout io.Writer, r result) error {
	rows := []row{{result: r}}
	if cfg.json {
		return printJSON(stdout, rows)
	}
	printTable(stdout, rows)
	_, err := fmt.Fprintf(stdout, "\nThe receiver got %v, in %.3f s.\n", r.answer, r.Seconds)
	return err
}
