package transaction

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
)

// TestReadingForEver: who reads an answer, or its end, again and again gets an error in the end. The transaction stays of use.
func TestReadingForEver(t *testing.T) {
	t.Parallel()
	f, who := newFake(t), self()
	h := part(t, f.slot(t, who, "whole"), who, "")
	for i, offsets := range [][]int64{{0}, {0, 4096}, {0, 5, 4096}, append([]int64{0}, slices.Repeat([]int64{4096}, 10_000)...)} {
		message := fmt.Sprint(i)
		want := string(answers(shapes["whole"], map[string][]byte{"hash": []byte(message)})["signature"])
		write(t, h, 0, message)
		for times := 0; ; times++ {
			off := offsets[times%len(offsets)]
			b := make([]byte, 4096)
			n, _, err := h.Read(t.Context(), who, b, off)
			if rest := want[min(int(off), len(want)):]; err == nil && string(b[:n]) != rest || times == 10_000 {
				t.Fatalf("READ %d at %d: %q, want %q", times, off, b[:n], rest)
			}
			if err == nil {
				continue
			}
			if errnoOf(t, err) != syscall.ENODATA || times < 1000 {
				t.Errorf("READ %d at %d: %v", times, off, err)
			}
			break
		}
	}
	h.Release()
	f.Close()
	f.empty(t)
}
