// Package zcnet sends memory over TCP without copying it: it wraps a *net.TCPConn into a net.Conn that can also send
// with the kernel's MSG_ZEROCOPY.
//
//	conn, err := net.Dial("tcp", addr)
//	conn = zcnet.Wrap(conn, nil)                   // still a net.Conn, drop-in
//	if zw, ok := conn.(zcnet.ZeroCopyWriter); ok { // can this one send without copying?
//		ticket, err := zw.WritePinned(buf)         // buf is a zcnet.Pinned
//		...
//		err = ticket.Wait(ctx)                     // from here on buf may be written again
//	}
//
// # The lifetime contract
//
// A zero-copy send is asynchronous. The kernel goes on reading the memory after the call has returned, until the
// peer's kernel has acknowledged the bytes (https://docs.kernel.org/networking/msg_zerocopy.html). So it cannot be
// hidden behind Write, and the contract lies in the types:
//
//  1. Only a [Pinned] can be sent without copying. [Pin] makes one of the caller's memory, [Alloc] and [Pool] of their
//     own.
//  2. From WritePinned until its [Ticket] is done the memory is lent to the
//     kernel: read it, do not write it. (Memory of Pin may be written by
//     callers who accept that of each byte either the old or the new value
//     travels, as live migration does: a word of several bytes may be half old
//     and half new, and a retransmission may differ from what it repeats.)
//  3. Memory in flight is never unmapped or collected, whatever the caller drops or releases.
//  4. [Conn.Close] keeps the contract: it returns at once, and the socket is
//     kept in the background until the kernel has given the memory back. Memory
//     whose release is never proven is never used again.
//
// Whoever breaks the second rule corrupts data in silence, unless Config.Guard is set. Then
//
//	ticket, err := w.WritePinned(buf)     // main.go:40
//	...
//	copy(buf.Bytes()[4096:], "too early") // main.go:35
//
// ends the program, if buf is of [Alloc] or of a [Pool] (shortened):
//
//	zcnet guard: memory in flight is write-protected: 0x7fcc4241c000 to 0x7fcc4251c000, lent by WritePinned of 1048576 bytes at main.go:40 (main.send), on 2026-11-22 19:37:46.262923, not completed yet
//	unexpected fault address 0x7fcc4241d000
//	fatal error: fault
//	goroutine 1 [running]:
//	main.main()
//		main.go:35
//
// and if it is of [Pin], the ticket reports, and the log says:
//
//	zero-copy write 1 (1048576 bytes): memory was changed while in flight, and the peer may have received either content: bytes 4096 to 8191 of it, lent by WritePinned at main.go:40 (main.send), on 2026-11-22 19:37:45.249736, found on 2026-11-22 19:37:46.252775
//
// Writes of every kind are contiguous in the stream and in order with each other, whichever goroutine they come from.
//
// # When it copies
//
// Zero-copy pays for large writes over a real network. The library copies, which is then the faster way, where a write
// is shorter than Config.Threshold, where the kernel has been copying on this path (loopback, tunnels, a packet
// capture), and where a limit is reached (RLIMIT_MEMLOCK, net.core.optmem_max, Config.MaxInFlight). [Conn.Stats] counts
// each, [Probe] explains. Where a connection cannot send without copying at all, [Wrap] returns it unchanged, and
// [NewWriter] makes a [ZeroCopyWriter] of it that copies, so that callers need one code path only.
//
// # Tests
//
// In a bubble of testing/synctest a Conn works as a *net.TCPConn does there: by
// the real network and the real clock. A goroutine that waits for a completion,
// in [Ticket.Wait] or [Conn.Flush] for example, is not durably blocked: the
// clock of the bubble stands still, and a context's timeout does not end the
// wait. For tests with fake time put [NewWriter] over net.Pipe. See
// docs/synctest.md, also for pools, and for hooks and loggers, which are called
// outside of the bubble.
//
// # Systems
//
// Linux 4.17 or later sends without copying, and 4.14 where SO_ZEROCOPY was set
// before the connection was made (see [NewConn]). On every other system the
// package builds, and copies. Setting ZCNET_DISABLE=1 in the environment turns
// zero-copy off in the field.
package zcnet
