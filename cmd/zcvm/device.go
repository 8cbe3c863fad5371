package main

import (
	"fmt"
	"strings"
)

// This file is about network devices: how qemu names them, what drives them, and what is to be expected of that.

// A device is a network device that qemu can emulate.
type device struct {
	name    string   // what the user calls it
	qemu    string   // what qemu calls it
	modules []string // that drive it
	copies  bool     // the kernel has to copy what is sent through it
}

// devices returns all devices. Those that qemu's user network makes copy are said to copy.
func devices() []device {
	return []device{
		{name: "e1000", qemu: "e1000", modules: []string{"e1000"}},
		{name: "e1000e", qemu: "e1000e", modules: []string{"e1000e"}},
		// Over a user network it offers no scatter-gather: that comes with checksums, which the network does not take
		// over (virtnet_probe in drivers/net/virtio_net.c).
		{name: "virtio-net", qemu: "virtio-net-pci", modules: []string{"virtio_pci", "virtio_net"}, copies: true},
	}
}

// findDevice returns the device of a name.
func findDevice(name string) (device, error) {
	var names []string
	for _, d := range devices() {
		if d.name == name {
			return d, nil
		}
		names = append(names, d.name)
	}
	return device{}, fmt.Errorf("there is no device %q: it is one of %s", name, strings.Join(names, ", "))
}
