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
	"io"

	"github.com/zcnet-go/zcnet/internal/cli"
)

// This file lists the commands.

func main() { cli.Main(commands().Run) }

func commands() cli.Program {
	return cli.Program{
		Name:  "zcvm",
		About: "Zcvm runs the library's tests on other kernels, drivers and processors, by qemu.",
		Commands: []cli.Command{
			{Name: "boot", Synopsis: bootSynopsis, About: "boot kernels with devices, and compare what comes of it with what should (the default command)", Run: interruptible(runBoot)},
			{Name: "user", Synopsis: userSynopsis, About: "run the tests that need no kernel of their own on other processors", Run: interruptible(runUser)},
		},
	}
}

// interruptible makes whatever error an interrupt brings about the one that says so.
func interruptible(run func(context.Context, []string, io.Writer, io.Writer) error) func(context.Context, []string, io.Writer, io.Writer) error {
	return func(ctx context.Context, args []string, stdout, stderr io.Writer) error {
		err := run(ctx, args, stdout, stderr)
		if err != nil && ctx.Err() != nil {
			return cli.ErrInterrupted
		}
		return err
	}
}

// errNotAsExpected is the error of a command that ran to its end and found what it should not have. What that is it has
// printed.
var errNotAsExpected = errors.New("not everything was as expected")
