// Package software is the provider that computes in this process, mostly with the standard library's cryptography. Its keys
// are entirely in the blob that the KIM keeps: Blob.Secret is PKCS#8 in DER or the bytes of a symmetric key, Blob.Public the
// SubjectPublicKeyInfo. A public key alone has no Secret.
package software

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"runtime"
	"runtime/debug"
	"slices"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/psa/secret"
)

// Type is the back end. Its alias is what Parsec's configuration calls software keys.
var Type = providers.Type{
	Name:    "Software",
	Aliases: []string{"MbedCrypto"},
	New: func(context.Context, providers.Config) (providers.Provider, error) {
		return provider{}, nil
	},
}

// provider has no state: each key is in its blob.
type provider struct{}

var (
	_ providers.Random = provider{}
	_ providers.Hasher = provider{}

	_ providers.Weigher = provider{}
)

// processors are those that Go found at its start; the daemon has it use more threads than that.
var processors = runtime.GOMAXPROCS(0)

func (provider) Describe() providers.Description {
	return providers.Description{
		Type: Type.Name,
		// The UUID of Parsec's Mbed Crypto provider, which this one replaces for Parsec's clients.
		TypeUUID:    "1c1139dc-ad7c-47dc-ad6b-db6fdb466552",
		Description: "Keys in software, sealed by the key store",
		Vendor:      "parsecfs",
		Version:     version(),
		Location:    "local",
		// One processor is kept free for short operations. Of those run half as many again as there are processors: fewer leave a
		// processor idle until the next one has its turn, and more keep a user's only one waiting for what another user has begun.
		Limits: providers.Limits{Slow: max(1, processors-1), Short: processors + (processors+1)/2},
	}
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return ""
}

// Identity is constant: there is no device that could be replaced.
func (provider) Identity(ctx context.Context) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	return "software", nil
}

func (provider) Capabilities(ctx context.Context) ([]psa.Capability, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	lines := slices.Clone(table)
	for i := range lines {
		lines[i].Operations = slices.Clone(lines[i].Operations) // the caller's own; the table stays as it is
	}
	return lines, nil
}

// Create makes the blob (psa_generate_key, psa_import_key). It stores nothing, so it does not use the handle.
func (provider) Create(ctx context.Context, _ providers.Handle, a psa.Attributes, m *psa.Material) (providers.Blob, error) {
	if err := ctx.Err(); err != nil {
		return providers.Blob{}, err
	}
	if err := a.Validate(); err != nil {
		return providers.Blob{}, err
	}
	op := psa.Import
	if m == nil {
		op = psa.Generate
		if a.Type.IsPublicKey() { // PSA's status, psa_generate_key
			return providers.Blob{}, psa.Errorf(psa.StatusInvalidArgument, "a %s cannot be generated", a.Type).
				WithHint("import the public key, or generate a key pair")
		}
	}
	if !supports(op, a.Type, a.Bits, a.Algorithm) {
		return providers.Blob{}, errUnsupported(op, a, a.Algorithm)
	}
	if a.PCRs != 0 {
		return providers.Blob{}, psa.Errorf(psa.StatusNotSupported, "a key in software cannot be bound to PCRs").
			WithHint("use a provider of type Tpm")
	}
	var b providers.Blob
	var err error
	secret.Do(func() {
		if m == nil {
			b, err = generate(a)
		} else {
			b, err = take(a, m)
		}
	})
	return b, err
}

// curves are those of PSA_ECC_FAMILY_SECP_R1 in the table.
var curves = map[int]elliptic.Curve{224: elliptic.P224(), 256: elliptic.P256(), 384: elliptic.P384(), 521: elliptic.P521()}

func generate(a psa.Attributes) (providers.Blob, error) {
	var private crypto.PrivateKey
	var err error
	if s := schemeOf(a); s != nil {
		secret, err := s.newSecret()
		if err != nil {
			return providers.Blob{}, psa.Errorf(psa.StatusGenericError, "the key cannot be generated: %w", err)
		}
		defer psa.Wipe(secret)
		public, err := s.public(secret)
		if err != nil {
			return providers.Blob{}, psa.Errorf(psa.StatusGenericError, "the key cannot be generated: %w", err)
		}
		return rawBlob(a, secret, public)
	}
	switch {
	case isForeign(a):
		private, err = newForeign(a)
	case !a.Type.IsAsymmetric():
		secret := make([]byte, a.Bits/8)
		if _, err := rand.Read(secret); err != nil {
			return providers.Blob{}, psa.Errorf(psa.StatusInsufficientEntropy, "cannot make a random key: %w", err)
		}
		return providers.Blob{Secret: secret}, nil
	case a.Type.IsRSA():
		private, err = rsa.GenerateKey(rand.Reader, a.Bits)
	case a.Type.Family() == psa.SECPR1:
		private, err = ecdsa.GenerateKey(curves[a.Bits], rand.Reader)
	case a.Type.Family() == psa.TwistedEdwards:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	case a.Type.Family() == psa.Montgomery:
		private, err = ecdh.X25519().GenerateKey(rand.Reader)
	default:
		return providers.Blob{}, errUnsupported(psa.Generate, a, a.Algorithm)
	}
	if err != nil {
		return providers.Blob{}, psa.Errorf(psa.StatusGenericError, "the key cannot be generated: %w", err)
	}
	defer wipe(private)
	return blobOf(a, private)
}

