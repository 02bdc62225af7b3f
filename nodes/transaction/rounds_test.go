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

// TestOneReadingHasOneAnswer: who read an answer whole and asks whether there is more is not told the next one's beginning.
func TestOneReadingHasOneAnswer(t *testing.T) {
	f, who := newFake(t), self()
	defer f.Close()
	first := string(answers(shapes["whole"], map[string][]byte{"hash": []byte("one")})["signature"])
	s := f.slot(t, who, "whole")
	reader, writer := part(t, s, who, ""), part(t, s, who, "")
	defer reader.Release()
	defer writer.Release()
	write(t, writer, 0, "one")
	b := make([]byte, 4096)
	n, _, err := reader.Read(t.Context(), who, b, 0)
	if err != nil || string(b[:n]) != first {
		t.Fatalf("%q, %v", b[:n], err)
	}
	write(t, writer, 3, "two")
	n, _, err = reader.Read(t.Context(), who, b, int64(n))
	if n != 0 || err == nil {
		t.Errorf("the same reading goes on with %d bytes, %v", n, err)
	}
}
