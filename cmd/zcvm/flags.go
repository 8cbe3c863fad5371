package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
)

// This file parses flags, and says in one line what is wrong with them.

// usageError is the error of a command line that means nothing.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// helpRequest is the "error" of a command line that asks for help.
type helpRequest struct{ flags *flag.FlagSet }

func (h *helpRequest) Error() string { return "help" }

// print writes the help that was asked for.
func (h *helpRequest) print(w io.Writer) {
	var names []string
	for _, c := range commands() {
		names = append(names, c.name)
	}
	fmt.Fprintf(w, "usage: zcvm %s [flags]\n\nThe commands are %s; %s is the default. The flags of %s:\n\n",
		h.flags.Name(), strings.Join(names, ", "), names[0], h.flags.Name())
	h.flags.SetOutput(w)
	h.flags.PrintDefaults()
}

// newFlags returns the empty set of flags of a command.
func newFlags(command string) *flag.FlagSet {
	fs := flag.NewFlagSet(command, flag.ContinueOnError)
	fs.SetOutput(io.Discard) // errors are one line, printed by run
	fs.Usage = func() {}
	return fs
}

// parse parses the flags of a command, after which nothing may follow.
func parse(fs *flag.FlagSet, args []string) error {
	err := fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return &helpRequest{fs}
	case err != nil:
		return usagef("%s: %v (zcvm %s -h explains the flags)", fs.Name(), err, fs.Name())
	case fs.NArg() > 0:
		return usagef("%s: unexpected argument %q", fs.Name(), fs.Arg(0))
	}
	return nil
}

// list splits comma-separated values, and drops empty ones.
func list(s string) (values []string) {
	for v := range strings.SplitSeq(s, ",") {
		if v = strings.TrimSpace(v); v != "" {
			values = append(values, v)
		}
	}
	return values
}
