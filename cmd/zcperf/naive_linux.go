package main

import (
	"context"
	"net"

	"github.com/zcnet-go/zcnet"
	"github.com/zcnet-go/zcnet/internal/perf"
)

// naiveSender is the modes naive and least. Package zcnet has no part in it but
// the memory.
type naiveSender struct{ *perf.Naive }

func openNaive(c *net.TCPConn) (sender, error) { return naiveOf(perf.OpenNaive(c)) }
func openLeast(c *net.TCPConn) (sender, error) { return naiveOf(perf.OpenLeast(c)) }

func naiveOf(s *perf.Naive, err error) (sender, error) {
	if err != nil {
		return nil, err
	}
	return naiveSender{s}, nil
}

func (s naiveSender) send(p zcnet.Pinned) (int64, error) { return s.Send(p.Bytes()) }
func (s naiveSender) flush(ctx context.Context) error    { return s.Flush(ctx) }

func (s naiveSender) counts() counts {
	n := s.Counts()
	return counts{Sends: n.Sends, ZeroCopied: n.ZeroCopied, MaybeCopied: n.MaybeCopied, Enobufs: n.Enobufs}
}
