package psa

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// CapabilitiesHeader is the first line of a capabilities file, without its newline.
const CapabilitiesHeader = "# template\tkey_type\tbits\talgorithm\toperations"

// noColumn stands in a column that is empty.
const noColumn = "-"

// Capability is one line of a capabilities file (section 6).
type Capability struct {
	Template   string // "" if none
	Type       KeyType
	Bits       int // 0 if none
	Algorithm  Algorithm
	Operations []Operation
}

// String is the line, its columns parted by tabs, without a newline.
func (c Capability) String() string {
	columns := []string{noColumn, noColumn, noColumn, noColumn, noColumn}
	if c.Template != "" {
		columns[0] = c.Template
	}
	if c.Type != KeyTypeNone {
		columns[1] = c.Type.String()
	}
	if c.Bits != 0 {
		columns[2] = strconv.Itoa(c.Bits)
	}
	if c.Algorithm != AlgNone {
		columns[3] = c.Algorithm.String()
	}
	if len(c.Operations) > 0 {
		columns[4] = joinOperations(c.Operations, ",")
	}
	return strings.Join(columns, "\t")
}

func joinOperations(ops []Operation, separator string) string {
	words := make([]string, len(ops))
	for i, op := range ops {
		words[i] = string(op)
	}
	return strings.Join(words, separator)
}

// Has says whether the line names op.
func (c Capability) Has(op Operation) bool { return slices.Contains(c.Operations, op) }

// Attributes are the key's, with the usage that the template gives; the zero value where the line has no key.
func (c Capability) Attributes() Attributes {
	a := Attributes{Type: c.Type, Bits: c.Bits, Algorithm: c.Algorithm}
	if a.Type != KeyTypeNone {
		a.Usage = a.defaultUsage()
	}
	return a
}

// ParseCapability reads a line of a capabilities file. A template must agree with the columns beside it. Errors are
// StatusInvalidArgument.
func ParseCapability(line string) (Capability, error) {
	fail := func(format string, args ...any) (Capability, error) {
		return Capability{}, Errorf(StatusInvalidArgument, "capability line %s: %w", quote(line), Errorf(StatusInvalidArgument, format, args...))
	}
	columns := strings.Split(line, "\t")
	if len(columns) != 5 {
		return fail("%d columns parted by tabs; allowed: 5 (template, key_type, bits, algorithm, operations)", len(columns))
	}
	var c Capability
	var err error
	if columns[1] != noColumn {
		if c.Type, err = ParseKeyType(columns[1]); err != nil || c.Type == KeyTypeNone {
			return fail("key type %s is not in PSA notation", quote(columns[1]))
		}
	}
	if columns[2] != noColumn {
		var ok bool
		if c.Bits, ok = templateBits(columns[2]); !ok {
			return fail("%s is no number of bits", quote(columns[2]))
		}
	}
	if columns[3] != noColumn {
		if c.Algorithm, err = ParseAlgorithm(columns[3]); err != nil || c.Algorithm == AlgNone {
			return fail("algorithm %s is not in PSA notation", quote(columns[3]))
		}
	}
	if columns[0] != noColumn {
		c.Template = columns[0]
		a, err := ParseTemplate(c.Template)
		if err != nil {
			return fail("%w", err)
		}
		if a.Type != c.Type.KeyPair() || a.Bits != c.Bits || a.Algorithm != c.Algorithm {
			return fail("the template means %s, %d, %s", a.Type, a.Bits, a.Algorithm)
		}
	}
	if columns[4] == noColumn {
		return c, nil
	}
	for word := range strings.SplitSeq(columns[4], ",") {
		op := Operation(word)
		if !slices.Contains(Operations(), op) {
			return fail("unknown operation %s; allowed: %s", quote(word), joinOperations(Operations(), ", "))
		}
		if c.Has(op) {
			return fail("operation %s stands there twice", op)
		}
		c.Operations = append(c.Operations, op)
	}
	return c, nil
}

// SortCapabilities sorts the lines as the capabilities files have them, byte by byte.
func SortCapabilities(c []Capability) {
	slices.SortFunc(c, func(a, b Capability) int { return cmp.Compare(a.String(), b.String()) })
}
