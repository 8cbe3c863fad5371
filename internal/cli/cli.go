// Package cli is what the programs of this module have in common: the way from a command line to an exit status, and
// flags whose errors are one line.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

// Exit statuses.
const (
	OK          = 0
	Failed      = 1
	Usage       = 2
	Interrupted = 130 // what shells make of SIGINT
)

// ErrInterrupted is the error of a command that a signal ended. What it had by then it has printed.
var ErrInterrupted = errors.New("interrupted")

// Main runs a program and exits. ctx ends with an interrupt; a second one kills.
func Main(run func(ctx context.Context, args []string, stdout, stderr io.Writer) int) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// A Program does one of several things. The first command is the default.
type Program struct {
	Name, About string // one line
	Commands    []Command
}

// A Command is one of the things that a program does.
type Command struct {
	Name     string
	Synopsis string // of its arguments
	About    string // one line
	Run      func(ctx context.Context, args []string, stdout, stderr io.Writer) error
}

// Run executes a command line and returns the exit status.
func (p Program) Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd, args, err := p.choose(args)
	if err == nil {
		err = cmd.Run(ctx, args, stdout, stderr)
	}
	var usage *usageError
	var help *helpRequest
	switch {
	case err == nil:
		return OK
	case errors.As(err, &help):
		p.help(stdout, help.flags)
		return OK
	}
	fmt.Fprintf(stderr, "%s: %s\n", p.Name, OneLine(err))
	switch {
	case errors.As(err, &usage):
		return Usage
	case errors.Is(err, ErrInterrupted):
		return Interrupted
	}
	return Failed
}

// choose finds the command that args begin with, and returns it with the arguments that are left for it.
func (p Program) choose(args []string) (Command, []string, error) {
	if len(args) == 0 {
		return p.Commands[0], nil, nil
	}
	if isHelp(args[0]) {
		return Command{}, nil, &helpRequest{}
	}
	if strings.HasPrefix(args[0], "-") {
		return p.Commands[0], args, nil
	}
	var names []string
	for _, c := range p.Commands {
		if c.Name == args[0] {
			return c, args[1:], nil
		}
		names = append(names, c.Name)
	}
	return Command{}, nil, Usagef("there is no command %q: it is one of %s", args[0], strings.Join(names, ", "))
}

// isHelp reports whether an argument asks for help.
func isHelp(arg string) bool {
	return slices.Contains([]string{"-h", "-help", "--h", "--help"}, arg)
}

// help explains the flags of a command, or without any the whole program.
func (p Program) help(w io.Writer, fs *flag.FlagSet) {
	if fs == nil {
		fmt.Fprintf(w, "%s\n\n", p.About)
		for _, c := range p.Commands {
			fmt.Fprintf(w, "  %s %s %s\n        %s\n", p.Name, c.Name, c.Synopsis, c.About)
		}
		fmt.Fprintf(w, "\n%s COMMAND -h explains the flags of a command.\n", p.Name)
		return
	}
	for _, c := range p.Commands {
		if c.Name == fs.Name() {
			fmt.Fprintf(w, "usage: %s %s %s\n", p.Name, c.Name, c.Synopsis)
		}
	}
	fs.SetOutput(w)
	fs.PrintDefaults()
}

// usageError is the error of a command line that means nothing.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

// Usagef makes the error of a command line that means nothing.
func Usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// helpRequest is the "error" of a command line that asks for help.
type helpRequest struct{ flags *flag.FlagSet }

func (h *helpRequest) Error() string { return "help" }

// NewFlags returns the empty set of flags of a command, or of a program that does one thing.
func NewFlags(name string) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard) // errors are one line, printed at the end
	fs.Usage = func() {}
	return fs
}

// Parse parses the flags of a command, after which up to maxArgs arguments may follow.
func Parse(fs *flag.FlagSet, args []string, maxArgs int) error {
	err := fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return &helpRequest{fs}
	case err != nil:
		return Usagef("%s: %v", fs.Name(), Explain(fs, err))
	case fs.NArg() > maxArgs:
		return Usagef("%s: unexpected argument %q: -h explains the command", fs.Name(), fs.Arg(maxArgs))
	}
	return nil
}

// Explain adds to the error of fs.Parse what the flags are, if there is no such flag.
func Explain(fs *flag.FlagSet, err error) error {
	if !strings.Contains(err.Error(), "not defined") {
		return err
	}
	var names []string
	fs.VisitAll(func(f *flag.Flag) { names = append(names, "-"+f.Name) })
	if len(names) == 0 {
		names = []string{"none"}
	}
	return fmt.Errorf("%w: the flags are %s", err, strings.Join(names, ", "))
}

// OneLine makes one line of an error, joined ones included.
func OneLine(err error) string {
	return strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
}
