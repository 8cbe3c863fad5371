package main

import (
	"context"
	"net"

	"github.com/zcnet-go/zcnet"
	"github.com/zcnet-go/zcnet/internal/perf"
)

// naiveSender is mode naive. Package zcnet has no part in it but the memory.
type naiveSender struct{ *perf.Naive }

func openNaive(c *net.TCPConn) (sender, error) {
	s, err := perf.OpenNaive(c)
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
