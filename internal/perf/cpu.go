package perf

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"time"
)

// This file reads the clocks of processor time.

// ProcessTime returns the processor time of this process, in user and kernel
// mode. Only unix systems tell.
func ProcessTime() (time.Duration, error) { return processTime() }

// ProcessTimeOf returns the processor time of another process of this machine,
// in user and kernel mode. Only Linux tells.
func ProcessTimeOf(pid int) (time.Duration, error) { return processTimeOf(pid) }

// processStat is ProcessTimeOf in hundredths of a second.
func processStat(pid int) (time.Duration, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	return parseProcessStat(string(b))
}

// parseProcessStat adds up the fields 14 and 15 of /proc/PID/stat
// (proc_pid_stat(5)). The second field is the program's name in parentheses, in
// which anything may be.
func parseProcessStat(stat string) (time.Duration, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, errNoProcessStat
	}
	user, userErr := strconv.ParseInt(fields[11], 10, 64)
	system, systemErr := strconv.ParseInt(fields[12], 10, 64)
	if userErr != nil || systemErr != nil {
		return 0, errNoProcessStat
	}
	return time.Duration(user+system) * tick, nil
}

// tick is the unit of times in /proc (USER_HZ).
const tick = time.Second / 100

var errNoProcessStat = errors.New("/proc/PID/stat does not tell the time of the process")

// SystemTime returns the time that all processors together were busy, counted
// from some moment in the past: two calls measure what was between them. Only
// Linux tells.
func SystemTime() (time.Duration, error) {
	s, err := readStat()
	return s.busy(), err
}

// started is the moment from which SystemTime counts the wall's time.
var started = time.Now()

// A machineStat is what /proc/stat says of all processors together at one
// moment.
type machineStat struct {
	at         time.Duration // since started
	processors int           // online
	idle       time.Duration
	waiting    time.Duration // idle too, but something waits for a disk
}

// busy returns the time in which the processors were not idle.
//
// It is computed from what they did not work, because the kernel counts that
// exactly, at each entry to and exit from idleness (get_idle_time in
// fs/proc/stat.c). The columns of work are samples, taken at every timer
// interrupt, 250 times a second, and miss what timers themselves start, such
// as the paced sends of BBR.
//
// What a hypervisor has stolen counts as work. It cannot be subtracted: a
// processor that is woken, and has to wait for the hypervisor, counts that time
// as idle and as stolen.
func (s machineStat) busy() time.Duration {
	return s.at*time.Duration(s.processors) - s.idle - s.waiting
}

func readStat() (machineStat, error) {
	at := time.Since(started) // The kernel adds up at the beginning of the first read.
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return machineStat{}, err
	}
	s, err := parseStat(string(b))
	s.at = at
	return s, err
}

// parseStat reads the first lines of /proc/stat (proc_stat(5)): that of all
// processors, and one of each that is online.
func parseStat(stat string) (s machineStat, err error) {
	all, rest, _ := strings.Cut(stat, "\n")
	if err := s.parse(strings.Fields(all)); err != nil {
		return machineStat{}, err
	}
	for line := range strings.Lines(rest) {
		if !strings.HasPrefix(line, "cpu") {
			break
		}
		s.processors++
	}
	if s.processors == 0 {
		return machineStat{}, errNoStat
	}
	return s, nil
}

// parse reads the line of all processors: cpu user nice system idle iowait ...
func (s *machineStat) parse(fields []string) error {
	var times [6]time.Duration
	if len(fields) < len(times) || fields[0] != "cpu" {
		return errNoStat
	}
	for i := range times[1:] {
		n, err := strconv.ParseInt(fields[i+1], 10, 64)
		if err != nil {
			return errNoStat
		}
		times[i+1] = time.Duration(n) * tick
	}
	s.idle, s.waiting = times[4], times[5]
	return nil
}

var errNoStat = errors.New("/proc/stat does not begin with the time of all processors")
