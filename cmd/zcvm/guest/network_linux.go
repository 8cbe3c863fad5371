package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// This file configures the network.

// carrierTimeout is how long a device may take to say that its cable is plugged in.
const carrierTimeout = 10 * time.Second

// A device is the network device that the machine was given.
type device struct {
	name          string
	driver        string
	scatterGather bool // it takes a packet in several pieces
}

// configureNetwork brings up the loopback device and the one with hardware behind it, and gives that an address and the
// default route.
func configureNetwork(address, gateway string) (device, error) {
	if err := bringUp("lo"); err != nil {
		return device{}, err
	}
	d, err := findDevice()
	if err != nil {
		return d, err
	}
	if err := bringUp(d.name); err != nil {
		return d, err
	}
	if err := addAddress(d.name, address, gateway); err != nil {
		return d, fmt.Errorf("configure %s: %w", d.name, err)
	}
	return d, awaitCarrier(d.name)
}

// findDevice returns the network device whose driver is for hardware, real or emulated.
func findDevice() (device, error) {
	found, err := filepath.Glob("/sys/class/net/*/device/driver")
	if err != nil || len(found) == 0 {
		return device{}, errors.New("no driver has found a network device")
	}
	target, err := os.Readlink(found[0])
	if err != nil {
		return device{}, err
	}
	d := device{driver: filepath.Base(target), name: filepath.Base(filepath.Dir(filepath.Dir(found[0])))}
	d.scatterGather, err = scatterGather(d.name)
	return d, err
}

func bringUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	return nil
}

func addAddress(name, address, gateway string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(address)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add the address %s: %w", address, err)
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gateway)}); err != nil {
		return fmt.Errorf("add the route by %s: %w", gateway, err)
	}
	return nil
}

// awaitCarrier waits until the device can send. What is sent before is lost.
func awaitCarrier(name string) error {
	for end := time.Now().Add(carrierTimeout); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
	}
	return fmt.Errorf("%s did not come up within %v", name, carrierTimeout)
}

// scatterGather asks a driver whether it takes packets in several pieces (ETHTOOL_GSG, include/uapi/linux/ethtool.h).
func scatterGather(name string) (bool, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	value := struct{ cmd, on uint32 }{cmd: unix.ETHTOOL_GSG}
	request := struct { // struct ifreq, include/uapi/linux/if.h
		name  [unix.IFNAMSIZ]byte
		value unsafe.Pointer
		_     [16]byte
	}{value: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return false, os.NewSyscallError("ioctl SIOCETHTOOL "+name, errno)
	}
	return value.on != 0, nil
}
