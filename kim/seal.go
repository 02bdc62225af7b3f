package kim

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// sealSchema is the version of what seals hold and are bound to. It is part of the associated data, so it changes
// only together with a new way to seal, never with the layout of the store.
const sealSchema = 1

const dataKeyBytes = 32

// Sealer seals the secrets of rows with the KIM's data key: AES-256-GCM, bound to the row's key, provider and policy
// (section 7, last paragraph).
type Sealer struct {
	aead     cipher.AEAD
	audit    []byte
	absent   error
	warnings []string
}

// OpenSealer unwraps the data key, or makes it where the KIM has none yet. dir holds the wrapping key. That one
// missing, damaged or another one's is no error of OpenSealer: then Err, and every Seal and Unseal, say so.
func OpenSealer(ctx context.Context, s Store, dir string) (*Sealer, error) {
	path := filepath.Join(dir, wrappingFile)
	stored, have, err := s.DataKey(ctx)
	if err != nil {
		return nil, err
	}
	w, err := readWrappingKey(path)
	if errors.Is(err, fs.ErrNotExist) && !have {
		// The file comes first: a crash before the row leaves a key that the next start adopts, and nothing is sealed.
		if err = makeWrappingKey(path); err != nil {
			return nil, fileError(err, "cannot make the wrapping key %s", path)
		}
		w, err = readWrappingKey(path)
	}
	if err != nil {
		return &Sealer{absent: wrappingAbsent(path, err)}, nil
	}
	defer psa.Wipe(w.key[:])
	key := make([]byte, dataKeyBytes)
	defer func() { psa.Wipe(key) }()
	if !have {
		rand.Read(key)
		stored = WrappedKey{Kind: "file", WrappingID: w.id}
		stored.Wrapped = newGCM(w.key[:]).Seal(nil, nil, key, stored.associated())
		if err := s.InitDataKey(ctx, stored); err != nil {
			return nil, err
		}
	} else {
		if key, err = unwrap(stored, w); err != nil {
			return &Sealer{absent: wrappingAbsent(path, err)}, nil
		}
	}
	audit, err := hkdf.Key(sha256.New, key, nil, "parsecfs audit 1", sha256.Size)
	if err != nil {
		return nil, psa.Errorf(psa.StatusGenericError, "cannot derive the audit key: %w", err)
	}
	sealer := &Sealer{aead: newGCM(key), audit: audit, warnings: []string{"the wrapping key " + path + " lies on the same disk as the KIM: " +
		"whoever can read both can read the secret keys in it"}}
	if w.mode&0o077 != 0 {
		sealer.warnings = append(sealer.warnings, fmt.Sprintf("the wrapping key %s is open to others (mode %04o); chmod 0600 it",
			path, w.mode))
	}
	return sealer, nil
}

func wrappingAbsent(path string, err error) error {
	what := "is damaged"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		what = "is missing"
	case errors.Is(err, errOtherKey):
		what = "is not the one of this KIM"
	case errors.As(err, new(*fs.PathError)):
		what = "cannot be read"
	}
	return psa.Errorf(psa.StatusProviderAbsent, "secrets in the KIM stay sealed: the wrapping key %s %s: %w", path, what, err).
		WithHint("put the KIM's own wrapping.key back (parsecfs state backup keeps it) and mount again; no new one is ever made")
}

var errOtherKey = errors.New("it has another id")

func unwrap(stored WrappedKey, w wrappingKey) ([]byte, error) {
	if stored.Kind != "file" {
		return nil, fmt.Errorf("the KIM wants a wrapping key of kind %q", stored.Kind)
	}
	if stored.WrappingID != w.id {
		return nil, fmt.Errorf("%w: %x, not %x", errOtherKey, w.id, stored.WrappingID)
	}
	key, err := newGCM(w.key[:]).Open(nil, nil, stored.Wrapped, stored.associated())
	if err != nil {
		return nil, errors.New("it does not unwrap the data key")
	}
	if len(key) != dataKeyBytes {
		psa.Wipe(key)
		return nil, errors.New("what it unwraps is no data key")
	}
	return key, nil
}

func (w WrappedKey) associated() []byte {
	return fmt.Appendf(nil, "parsecfs data key %d %s %x", sealSchema, w.Kind, w.WrappingID)
}

// newGCM is AES-GCM with a nonce of its own making in front of the ciphertext.
func newGCM(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // only for a key of another length than ours
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err) // only for a cipher that is not AES
	}
	return aead
}

// Err says why secrets cannot be sealed or unsealed (StatusProviderAbsent), nil if they can.
func (s *Sealer) Err() error { return s.absent }

// AuditKey is the key under which requests are named in the audit trail (HMAC-SHA-256), nil where the data key is
// absent: derived from it (RFC 5869), so that it lives as long.
func (s *Sealer) AuditKey() []byte { return s.audit }

// Warnings are what a start should tell its user.
func (s *Sealer) Warnings() []string { return s.warnings }

