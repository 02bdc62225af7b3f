package transaction

import (
	"context"
	"hash"
	"slices"
	"time"

	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// maxNamed bounds an input beside the main one: a signature of RSA-8192 has 1024 bytes, one of SLH-DSA 49 856.
const maxNamed = 64 << 10

// maxTag is how much longer a ciphertext may be than its plaintext.
const maxTag = 64

// Spec says what the requests of a file are made of.
type Spec struct {
	// Inputs in the order of the plain file's stream; the last one is the main one, which is the rest of the stream.
	// None: the operation takes none, and to read is to ask.
	Inputs []Input
	// Outputs in the order in which the plain file joins them.
	Outputs []Output
}

// Input is one named input of an operation.
type Input struct {
	Name string
	// Cut takes the input off the beginning of the plain file's stream: the first n bytes of b stand for value. An error
	// says that the stream cannot begin so; with more it can, if bytes follow. alone: b is all that was written into the
	// input's own file in a slot. nil: the input can be given in a slot alone, and is empty in the plain file.
	Cut func(a psa.Attributes, b []byte, alone bool) (n int, value []byte, more bool, err error)
	// Required says whether nobody can make the input up, so that without it a slot is ENODATA; nil: it may be missing.
	Required func(psa.Attributes) bool
	// Whole is how many bytes a main input may have that is needed in full before the operation can begin; 0: it streams.
	Whole int64
	// Long inputs may have as many bytes as the body limit says, others 64 KiB.
	Long bool
}

// Output is one named output of an operation.
type Output struct {
	Name string
	// Encode brings it from PSA's encoding into the file's; nil: it stays.
	Encode func(a psa.Attributes, b []byte) ([]byte, error)
	// SlotOnly outputs are not in the plain file.
	SlotOnly bool
	// Text is what stands for an output that carries no bytes of its own.
	Text string
}

// Inputs are the inputs of a request but for the main one, by name; empty ones are not in it.
type Inputs map[string][]byte

// Operation is what one request does. Each request has one of its own.
type Operation interface {
	// Attributes are those of the key, by which inputs are cut and outputs encoded.
	Attributes() psa.Attributes
	// Digest begins a digest of the request's bytes, nil for none.
	Digest() hash.Hash
	// Ready says why it may not run now for whoever asks for the answer.
	Ready(who caller.Caller) error
	// Authorize judges what the inputs name, by whoever asks for the answer.
	Authorize(ctx context.Context, who caller.Caller, in Inputs) error
	// Begin begins it: length is how much of the main input there is, all of it where the input is needed whole. streams:
	// the run keeps nothing of what it is given.
	Begin(ctx context.Context, in Inputs, length int) (run psa.Run, streams bool, err error)
	// Quick says whether it may run in the goroutine of whoever asks for the answer: it waits for nobody, and takes about a
	// millisecond at most for up to providers.QuickInput bytes.
	Quick(who caller.Caller) bool
	// Present says whether the key is still there.
	Present(ctx context.Context) error
	// Ended is told, once, what it came to; request is the digest of its bytes, nil where there is none.
	Ended(by caller.Caller, request hash.Hash, begun time.Time, err error)
	// Path is the file's place, for messages.
	Path() string
}

// Make makes the operation of a user's request at its first byte.
type Make func(ctx context.Context, uid uint32) (Operation, error)

func (s *Spec) bare() bool { return len(s.Inputs) == 0 }

// Parted says whether slots are directories, with a file for each input and output.
func (s *Spec) Parted() bool { return len(s.Inputs) > 1 || len(s.Outputs) > 1 }

var noInput = &Input{}

func (s *Spec) main() *Input {
	if s.bare() {
		return noInput
	}
	return &s.Inputs[len(s.Inputs)-1]
}

// leads says whether something is cut off in front of the main input.
func (s *Spec) leads() bool { return len(s.Inputs) > 1 && s.Inputs[0].Cut != nil }

// cuts says whether anything is cut off the plain file's stream.
func (s *Spec) cuts() bool {
	return slices.ContainsFunc(s.Inputs, func(in Input) bool { return in.Cut != nil })
}

// Part is a file of a directory slot; the zero Part is the plain file.
type Part struct {
	Name    string
	Number  uint64 // among its slot's, from 1
	In, Out bool
	input   *Input
}

// Input says whether the file is an input alone, and gives nothing.
func (p Part) Input() bool { return p.In && !p.Out }

// Parts lists the files of a directory slot: inputs, then outputs. One that is both is one file.
func (s *Spec) Parts() []Part {
	var list []Part
	for i := range s.Inputs {
		list = append(list, Part{Name: s.Inputs[i].Name, Number: uint64(len(list) + 1), In: true, input: &s.Inputs[i]})
	}
outputs:
	for _, o := range s.Outputs {
		for i := range list {
			if list[i].Name == o.Name {
				list[i].Out = true
				continue outputs
			}
		}
		list = append(list, Part{Name: o.Name, Number: uint64(len(list) + 1), Out: true})
	}
	return list
}
