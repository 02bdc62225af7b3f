package psa

import (
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

// PCRs are platform configuration registers of a TPM (TCG TPM 2.0, part 1, 17), bit n for register n.
type PCRs uint32

// MaxPCR is the highest register that PCRs can name.
const MaxPCR = 23

// NewPCRs has the registers of a list; one that there is not is StatusInvalidArgument.
func NewPCRs(list []int) (p PCRs, err error) {
	for _, n := range list {
		if n < 0 || n > MaxPCR {
			return 0, Errorf(StatusInvalidArgument, "pcrs: there is no register %d; allowed: 0 to %d", n, MaxPCR)
		}
		p |= 1 << n
	}
	return p, nil
}

// ParsePCRs reads "0,7": numbers of registers, parted by commas. What is none is StatusInvalidArgument.
func ParsePCRs(s string) (PCRs, error) {
	var list []int
	for word := range strings.SplitSeq(s, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(word))
		if err != nil {
			return 0, Errorf(StatusInvalidArgument, "pcrs: %s is not a list of registers", quote(s)).
				WithHint("write numbers separated by commas: 0,7")
		}
		list = append(list, n)
	}
	return NewPCRs(list)
}

// List is the registers' numbers, in order.
func (p PCRs) List() []int {
	list := make([]int, 0, bits.OnesCount32(uint32(p)))
	for n := range MaxPCR + 1 {
		if p&(1<<n) != 0 {
			list = append(list, n)
		}
	}
	return slices.Clip(list)
}
