package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/zcnet-go/zcnet"
	"github.com/zcnet-go/zcnet/cmd/zcvm/internal/plan"
)

// This file sends a stream to the host, which compares it.

const (
	// buffers is how many writes can be in flight. It is few, so that each is filled anew many times: a completion that
	// came too early would let the next content overwrite what is still to be sent.
	buffers = 6
	// transferTimeout bounds the transfer. A machine under emulation sends 50 MB/s.
	transferTimeout = 60 * time.Second
)

// transfer sends what is planned, and puts into the report how it travelled.
func transfer(p *plan.Plan, r *plan.Report) error {
	ctx, cancel := context.WithTimeout(context.Background(), transferTimeout)
	defer cancel()
	c, err := dial(ctx, p.Server)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(transferTimeout)); err != nil {
		return err
	}
	err = sendStream(ctx, c, p)
	if err == nil {
		err = finish(ctx, c)
	}
	r.Stats = c.Stats()
	fmt.Println(zcnet.Probe(c))
	if err != nil {
		return fmt.Errorf("send %d bytes to the host: %w", p.Bytes, err)
	}
	return nil
}

func dial(ctx context.Context, server string) (*zcnet.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", server)
	if err != nil {
		return nil, err
	}
	return zcnet.NewConn(c.(*net.TCPConn), nil)
}

// sendStream does as a program with a pool does: get, fill, write, release, forget.
func sendStream(ctx context.Context, c *zcnet.Conn, p *plan.Plan) error {
	pool, err := zcnet.NewPool(p.Write, buffers)
	if err != nil {
		return err
	}
	defer pool.Close()
	for pos := int64(0); pos < p.Bytes; {
		buf, err := pool.Get(ctx)
		if err != nil {
			return err
		}
		part := buf.Slice(0, int(min(int64(p.Write), p.Bytes-pos)))
		plan.Fill(part.Bytes(), pos)
		_, err = c.WritePinned(part)
		buf.Release()
		if err != nil {
			return err
		}
		pos += int64(part.Len())
	}
	return nil
}

// finish ends the stream, and waits for the completions and for the host to have read everything.
func finish(ctx context.Context, c *zcnet.Conn) error {
	if err := c.CloseWrite(); err != nil {
		return err
	}
	if err := c.Flush(ctx); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("the host did not end the connection in order: %v", err)
	}
	return nil
}
