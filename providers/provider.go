package providers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// Handle is the name under which a provider stores a key: CKA_ID, PSA id, slot. The KIM makes it, at random, and
// never uses one twice.
type Handle [16]byte

// Limits are the bounds of a provider that its users can see.
type Limits struct {
	// Parallel is how many calls it takes at once; 0 is as many as there are.
	Parallel int
	// Slow is how many of the calls that Weigher calls slow it takes at once, beside any number of the others; Parallel is 0
	// then. 0 makes no difference between calls.
	Slow int
}

// Description is what a provider says of itself, without asking its device.
type Description struct {
	Type        string // the configuration's provider_type, "Software"
	TypeUUID    string // Parsec's UUID of the type
	Description string
	Vendor      string
	Version     string
	Location    string // "local" or "remote"
	Hardware    bool
	Limits      Limits
}

// Blob is what the KIM keeps of a key for its provider.
type Blob struct {
	// Public is the SubjectPublicKeyInfo (RFC 5280, 4.1.2.7; RFC 8410) in DER of an asymmetric key, else empty.
	Public []byte
	// Secret is sealed by the KIM and given back to Open alone; empty where the device keeps the key itself, and
	// for public keys.
	Secret []byte
	// Object is the device's own name of an adopted key, as Foreign.Object; empty of keys that were made here.
	Object string
}

// Provider is a back end: something that holds keys and computes with them. Its methods may be called at once from
// many goroutines. Errors wrap a psa.Status with the device's own words. An error whose outcome is unknown (see
// psa.OutcomeUnknown) leaves it to a later Destroy to find out.
type Provider interface {
	Describe() Description
	// Identity asks the device who it is (token serial, SRK name), which tells a replaced device; it is the
	// liveness check too. Marks may follow, each behind a "#": SameDevice judges them.
	Identity(ctx context.Context) (string, error)
	// Capabilities lists what works on the device as it is now; each line that names generate works in full.
	Capabilities(ctx context.Context) ([]psa.Capability, error)
	// Create stores a new key under exactly this handle, generated (material nil) or imported, durably before it
	// returns. An existing handle is StatusAlreadyExists and leaves the old key alone.
	Create(ctx context.Context, h Handle, a psa.Attributes, material *psa.Material) (Blob, error)
	// Open is local: it never waits for the device.
	Open(ctx context.Context, h Handle, a psa.Attributes, b Blob) (Key, error)
	// Destroy is idempotent: an absent handle is success.
	Destroy(ctx context.Context, h Handle) error
	Close() error
}

// SameDevice says whether a device that says now who it is, is the known one: marks that were put on it, behind "#", count
// once there are some, and one of those that are known must still be there.
func SameDevice(known, now string) bool {
	k, n := strings.Split(known, "#"), strings.Split(now, "#")
	return k[0] == n[0] && (len(k) == 1 || slices.ContainsFunc(k[1:], func(mark string) bool { return slices.Contains(n[1:], mark) }))
}

// Key is an open key. Begin refuses with StatusNotSupported whatever (operation, algorithm) the capabilities do not
// list; it does not judge usage, which the KIM did.
type Key interface {
	Attributes() psa.Attributes
	// Public is the SubjectPublicKeyInfo in DER, nil for a symmetric key.
	Public() []byte
	Begin(ctx context.Context, op psa.Op) (psa.Run, error)
	// Close wipes what the key holds in memory; runs that have begun stay valid.
	Close() error
}

// Source is a key to copy.
type Source struct {
	Handle     Handle
	Attributes psa.Attributes
	Blob       Blob
}

// Copier is implemented by providers that give a key a second name and policy (psa_copy_key).
type Copier interface {
	// Copy stores a copy under exactly this handle, as Create does a new key; type and size are the source's.
	Copy(ctx context.Context, h Handle, a psa.Attributes, from Source) (Blob, error)
}

// Random is implemented by providers that have a random number generator of their own.
type Random interface {
	// Random fills p (psa_generate_random).
	Random(ctx context.Context, p []byte) error
}

// Hasher is implemented by providers that hash without a key.
type Hasher interface {
	// Hash begins psa_hash_compute: op has psa.Hash and the algorithm.
	Hash(ctx context.Context, op psa.Op) (psa.Run, error)
}

// Weigher is implemented by providers with Limits.Slow.
type Weigher interface {
	// Slow says whether an operation on a key of these attributes, psa.Generate and psa.Import for the making of one, keeps a
	// processor busy for so long that other users feel it.
	Slow(op psa.Operation, a psa.Attributes) bool
}