// Seal encrypts the secret of k, a key of the provider with this UUID. The result can be unsealed only for the same
// key, provider, type, bits, algorithm, usage and PCRs.
func (s *Sealer) Seal(k Key, provider [16]byte, secret []byte) ([]byte, error) {
	if s.absent != nil {
		return nil, s.absent
	}
	return s.aead.Seal(nil, nil, secret, sealedFor(k, provider)), nil
}

// Unseal gives back what was sealed for k; the caller wipes it. What was changed, or sealed for another row, is
// StatusDataCorrupt.
func (s *Sealer) Unseal(k Key, provider [16]byte, sealed []byte) ([]byte, error) {
	if s.absent != nil {
		return nil, s.absent
	}
	secret, err := s.aead.Open(nil, nil, sealed, sealedFor(k, provider))
	if err != nil {
		return nil, psa.Errorf(psa.StatusDataCorrupt, "the sealed secret of key %x does not belong to its row, or was damaged", k.ID).
			WithHint("restore the KIM from a backup")
	}
	return secret, nil
}

// sealedFor is the associated data: fixed lengths, and at most one thing behind them, so that no two rows share one.
func sealedFor(k Key, provider [16]byte) []byte {
	b := []byte("parsecfs secret ")
	b = binary.BigEndian.AppendUint32(b, sealSchema)
	b = append(b, k.ID[:]...)
	b = append(b, provider[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(k.Attributes.Type))
	b = binary.BigEndian.AppendUint32(b, uint32(k.Attributes.Bits))
	b = binary.BigEndian.AppendUint32(b, uint32(k.Attributes.Algorithm))
	b = binary.BigEndian.AppendUint32(b, uint32(k.Attributes.Usage))
	if k.Attributes.PCRs != 0 { // what was sealed before there were any still opens
		b = binary.BigEndian.AppendUint32(b, uint32(k.Attributes.PCRs))
	}
	return b
}

// wrappingKey is the content of the file wrapping.key.
type wrappingKey struct {
	id   [16]byte
	key  [32]byte
	mode fs.FileMode
}

// The file is three lines of fixed length: this head, the id and the key in hexadecimal.
const (
	wrappingHead  = "parsecfs wrapping key 1\n"
	wrappingBytes = len(wrappingHead) + len("id  ") + 32 + 1 + len("key ") + 64 + 1
)

func (w *wrappingKey) marshal() []byte {
	b := make([]byte, 0, wrappingBytes)
	b = append(b, wrappingHead...)
	b = append(b, "id  "...)
	b = hex.AppendEncode(b, w.id[:])
	b = append(b, "\nkey "...)
	b = hex.AppendEncode(b, w.key[:])
	return append(b, '\n')
}

func parseWrappingKey(b []byte) (w wrappingKey, err error) {
	bad := errors.New("it is no wrapping key of parsecfs")
	rest, ok := bytes.CutPrefix(b, []byte(wrappingHead))
	if !ok || len(b) != wrappingBytes {
		return w, bad
	}
	id, key, _ := bytes.Cut(rest, []byte("\n"))
	id, ok1 := bytes.CutPrefix(id, []byte("id  "))
	key, ok2 := bytes.CutPrefix(key, []byte("key "))
	key, ok3 := bytes.CutSuffix(key, []byte("\n"))
	if !ok1 || !ok2 || !ok3 || len(id) != 32 || len(key) != 64 {
		return w, bad
	}
	_, err1 := hex.Decode(w.id[:], id)
	_, err2 := hex.Decode(w.key[:], key)
	if err1 != nil || err2 != nil {
		psa.Wipe(w.key[:])
		return w, bad
	}
	return w, nil
}

func readWrappingKey(path string) (wrappingKey, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return wrappingKey{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return wrappingKey{}, err
	}
	b := make([]byte, wrappingBytes+1)
	defer psa.Wipe(b)
	n, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return wrappingKey{}, err
	}
	w, err := parseWrappingKey(b[:n])
	w.mode = info.Mode().Perm()
	return w, err
}

// makeWrappingKey writes a new key aside and links it into place, so that the name never holds half a key and never
// another key than before.
func makeWrappingKey(path string) error {
	var w wrappingKey
	rand.Read(w.id[:])
	rand.Read(w.key[:])
	defer psa.Wipe(w.key[:])
	b := w.marshal()
	defer psa.Wipe(b)
	if err := makeWrappingFile(path, w.id, b); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func makeWrappingFile(path string, id [16]byte, content []byte) error {
	aside := filepath.Join(filepath.Dir(path), asidePrefix+hex.EncodeToString(id[:]))
	defer os.Remove(aside)
	if err := writePrivate(aside, content); err != nil {
		return err
	}
	return place(aside, path)
}

// writePrivate makes a new file 0600, durable but for its name.
func writePrivate(path string, b []byte) error {
	f, err := createPrivate(path)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}
