// Zcsoak sends random traffic through package zcnet for minutes to days, over loopback and over a copy-free link of its
// own, while it disturbs both the connections and the process, and checks every byte at the receiver.
//
//	zcsoak [-for 1m] [-seed N] [-conns N] [-link loopback,lab] [-fault list] [-json]
//
// What is checked, of each of the connections that begin and end all the time:
//
//   - Every byte that arrives, by its position in the stream. Memory is overwritten the moment its ticket is done, so
//     that a ticket that is done too early shows as wrong bytes.
//   - That all of a stream arrives when the connection was closed in order, with its last bytes in flight included.
//   - That every ticket is done in the end, and what it says of the connection.
//   - That nothing is left behind: goroutines, descriptors, memory, and bytes and IDs in flight in Conn.Stats.
//
// The seed decides the plan: what each connection sends, from which memory, by which calls, when it pauses and how it
// ends. Two runs with the same seed, links and faults have the same plan. Timing is the machine's own, so that they do not
// meet the same events.
//
// The run ends after -for, or at an interrupt, with a report. The exit status is 0 if every figure in it is right, 1 if one
// is not or the run could not be made, and 2 if the command line was wrong. A second interrupt kills.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/zcnet-go/zcnet/internal/cli"
)

// This file is the way from the command line to the run, and from its report to the exit status.

func main() { cli.Main(run) }

// run executes a command line and returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cfg, err := parseFlags(args)
	switch {
	case errors.Is(err, errHelp):
		printHelp(stdout)
		return cli.OK
	case err != nil:
		fmt.Fprintln(stderr, "zcsoak:", cli.OneLine(err))
		return cli.Usage
	}
	if cfg.faults.named[faultMemlock] {
		if err := giveUpLockRight(); err != nil {
			fmt.Fprintln(stderr, "zcsoak: -fault memlock:", cli.OneLine(err))
			return cli.Failed
		}
	}
	f, err := soak(ctx, cfg, stderr)
	if err != nil {
		fmt.Fprintln(stderr, "zcsoak:", cli.OneLine(err))
		return cli.Failed
	}
	return conclude(cfg, f, stdout, stderr)
}

// conclude prints the report and returns the exit status that it deserves.
func conclude(cfg *config, f *figures, stdout, stderr io.Writer) int {
	print := printReport
	if cfg.json {
		print = printJSON
	}
	if err := print(stdout, f); err != nil {
		fmt.Fprintln(stderr, "zcsoak:", cli.OneLine(err))
		return cli.Failed
	}
	if f.right() {
		return cli.OK
	}
	fmt.Fprintf(stderr, "zcsoak: something is wrong; the same plan again: zcsoak %s\n", cfg.commandLine())
	return cli.Failed
}
