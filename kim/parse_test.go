package kim

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
)

// FuzzRestore: whatever is restored is refused with nothing in place, or is a whole KIM.
func FuzzRestore(f *testing.F) {
	ctx := context.Background()
	dir := filepath.Join(f.TempDir(), "state")
	k, err := Open(ctx, Options{Dir: dir})
	if err != nil {
		f.Fatal(err)
	}
	var whole bytes.Buffer
	if err := k.Backup(ctx, &whole); err != nil {
		f.Fatal(err)
	}
	if err := k.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(whole.Bytes())
	f.Add(whole.Bytes()[:whole.Len()/2])
	f.Add(whole.Bytes()[:512])
	f.Add([]byte("no tar at all"))
	f.Add(bytes.Replace(whole.Bytes(), []byte("kim.sqlite3"), []byte("../kim.sqli"), 1))
	for _, at := range []int{700, 1600, 5000, whole.Len() - 5000} {
		b := bytes.Clone(whole.Bytes())
		b[at] ^= 0x55
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		outside := t.TempDir()
		dir := filepath.Join(outside, "state")
		err := Restore(ctx, dir, bytes.NewReader(b))
		if entries, _ := os.ReadDir(outside); len(entries) != 1 {
			t.Fatalf("files beside the state: %v", entries)
		}
		_, there := os.Stat(filepath.Join(dir, kimFile))
		if err != nil {
			if there == nil {
				t.Fatalf("refused (%v), but a KIM is there", err)
			}
			return
		}
		k, err := Open(ctx, Options{Dir: dir})
		if err != nil {
			t.Fatalf("restored, but it does not open: %v", err)
		}
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzWrappingKey: what parses is spelled in one way only, as a wrapping key or as a recovery key and never as both.
func FuzzWrappingKey(f *testing.F) {
	w := wrappingKey{id: [16]byte{1, 2, 3}, key: [32]byte{4, 5, 6}}
	for _, head := range []string{wrappingHead, recoveryHead} {
		f.Add(w.marshal(head))
		f.Add(w.marshal(head)[1:])
		f.Add([]byte(head))
		f.Add(bytes.ToUpper(w.marshal(head)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		kinds := 0
		for _, head := range []string{wrappingHead, recoveryHead} {
			w, err := parseWrappingKey(head, b)
			if err != nil {
				continue
			}
			kinds++
			if got := w.marshal(head); !bytes.EqualFold(got, b) {
				t.Fatalf("%q was read as %q", b, got)
			}
		}
		if kinds > 1 {
			t.Fatalf("%q is of two kinds", b)
		}
	})
}
