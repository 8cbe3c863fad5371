package main

import (
	"regexp"
	"testing"
)

func TestExcludedGoesByTheSeries(t *testing.T) {
	for _, test := range []struct {
		kernel, test string
		want         bool
	}{
		{"6.1.0-56-amd64", "TestSmallOptmemNeverBlocks", true},
		{"6.12.117+deb12-amd64", "TestSmallOptmemNeverBlocks", false},
		{"6.12.117+deb12-amd64", "TestReadDoesNotAllocate", true},
		{"6.12.117+deb12-amd64", "TestReadsBehaveLikeTCP", true},
		{"6.12.117+deb12-amd64", "TestReadsBehaveLikeTCPWhileThePollerRefusesThem", false},
		{"6.1.0-56-amd64", "TestCloseKeepsMemoryInFlightUntilItIsReleased", false},
	} {
		if got := regexp.MustCompile(skipPattern(excluded(test.kernel))).MatchString(test.test); got != test.want {
			t.Errorf("%s is excluded from kernel %s: %v, want %v", test.test, test.kernel, got, test.want)
		}
	}
}

func TestExclusionsAreRegularExpressionsWithAReason(t *testing.T) {
	for _, e := range exclusions {
		if _, err := regexp.Compile(e.tests); err != nil || e.tests == "" || e.why == "" {
			t.Errorf("%+v: %v", e, err)
		}
	}
}
