package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// workApart gives the receiving end's work to a thread on a processor of its
// own. If that cannot be, the link stays inline and says why; an error is for
// what no link survives.
func (l *Link) workApart() error {
	napi, err := l.receivingNAPI()
	if err != nil {
		return err
	}
	return l.settle(napi)
}

// settle separates the link's ends, or leaves it inline.
func (l *Link) settle(napi int) error {
	before := *l
	refusal, err := l.separate(napi)
	if refusal == nil {
		l.inline = ""
		return err
	}
	*l = before
	l.inline = refusal.Error()
	return err
}

// receivingNAPI returns the ID of the NAPI instance by which the receiving end
// takes in packets, and 0 if the kernel does not tell. The kernel notes it in
// every socket for busy polling (sk_mark_napi_id in include/net/busy_poll.h).
func (l *Link) receivingNAPI() (id int, err error) {
	conns, err := l.connect(l.Receiver.IPv4(), time.Now().Add(patience))
	if err != nil {
		return 0, err
	}
	defer conns.close()
	id, err = socketOption(conns.accepted, unix.SO_INCOMING_NAPI_ID)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return 0, nil
	}
	return id, err
}

// separate does what workApart is to do. The refusal says why it could not; err
// is for a link that is neither apart nor inline.
func (l *Link) separate(napi int) (refusal, err error) {
	last := len(l.sendingCPUs) - 1
	if last < 1 {
		return errors.New("the receiving end needs a processor of its own, and this process may use only one"), nil
	}
	l.sendingCPUs, l.receivingCPUs = l.sendingCPUs[:last], l.sendingCPUs[last:]
	if err := l.Receiver.Do(func() error { return setThreaded("1") }); err != nil {
		return fmt.Errorf("give the receiving end a thread: %w", err), nil
	}
	if refusal := l.place(napi); refusal != nil {
		return refusal, l.Receiver.Do(func() error { return setThreaded("0") })
	}
	return nil, nil
}

// place moves the receiving end's thread to its processor, and the sender's
// acknowledgements to the others.
func (l *Link) place(napi int) (err error) {
	if l.thread, err = findThread(napi); err != nil {
		return fmt.Errorf("find the receiving end's thread: %w", err)
	}
	if err := setAffinity(l.thread, l.receivingCPUs); err != nil {
		return fmt.Errorf("move the receiving end's thread to processors %v: %w", l.receivingCPUs, err)
	}
	if err := l.Sender.Do(func() error { return steerPackets(l.sendingCPUs) }); err != nil {
		return fmt.Errorf("steer acknowledgements to processors %v: %w", l.sendingCPUs, err)
	}
	return nil
}

// setThreaded sets whether, "1" or "0", the cable's end in the thread's
// namespace has threads for its NAPI instances. Only those exist that are in
// use, so the XDP program has to be attached (veth_xdp_set in
// drivers/net/veth.c).
func setThreaded(value string) error {
	err := writeDevice("threaded", value)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w (threaded NAPI needs Linux 5.12)", err)
	}
	return err
}

// steerPackets has packets that arrive at the cable's end in the thread's
// namespace handled on cpus, wherever they were sent.
func steerPackets(cpus []int) error {
	// A veth pair has one receive queue unless more are asked for.
	return writeDevice("queues/rx-0/rps_cpus", cpuMask(cpus))
}

// writeDevice writes an attribute of the cable's end in the thread's namespace.
//
// The sysfs that shows it belongs to the namespace, and the one at /sys does
// not. This one is mounted nowhere: it is there as long as its descriptor is
// open.
func writeDevice(attribute, value string) error {
	root, err := openSysfs()
	if err != nil {
		return err
	}
	defer root.Close()
	name := "class/net/" + device + "/" + attribute
	return withFd(root, func(fd int) error {
		f, err := openat(fd, name)
		if err != nil {
			return err
		}
		_, err = f.WriteString(value)
		return errors.Join(err, f.Close())
	})
}

// openat opens a file below a directory for writing.
func openat(directory int, name string) (*os.File, error) {
	fd, err := unix.Openat(directory, name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: "/sys/" + name, Err: err}
	}
	return os.NewFile(uintptr(fd), "/sys/"+name), nil
}

// openSysfs opens the root of the sysfs of the thread's network namespace.
func openSysfs() (*os.File, error) {
	context, err := unix.Fsopen("sysfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen sysfs", err)
	}
	defer unix.Close(context)
	if err := unix.FsconfigCreate(context); err != nil {
		return nil, os.NewSyscallError("fsconfig sysfs", err)
	}
	const attrs = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	root, err := unix.Fsmount(context, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return nil, os.NewSyscallError("fsmount sysfs", err)
	}
	return os.NewFile(uintptr(root), "sysfs"), nil
}

// findThread returns the process ID of the thread of a NAPI instance.
func findThread(napi int) (pid int, err error) {
	if napi == 0 {
		return 0, errors.New("the kernel does not tell by which NAPI instance packets came (it needs CONFIG_NET_RX_BUSY_POLL)")
	}
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, process := range processes {
		pid, err := strconv.Atoi(process.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + process.Name() + "/stat")
		if err == nil && isKernelThread(string(stat), threadName(napi)) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("no kernel thread %s in /proc (a container with process IDs of its own has none)", threadName(napi))
}

// threadName is what the kernel calls the thread of a NAPI instance
// (napi_kthread_create in net/core/dev.c). The ID is unique in the machine, and
// so is the name, though every link has a device of the same name.
func threadName(napi int) string { return fmt.Sprintf("napi/%s-%d", device, napi) }

// isKernelThread tells whether a /proc/PID/stat is that of the kernel's thread
// of that name. Any process can take the name, but not the flag.
func isKernelThread(stat, name string) bool {
	const (
		flagsField = 6          // Counted from the state on, which follows the name; proc_pid_stat(5).
		pfKthread  = 0x00200000 // PF_KTHREAD in include/linux/sched.h.
	)
	_, rest, found := strings.Cut(stat, " ("+name+") ")
	if !found {
		return false
	}
	fields := strings.Fields(rest)
	if len(fields) <= flagsField {
		return false
	}
	flags, err := strconv.ParseUint(fields[flagsField], 10, 64)
	return err == nil && flags&pfKthread != 0
}

func (l *Link) receivingTime() (used time.Duration, err error) {
	if l.inline != "" {
		return 0, nil
	}
	// With the namespace the device may go and, with it, the thread.
	err = withFd(l.Receiver.namespace, func(int) error {
		used, err = processTime(l.thread)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("lab: read the processor time of the receiving end's thread: %w", err)
	}
	return used, nil
}

// processTime returns the processor time that a process has used. The clock is
// MAKE_PROCESS_CPUCLOCK in include/linux/posix-timers_types.h.
func processTime(pid int) (time.Duration, error) {
	const cpuclockSched = 2 // CPUCLOCK_SCHED, there too.
	var used unix.Timespec
	err := unix.ClockGettime(int32(^pid<<3|cpuclockSched), &used)
	if err == unix.EINVAL {
		return 0, os.ErrProcessDone
	}
	if err != nil {
		return 0, os.NewSyscallError("clock_gettime", err)
	}
	return time.Duration(used.Nano()), nil
}
