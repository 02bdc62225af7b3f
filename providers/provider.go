// Package providers defines what a back end (software, a TPM, a PKCS #11 token) does for the KIM, and what every back end
// needs: its settings, PINs from files, files that nobody else can change, and limits that a configuration sets.
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
	// Parallel is how many calls it takes at once; 0 is any number.
	Parallel int
	// Slow is how many slow calls (see Weigher) it takes at once, besides other calls; Parallel is then 0. If Slow is 0, all calls
	// are alike.
	Slow int
	// Short is how many of those other calls it takes at once, any number of which may wait; 0 is any number.
	Short int
}

// Description describes a provider, without asking its device.
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
	// Secret is sealed by the KIM and given back only to Open. It is empty if the device keeps the key itself, and for
	// public keys.
	Secret []byte
	// Object is the device's own name of an adopted key, as Foreign.Object; empty of keys that were made here.
	Object string
}

// Provider is a back end: something that holds keys and computes with them. Its methods may be called at once from
// many goroutines. Errors wrap a psa.Status with the device's own words. An error whose outcome is unknown (see
// psa.OutcomeUnknown) leaves it to a later Destroy to find out.
type Provider interface {
	Describe() Description
	// Identity asks the device for its identity (token serial, SRK name), which reveals a replaced device and checks that
	// the device responds. Marks may follow, each after a "#": SameDevice compares them.
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

// SameDevice says whether the identity that a device has now is that of the known device. If the known identity has marks,
// each after a "#", the device must still have one of them.
func SameDevice(known, now string) bool {
	k, n := strings.Split(known, "#"), strings.Split(now, "#")
	return k[0] == n[0] && (len(k) == 1 || slices.ContainsFunc(k[1:], func(mark string) bool { return slices.Contains(n[1:], mark) }))
}

// Key is an open key. Begin refuses every (operation, algorithm) that the capabilities do not list with
// StatusNotSupported. It does not check usage flags: the KIM has done that.
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
	// Slow says whether an operation on a key with these attributes (psa.Generate and psa.Import make one) keeps a processor
	// busy for so long that other users notice.
	Slow(op psa.Operation, a psa.Attributes) bool
	// Quick says whether its Run waits for nobody, and takes about a millisecond of a processor at most if its main input has
	// at most QuickInput bytes: then it costs less than to give it a goroutine of its own. Slow ones are never quick.
	Quick(op psa.Operation, a psa.Attributes) bool
}

// QuickInput is how many bytes of input a quick operation (see Weigher) may hold.
const QuickInput = 64 << 10

// Foreign is a key on the device, also one that another program made.
type Foreign struct {
	// Object is its name for Adopt and DestroyObject, "id=6b6579" or "handle=0x81000001": no other key of this device
	// has it.
	Object string
	// Handle is its handle if it was made here, else zero.
	Handle Handle
	Label  string // what other tools call it; may be empty, and need not be unique
	// Attributes are what Adopt gives it by default. Type, Bits and Algorithm are none if it cannot be adopted.
	Attributes psa.Attributes
}

// Adopter is implemented by providers whose device can hold keys of other programs.
type Adopter interface {
	// Foreign lists the keys on the device, including those that were made here.
	Foreign(ctx context.Context) ([]Foreign, error)
	// Adopt finds the one key that a reference names (Foreign.Object, or what the provider documents), for use with the
	// attributes a, or with those of Foreign if a.Type is none. Nothing changes on the device. If there is no such key, the
	// status is StatusDoesNotExist; if there are several, or if the key does not fit a, it is StatusInvalidArgument.
	Adopt(ctx context.Context, a psa.Attributes, reference string) (Foreign, Blob, error)
	// DestroyObject destroys the adopted key with this Blob.Public. It succeeds if the key is gone. If another key has taken
	// its name, that key stays, and DestroyObject succeeds. If the device does not show which key it is, the status is
	// StatusNotPermitted.
	DestroyObject(ctx context.Context, object string, public []byte) error
}

// Wrapper is implemented by providers that encrypt a small secret, at most 64 bytes, so that only their device can open it.
type Wrapper interface {
	// Wrap encrypts the secret. With PCRs it opens only while they have their present values; with a PIN, at most MaxPIN
	// bytes (empty: no PIN), only with that PIN.
	Wrap(ctx context.Context, secret []byte, pcrs psa.PCRs, pin []byte) ([]byte, error)
	// Unwrap returns the secret; the caller wipes it. What this device never wrapped is StatusProviderAbsent. The PIN is used
	// if WantsPIN says so, and tried once; an error about it is an ErrPIN.
	Unwrap(ctx context.Context, wrapped, pin []byte) ([]byte, error)
	// WantsPIN says whether wrapped was wrapped with a PIN. It is local: it never waits for the device.
	WantsPIN(wrapped []byte) (bool, error)
}

var (
	// ErrPIN is about the PIN of a Wrapper: there is none, or the device takes none now, or it refused this one.
	ErrPIN = errors.New("the PIN")
	// ErrPINRefused is an ErrPIN: the device refused this PIN, and may have counted a wrong try.
	ErrPINRefused = fmt.Errorf("%w is refused", ErrPIN)
)

// Counters is implemented by providers whose device keeps numbers that only grow, whatever happens to the disk.
type Counters interface {
	// NewCounter makes a counter with this authorization, 1 to 32 bytes that nobody can guess. It returns the reference by
	// which the counter is found again, and its value, which is above that of each counter that the device ever removed.
	NewCounter(ctx context.Context, auth []byte) (reference []byte, value uint64, err error)
	// Counter reads a counter, so that nobody between us and the device can change the value; they can only fake a refusal. If
	// the counter is gone, or another one is in its place, the status is StatusDoesNotExist.
	Counter(ctx context.Context, reference, auth []byte) (uint64, error)
	// Advance adds one to a counter, durably, and returns the new value. After an error it may have added one, too.
	Advance(ctx context.Context, reference, auth []byte) (uint64, error)
	// RemoveCounter removes a counter. It succeeds if the counter is gone. If another counter is in its place, that one stays.
	RemoveCounter(ctx context.Context, reference, auth []byte) error
}

// Certifier is implemented by keys that another key of their provider can vouch for.
type Certifier interface {
	// Certify begins psa.Attest as Begin does, signed by another open key of the same provider instead of the device's own
	// attestation key: with the algorithm that psa.Sign has with it. Either key may be closed before Finish.
	Certify(ctx context.Context, op psa.Op, signer Key) (psa.Run, error)
}

// Attester is implemented by providers whose device can prove to others what it is, what state it is in and which keys it has.
type Attester interface {
	// Attest begins an operation of the device itself. psa.Attest: the main input is a challenge, and the registers are
	// the input "pcrs", as psa.ParsePCRs has them (none: 0 to 7); outputs as those of a key, without "public".
	// psa.ActivateCredential: as that of a key, for the device's attestation key. psa.MakeCredential: the main input is a
	// secret, for the holder of the "endorsement_key" (SubjectPublicKeyInfo, PEM or DER; none: this device's) and of the
	// object with the public area "public" (TPMT_PUBLIC; none: this device's attestation key).
	Attest(ctx context.Context, op psa.Op) (psa.Run, error)
}

// Fact is a line of TOML about a device: its name, with a dot if it belongs to a table, and its value.
type Fact struct{ Name, Value string }

// Informer is implemented by providers whose device can describe itself.
type Informer interface {
	// Facts are in the provider's order. With an error come the facts that the device did give. Facts that take long are
	// kept for the next call.
	Facts(ctx context.Context) ([]Fact, error)
}
