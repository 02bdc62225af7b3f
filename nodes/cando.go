package nodes

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// canDoMost bounds the questions of one request, in bytes.
const canDoMost = 64 << 10

// canDoRun answers questions about a provider.
type canDoRun struct {
	v    *view
	text []byte
}

func beginCanDo(ctx context.Context, f *feed, _ psa.Op) (psa.Run, error) {
	return &canDoRun{v: &view{ctx: ctx, t: f.r.t, provider: f.r.at.provider, uid: f.r.uid}}, nil
}

func (r *canDoRun) Write(p []byte) (int, error) {
	r.text = append(r.text, p...)
	return len(p), nil
}

func (r *canDoRun) Abort() { r.text = nil }

func (r *canDoRun) Finish(context.Context) (psa.Result, error) {
	var out bytes.Buffer
	say := func(prefix string, why error) {
		if why == nil {
			fmt.Fprintf(&out, "%syes\n", prefix)
			return
		}
		fmt.Fprintf(&out, "%sno: %s\n", prefix, oneLine(why.Error()))
	}
	lines := withCSR(r.v.provider.Capabilities())
	one := sequence{lines: lines}
	var broken error
	asked := 0
	for text := range strings.Lines(string(r.text)) {
		if strings.TrimSpace(text) == "" {
			continue
		}
		asked++
		q, err := parseQuestion(text)
		if err == nil {
			err = q.answer(lines)
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
		return psa.Result{}, psa.Errorf(psa.StatusInvalidArgument, "nothing was asked").WithHint("ask, a line each: generate ecdsa-p256-sha256")
	}
	say("sequence: ", broken)
	return psa.Result{Outputs: map[string][]byte{"answers": out.Bytes()}}, nil
}

// question is one line: an operation, or use (all that the usage flags name), and what key it is about.
type question struct {
	op  psa.Operation
	use bool
	key psa.Attributes // zero: about no key
	alg psa.Algorithm  // of hash
}

const askUse = "use"

// parseQuestion reads "sign ecdsa-p256-sha256", "generate PSA_KEY_TYPE_AES 256 PSA_ALG_GCM PSA_KEY_USAGE_ENCRYPT" (type,
// size, algorithm, and the usage flags, which are otherwise a template's), "random", "attest" (the device itself) and the
// like, or "hash sha256".
func parseQuestion(line string) (question, error) {
	words := questionWords(line)
	q := question{op: psa.Operation(words[0]), use: words[0] == askUse}
	if !q.use && !slices.Contains(psa.Operations(), q.op) {
		return q, psa.Errorf(psa.StatusInvalidArgument, "unknown operation %q; known are use, %s", words[0], joined(psa.Operations()))
	}
	switch {
	case len(words) == 1 && (q.op == psa.Random || q.op == psa.Attest || q.op == psa.ActivateCredential || q.op == psa.MakeCredential):
		return q, nil
	case q.op == psa.Hash && len(words) == 2:
		for _, r := range hashRows {
			if r.name == words[1] || r.alg.String() == words[1] {
				q.alg = r.alg
				return q, nil
			}
		}
		return q, psa.Errorf(psa.StatusInvalidArgument, "unknown hash %q", words[1])
	case q.op == psa.Random || q.op == psa.Hash || q.op == psa.MakeCredential || len(words) < 2 || len(words) == 3 || len(words) > 5:
		return q, psa.Errorf(psa.StatusInvalidArgument, "%d words", len(words)).
			WithHint("ask for an operation and a template, or a key type, a size, an algorithm and usage flags")
	}
	var err error
	if len(words) == 2 {
		q.key, err = psa.ParseTemplate(words[1])
		return q, err
	}
	if q.key.Type, err = psa.ParseKeyType(words[1]); err != nil {
		return q, err
	}
	if q.key.Bits, err = strconv.Atoi(words[2]); err != nil {
		return q, psa.Errorf(psa.StatusInvalidArgument, "%q is no size in bits", words[2])
	}
	if q.key.Algorithm, err = psa.ParseAlgorithm(words[3]); err != nil {
		return q, err
	}
	if len(words) == 5 {
		q.key.Usage, err = psa.ParseUsage(words[4])
		return q, err
	}
	q.key.Usage = (psa.Capability{Type: q.key.Type, Bits: q.key.Bits, Algorithm: q.key.Algorithm}).Attributes().Usage
	return q, nil
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

func joined(ops []psa.Operation) string {
	var b strings.Builder
	for i, op := range ops {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(op))
	}
	return b.String()
}

// answer says why the provider cannot do what is asked, nil if it can.
func (q question) answer(lines []psa.Capability) error {
	lists := func(op psa.Operation) bool {
		return slices.ContainsFunc(lines, func(c psa.Capability) bool {
			if q.key.Type == psa.KeyTypeNone {
				return c.Has(op) && c.Covers(psa.KeyTypeNone, 0, q.alg)
			}
			return c.Has(op) && c.Covers(q.key.Type, q.key.Bits, q.key.Algorithm)
		})
	}
	if q.key.Type == psa.KeyTypeNone {
		if !lists(q.op) {
			return psa.Errorf(psa.StatusNotSupported, "the provider's capabilities do not list it")
		}
		return nil
	}
	if err := q.key.Validate(); err != nil {
		return err
	}
	ops := []psa.Operation{q.op}
	if q.use {
		ops = nil
		for _, op := range psa.Operations() {
			if need := op.Usage(); op != psa.CSR && need != 0 && q.key.Usage&need == need && q.key.Can(op) {
				ops = append(ops, op)
			}
		}
		if len(ops) == 0 {
			return psa.Errorf(psa.StatusNotPermitted, "the usage flags name no operation of such a key")
		}
	}
	for _, op := range ops {
		if !lists(op) {
			return psa.Errorf(psa.StatusNotSupported, "the provider's capabilities do not list %s with such a key", op)
		}
		if need := op.Usage(); q.key.Usage.Extend()&need != need {
			return psa.Errorf(psa.StatusNotPermitted, "%s needs %s", op, need)
		}
	}
	return nil
}

// sequence follows one key through questions that can each be answered with yes.
type sequence struct {
	lines []psa.Capability
	key   psa.Attributes // zero: there is none yet
}

func (s *sequence) next(q question) error {
	switch {
	case q.key.Type == psa.KeyTypeNone:
		return nil // no key takes part
	case q.op == psa.Generate || q.op == psa.Import:
		if s.key.Type != psa.KeyTypeNone {
			return psa.Errorf(psa.StatusAlreadyExists, "there is a key already")
		}
		s.key = q.key
		return nil
	case s.key.Type == psa.KeyTypeNone:
		s.key = q.key // one that was there before
		return nil
	case s.key.Type != q.key.Type || s.key.Bits != q.key.Bits || s.key.Algorithm != q.key.Algorithm:
		return psa.Errorf(psa.StatusNotPermitted, "the key is another one, and a policy never changes")
	}
	q.key.Usage = s.key.Usage
	return q.answer(s.lines)
}

// driverDescription is the part of PSA's driver description that tells what a driver does (PSA unified driver
// interface, "Driver description capability").
type driverDescription struct {
	Prefix       string             `json:"prefix"`
	Type         string             `json:"type"`
	Capabilities []driverCapability `json:"capabilities"`
}

type driverCapability struct {
	EntryPoints []string `json:"entry_points"`
	KeyTypes    []string `json:"key_types,omitempty"`
	KeySizes    []int    `json:"key_sizes,omitempty"`
	Algorithms  []string `json:"algorithms,omitempty"`
}

// entryPoints are the driver interface's names of operations.
var entryPoints = map[psa.Operation][]string{
	psa.Generate:     {"generate_key"},
	psa.Import:       {"import_key"},
	psa.Export:       {"export_key"},
	psa.ExportPublic: {"export_public_key"},
	psa.Sign:         {"sign_message"},
	psa.SignHash:     {"sign_hash"},
	psa.Verify:       {"verify_message"},
	psa.VerifyHash:   {"verify_hash"},
	psa.Mac:          {"mac_compute"},
	psa.VerifyMac:    {"mac_verify"},
	psa.Agree:        {"key_agreement"},
	psa.Hash:         {"hash_compute"},
	psa.Random:       {"get_entropy"},
}

func driverEntryPoints(c psa.Capability, op psa.Operation) []string {
	if op != psa.Encrypt && op != psa.Decrypt {
		return entryPoints[op]
	}
	switch {
	case c.Algorithm.IsAEAD():
		return []string{"aead_" + string(op)}
	case c.Algorithm.IsAsymmetricEncryption():
		return []string{"asymmetric_" + string(op)}
	}
	return []string{"cipher_" + string(op)}
}

func (v *view) capabilitiesJSON() ([]byte, error) {
	d := driverDescription{Prefix: strings.ToLower(v.provider.Describe().Type), Type: "opaque", Capabilities: []driverCapability{}}
	for _, c := range v.provider.Capabilities() {
		var x driverCapability
		for _, op := range c.Operations {
			x.EntryPoints = append(x.EntryPoints, driverEntryPoints(c, op)...)
		}
		if len(x.EntryPoints) == 0 {
			continue // PSA's drivers attest nothing
		}
		if c.Type != psa.KeyTypeNone {
			x.KeyTypes, x.KeySizes = []string{c.Type.String()}, c.Sizes()
		}
		if c.Algorithm != psa.AlgNone {
			x.Algorithms = []string{c.Algorithm.String()}
		}
		d.Capabilities = append(d.Capabilities, x)
	}
	b, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return nil, psa.Errorf(psa.StatusGenericError, "%w", err)
	}
	return append(b, '\n'), nil
}
