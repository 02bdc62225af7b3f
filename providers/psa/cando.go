package psa

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// maxSuggested bounds the wrong questions of one request for which the nearest templates are looked for.
const maxSuggested = 8

// Answer answers questions, a line each, by the lines of a provider's capabilities: a line "yes" or "no: why" for each, and
// at the end "sequence: " and whether all of them, in that order on one key, would succeed. No question is
// StatusInvalidArgument.
func Answer(lines []Capability, questions []byte) ([]byte, error) {
	var out bytes.Buffer
	say := func(prefix string, why error) {
		if why == nil {
			fmt.Fprintf(&out, "%syes\n", prefix)
			return
		}
		fmt.Fprintf(&out, "%sno: %s\n", prefix, OneLine(why.Error()))
	}
	one := sequence{lines: lines}
	var broken error
	asked, suggested := 0, 0
	for line := range strings.Lines(string(questions)) {
		if strings.TrimSpace(line) == "" {
			continue
		}
		asked++
		q, err := parseQuestion(line)
		if err == nil {
			err = q.answer(lines)
		} else if suggested < maxSuggested {
			suggested++
			err = SuggestTemplates(err, lines)
		}
		say("", err)
		if err == nil {
			err = one.next(q)
		}
		if err != nil && broken == nil {
			broken = fmt.Errorf("question %d: %w", asked, err)
		}
	}
	if asked == 0 {
		return nil, Errorf(StatusInvalidArgument, "there is no question").
			WithHint("write one question a line, such as: generate ecdsa-p256-sha256")
	}
	say("sequence: ", broken)
	return out.Bytes(), nil
}

// question is one line: an operation, or use (all that the usage flags name), and what key it is about.
type question struct {
	op  Operation
	use bool
	key Attributes // zero: about no key
	alg Algorithm  // of hash
}

const askUse = "use"

// parseQuestion reads "sign ecdsa-p256-sha256", "generate PSA_KEY_TYPE_AES 256 PSA_ALG_GCM PSA_KEY_USAGE_ENCRYPT" (type,
// size, algorithm, and the usage flags, which are otherwise a template's), "random", "attest" (the device itself) and the
// like, or "hash sha256".
func parseQuestion(line string) (question, error) {
	words := questionWords(line)
	q := question{op: Operation(words[0]), use: words[0] == askUse}
	if !q.use && !slices.Contains(Operations(), q.op) {
		return q, Errorf(StatusInvalidArgument, "unknown operation %q; allowed: use, %s", words[0], joinOperations(Operations(), ", "))
	}
	switch {
	case len(words) == 1 && (q.op == Random || q.op == Attest || q.op == ActivateCredential || q.op == MakeCredential):
		return q, nil
	case q.op == Hash && len(words) == 2:
		var err error
		q.alg, err = hashAsked(words[1])
		return q, err
	case q.op == Random || q.op == Hash || q.op == MakeCredential || len(words) < 2 || len(words) == 3 || len(words) > 5:
		return q, Errorf(StatusInvalidArgument, "a question cannot have %d words", len(words)).
			WithHint("ask for an operation and a template, or a key type, a size, an algorithm and usage flags")
	}
	var err error
	if len(words) == 2 {
		q.key, err = ParseTemplate(words[1])
		return q, err
	}
	if q.key.Type, err = ParseKeyType(words[1]); err != nil {
		return q, err
	}
	if q.key.Bits, err = strconv.Atoi(words[2]); err != nil {
		return q, Errorf(StatusInvalidArgument, "%q is not a size in bits", words[2])
	}
	if q.key.Algorithm, err = ParseAlgorithm(words[3]); err != nil {
		return q, err
	}
	if len(words) == 5 {
		q.key.Usage, err = ParseUsage(words[4])
		return q, err
	}
	q.key.Usage = (Capability{Type: q.key.Type, Bits: q.key.Bits, Algorithm: q.key.Algorithm}).Attributes().Usage
	return q, nil
}

// hashAsked reads a hash that is computed without a key: its name in the tree, or PSA's.
func hashAsked(name string) (Algorithm, error) {
	for _, h := range hashes {
		if h.short != "" && (h.short == name || h.name == name) {
			return h.alg, nil
		}
	}
	return AlgNone, Errorf(StatusInvalidArgument, "unknown hash %q", name)
}

// questionWords splits at white space, except in the parentheses of PSA's notation.
func questionWords(line string) (words []string) {
	open := 0 // parentheses of the last word
	for _, part := range strings.Fields(line) {
		if open > 0 {
			words[len(words)-1] += " " + part
		} else {
			words = append(words, part)
		}
		open += strings.Count(part, "(") - strings.Count(part, ")")
	}
	return words
}

// answer says why the provider cannot do what is asked, nil if it can.
func (q question) answer(lines []Capability) error {
	lists := func(op Operation) bool {
		return slices.ContainsFunc(lines, func(c Capability) bool {
			if q.key.Type == KeyTypeNone {
				return c.Has(op) && c.Covers(KeyTypeNone, 0, q.alg)
			}
			return c.Has(op) && c.Covers(q.key.Type, q.key.Bits, q.key.Algorithm)
		})
	}
	if q.key.Type == KeyTypeNone {
		if !lists(q.op) {
			return Errorf(StatusNotSupported, "the provider's capabilities do not list it")
		}
		return nil
	}
	if err := q.key.Validate(); err != nil {
		return err
	}
	ops := []Operation{q.op}
	if q.use {
		ops = nil
		for _, op := range Operations() {
			if need := op.Usage(); op != CSR && need != 0 && q.key.Usage&need == need && q.key.Can(op) {
				ops = append(ops, op)
			}
		}
		if len(ops) == 0 {
			return Errorf(StatusNotPermitted, "the usage flags allow no operation of such a key")
		}
	}
	for _, op := range ops {
		if !lists(op) {
			return Errorf(StatusNotSupported, "the provider's capabilities do not list %s with such a key", op)
		}
		if need := op.Usage(); q.key.Usage.Extend()&need != need {
			return Errorf(StatusNotPermitted, "%s needs %s", op, need)
		}
	}
	return nil
}

// sequence follows one key through questions that can each be answered with yes.
type sequence struct {
	lines []Capability
	key   Attributes // zero: there is none yet
}

func (s *sequence) next(q question) error {
	switch {
	case q.key.Type == KeyTypeNone:
		return nil // no key takes part
	case q.op == Generate || q.op == Import:
		if s.key.Type != KeyTypeNone {
			return Errorf(StatusAlreadyExists, "the sequence has a key already")
		}
		s.key = q.key
		return nil
	case s.key.Type == KeyTypeNone:
		s.key = q.key // one that was there before
		return nil
	case s.key.Type != q.key.Type || s.key.Bits != q.key.Bits || s.key.Algorithm != q.key.Algorithm:
		return Errorf(StatusNotPermitted, "the sequence has another key, and the policy of a key never changes")
	}
	q.key.Usage = s.key.Usage
	return q.answer(s.lines)
}
