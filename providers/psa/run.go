package psa

import "context"

// Op says what a Run is to do: plain data, so that it can be sent to another process.
type Op struct {
	Operation Operation
	// Algorithm is concrete: any-hash policies were resolved before (Attributes.Resolve).
	Algorithm Algorithm
	// Inputs holds the small named inputs: "signature", "nonce", "additional_data", "salt", "label".
	// A missing nonce of an encryption is made by the provider and is an output.
	Inputs map[string][]byte
	// Limit is the most bytes of the main input that a Run may hold when it cannot stream it.
	Limit int64
}

// Run is one operation on its way. Begin and Write are local and never wait for a device; Finish alone may.
// Write takes the streamed main input (message, hash, plaintext, ciphertext). After Finish or Abort the Run holds
// no secret. A Run is used by one goroutine at a time.
type Run interface {
	Write(p []byte) (int, error)
	Finish(ctx context.Context) (Result, error)
	Abort()
}

// Result is what a Run gives: outputs by name ("signature", "hash", "nonce", "ciphertext", "plaintext", "key", ...).
// Signatures are in PSA's encoding (ECDSA: r||s). The caller owns and wipes them.
type Result struct {
	Outputs map[string][]byte
}

// Wipe overwrites the outputs.
func (r Result) Wipe() {
	for _, b := range r.Outputs {
		Wipe(b)
	}
}

// Streams says whether a Run of the operation keeps nothing of its main input, whatever its length: where it is hashed, or
// a MAC is made of it.
func (o Op) Streams() bool {
	a := o.Algorithm
	return a.IsMAC() || o.Operation == Hash || a.IsHashAndSign() && (o.Operation == Sign || o.Operation == Verify)
}