// Foreign is a key that lies on the device, whoever made it.
type Foreign struct {
	// Object is its name for Adopt and DestroyObject, "id=6b6579" or "handle=0x81000001": no other key of this device
	// has it.
	Object string
	// Handle is the one that it has if it was made here, else zero.
	Handle Handle
	Label  string // what other tools call it; may be empty, and another's too
	// Attributes are those that Adopt gives it where it is asked for none; Type, Bits and Algorithm are none where no
	// key can be made of it.
	Attributes psa.Attributes
}

// Adopter is implemented by providers whose device has keys that others made.
type Adopter interface {
	// Foreign lists the keys on the device, those that were made here too.
	Foreign(ctx context.Context) ([]Foreign, error)
	// Adopt finds the one key that a reference names (Foreign.Object, or what else the provider documents), for use
	// under the attributes a; where a.Type is none, under those of Foreign. Nothing changes on the device. No such
	// key is StatusDoesNotExist, more than one or one that does not fit a is StatusInvalidArgument.
	Adopt(ctx context.Context, a psa.Attributes, reference string) (Foreign, Blob, error)
	// DestroyObject destroys an adopted key, whose Blob.Public is given; an absent one is success, and so is another one
	// that has taken its name, which stays. Where the device does not show which it is, it is StatusNotPermitted.
	DestroyObject(ctx context.Context, object string, public []byte) error
}

// Wrapper is implemented by providers that encrypt a small secret, at most 64 bytes, so that their device alone opens it.
type Wrapper interface {
	// Wrap encrypts the secret; with PCRs it is opened only while those are as they are now, and with a PIN, at most MaxPIN
	// bytes (none: empty), only with that.
	Wrap(ctx context.Context, secret []byte, pcrs psa.PCRs, pin []byte) ([]byte, error)
	// Unwrap gives the secret back; the caller wipes it. What this device never wrapped is StatusProviderAbsent. The PIN
	// counts where WantsPIN says so, and then its errors are an ErrPIN where they are about it; it is tried once.
	Unwrap(ctx context.Context, wrapped, pin []byte) ([]byte, error)
	// WantsPIN says whether it was wrapped with a PIN. It is local: it never waits for the device.
	WantsPIN(wrapped []byte) (bool, error)
}

var (
	// ErrPIN is about the PIN of a Wrapper: none is given, or the device does not take one now, or it refused this one.
	ErrPIN = errors.New("the PIN")
	// ErrPINRefused is the ErrPIN of a device that refused this PIN, and may have counted that.
	ErrPINRefused = fmt.Errorf("%w is refused", ErrPIN)
)

// Counters is implemented by providers whose device keeps numbers that only grow, whatever becomes of the disk.
type Counters interface {
	// NewCounter makes a counter under this authorization, 1 to 32 bytes that nobody guesses, and gives the reference by which
	// it is found again, and its value. It is above that of each counter that the device ever removed.
	NewCounter(ctx context.Context, auth []byte) (reference []byte, value uint64, err error)
	// Counter reads it, so that nobody on the way changes the answer. One that is gone, or another one in its place, is
	// StatusDoesNotExist; a refusal can be made up on the way, a value cannot.
	Counter(ctx context.Context, reference, auth []byte) (uint64, error)
	// Advance makes it one more, durably, and gives the new value. After an error it may be one more, too.
	Advance(ctx context.Context, reference, auth []byte) (uint64, error)
	// RemoveCounter gives its place back; an absent one is success, and so is another one in its place, which stays.
	RemoveCounter(ctx context.Context, reference, auth []byte) error
}

// Certifier is implemented by keys that another key of their provider can vouch for.
type Certifier interface {
	// Certify begins psa.Attest as Begin does, signed by another open key of the same provider instead of the device's own
	// attestation key: with the algorithm that psa.Sign has with it. Either key may be closed before Finish.
	Certify(ctx context.Context, op psa.Op, signer Key) (psa.Run, error)
}

// Attester is implemented by providers whose device proves to others what it is, what state it is in and what keys it has.
type Attester interface {
	// Attest begins an operation of the device itself. psa.Attest: the main input is a challenge, and the registers are
	// the input "pcrs", as psa.ParsePCRs has them (none: 0 to 7); outputs as those of a key, without "public".
	// psa.ActivateCredential: as that of a key, for the device's attestation key. psa.MakeCredential: the main input is a
	// secret, for the holder of the "endorsement_key" (SubjectPublicKeyInfo, PEM or DER; none: this device's) and of the
	// object with the public area "public" (TPMT_PUBLIC; none: this device's attestation key).
	Attest(ctx context.Context, op psa.Op) (psa.Run, error)
}

// Fact is a line of TOML that a device says of itself: its name, dotted where it belongs to a table, and its value.
type Fact struct{ Name, Value string }

// Informer is implemented by providers whose device says something of itself.
type Informer interface {
	// Facts are in an order of their own; beside an error are those that the device did tell. It keeps what takes long.
	Facts(ctx context.Context) ([]Fact, error)
}
