// Zcvm shows that package zcnet does on other kernels, with other network drivers and on other processors what it does
// here. It boots Debian's kernels in qemu, each with a network device, and in each machine runs the library's tests and
// sends a stream through the device to this host, which compares every byte. Then it prints how the stream travelled,
// and whether that is what the driver should make of it.
//
//	zcvm [boot]     boots kernels with devices, and compares what comes of it with what should
//	zcvm user       runs the tests that need no kernel of their own on other processors, under qemu's user emulation
//
// Each command explains its flags with -h. The exit status is 0 if everything was as expected, 1 if it was not or
// something failed, 2 if the command line was wrong, and 130 after an interrupt.
//
// It needs Debian or a system like it (apt-get, dpkg-deb), the go command, and qemu: the packages qemu-system-x86 and,
// for zcvm user, qemu-user-static. It needs neither root nor hardware virtualization. Kernels are fetched once, and kept
// in the user's cache directory. It has to be run inside of the module.
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

// errNotAsExpected is the error of a command that ran to its end and found what it should not have. What that is it has
// printed.
var errNotAsExpected = errors.New("not everything was as expected")

// A command is one of the things that zcvm does.
type command struct {
	name string
	run  func(ctx context.Context, args []string, stdout, stderr io.Writer) error
}

// commands returns all commands. The first is the default.
func commands() []command { return []command{{"boot", runBoot}, {"user", runUser}} }

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
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "zcvm: interrupted")
		return exitInterrupted
	}
	fmt.Fprintln(stderr, "zcvm:", err)
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailed
}

// choose finds the command that args begin with, and returns it with the arguments that are left for it.
func choose(args []string) (command, []string, error) {
	all := commands()
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
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
