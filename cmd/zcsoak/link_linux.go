package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/zcnet-go/zcnet/internal/lab"
)

// This file disturbs the lab's link. Not every kernel has netem, so loss and reordering are made of what the lab needs
// anyway: programs in the kernel that pick packets by chance.

// labDevice is the end of the cable in both hosts.
const labDevice = "veth0"

// disturb adds the disturbances of faults, and notes which cannot be had.
func (l *link) disturb(pair *lab.Link, faults map[string]bool) {
	add := func(fault string, make func(*lab.Link) (disturbance, error)) {
		if !faults[fault] {
			return
		}
		d, err := make(pair)
		if err != nil {
			l.without[fault] = err
			return
		}
		l.disturbances = append(l.disturbances, d)
	}
	add(faultLoss, l.lose)
	add(faultReorder, l.reorder)
	add(faultPacket, listenToPackets)
	add(faultOptmem, changeOptmem)
}

// closeToo has f called when the link is closed, before that.
func (l *link) closeToo(f func() error) {
	before := l.close
	l.close = func() error { return errors.Join(f(), before()) }
}

// lose has both hosts lose some of the packets that arrive.
func (l *link) lose(pair *lab.Link) (d disturbance, err error) {
	const xdpDrop, xdpPass = 1, 2 // enum xdp_action, include/uapi/linux/bpf.h
	var pickers []*picker
	for _, host := range []*lab.Host{pair.Receiver, pair.Sender} {
		p, err := newPicker(&ebpf.ProgramSpec{Name: "soak_lose", Type: ebpf.XDP, Flags: unix.BPF_F_XDP_HAS_FRAGS}, xdpDrop, xdpPass)
		if err != nil {
			return d, err
		}
		l.closeToo(p.close)
		if err := host.Do(func() error { return attachXDP(p.program) }); err != nil {
			return d, err
		}
		pickers = append(pickers, p)
	}
	return disturbance{faultLoss, func(ctx context.Context, rng *rand.Rand, t *tally) {
		pick(ctx, rng, t, faultLoss, pickers)
	}}, nil
}

// attachXDP attaches a program in place of the lab's.
func attachXDP(program *ebpf.Program) error {
	device, err := netlink.LinkByName(labDevice)
	if err != nil {
		return err
	}
	return netlink.LinkSetXdpFdWithFlags(device, program.FD(), nl.XDP_FLAGS_DRV_MODE)
}

// Of the class for packets that are overtaken.
const (
	slowRate  = 100_000_000 / 8 // bytes a second
	slowQueue = 1 << 20         // bytes: a packet waits for a tenth of a second at most, and is lost if that is full
	slowBurst = 128 << 10       // bytes at once, more than the largest packet
)

// reorder has the sender's packets take one of two queues: most go out at once, some wait in a slow one. That is also
// memory in flight beyond the reach of a reset.
func (l *link) reorder(pair *lab.Link) (d disturbance, err error) {
	root, slow := netlink.MakeHandle(1, 0), netlink.MakeHandle(1, 2)
	p, err := newPicker(&ebpf.ProgramSpec{Name: "soak_reorder", Type: ebpf.SchedCLS}, int32(slow), 0)
	if err != nil {
		return d, err
	}
	l.closeToo(p.close)
	err = pair.Sender.Do(func() error {
		device, err := netlink.LinkByName(labDevice)
		if err != nil {
			return err
		}
		at := device.Attrs().Index
		// What is not classified, and the class for it does not exist, is sent at once (htb_classify in net/sched/sch_htb.c).
		if err := netlink.QdiscAdd(netlink.NewHtb(netlink.QdiscAttrs{LinkIndex: at, Handle: root, Parent: netlink.HANDLE_ROOT})); err != nil {
			return fmt.Errorf("add the queueing discipline htb: %w", err)
		}
		class := netlink.NewHtbClass(netlink.ClassAttrs{LinkIndex: at, Handle: slow, Parent: root},
			netlink.HtbClassAttrs{Rate: 8 * slowRate, Buffer: slowBurst, Cbuffer: slowBurst})
		if err := netlink.ClassAdd(class); err != nil {
			return fmt.Errorf("add a class of htb: %w", err)
		}
		if err := netlink.QdiscAdd(&netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: at, Handle: netlink.MakeHandle(2, 0), Parent: slow},
			Rate:       slowRate, Limit: slowQueue, Buffer: netlink.Xmittime(slowRate, slowBurst),
		}); err != nil {
			return fmt.Errorf("add the queueing discipline tbf: %w", err)
		}
		if err := netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: at, Parent: root, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
			Fd:          p.program.FD(), Name: "soak_reorder",
		}); err != nil {
			return fmt.Errorf("add a filter: %w", err)
		}
		return nil
	})
	return disturbance{faultReorder, func(ctx context.Context, rng *rand.Rand, t *tally) {
		pick(ctx, rng, t, faultReorder, []*picker{p})
	}}, err
}

// A picker is a program that picks packets by chance. It has a map of one value, a pickerState.
type picker struct {
	state   *ebpf.Map
	program *ebpf.Program
}

