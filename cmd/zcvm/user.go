package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/zcnet-go/zcnet/cmd/zcvm/internal/testlog"
	"github.com/zcnet-go/zcnet/internal/cli"
)

// This file is the command user: the tests that ask nothing of a kernel, on processors that are not this one's.
//
// qemu's user emulation runs a program for another processor and passes its system calls on to this kernel. It knows
// neither all socket options nor what the error queue's control messages are, so that nothing there says how zero-copy
// works; but the ledger, the parser and their fuzz seeds are pure, and s390x has its bytes in the other order.

// An architecture is a processor that qemu emulates.
type architecture struct {
	name string // what Go calls it
	qemu string // what qemu calls it
}

func architectures() []architecture {
	return []architecture{{"arm64", "aarch64"}, {"s390x", "s390x"}, {"ppc64le", "ppc64le"}, {"riscv64", "riscv64"}}
}

const (
	defaultArchitectures = "arm64,s390x"
	// userTests is what is pure: the ledger (notify_test.go), the parsing of control messages and the fuzz seeds
	// (fuzz_test.go), who owns memory (pool_test.go, writer_test.go), and copying over connections of any kind.
	userTests = "^(Fuzz.*|TestCompletionsAreFoundAmongControlMessages|TestTicketsAreDoneWhenTheirLastIDIs|" +
		"TestLedgerWorkFollowsRangesNotIDs|TestCompletionMayOvertakeTheSend|TestCompletionOfACallThatFailedIsRejected|" +
		"TestTicketIsNotDoneBeforeItsWriteHasReturned|TestOutcomes|TestOldTicketsStayDone|TestWaitReturnsWhenTheContextEnds|" +
		"TestFailureReachesTicketsThatFinishLater|TestFlushWaitsForWhatWasIssuedBefore|" +
		"TestAbandonedTicketsNeverGiveTheirMemoryBack|TestQueueKeepsOrderWhileItGrows|TestSteadyLedgerDoesNotAllocate|" +
		"TestForeignMessagesComeInOrderAndOneAtATime|TestPoolWaitsForABufferToComeBack|TestMisuseOfAPoolIsLoud|" +
		"TestClosedPoolUnmapsWithItsLastBuffer|TestPinnedIsAView|TestAllocatedMemoryIsZeroedAndWritable|" +
		"TestOnlyPinnedCanBeSent|TestInterest|TestInterestNeverForgetsACompletion|TestCallsAreShortUntilThePathIsKnown)$"
	userTimeout = 90 * time.Second
)

const userSynopsis = "[-arch LIST] [-run REGEXP] [-v]"

// userConfig is what the flags of user say.
type userConfig struct {
	architectures []architecture
	tests         string
	verbose       bool
}

func parseUser(args []string) (userConfig, error) {
	var cfg userConfig
	fs := cli.NewFlags("user")
	names := fs.String("arch", defaultArchitectures, "`processors`, as Go calls them: arm64, s390x, ppc64le, riscv64")
	fs.StringVar(&cfg.tests, "run", userTests, "run the library's tests that match this `regexp`")
	fs.BoolVar(&cfg.verbose, "v", false, "show what the tests print")
	if err := cli.Parse(fs, args, 0); err != nil {
		return cfg, err
	}
	for _, name := range list(*names) {
		a, err := findArchitecture(name)
		if err != nil {
			return cfg, cli.Usagef("user: -arch: %v", err)
		}
		cfg.architectures = append(cfg.architectures, a)
	}
	if len(cfg.architectures) == 0 {
		return cfg, cli.Usagef("user: -arch: want at least one, such as %s", defaultArchitectures)
	}
	return cfg, nil
}

func findArchitecture(name string) (architecture, error) {
	var names []string
	for _, a := range architectures() {
		if a.name == name {
			return a, nil
		}
		names = append(names, a.name)
	}
	return architecture{}, fmt.Errorf("there is no processor %q: it is one of %s", name, strings.Join(names, ", "))
}

func runUser(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	cfg, err := parseUser(args)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "zcvm")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	source, err := sourceDir(ctx, library)
	if err != nil {
		return err
	}
	shown := io.Discard
	if cfg.verbose {
		shown = stderr
	}
	var verdict error
	for _, a := range cfg.architectures {
		fmt.Fprintf(stderr, "building and running the tests for %s\n", a.name)
		s, err := a.test(ctx, dir, source, cfg.tests, shown)
		if err != nil {
			return err
		}
		problems := testProblems(s, true)
		fmt.Fprintf(stdout, "%s under qemu: %s in %.0f s\n", a.name, testCounts(s), s.Took.Seconds())
		printNotes(stdout, a.name, s, problems)
		if len(problems) > 0 {
			verdict = errNotAsExpected
		}
	}
	return verdict
}

// test builds the library's tests for a processor, runs those that match a regular expression, and returns what came
// of it.
func (a architecture) test(ctx context.Context, dir, source, tests string, shown io.Writer) (*testlog.Summary, error) {
	binary, err := builder{dir: dir, arch: a.name}.tests(ctx, library)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, userTimeout)
	defer cancel()
	emulator := "qemu-" + a.qemu + "-static"
	cmd := exec.CommandContext(ctx, emulator, binary, "-test.v", "-test.run="+tests)
	cmd.Dir = source
	s, err := testlog.Run(cmd, shown)
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("%w: install the package qemu-user-static", err)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("the tests for %s did not end within %v", a.name, userTimeout)
	}
	return s, err
}