// take checks material against the attributes. It encodes the key again, so that nothing else gets into the blob.
func take(a psa.Attributes, m *psa.Material) (providers.Blob, error) {
	want := psa.FormatPKCS8
	switch {
	case a.Type.IsPublicKey():
		want = psa.FormatSPKI
	case !a.Type.IsAsymmetric():
		want = psa.FormatRaw
	}
	if m.Format != want {
		return providers.Blob{}, psa.Errorf(psa.StatusInvalidArgument, "the material is %s, but a %s key needs %s", m.Format, a.Type, want)
	}
	if s := schemeOf(a); s != nil {
		secret, public, err := s.parseRaw(a, m.Data)
		if err == nil {
			err = contradiction(a, m.Data, public)
		}
		if err != nil {
			return providers.Blob{}, err
		}
		return rawBlob(a, secret, public)
	}
	switch want {
	case psa.FormatRaw:
		if err := checkLength(a, m.Data); err != nil {
			return providers.Blob{}, err
		}
		return providers.Blob{Secret: bytes.Clone(m.Data)}, nil
	case psa.FormatSPKI:
		pub, err := parsePublic(a, m.Data)
		if err != nil {
			return providers.Blob{}, err
		}
		der, err := publicDER(a, pub)
		if err != nil {
			return providers.Blob{}, err
		}
		return providers.Blob{Public: der}, nil
	}
	private, err := parsePrivate(a, m.Data)
	if err != nil {
		return providers.Blob{}, err
	}
	defer wipe(private)
	if isForeign(a) {
		if err := contradiction(a, m.Data, foreignPoint(a, private.(crypto.Signer).Public())); err != nil {
			return providers.Blob{}, err
		}
	}
	return blobOf(a, private)
}

// contradiction refuses a private key whose file says something else of it than what follows from it.
func contradiction(a psa.Attributes, der, public []byte) error {
	if a.Type.IsPublicKey() {
		return nil
	}
	k, err := psa.ParseRawKey(der)
	if err != nil {
		return err
	}
	s, expanded := schemeOf(a), []byte(nil)
	if s != nil && s.derive != nil {
		derived, err := s.derive(k.Bytes)
		if err != nil {
			return psa.Errorf(psa.StatusInvalidArgument, "a damaged key: %w", err)
		}
		own := psa.RawKey{Public: public} // it stands in the private key, and nothing was derived yet
		if err := own.Contradicts(derived, nil); err != nil {
			return err
		}
	}
	if s != nil && s.expand != nil && len(k.Expanded) > 0 {
		expanded = s.expand(k.Bytes)
		defer psa.Wipe(expanded)
	}
	return k.Contradicts(public, expanded)
}

func rawBlob(a psa.Attributes, secret, public []byte) (b providers.Blob, err error) {
	b.Secret, b.Public, err = rawParts(a, secret, public)
	return b, err
}

func blobOf(a psa.Attributes, private crypto.PrivateKey) (providers.Blob, error) {
	if isForeign(a) {
		pkcs8, spki, err := foreignParts(a, private.(crypto.Signer))
		return providers.Blob{Public: spki, Secret: pkcs8}, err
	}
	public, err := publicDER(a, publicOf(private))
	if err != nil {
		return providers.Blob{}, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return providers.Blob{}, psa.Errorf(psa.StatusGenericError, "the private key cannot be written: %w", err)
	}
	return providers.Blob{Public: public, Secret: secret}, nil
}

func publicDER(a psa.Attributes, pub crypto.PublicKey) (der []byte, err error) {
	if isForeign(a) {
		_, der, err = rawParts(a, nil, foreignPoint(a, pub))
		return der, err
	}
	return psa.MarshalPublicKey(pub)
}

// wipe overwrites an Ed25519 key. The other kinds have copies inside their libraries that nobody can reach.
func wipe(private crypto.PrivateKey) {
	if k, ok := private.(ed25519.PrivateKey); ok {
		psa.Wipe(k)
	}
}

var _ providers.Copier = provider{}

// Copy is the source's blob with another policy.
func (provider) Copy(ctx context.Context, h providers.Handle, a psa.Attributes, from providers.Source) (providers.Blob, error) {
	if a.Type != from.Attributes.Type || a.Bits != from.Attributes.Bits || !supports(psa.Copy, a.Type, a.Bits, a.Algorithm) {
		return providers.Blob{}, errUnsupported(psa.Copy, a, a.Algorithm)
	}
	k, err := open(from.Attributes, from.Blob)
	if err != nil {
		return providers.Blob{}, err
	}
	return providers.Blob{Public: bytes.Clone(from.Blob.Public), Secret: bytes.Clone(from.Blob.Secret)}, k.Close()
}

// Open parses the blob. If the blob does not belong to the key, the status is StatusDataCorrupt.
func (provider) Open(ctx context.Context, _ providers.Handle, a psa.Attributes, b providers.Blob) (providers.Key, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !supports(psa.Import, a.Type, a.Bits, a.Algorithm) {
		return nil, errUnsupported("open", a, a.Algorithm)
	}
	k, err := open(a, b)
	if err != nil {
		return nil, psa.Errorf(psa.StatusDataCorrupt, "the stored key is damaged: %w", err)
	}
	return k, nil
}

// Destroy has nothing to do: the KIM deletes the blob.
func (provider) Destroy(context.Context, providers.Handle) error { return nil }

func (provider) Close() error { return nil }

// Hash hashes with the standard library.
func (provider) Hash(ctx context.Context, op psa.Op) (psa.Run, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !supports(op.Operation, psa.KeyTypeNone, 0, op.Algorithm) {
		return nil, errUnsupported(op.Operation, psa.Attributes{}, op.Algorithm)
	}
	return psa.HashRun(op)
}

// Random fills p from the operating system's generator.
func (provider) Random(ctx context.Context, p []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := rand.Read(p); err != nil {
		return psa.Errorf(psa.StatusInsufficientEntropy, "cannot get random bytes: %w", err)
	}
	return nil
}
