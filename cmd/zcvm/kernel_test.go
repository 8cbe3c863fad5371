package main

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNewestOf(t *testing.T) {
	for _, test := range []struct {
		series, want string
		names        []string
	}{
		{"6.1", "", nil},
		{"6.1", "linux-image-6.1.0-50-amd64", []string{
			"linux-image-6.1.0-9-amd64", "linux-image-6.1.0-50-amd64", "linux-image-6.1.0-49-amd64",
		}},
		{"6.1", "", []string{ // other flavours, other kinds of package, other series
			"linux-image-6.1.0-50-cloud-amd64", "linux-image-6.1.0-50-rt-amd64", "linux-image-6.1.0-50-amd64-dbg",
			"linux-image-6.1.0-50-amd64-unsigned", "linux-image-6.12.9-amd64", "linux-image-6x1.0-50-amd64", "linux-image-6.1-amd64",
		}},
		{"6.12", "linux-image-6.12.117+deb12-amd64", []string{
			"linux-image-6.12-amd64", "linux-image-6.12.99+deb12-amd64", "linux-image-6.12.117+deb12-amd64", "linux-image-6.12.107+deb12-amd64",
		}},
		{"6.12", "linux-image-6.12.48+deb13-amd64", []string{"linux-image-6.12.41+deb13-amd64", "linux-image-6.12.48+deb13-amd64"}},
		{"6.12", "linux-image-6.12.9+deb12.1-amd64", []string{"linux-image-6.12.9+deb12-amd64", "linux-image-6.12.9+deb12.1-amd64"}},
	} {
		if got := newestOf(test.names, test.series); got != test.want {
			t.Errorf("the newest kernel %s of %q is %q, want %q", test.series, test.names, got, test.want)
		}
	}
}

func TestKeepWantedKeepsTheKernelAndModulesOfDevices(t *testing.T) {
	const modules = "lib/modules/6.1.0-50-amd64/"
	keep := []string{
		"boot/vmlinuz-6.1.0-50-amd64",
		modules + "modules.builtin",
		modules + "kernel/drivers/net/veth.ko",
		modules + "kernel/drivers/net/ethernet/intel/e1000/e1000.ko",
		modules + "kernel/drivers/net/ethernet/realtek/8139cp.ko.xz",
		modules + "kernel/drivers/virtio/virtio.ko",
		modules + "kernel/net/core/failover.ko",
	}
	leave := []string{
		"boot/config-6.1.0-50-amd64",
		modules + "modules.order",
		modules + "kernel/fs/xfs/xfs.ko",
		modules + "kernel/drivers/net/wireless/intel/iwlwifi/iwlwifi.ko",
		modules + "kernel/drivers/net/veth.ko.debug",
		"usr/share/doc/linux-image/copyright",
	}
	for _, root := range []string{"./", "./usr/"} { // packages may hold lib in usr
		var archive bytes.Buffer
		w := tar.NewWriter(&archive)
		for _, name := range append(keep[:len(keep):len(keep)], leave...) {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: root + name, Mode: 0o644, Size: int64(len(name))}); err != nil {
				t.Fatal(err)
			}
			_, _ = w.Write([]byte(name))
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := keepWanted(tar.NewReader(&archive), dir); err != nil {
			t.Fatal(err)
		}
		got := filesBelow(t, dir)
		if diff := cmp.Diff(slices.Sorted(slices.Values(keep)), got); diff != "" {
			t.Errorf("of an archive with %s: files kept (-want +got):\n%s", root, diff)
		}
		k, err := openKernel(dir)
		if err != nil || filepath.Base(k.image) != "vmlinuz-6.1.0-50-amd64" || filepath.Base(k.modules) != "6.1.0-50-amd64" {
			t.Errorf("the kernel is %+v, %v", k, err)
		}
	}
}

// filesBelow returns the files below dir, sorted, and checks that each has its own name as content.
func filesBelow(t *testing.T, dir string) (names []string) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		names = append(names, filepath.ToSlash(name))
		if data, err := os.ReadFile(path); err != nil || string(data) != names[len(names)-1] {
			t.Errorf("%s holds %q, %v", name, data, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

func TestOpenKernelOfAnIncompleteDirectory(t *testing.T) {
	if k, err := openKernel(t.TempDir()); err == nil {
		t.Errorf("an empty directory is the kernel %+v", k)
	}
}
