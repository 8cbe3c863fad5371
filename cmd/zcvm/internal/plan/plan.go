// Package plan is what cmd/zcvm and the program that it boots say to each other: what to do, what came of it, and the
// content of the bytes that go from one to the other.
package plan

import (
	"github.com/zcnet-go/zcnet"
	"github.com/zcnet-go/zcnet/cmd/zcvm/internal/testlog"
)

// Where things lie in the guest.
const (
	PlanFile   = "/plan.json"      // the Plan
	TestBinary = "/src/zcnet.test" // the library's test binary, among the files that tests read
	ReportLine = "/dev/ttyS1"      // the second serial line, on which nothing but the Report goes out
)

// A Plan is what the guest is to do.
type Plan struct {
	Modules  []string // files of kernel modules, each after those it depends on
	Address  string   // the guest's own, with the length of the prefix
	Gateway  string   // its router
	Server   string   // where to send to: HOST:PORT
	Bytes    int64    // how much
	Write    int      // bytes of one write, a multiple of a word
	TestArgs []string // of the library's test binary; nil not to run it
}

// A Report is what came of it.
type Report struct {
	Error         string           // what went wrong; empty if nothing did
	Kernel        string           // uname -r
	Driver        string           // of the device that was sent through
	ScatterGather bool             // the driver can send from several pieces of memory: without it the kernel has to copy
	Stats         zcnet.Stats      // of the connection, when all tickets were done
	Tests         *testlog.Summary // nil if they did not run
}
