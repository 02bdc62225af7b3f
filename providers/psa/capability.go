package psa

import (
	"bytes"
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// CapabilitiesHeader is the first line of a capabilities file, without its newline.
const CapabilitiesHeader = "# template\tkey_type\tbits\talgorithm\toperations"

// noColumn stands in a column that is empty.
const noColumn = "-"

// Capability is one line of a capabilities file.
type Capability struct {
	Template   string // "" if none
	Type       KeyType
	Bits       int // 0 if none
	Most       int // the largest of a range of sizes from Bits on, multiples of 8; 0 where Bits is the only one
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
	if c.Most != 0 {
		columns[2] += "-" + strconv.Itoa(c.Most)
	}
	if c.Algorithm != AlgNone {
		columns[3] = c.Algorithm.String()
	}
	if len(c.Operations) > 0 {
		columns[4] = joinOperations(c.Operations, ",")
	}
	return strings.Join(columns, "\t")
}

// CapabilitiesText is a whole capabilities file.
func CapabilitiesText(lines []Capability) []byte {
	var b bytes.Buffer
	b.WriteString(CapabilitiesHeader + "\n")
	for _, c := range lines {
		b.WriteString(c.String() + "\n")
	}
	return b.Bytes()
}

func joinOperations(ops []Operation, separator string) string {
	words := make([]string, len(ops))
	for i, op := range ops {
		words[i] = string(op)
	}
	return strings.Join(words, separator)
}

// Covers says whether the line is about keys of this type and size under a policy of this algorithm.
func (c Capability) Covers(t KeyType, bits int, policy Algorithm) bool {
	return c.Type == t && c.Algorithm == policy && (c.Bits == bits || c.Most != 0 && bits > c.Bits && bits <= c.Most && bits%8 == 0)
}

// Supports says whether a line names op for keys of this type and size under a policy of this algorithm.
func Supports(lines []Capability, op Operation, t KeyType, bits int, policy Algorithm) bool {
	return slices.ContainsFunc(lines, func(c Capability) bool { return c.Covers(t, bits, policy) && c.Has(op) })
}

// Dispatches says whether a key under the policy a begins op: a line names it with op's algorithm, and the policy has that
// one, any hash, or its raw agreement. Usage is not judged, and exporting has no algorithm.
func (a Attributes) Dispatches(lines []Capability, op Op) bool {
	alg, policy := op.Algorithm, a.Algorithm
	if op.Operation == Export || op.Operation == ExportPublic {
		return Supports(lines, op.Operation, a.Type, a.Bits, policy)
	}
	permitted := !alg.IsWildcard() && (alg == policy || alg.WithHash(AnyHash) == policy || policy == ECDH && alg.Raw() == policy)
	return permitted && Supports(lines, op.Operation, a.Type, a.Bits, alg)
}

// Serves says whether the policy's usage and a line allow op with a key. Without any lines the policy alone decides.
func (a Attributes) Serves(lines []Capability, op Operation) bool {
	if need := op.Usage(); a.Usage.Extend()&need != need {
		return false
	}
	if op == CSR {
		return a.RequestsCertificates() && a.Serves(lines, Sign)
	}
	return len(lines) == 0 || Supports(lines, op, a.Type, a.Bits, a.Algorithm)
}

// Capabilities are the lines for this kind of key, with those operations that its policy allows.
func (a Attributes) Capabilities(lines []Capability) (served []Capability) {
	for _, c := range WithCSR(lines) {
		if !c.Covers(a.Type, a.Bits, a.Algorithm) {
			continue
		}
		c.Operations = slices.DeleteFunc(slices.Clone(c.Operations), func(op Operation) bool {
			return op == Generate || op == Import || op != ExportPublic && !a.Serves(lines, op)
		})
		if len(c.Operations) == 0 {
			continue
		}
		c.Template, c.Bits, c.Most = a.Template(), a.Bits, 0
		served = append(served, c)
	}
	// a size to generate lies in the range of those to import
	return slices.CompactFunc(served, func(a, b Capability) bool { return a.String() == b.String() })
}

// Sizes lists the line's sizes in bits.
func (c Capability) Sizes() []int {
	sizes := []int{c.Bits}
	for bits := c.Bits + 8; bits <= c.Most; bits += 8 {
		sizes = append(sizes, bits)
	}
	return sizes
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
		return fail("it has %d columns separated by tabs; a line has 5: template, key_type, bits, algorithm, operations", len(columns))
	}
	var c Capability
	var err error
	if columns[1] != noColumn {
		if c.Type, err = ParseKeyType(columns[1]); err != nil || c.Type == KeyTypeNone {
			return fail("key type %s is not in PSA notation", quote(columns[1]))
		}
	}
	if columns[2] != noColumn {
		least, most, isRange := strings.Cut(columns[2], "-")
		var ok bool
		if c.Bits, ok = templateBits(least); ok && isRange {
			c.Most, ok = templateBits(most)
			ok = ok && c.Bits%8 == 0 && c.Most%8 == 0 && c.Most > c.Bits && c.Most <= maxSecretBits
		}
		if !ok {
			return fail("%s is neither a number of bits nor a range", quote(columns[2]))
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
		if a.Type != c.Type.KeyPair() || a.Bits != c.Bits || c.Most != 0 || a.Algorithm != c.Algorithm {
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
			return fail("operation %s is listed twice", op)
		}
		c.Operations = append(c.Operations, op)
	}
	return c, nil
}

// SortCapabilities sorts the lines as the capabilities files have them, byte by byte.
func SortCapabilities(c []Capability) {
	slices.SortFunc(c, func(a, b Capability) int { return cmp.Compare(a.String(), b.String()) })
}
