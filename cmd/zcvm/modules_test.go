package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ulikunitz/xz"
)

// moduleWith returns an ELF file with nothing in it but a section .modinfo.
func moduleWith(t *testing.T, modinfo string) []byte {
	t.Helper()
	const names = "\x00.modinfo\x00.shstrtab\x00"
	headerSize, sectionSize := uint64(binary.Size(elf.Header64{})), uint16(binary.Size(elf.Section64{}))
	end := headerSize + uint64(len(modinfo)+len(names))
	hdr := elf.Header64{
		Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Ehsize: uint16(headerSize), Shoff: end, Shentsize: sectionSize, Shnum: 3, Shstrndx: 2,
	}
	copy(hdr.Ident[:], elf.ELFMAG+string([]byte{byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)}))
	sections := []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: headerSize, Size: uint64(len(modinfo))},
		{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: headerSize + uint64(len(modinfo)), Size: uint64(len(names))},
	}
	var b bytes.Buffer
	for _, part := range []any{hdr, []byte(modinfo + names), sections} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// moduleDir makes a directory of modules, given what each depends on. Files whose names end in .xz are compressed.
func moduleDir(t *testing.T, depends map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, on := range depends {
		data := moduleWith(t, "license=GPL\x00depends="+on+"\x00vermagic=1\x00")
		if strings.HasSuffix(name, ".xz") {
			data = compressed(t, data)
		}
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func compressed(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := xz.NewWriter(&b)
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestModulesAreLoadedAfterWhatTheyNeed(t *testing.T) {
	dir := moduleDir(t, map[string]string{
		"net/virtio_net.ko":          "virtio_ring,virtio,net-failover",
		"net/net_failover.ko.xz":     "failover",
		"net/failover.ko":            "",
		"virtio/virtio.ko":           "",
		"virtio/virtio_ring.ko.xz":   "virtio",
		"virtio/virtio-pci.ko":       "virtio_ring,virtio",
		"broken/needs_missing.ko":    "failover,missing",
		"broken/chicken.ko":          "egg",
		"broken/egg.ko":              "chicken",
		"net/needs_what_is_built.ko": "mii",
	})
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte("kernel/net/mii.ko\nkernel/lib/crc-16.ko\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	set, err := findModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		load []string
		want string // names in order, or what the error says
	}{
		{nil, ""},
		{[]string{"failover"}, "failover"},
		{[]string{"crc_16"}, ""},
		{[]string{"needs_what_is_built"}, "needs_what_is_built"},
		{[]string{"virtio_pci", "virtio_net"}, "virtio virtio_ring virtio_pci failover net_failover virtio_net"},
		{[]string{"failover", "net_failover", "failover"}, "failover net_failover"},
		{[]string{"e1000"}, "module e1000: the kernel's package has no such module"},
		{[]string{"needs_missing"}, "module needs_missing needs missing: the kernel's package has no such module"},
		{[]string{"chicken"}, "modules need each other: chicken, egg, chicken"},
	} {
		loaded, err := set.load(test.load...)
		var names []string
		for _, m := range loaded {
			names = append(names, m.name)
		}
		got := strings.Join(names, " ")
		if err != nil {
			got = err.Error()
		}
		if !strings.HasPrefix(got, test.want) || err == nil && got != test.want {
			t.Errorf("load %q:\ngot  %s\nwant %s", test.load, got, test.want)
		}
	}
}

func TestLoadedModulesAreDecompressed(t *testing.T) {
	set, err := findModules(moduleDir(t, map[string]string{"a.ko.xz": ""}))
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := set.load("a")
	if err != nil {
		t.Fatal(err)
	}
	if len(loaded) != 1 || !bytes.HasPrefix(loaded[0].data, []byte(elf.ELFMAG)) {
		t.Errorf("loaded %d modules, want one that is an ELF file", len(loaded))
	}
}

func TestDependsOf(t *testing.T) {
	for info, want := range map[string][]string{
		"":                                  nil,
		"license=GPL\x00":                   nil,
		"depends=\x00name=a\x00":            nil,
		"name=a\x00depends=b\x00":           {"b"},
		"depends=b,c-d\x00":                 {"b", "c_d"},
		"softdepends=x\x00depends=a, b\x00": {"a", "b"},
	} {
		if diff := cmp.Diff(want, dependsOf([]byte(info))); diff != "" {
			t.Errorf("%q (-want +got):\n%s", info, diff)
		}
	}
}

func TestWhatIsNoModuleIsAnError(t *testing.T) {
	if _, err := dependencies([]byte("not ELF")); err == nil {
		t.Error("text has dependencies")
	}
}
