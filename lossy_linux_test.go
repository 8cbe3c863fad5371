package zcnet

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/zcnet-go/zcnet/internal/lab"
)

// Networks that lose, repeat and delay packets and acknowledgements, so that completions come late, out of order and
// in big ranges. A packet that is delayed keeps its reference to the memory even if the peer has meanwhile
// acknowledged another copy of it: then memory sent later is released before.

// trouble is what happens to the packets that leave a host, each in how many of 256 cases.
type trouble struct {
	lost, late, twice int32
	rate              uint64 // of the late ones, in bytes a second
}

// lateClass is the class of a queue through which late packets go, slowly.
var lateClass = netlink.MakeHandle(1, 2)

// make has what leaves h meet trouble: a program for outgoing packets throws dice, and sends the late ones through a
// slow class of the device's queue, where all others overtake them.
func (tr trouble) make(t *testing.T, h *lab.Host) {
	t.Helper()
	if tr == (trouble{}) {
		return
	}
	err := h.Do(func() error {
		dev, err := netlink.LinkByName("veth0")
		if err != nil {
			return err
		}
		index := dev.Attrs().Index
		root := netlink.MakeHandle(1, 0)
		queue := netlink.NewHtb(netlink.QdiscAttrs{LinkIndex: index, Handle: root, Parent: netlink.HANDLE_ROOT})
		queue.Defcls = 0 // which is to say: past the classes
		if err := netlink.QdiscAdd(queue); err != nil {
			return fmt.Errorf("add a queue with classes: %w", err)
		}
		class := netlink.NewHtbClass(netlink.ClassAttrs{LinkIndex: index, Handle: lateClass, Parent: root},
			netlink.HtbClassAttrs{Rate: 8 * tr.rate, Buffer: 100, Cbuffer: 100, Quantum: 64 << 10})
		if err := netlink.ClassAdd(class); err != nil {
			return fmt.Errorf("add the slow class: %w", err)
		}
		if err := netlink.QdiscAdd(&netlink.GenericQdisc{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
			QdiscType:  "clsact",
		}); err != nil {
			return fmt.Errorf("make room for a program: %w", err)
		}
		program, err := tr.program()
		if err != nil {
			return fmt.Errorf("load the program: %w", err)
		}
		defer program.Close()
		return netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs:  netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_EGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL},
			Fd:           program.FD(),
			Name:         "trouble",
			DirectAction: true,
		})
	})
	switch {
	case err == nil:
	case os.Getenv("ZCNET_REQUIRE_LAB") == "1":
		t.Fatalf("ZCNET_REQUIRE_LAB=1, but: %v", err)
	default:
		t.Skipf("no trouble to be had on this kernel: %v", err)
	}
}

// program makes the program.
func (tr trouble) program() (*ebpf.Program, error) {
	const ( // of struct __sk_buff, and TC_ACT_OK and TC_ACT_STOLEN, in include/uapi/linux
		priority, ifindex = 32, 40
		pass, lose        = 0, 4 // not TC_ACT_SHOT: TCP would be told, and send the same again at once
	)
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "lab_trouble",
		Type: ebpf.SchedCLS,
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.FnGetPrandomU32.Call(),
			asm.And.Imm(asm.R0, 0xff),
			asm.JLT.Imm(asm.R0, tr.lost, "lose"),
			asm.JLT.Imm(asm.R0, tr.lost+tr.late, "delay"),
			asm.JLT.Imm(asm.R0, tr.lost+tr.late+tr.twice, "repeat"),
			asm.Ja.Label("send"),

			asm.Mov.Imm(asm.R0, lose).WithSymbol("lose"),
			asm.Return(),

			asm.Mov.Imm(asm.R1, int32(lateClass)).WithSymbol("delay"),
			asm.StoreMem(asm.R6, priority, asm.R1, asm.Word),
			asm.Ja.Label("send"),

			asm.Mov.Reg(asm.R1, asm.R6).WithSymbol("repeat"),
			asm.LoadMem(asm.R2, asm.R6, ifindex, asm.Word),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnCloneRedirect.Call(),

			asm.Mov.Imm(asm.R0, pass).WithSymbol("send"),
			asm.Return(),
		},
	})
}

// An orderWatch looks all the time at whether an ID has completed before an earlier one.
type orderWatch struct {
	seen     atomic.Int64
	stop     atomic.Bool
	watching sync.WaitGroup
}

func watchOrder(c *Conn) *orderWatch {
	w := &orderWatch{}
	w.watching.Go(func() {
		l := c.s.ledger()
		for !w.stop.Load() {
			l.mu.Lock()
			if len(l.complete) > 0 {
				w.seen.Add(1)
			}
			l.mu.Unlock()
			time.Sleep(50 * time.Microsecond)
		}
	})
	return w
}

func (w *orderWatch) end() int64 {
	w.stop.Store(true)
	w.watching.Wait()
	return w.seen.Load()
}

// troubledPiece is the n-th piece of the stream, unlike those around it.
func troubledPiece(n int) []byte {
	const size = 16 << 10
	block := round()
	return block[n*4099%(len(block)-size):][:size]
}

