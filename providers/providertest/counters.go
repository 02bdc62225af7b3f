package providertest

import (
	"bytes"
	"testing"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// counters makes two counters, which only grow, each for itself, and removes them.
func (s *suite) counters(t *testing.T) {
	p := s.provider(t)
	c, ok := p.(providers.Counters)
	if !ok {
		t.Skip("it has no counters")
	}
	auth := [2][]byte{bytes.Repeat([]byte{1, 0}, 16), {2, 0}} // all bytes count, zeros too
	var references [2][]byte
	var values [2]uint64
	for i := range auth {
		var err error
		if references[i], values[i], err = c.NewCounter(t.Context(), auth[i]); err != nil {
			t.Fatal(err)
		}
	}
	if bytes.Equal(references[0], references[1]) {
		t.Fatal("one counter twice")
	}
	read := func(c providers.Counters) {
		t.Helper()
		for i := range auth {
			if got, err := c.Counter(t.Context(), references[i], auth[i]); err != nil || got != values[i] {
				t.Fatalf("counter %d is %d, %v; want %d", i, got, err, values[i])
			}
		}
	}
	read(c)
	for i, times := range []int{2, 1} {
		for range times {
			got, err := c.Advance(t.Context(), references[i], auth[i])
			if err != nil || got != values[i]+1 {
				t.Fatalf("counter %d is %d behind %d: %v", i, got, values[i], err)
			}
			values[i] = got
			read(c)
		}
	}
	for _, wrong := range [][]byte{auth[1], {3}, {1}, auth[0][:31]} {
		if _, err := c.Counter(t.Context(), references[0], wrong); psa.StatusOf(err) != psa.StatusDoesNotExist {
			t.Errorf("read with the authorization %x: %v", wrong, err)
		}
		if _, err := c.Advance(t.Context(), references[0], wrong); psa.StatusOf(err) != psa.StatusDoesNotExist {
			t.Errorf("advanced with the authorization %x: %v", wrong, err)
		}
		if err := c.RemoveCounter(t.Context(), references[0], wrong); err != nil {
			t.Errorf("another's counter, removed: %v", err)
		}
	}
	for _, size := range []int{0, 33} {
		if _, _, err := c.NewCounter(t.Context(), make([]byte, size)); psa.StatusOf(err) != psa.StatusInvalidArgument {
			t.Errorf("an authorization of %d bytes: %v", size, err)
		}
	}
	if _, err := c.Counter(t.Context(), references[0][:len(references[0])-1], auth[0]); psa.StatusOf(err) != psa.StatusDataCorrupt {
		t.Errorf("half a reference: %v", err)
	}
	read(s.provider(t).(providers.Counters))
	for range 2 {
		if err := c.RemoveCounter(t.Context(), references[0], auth[0]); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Counter(t.Context(), references[0], auth[0]); psa.StatusOf(err) != psa.StatusDoesNotExist {
			t.Errorf("a removed counter: %v", err)
		}
	}
	if got, err := c.Counter(t.Context(), references[1], auth[1]); err != nil || got != values[1] {
		t.Errorf("the other counter is %d, %v", got, err)
	}
	again, value, err := c.NewCounter(t.Context(), auth[0])
	if err != nil || value <= values[0] {
		t.Errorf("a new counter is %d behind a removed one of %d: %v", value, values[0], err)
	}
	for reference, auth := range map[string][]byte{string(again): auth[0], string(references[1]): auth[1]} {
		if err := c.RemoveCounter(t.Context(), []byte(reference), auth); err != nil {
			t.Error(err)
		}
	}
}
