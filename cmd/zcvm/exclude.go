package main

import (
	"fmt"
	"strings"
)

// This file says which of the library's tests are not run in the machines, and why.

// An exclusion is tests that are not run.
type exclusion struct {
	series string // of kernels; "" for all
	tests  string // a regular expression
	why    string
}

var exclusions = []exclusion{
	{"", "DoNotAllocate|DoesNotAllocate", "they count what the Go heap allocates, on which a kernel has no influence, and take a minute under emulation"},
	{"", "Nettest|TestEveryWriterBehavesTheSame|TestReadsBehaveLikeTCP$|TestWritesBehaveLikeTCP|OverConnThatSendsEverythingWithoutCopy|" +
		"TestReleaseBeyondTheMapCountDoesNotPanic", "they take as long under emulation as all others together, and are about Go's packages more than about the kernel"},
	{"", "TestTenThousandConnections|TestEveryWaitEnds|TestConnectionsThatHaveEndedCostNothing", "making that many connections takes minutes under emulation, and what they cost is that of the emulation"},
	{"", "ReadFrom|Bubble|TestRawReadsBehaveLikeTCP|TestEveryStyleOfReading|TestConcurrentWritesAreContiguous|" +
		"TestNoCompletionIsMissed|TestConnectionThatHasEndedKeepsNobodyBusy|TestMaxInFlightLets|TestSocketIsWrappedOnce|TestWriterFindsOut|" +
		"TestRefusalsByMemlock|TestCallsOfAWrite|TestAnothersCallsAmongOurs|TestSlowPeerIsNotMistaken|TestPeerResetInEveryState", "they take 5 to 30 seconds each under emulation, and what the kernel does in them others ask, too"},
	{"", "Histories|TestAHistoryCanBeRepeated|^Fuzz", "their kernel is a fake one"},
	{"6.1", "TestSmallOptmemNeverBlocks|TestENOBUFSIsRare|TestWriterReadsCompletionsThatNobodyElseReads", "net.core.optmem_max belongs to a network namespace since Linux 6.8 only"},
	{"6.1", "TestMemoryHeldByADeviceIsNeverReused", "with this kernel the reset gives back the memory that the test wants the device's queue to hold, for a reason not yet known"},
}

// excluded returns what is not run in a kernel, by its release (uname -r) or series.
func excluded(kernel string) (out []exclusion) {
	for _, e := range exclusions {
		if e.series == "" || kernel == e.series || strings.HasPrefix(kernel, e.series+".") {
			out = append(out, e)
		}
	}
	return out
}

// skipPattern returns the regular expression of all tests that are not run.
func skipPattern(out []exclusion) string {
	var patterns []string
	for _, e := range out {
		patterns = append(patterns, e.tests)
	}
	return strings.Join(patterns, "|")
}

func (e exclusion) String() string {
	return fmt.Sprintf("not run: %s: %s", strings.ReplaceAll(e.tests, "|", ", "), e.why)
}
