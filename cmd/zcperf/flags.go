package main

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// This file parses the values of flags.

// one sets dst to what parse makes of a flag's value.
func one[T any](dst *T, parse func(string) (T, error)) func(string) error {
	return func(s string) (err error) {
		v, err := parse(s)
		if err == nil {
			*dst = v
		}
		return err
	}
}

// many sets dst to what parse makes of a flag's comma-separated values, each once.
func many[T any](dst *[]T, parse func(string) (T, error)) func(string) error {
	return func(s string) error {
		var values []T
		var seen []string
		for part := range strings.SplitSeq(s, ",") {
			part = strings.TrimSpace(part)
			v, err := parse(part)
			if err != nil {
				return err
			}
			if key := fmt.Sprint(v); !slices.Contains(seen, key) {
				seen = append(seen, key)
				values = append(values, v)
			}
		}
		*dst = values
		return nil
	}
}

// named returns a parser that finds one of several things by its name. What is the kind of thing.
func named[T interface{ String() string }](what string, all []T) func(string) (T, error) {
	return func(s string) (T, error) {
		var names []string
		for _, v := range all {
			if v.String() == s {
				return v, nil
			}
			names = append(names, v.String())
		}
		var zero T
		return zero, fmt.Errorf("there is no %s %q: it is one of %s", what, s, strings.Join(names, ", "))
	}
}

// yes sets dst to whether a flag without an argument is given.
func yes(dst *bool) func(string) error {
	return func(s string) (err error) {
		if *dst, err = strconv.ParseBool(s); err != nil {
			return errors.New("want true or false, or nothing")
		}
		return nil
	}
}

// names lists things by their names.
func names[T interface{ String() string }](all []T) string {
	var names []string
	for _, v := range all {
		names = append(names, v.String())
	}
	return strings.Join(names, ",")
}

// parseName parses a name that the system may know.
func parseName(s string) (string, error) {
	if s == "" || strings.ContainsAny(s, " \t/") {
		return "", fmt.Errorf("%q is not a name", s)
	}
	return s, nil
}

// parseCount parses a number of rounds.
func parseCount(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		return 0, errors.New("want a whole number from 1 on")
	}
	return n, nil
}

// parseBudget parses a time budget.
func parseBudget(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, errors.New("want a time such as 25s or 2m, or 0 for no limit")
	}
	return d, nil
}

// parseListenAddr parses an address to listen on. The host may be empty, and the port 0.
func parseListenAddr(s string) (string, error) {
	_, _, err := splitAddr(s)
	return s, err
}

// parseRemoteAddr parses an address to connect to.
func parseRemoteAddr(s string) (string, error) {
	host, port, err := splitAddr(s)
	if err == nil && (host == "" || port == 0) {
		err = fmt.Errorf("%q lacks a host or a port: want HOST:PORT, such as 192.0.2.1:4000", s)
	}
	return s, err
}

func splitAddr(s string) (host string, port uint16, err error) {
	host, text, err := net.SplitHostPort(s)
	n, portErr := strconv.ParseUint(text, 10, 16)
	if err != nil || portErr != nil {
		return "", 0, fmt.Errorf("%q is not an address: want HOST:PORT, such as 192.0.2.1:4000 or [2001:db8::1]:4000", s)
	}
	return host, uint16(n), nil
}