// receivePieces receives until the end of the stream, and returns how many pieces there were.
func receivePieces(r io.Reader) (n int, err error) {
	for b := make([]byte, len(troubledPiece(0))); ; n++ {
		switch _, err := io.ReadFull(r, b); {
		case err == io.EOF:
			return n, nil
		case err != nil:
			return n, fmt.Errorf("piece %d: %w", n, err)
		case !bytes.Equal(b, troubledPiece(n)):
			return n, fmt.Errorf("piece %d is not as it was sent", n)
		}
	}
}

// TestCompletionsOverATroubledNetwork writes to memory again as soon as its ticket is done. If that were before the last
// copy of a packet has been sent, the peer would receive something else.
func TestCompletionsOverATroubledNetwork(t *testing.T) {
	const dataRate, ackRate = 16 << 20, 16 << 10 // a packet of 64 KiB takes 4 ms, and so does an acknowledgement
	for _, kind := range []struct {
		name       string
		data, acks trouble
		resent     uint32 // packets that must be seen to be sent again
		reordered  int64  // how often completions must be seen out of order
	}{
		{"acknowledgements are lost, late and repeated", trouble{}, trouble{lost: 48, late: 64, twice: 32, rate: ackRate}, 1, 0},
		{"packets are lost", trouble{lost: 8, rate: dataRate}, trouble{}, 10, 0},
		{"packets are late", trouble{late: 32, rate: dataRate}, trouble{}, 10, 1},
		{"everything", trouble{lost: 4, late: 24, twice: 8, rate: dataRate}, trouble{lost: 32, late: 32, twice: 16, rate: ackRate}, 10, 1},
	} {
		t.Run(kind.name, func(t *testing.T) {
			link := lab.ForTest(t)
			_ = link.Sender.SetSysctl("net.ipv4.tcp_rto_min_us", "5000") // since Linux 6.11; without it this takes longer
			near, far := labPair(t, link)
			kind.data.make(t, link.Sender) // after the handshake, which would try again after a second only
			kind.acks.make(t, link.Receiver)
			c := wrap(t, near, &Config{Threshold: 1, CloseTimeout: time.Hour})
			socket := watchDescriptors(t, c)
			order := watchOrder(c)
			defer order.end()

			var received int
			receiving := beginCall(func() (err error) { received, err = receivePieces(far); return err })

			var buffers [32]Pinned
			var tickets [len(buffers)]Ticket
			for i := range buffers {
				buffers[i], _ = allocNoise(t, len(troubledPiece(0)), 0)
			}
			ctx := testContext(t)
			check(t, c.SetWriteDeadline(time.Now().Add(testTimeout)))
			pieces := 0
			for resent := uint32(0); pieces < 500 || resent < kind.resent || order.seen.Load() < kind.reordered; pieces++ {
				i := pieces % len(buffers)
				if err := tickets[i].Wait(ctx); err != nil {
					t.Fatalf("after %d pieces, %d packets resent and completions seen out of order %d times: %v", pieces, resent, order.seen.Load(), err)
				}
				copy(buffers[i].Bytes(), troubledPiece(pieces))
				var err error
				tickets[i], err = c.WritePinned(buffers[i])
				check(t, err)
				resent = tcpInfo(t, c).Total_retrans
			}
			check(t, c.Close())
			for i, p := range buffers {
				if err := tickets[i].Wait(testContext(t)); err != nil || !tickets[i].Ready() {
					t.Errorf("ticket %d: ready %v, %v", i, tickets[i].Ready(), err)
				}
				clear(p.Bytes())
				p.Release()
				wantFreed(t, p)
			}
			check(t, c.Flush(testContext(t)))
			if err := receiving.wait(t); err != nil || received != pieces {
				t.Errorf("the peer received %d of %d pieces, and %v", received, pieces, err)
			}
			s, seen := c.Stats(), order.end()
			if s.RejectedNotifications != 0 || s.ZeroCopiedBytes < s.CopiedBytes || s.MaybeCopiedBytes != 0 {
				t.Errorf("stats: %+v", s)
			}
			t.Logf("%d pieces, %d sends, %d completions, seen out of order %d times; %s", pieces, s.Sends, s.Notifications, seen, troubleCounters(t, link.Sender))
			wantNothingLeft(t, c, socket)
		})
	}
}

// troubleCounters returns what the host's kernel counted.
func troubleCounters(t *testing.T, h *lab.Host) string {
	t.Helper()
	var b []byte
	check(t, h.Do(func() (err error) {
		b, err = os.ReadFile("/proc/thread-self/net/netstat")
		return err
	}))
	lines := strings.Split(string(b), "\n")
	names, values := strings.Fields(lines[0]), strings.Fields(lines[1])
	var out []string
	for i, name := range names {
		switch name {
		case "TCPFastRetrans", "TCPTimeouts", "TCPSACKReorder", "TCPSACKReneging", "TCPDSACKRecv", "TCPLossProbes":
			out = append(out, name+" "+values[i])
		}
	}
	return strings.Join(out, ", ")
}
