// Zcperf shows what sending without copying is worth on a machine, a link and a kernel: it sends real memory by plain
// Write, by a naive MSG_ZEROCOPY loop and by package zcnet, side by side, checks that what arrives is right, and
// prints throughput, CPU time and how much went uncopied.
//
//	zcperf [bench]            over loopback, and over a copy-free link of its own where it may build one
//	zcperf serve -addr A      receives, on another host
//	zcperf send -to A         sends to a serve
//	zcperf sweep              finds from which size of write on zero-copy pays, and draws the curve
//	zcperf probe [A]          tells whether zero-copy is on, and if not, why not
//
// Each command explains its flags with -h. The exit status is 0 if all went well, 1 if something failed or a byte
// arrived wrong, 2 if the command line was wrong, and 130 after an interrupt.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// This file is the way from the command line to a command, and from its error to the exit status.

func main() {
	if hired() {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // so that a second signal kills
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// Exit statuses.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130 // what shells make of SIGINT
)

// errInterrupted is the error of a command that a signal ended. What it had by then it has printed.
var errInterrupted = errors.New("interrupted")

// A command is one of the things that zcperf does.
type command struct {
	name     string
	synopsis string // of its arguments
	about    string // one line
	run      func(ctx context.Context, args []string, stdout, stderr io.Writer) error
}

// commands returns all commands. The first is the default.
func commands() []command {
	return []command{
		{"bench", benchSynopsis, "compare the modes side by side (the default command)", runBench},
		{"serve", serveSynopsis, "receive from any number of senders until interrupted", runServe},
		{"send", sendSynopsis, "send to a serve on another host", runSend},
		{"sweep", sweepSynopsis, "find from which size of write on zero-copy pays here, and draw the curve", runSweep},
		{"probe", probeSynopsis, "tell whether zero-copy is on, and if not, why not", runProbe},
	}
}

// run executes a command line and returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd, args, err := choose(args)
	if err == nil {
		err = cmd.run(ctx, args, stdout, stderr)
	}
	var usage *usageError
	var help *helpRequest
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &help):
		help.print(stdout)
		return exitOK
	}
	fmt.Fprintln(stderr, "zcperf:", oneLine(err))
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, errInterrupted):
		return exitInterrupted
	}
	return exitFailed
}

// choose finds the command that args begin with, and returns it with the arguments that are left for it.
func choose(args []string) (command, []string, error) {
	all := commands()
	if len(args) == 0 {
		return all[0], nil, nil
	}
	if isHelp(args[0]) {
		return command{}, nil, &helpRequest{}
	}
	if strings.HasPrefix(args[0], "-") {
		return all[0], args, nil
	}
	var names []string
	for _, c := range all {
		if c.name == args[0] {
			return c, args[1:], nil
		}
		names = append(names, c.name)
	}
	return command{}, nil, usagef("there is no command %q: it is one of %s", args[0], strings.Join(names, ", "))
}

// oneLine makes one line of an error, joined ones included.
func oneLine(err error) string {
	return strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
}
