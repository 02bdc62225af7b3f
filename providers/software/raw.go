package software

import (
	"bytes"
	"crypto"
	"crypto/mlkem"
	"crypto/rand"
	"errors"

	"filippo.io/mldsa"
	"github.com/cloudflare/circl/dh/x448"
	circl1024 "github.com/cloudflare/circl/kem/mlkem/mlkem1024"
	circl768 "github.com/cloudflare/circl/kem/mlkem/mlkem768"
	"github.com/cloudflare/circl/sign/ed448"
	"github.com/cloudflare/circl/sign/mldsa/mldsa44"
	"github.com/cloudflare/circl/sign/mldsa/mldsa65"
	"github.com/cloudflare/circl/sign/mldsa/mldsa87"
	"github.com/cloudflare/circl/sign/slhdsa"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// scheme computes with keys of one kind that crypto/x509 does not know (psa.RawKey): secret and public are their bytes.
// Fields that a kind does not have are nil.
type scheme struct {
	secret   int // bytes of a new one, at random; 0: generate
	generate func() ([]byte, error)
	public   func(secret []byte) ([]byte, error)
	check    func(public []byte) error
	derive   func(secret []byte) ([]byte, error) // the public key, where public only takes it out of secret
	expand   func(secret []byte) []byte          // the form that files may have beside the seed

	sign        func(secret, message []byte) ([]byte, error)
	verify      func(public, message, signature []byte) bool
	agree       func(secret, peer []byte) ([]byte, error)
	encapsulate func(public []byte) (ciphertext, secret []byte, err error)
	decapsulate func(secret, ciphertext []byte) ([]byte, error)
	ciphertext  int // bytes
}

type kind struct {
	t    psa.KeyType // of the pair
	bits int
}

var schemes = newSchemes()

func newSchemes() map[kind]*scheme {
	all := map[kind]*scheme{
		{psa.ECCKeyPair(psa.TwistedEdwards), 448}: {
			secret: ed448.SeedSize,
			public: func(secret []byte) ([]byte, error) {
				return []byte(ed448.NewKeyFromSeed(secret).Public().(ed448.PublicKey)), nil
			},
			check: func([]byte) error { return nil }, // each string of that length is one (RFC 8032, 5.2.7)
			sign: func(secret, message []byte) ([]byte, error) {
				k := ed448.NewKeyFromSeed(secret)
				defer psa.Wipe(k)
				return ed448.Sign(k, message, ""), nil
			},
			verify: func(public, message, signature []byte) bool { return ed448.Verify(public, message, signature, "") },
		},
		{psa.ECCKeyPair(psa.Montgomery), 448}: {
			secret: x448.Size,
			public: func(secret []byte) ([]byte, error) {
				var p, s x448.Key
				copy(s[:], secret)
				x448.KeyGen(&p, &s)
				clear(s[:])
				return p[:], nil
			},
			check: func([]byte) error { return nil }, // RFC 7748, 5
			agree: func(secret, peer []byte) ([]byte, error) {
				var shared, s, p x448.Key
				copy(s[:], secret)
				copy(p[:], peer)
				defer clear(s[:])
				if !x448.Shared(&shared, &s, &p) {
					return nil, errors.New("the point has a small order")
				}
				return shared[:], nil
			},
		},
		{psa.KeyTypeMLKEMKeyPair, 768}:  mlkem768(),
		{psa.KeyTypeMLKEMKeyPair, 1024}: mlkem1024(),
	}
	for bits, p := range map[int]mldsa.Parameters{128: mldsa.MLDSA44(), 192: mldsa.MLDSA65(), 256: mldsa.MLDSA87()} {
		all[kind{psa.KeyTypeMLDSAKeyPair, bits}] = mldsaScheme(p)
	}
	for f, ids := range map[psa.SLHDSAFamily]map[int]slhdsa.ID{
		psa.SLHDSASHA2F:  {128: slhdsa.SHA2_128f, 192: slhdsa.SHA2_192f, 256: slhdsa.SHA2_256f},
		psa.SLHDSASHAKEF: {128: slhdsa.SHAKE_128f, 192: slhdsa.SHAKE_192f, 256: slhdsa.SHAKE_256f},
	} {
		for bits, id := range ids {
			all[kind{psa.SLHDSAKeyPair(f), bits}] = slhdsaScheme(id)
		}
	}
	for k, expand := range expansions {
		all[k].expand = expand
	}
	return all
}

// expansions of the seeds of ML-DSA (FIPS 204, 4.2) and ML-KEM (FIPS 203, 7.1), to compare them with those in files.
var expansions = map[kind]func(seed []byte) []byte{
	{psa.KeyTypeMLDSAKeyPair, 128}: func(seed []byte) []byte {
		_, k := mldsa44.NewKeyFromSeed((*[32]byte)(seed))
		return k.Bytes()
	},
	{psa.KeyTypeMLDSAKeyPair, 192}: func(seed []byte) []byte {
		_, k := mldsa65.NewKeyFromSeed((*[32]byte)(seed))
		return k.Bytes()
	},
	{psa.KeyTypeMLDSAKeyPair, 256}: func(seed []byte) []byte {
		_, k := mldsa87.NewKeyFromSeed((*[32]byte)(seed))
		return k.Bytes()
	},
	{psa.KeyTypeMLKEMKeyPair, 768}: func(seed []byte) []byte {
		b := make([]byte, circl768.PrivateKeySize)
		_, k := circl768.NewKeyFromSeed(seed)
		k.Pack(b)
		return b
	},
	{psa.KeyTypeMLKEMKeyPair, 1024}: func(seed []byte) []byte {
		b := make([]byte, circl1024.PrivateKeySize)
		_, k := circl1024.NewKeyFromSeed(seed)
		k.Pack(b)
		return b
	},
}

func mldsaScheme(p mldsa.Parameters) *scheme {
	return &scheme{
		secret: mldsa.PrivateKeySize,
		public: func(secret []byte) ([]byte, error) {
			k, err := mldsa.NewPrivateKey(p, secret)
			if err != nil {
				return nil, err
			}
			return k.PublicKey().Bytes(), nil
		},
		check: func(public []byte) error {
			_, err := mldsa.NewPublicKey(p, public)
			return err
		},
		sign: func(secret, message []byte) ([]byte, error) {
			k, err := mldsa.NewPrivateKey(p, secret)
			if err != nil {
				return nil, err
			}
			return k.Sign(nil, message, crypto.Hash(0))
		},
		verify: func(public, message, signature []byte) bool {
			k, err := mldsa.NewPublicKey(p, public)
			return err == nil && mldsa.Verify(k, message, signature, nil) == nil
		},
	}
}

func slhdsaScheme(id slhdsa.ID) *scheme {
	private := func(secret []byte) (*slhdsa.PrivateKey, error) {
		k := &slhdsa.PrivateKey{ID: id}
		return k, k.UnmarshalBinary(secret)
	}
	return &scheme{
		generate: func() ([]byte, error) {
			_, k, err := slhdsa.GenerateKey(rand.Reader, id)
			if err != nil {
				return nil, err
			}
			return k.MarshalBinary()
		},
		public: func(secret []byte) ([]byte, error) {
			k, err := private(secret)
			if err != nil {
				return nil, err
			}
			return k.PublicKey().MarshalBinary()
		},
		check: func(public []byte) error {
			k := &slhdsa.PublicKey{ID: id}
			return k.UnmarshalBinary(public)
		},
		derive: func(secret []byte) ([]byte, error) { // two seeds, the public seed and the root (FIPS 205, 9.1)
			public, _, err := slhdsa.GenerateKey(bytes.NewReader(secret[:len(secret)/4*3]), id)
			if err != nil {
				return nil, err
			}
			return public.MarshalBinary()
		},
		sign: func(secret, message []byte) ([]byte, error) {
			k, err := private(secret)
			if err != nil {
				return nil, err
			}
			return slhdsa.SignRandomized(k, rand.Reader, slhdsa.NewMessage(message), nil)
		},
		verify: func(public, message, signature []byte) bool {
			k := &slhdsa.PublicKey{ID: id}
			return k.UnmarshalBinary(public) == nil && slhdsa.Verify(k, slhdsa.NewMessage(message), signature, nil)
		},
	}
}

func mlkem768() *scheme {
	return &scheme{
		secret: mlkem.SeedSize, ciphertext: mlkem.CiphertextSize768,
		public: func(secret []byte) ([]byte, error) {
			k, err := mlkem.NewDecapsulationKey768(secret)
			if err != nil {
				return nil, err
			}
			return k.EncapsulationKey().Bytes(), nil
		},
		check: func(public []byte) error {
			_, err := mlkem.NewEncapsulationKey768(public)
			return err
		},
		encapsulate: func(public []byte) (ciphertext, secret []byte, err error) {
			k, err := mlkem.NewEncapsulationKey768(public)
			if err != nil {
				return nil, nil, err
			}
			secret, ciphertext = k.Encapsulate()
			return ciphertext, secret, nil
		},
		decapsulate: func(secret, ciphertext []byte) ([]byte, error) {
			k, err := mlkem.NewDecapsulationKey768(secret)
			if err != nil {
				return nil, err
			}
			return k.Decapsulate(ciphertext)
		},
	}
}

func mlkem1024() *scheme {
	return &scheme{
		secret: mlkem.SeedSize, ciphertext: mlkem.CiphertextSize1024,
		public: func(secret []byte) ([]byte, error) {
			k, err := mlkem.NewDecapsulationKey1024(secret)
			if err != nil {
				return nil, err
			}
			return k.EncapsulationKey().Bytes(), nil
		},
		check: func(public []byte) error {
			_, err := mlkem.NewEncapsulationKey1024(public)
			return err
		},
		encapsulate: func(public []byte) (ciphertext, secret []byte, err error) {
			k, err := mlkem.NewEncapsulationKey1024(public)
			if err != nil {
				return nil, nil, err
			}
			secret, ciphertext = k.Encapsulate()
			return ciphertext, secret, nil
		},
		decapsulate: func(secret, ciphertext []byte) ([]byte, error) {
			k, err := mlkem.NewDecapsulationKey1024(secret)
			if err != nil {
				return nil, err
			}
			return k.Decapsulate(ciphertext)
		},
	}
}

// schemeOf is the scheme of a kind of key, nil if the standard library has a type for it.
func schemeOf(a psa.Attributes) *scheme { return schemes[kind{a.Type.KeyPair(), a.Bits}] }

// newSecret makes a private key.
func (s *scheme) newSecret() ([]byte, error) {
	if s.generate != nil {
		return s.generate()
	}
	secret := make([]byte, s.secret)
	_, err := rand.Read(secret)
	return secret, err
}

// rawParts writes a key as PKCS #8 and SubjectPublicKeyInfo; secret nil is a public key alone.
func rawParts(a psa.Attributes, secret, public []byte) (pkcs8, spki []byte, err error) {
	if spki, err = (psa.RawKey{Type: a.Type.PublicKey(), Bits: a.Bits, Bytes: public}).Marshal(); err != nil || secret == nil {
		return nil, spki, err
	}
	k := psa.RawKey{Type: a.Type.KeyPair(), Bits: a.Bits, Bytes: secret}
	if isForeign(a) { // few read a public key anywhere else than in RFC 5915's structure
		k.Public = public
	}
	pkcs8, err = k.Marshal()
	return pkcs8, spki, err
}

// rawBytes are the bytes of a psa.RawKey of a's kind.
func rawBytes(a psa.Attributes, der []byte) ([]byte, error) {
	k, err := psa.ParseRawKey(der)
	if err != nil {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "the key is not a %s of %d bits: %w", a.Type, a.Bits, err)
	}
	if k.Type != a.Type || k.Bits != a.Bits {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "the key is a %s of %d bits, but the attributes say %s of %d bits", k.Type, k.Bits,
			a.Type, a.Bits)
	}
	return k.Bytes, nil
}

// parseRaw reads a key of a's kind: its bytes, and those of its public part.
func (s *scheme) parseRaw(a psa.Attributes, der []byte) (secret, public []byte, err error) {
	b, err := rawBytes(a, der)
	if err != nil {
		return nil, nil, err
	}
	if a.Type.IsPublicKey() {
		public = b
		err = s.check(public)
	} else {
		secret = b
		public, err = s.public(secret)
	}
	if err != nil {
		return nil, nil, psa.Errorf(psa.StatusInvalidArgument, "the key is damaged: %w", err)
	}
	return secret, public, nil
}
