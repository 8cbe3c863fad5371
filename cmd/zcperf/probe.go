package main

import (
	"context"
	"io"
	"net"

	"github.com/zcnet-go/zcnet"
	"github.com/zcnet-go/zcnet/internal/cli"
)

// This file is the command probe.

const probeSynopsis = "[HOST:PORT]"

// What is sent over loopback before the connection is asked about it: enough to learn that the kernel copies there.
const (
	probeTotal = 16 << 20
	probeWrite = 128 << 10
)

func runProbe(ctx context.Context, args []string, stdout, _ io.Writer) error {
	fs := cli.NewFlags("probe")
	if err := cli.Parse(fs, args, 1); err != nil {
		return err
	}
	probe := probeLoopback
	if fs.NArg() > 0 {
		addr, err := parseRemoteAddr(fs.Arg(0))
		if err != nil {
			return cli.Usagef("probe: %v", err)
		}
		probe = func(ctx context.Context) (zcnet.Report, error) { return probeRemote(ctx, addr) }
	}
	report, err := probe(ctx)
	switch {
	case ctx.Err() != nil:
		return cli.ErrInterrupted
	case err != nil:
		return err
	}
	_, err = io.WriteString(stdout, report.String())
	return err
}

// probeRemote asks about a connection to a server, to which nothing is sent.
func probeRemote(ctx context.Context, addr string) (zcnet.Report, error) {
	c, err := dialTCP(ctx, addr)
	if err != nil {
		return zcnet.Report{}, err
	}
	c = zcnet.Wrap(c, nil)
	defer c.Close()
	return zcnet.Probe(c), nil
}

// probeLoopback asks about a connection over loopback, on which something has been sent.
func probeLoopback(ctx context.Context) (report zcnet.Report, err error) {
	l, listener, err := listen(linkKind{"loopback", openLoopback})
	if err != nil {
		return report, err
	}
	p := newPath(l, listener, &receiver{})
	defer p.close()
	region, err := newRegion(ctx, memoryKinds()[0], probeTotal)
	if err != nil {
		return report, err
	}
	defer region.free()
	probed := mode{name: modeZcnet, open: func(c *net.TCPConn) (sender, error) {
		s, err := openZcnet(c, nil)
		return probedSender{s, &report}, err
	}}
	_, err = p.transfer(ctx, probed, newTransfer(region, probeWrite, probeTotal))
	return report, err
}

// probedSender asks about its connection when everything has been sent.
type probedSender struct {
	sender
	report *zcnet.Report
}

func (s probedSender) counts() counts {
	*s.report = zcnet.Probe(s.sender.(*zcnetSender).Conn)
	return s.sender.counts()
}
