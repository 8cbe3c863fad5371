package perf

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"time"
)

// This file reads the clocks of processor time.

// ProcessTime returns the processor time of this process, in user and kernel mode. Only unix systems tell.
func ProcessTime() (time.Duration, error) { return processTime() }

// ProcessTimeOf returns the processor time of another process, in user and kernel mode, in hundredths of a second. Only
// Linux tells.
func ProcessTimeOf(pid int) (time.Duration, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	return parseProcessStat(string(b))
}

// parseProcessStat adds up the fields 14 and 15 of /proc/PID/stat (proc_pid_stat(5)). The second field is the program's
// name in parentheses, in which anything may be.
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

// SystemTime returns the time of all processors that was not idle. Only Linux tells.
func SystemTime() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return parseStat(string(b))
}

// parseStat adds up the busy time in the first line of /proc/stat (proc_stat(5)). The kernel counts there in
// hundredths of a second, so that a run of less than a second is known only roughly.
func parseStat(stat string) (time.Duration, error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	// cpu user nice system idle iowait irq softirq ...
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, errNoStat
	}
	var ticks int64
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, errNoStat
		}
		ticks += n
	}
	return time.Duration(ticks) * tick, nil
}

var errNoStat = errors.New("/proc/stat does not begin with the time of all processors")
