package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// This file is what sender and receiver tell each other on a connection: a header before the content, and after the
// end of the stream the receiver's answer, the trailer. Numbers are big-endian.

// work is what the receiver does with the content.
type work uint8

const (
	workRead    work = iota // receive it into memory, as any program does
	workVerify              // and compare every byte with the pattern
	workDiscard             // drop it, without a copy where the system can
)

func (w work) String() string {
	switch w {
	case workRead:
		return "read"
	case workVerify:
		return "verify"
	case workDiscard:
		return "discard"
	}
	return fmt.Sprintf("work %d", uint8(w))
}

// header begins a stream.
type header struct {
	Magic  [8]byte
	Region int64 // length of the pattern
	Total  int64 // bytes that are to follow; fewer do if the sender is interrupted
	Work   work  // wished for
}

// trailer is the receiver's answer.
type trailer struct {
	Magic    [8]byte
	Received int64 // bytes
	Checked  bool  // whether the next two say anything
	Wrong    int64 // bytes
	First    int64 // position of the first wrong byte
}

var (
	headerMagic  = [8]byte([]byte("zcperf>1"))
	trailerMagic = [8]byte([]byte("zcperf<1"))
)

var (
	errNotSender   = errors.New("not a zcperf sender of this version")
	errNotReceiver = errors.New("the other end is not a zcperf serve of this version")
)

func writeHeader(w io.Writer, h header) error {
	b, err := h.bytes()
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// bytes returns what is sent of the header.
func (h header) bytes() ([]byte, error) {
	h.Magic = headerMagic
	return binary.Append(nil, binary.BigEndian, h)
}

func readHeader(r io.Reader) (h header, err error) {
	if err := binary.Read(r, binary.BigEndian, &h); err != nil {
		return h, fmt.Errorf("read the header: %w", err)
	}
	if h.Magic != headerMagic || h.Region <= 0 || h.Total < 0 || h.Work > workDiscard {
		return h, errNotSender
	}
	return h, nil
}

func writeTrailer(w io.Writer, t trailer) error {
	t.Magic = trailerMagic
	b, err := binary.Append(nil, binary.BigEndian, t)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

func readTrailer(r io.Reader) (t trailer, err error) {
	if err := binary.Read(r, binary.BigEndian, &t); err != nil {
		return t, fmt.Errorf("wait for the receiver's answer: %w", err)
	}
	if t.Magic != trailerMagic {
		return t, errNotReceiver
	}
	return t, nil
}
