package uring

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// possible counts the processors that there can be, also those that are off. The kernel has a queue for each, and requests
// arrive as soon as each has an entry.
func possible() (int, error) {
	const file = "/sys/devices/system/cpu/possible"
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	n, err := countList(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	return n, nil
}

// countList counts the numbers of a list like 0,2-5.
func countList(list string) (n int, err error) {
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		a, err := strconv.ParseUint(first, 10, 16)
		if err != nil {
			return 0, err
		}
		b := a
		if isRange {
			if b, err = strconv.ParseUint(last, 10, 16); err != nil || b < a {
				return 0, fmt.Errorf("wrong range %q", part)
			}
		}
		n += int(b - a + 1)
	}
	return n, nil
}
