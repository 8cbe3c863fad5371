package main

import (
	"bytes"
	"io"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/google/go-cmp/cmp"
)

func TestArchiveHasDirectoriesBeforeWhatLiesInThem(t *testing.T) {
	var archive bytes.Buffer
	if err := writeArchive(&archive, []guestFile{
		{"/init", 0o755, []byte("program")},
		{"/a/b/c", 0o644, []byte("text")},
		{"/a/empty", 0o600, nil},
	}); err != nil {
		t.Fatal(err)
	}
	if magic := archive.Bytes()[:6]; string(magic) != "070701" {
		t.Errorf("the archive begins with %q: the kernel wants the newc format", magic)
	}
	type entry struct {
		Name string
		Mode cpio.FileMode
		Data string
	}
	var got []entry
	for r := cpio.NewReader(&archive); ; {
		hdr, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, entry{hdr.Name, hdr.Mode, string(data)})
	}
	want := []entry{
		{"a", cpio.TypeDir | 0o755, ""},
		{"a/b", cpio.TypeDir | 0o755, ""},
		{"init", cpio.TypeReg | 0o755, "program"},
		{"a/b/c", cpio.TypeReg | 0o644, "text"},
		{"a/empty", cpio.TypeReg | 0o600, ""},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the archive (-want +got):\n%s", diff)
	}
}
