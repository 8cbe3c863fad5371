package plan

import "testing"

// stream returns the first n bytes of what is sent, made in writes of size.
func stream(n, size int) []byte {
	b := make([]byte, n)
	for pos := 0; pos < n; pos += size {
		Fill(b[pos:min(pos+size, n)], int64(pos))
	}
	return b
}

func TestCheckerKnowsWhatIsRight(t *testing.T) {
	for _, test := range []struct {
		name   string
		break_ func(b []byte) []byte
		want   Checker
	}{
		{"nothing", func(b []byte) []byte { return nil }, Checker{}},
		{"the stream", func(b []byte) []byte { return b }, Checker{Bytes: 1003}},
		{"one that was cut short", func(b []byte) []byte { return b[:501] }, Checker{Bytes: 501}},
		{"a flipped bit", func(b []byte) []byte { b[500] ^= 4; return b }, Checker{Bytes: 1003, Wrong: 1, First: 500}},
		{"the last byte wrong", func(b []byte) []byte { b[1002]++; return b }, Checker{Bytes: 1003, Wrong: 1, First: 1002}},
		{"several wrong", func(b []byte) []byte { b[17]++; b[16]++; b[900]++; return b }, Checker{Bytes: 1003, Wrong: 3, First: 16}},
	} {
		sent := test.break_(stream(1003, 128))
		for _, cut := range []int{1, 3, 8, 100, 2000} {
			var c Checker
			for pos := 0; pos < len(sent); pos += cut {
				if n, err := c.Write(sent[pos:min(pos+cut, len(sent))]); err != nil || n != min(cut, len(sent)-pos) {
					t.Fatalf("%s: Write returned %d, %v", test.name, n, err)
				}
			}
			if c != test.want {
				t.Errorf("%s, received in parts of %d: %+v, want %+v", test.name, cut, c, test.want)
			}
		}
	}
}

func TestCheckerFindsAPartThatIsNotInItsPlace(t *testing.T) {
	for name, break_ := range map[string]func(b []byte) []byte{
		"lost":     func(b []byte) []byte { return append(b[:512:512], b[640:]...) },
		"repeated": func(b []byte) []byte { copy(b[640:768], b[512:640]); return b },
		"newer":    func(b []byte) []byte { Fill(b[512:640], 2048); return b },
	} {
		var c Checker
		_, _ = c.Write(break_(stream(1024, 128)))
		if c.Wrong < 100 || c.First/8 != 64 && c.First/8 != 80 {
			t.Errorf("a part that is %s: %+v, want most of it wrong, from its beginning on", name, c)
		}
	}
}
