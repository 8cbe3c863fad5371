// Guest is the only program in the machines that cmd/zcvm boots. The kernel starts it as process 1. It loads the
// modules of a network device, sends through it with package zcnet, runs the library's tests, reports on the second
// serial line, and turns the machine off.
//
// What it is to do stands in a file beside it; see package plan.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/zcnet-go/zcnet/cmd/zcvm/internal/plan"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: this is the first process of a machine that zcvm boots, and nothing else")
		os.Exit(2)
	}
	r := &plan.Report{}
	if err := carryOut(r); err != nil {
		r.Error = err.Error()
		fmt.Fprintln(os.Stderr, "guest:", err)
	}
	if err := send(r); err != nil {
		fmt.Fprintln(os.Stderr, "guest: the report could not be sent:", err)
	}
	// The virtual machine ends when its guest asks for a restart: qemu is run with -no-reboot.
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	fmt.Fprintln(os.Stderr, "guest: the machine did not restart:", err)
}

// carryOut does everything that is planned. What it has found out by the time of an error is in the report.
func carryOut(r *plan.Report) error {
	if err := mountAll(); err != nil {
		return err
	}
	if err := applySettings(); err != nil {
		return err
	}
	r.Kernel = kernelRelease()
	p, err := readPlan()
	if err != nil {
		return err
	}
	if err := loadModules(p.Modules); err != nil {
		return err
	}
	device, err := configureNetwork(p.Address, p.Gateway)
	if err != nil {
		return err
	}
	r.Driver, r.ScatterGather = device.driver, device.scatterGather
	err = transfer(p, r)
	if p.TestArgs != nil {
		err = errors.Join(err, runTests(p.TestArgs, r))
	}
	return err
}

func readPlan() (*plan.Plan, error) {
	b, err := os.ReadFile(plan.PlanFile)
	if err != nil {
		return nil, err
	}
	p := &plan.Plan{}
	if err := json.Unmarshal(b, p); err != nil {
		return nil, fmt.Errorf("read %s: %w", plan.PlanFile, err)
	}
	return p, nil
}

// send writes the report to the host, and waits until it is out.
func send(r *plan.Report) error {
	f, err := os.OpenFile(plan.ReportLine, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := json.NewEncoder(f).Encode(r); err != nil {
		return err
	}
	const drain = 1 // what tcdrain(3) asks for
	return os.NewSyscallError("ioctl TCSBRK", unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, drain))
}
