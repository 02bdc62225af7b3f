package transaction

import (
	"syscall"
	"testing"
)

// TestReadingOnAndOn: who asks for more than there is, for ever, gets an error in the end; the answer stays, and so does the
// transaction.
func TestReadingOnAndOn(t *testing.T) {
	t.Parallel()
	f, who := newFake(t), self()
	h := part(t, f.slot(t, who, "whole"), who, "")
	answer := func(off int64) {
		t.Helper()
		want := string(answers(shapes["whole"], map[string][]byte{"hash": []byte("one")})["signature"])
		b := make([]byte, 4096)
		if n, _, err := h.Read(t.Context(), who, b, off); err != nil || string(b[:n]) != want {
			t.Fatalf("%q, %v; want %q", b[:n], err, want)
		}
	}
	for range 2 {
		write(t, h, 0, "one")
		for range 2 {
			answer(0)
			ends := 0
			for ; ends < 100_000; ends++ {
				n, _, err := h.Read(t.Context(), who, make([]byte, 10), 4096)
				if n != 0 {
					t.Fatalf("%d bytes behind the end", n)
				}
				if err != nil && errnoOf(t, err) != syscall.ENODATA {
					t.Fatal(err)
				}
				if err != nil {
					break
				}
			}
			if ends < 100 || ends == 100_000 {
				t.Errorf("the answer ended %d times", ends)
			}
		}
	}
	h.Release()
	f.Close()
	f.empty(t)
}