// pickerState is what the program and this process share: of 2^32 packets it picks chance, and it counts them.
type pickerState struct {
	Chance uint32
	_      uint32
	Picked uint64
}

// Offsets in pickerState.
const (
	chanceAt = 0
	pickedAt = 8
)

// newPicker loads a program that returns one of two values.
func newPicker(spec *ebpf.ProgramSpec, picked, other int32) (p *picker, err error) {
	p = &picker{}
	if p.state, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: "soak_picker", Type: ebpf.Array, KeySize: 4, ValueSize: uint32(binary.Size(pickerState{})), MaxEntries: 1,
	}); err != nil {
		return nil, fmt.Errorf("create a map: %w", err)
	}
	spec.Instructions = asm.Instructions{
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.RFP, -4, asm.R1, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, p.state.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "other"),
		asm.Mov.Reg(asm.R6, asm.R0),
		asm.FnGetPrandomU32.Call(),
		asm.LoadMem(asm.R1, asm.R6, chanceAt, asm.Word),
		asm.JGE.Reg(asm.R0, asm.R1, "other"),
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(asm.R6, asm.R1, asm.DWord, pickedAt),
		asm.Mov.Imm(asm.R0, picked),
		asm.Return(),
		asm.Mov.Imm(asm.R0, other).WithSymbol("other"),
		asm.Return(),
	}
	spec.License = "GPL" // for bpf_get_prandom_u32 it need not be, and nothing here is secret
	if p.program, err = ebpf.NewProgram(spec); err != nil {
		p.state.Close()
		return nil, fmt.Errorf("load a program: %w", err)
	}
	return p, nil
}

func (p *picker) close() error { return errors.Join(p.program.Close(), p.state.Close()) }

// set changes how likely a packet is picked.
func (p *picker) set(chance float64) error {
	var s pickerState
	if err := p.state.Lookup(uint32(0), &s); err != nil {
		return err
	}
	s.Chance = uint32(chance * math.MaxUint32)
	return p.state.Put(uint32(0), &s) // a packet that is picked in between is not counted
}

func (p *picker) picked() (n uint64) {
	var s pickerState
	if p.state.Lookup(uint32(0), &s) != nil {
		return 0
	}
	return s.Picked
}

// The chance that a packet is picked, in the time in which some are.
const (
	leastPicked = 0.0005
	mostPicked  = 0.05
)

// pick has packets picked for a while, again and again.
func pick(ctx context.Context, rng *rand.Rand, t *tally, fault string, pickers []*picker) {
	set := func(chance float64) {
		for _, p := range pickers {
			if err := p.set(chance); err != nil {
				t.problem("%s: %v", fault, err)
			}
		}
	}
	for between(ctx, rng, 100*time.Millisecond, 2*time.Second) {
		set(leastPicked * math.Pow(mostPicked/leastPicked, rng.Float64()))
		between(ctx, rng, 100*time.Millisecond, 2*time.Second)
		set(0)
	}
	for _, p := range pickers {
		t.fault(fault, int64(p.picked()))
	}
}

// listenToPackets opens and closes packet sockets in the sender's host, as packet captures do.
func listenToPackets(pair *lab.Link) (d disturbance, err error) {
	open := func() (fd int, err error) {
		err = pair.Sender.Do(func() (err error) {
			fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(networkOrder(unix.ETH_P_ALL)))
			return err
		})
		return fd, err
	}
	fd, err := open()
	if err != nil {
		return d, err
	}
	unix.Close(fd)
	return disturbance{faultPacket, func(ctx context.Context, rng *rand.Rand, t *tally) {
		for between(ctx, rng, 100*time.Millisecond, 3*time.Second) {
			fd, err := open()
			if err != nil {
				t.problem("%s: %v", faultPacket, err)
				return
			}
			t.fault(faultPacket, 1)
			between(ctx, rng, 10*time.Millisecond, 500*time.Millisecond)
			unix.Close(fd)
		}
	}}, nil
}

// networkOrder returns a 16-bit number as it lies in memory in network order.
func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// changeOptmem changes how much memory the completions of a socket may take, down to none.
func changeOptmem(pair *lab.Link) (d disturbance, err error) {
	const key = "net.core.optmem_max"
	before, err := pair.Sender.Sysctl(key)
	if err != nil {
		return d, err
	}
	if err := pair.Sender.SetSysctl(key, before); err != nil {
		return d, err
	}
	return disturbance{faultOptmem, func(ctx context.Context, rng *rand.Rand, t *tally) {
		set := func(value string) {
			if err := pair.Sender.SetSysctl(key, value); err != nil {
				t.problem("%s: %v", faultOptmem, err)
			}
		}
		for between(ctx, rng, 100*time.Millisecond, 2*time.Second) {
			set([]string{"0", "1000", "2000", "6000", "20480"}[rng.IntN(5)])
			t.fault(faultOptmem, 1)
			between(ctx, rng, 50*time.Millisecond, time.Second)
			set(before)
		}
	}}, nil
}
