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
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/psa/secret"
)

// sealSchema is the version of what seals hold and are bound to. It is part of the associated data, so it changes
// only together with a new way to seal, never with the layout of the store.
const sealSchema = 1

const dataKeyBytes = 32

// Sealer seals the secrets of rows with the KIM's data key: AES-256-GCM, bound to the row's key, provider and policy
// (section 7, last paragraph). The data key may come later, and then stays.
type Sealer struct {
	mu       sync.Mutex // who changes now
	now      atomic.Pointer[dataKey]
	warnings []string
}

// dataKey is the data key and what comes of it, or why it is not there.
type dataKey struct {
	key    []byte
	aead   cipher.AEAD
	audit  []byte
	absent error
}

// Kinds of wrappings, as core_settings.wrapping spells them.
const (
	WrapFile     = "file"
	WrapProvider = "tpm:" // and the provider's name
	kindRecovery = "recovery"
)

// OpenSealer unwraps the data key, or makes it where the KIM has none yet. dir holds the wrapping key. That one
// missing, damaged or another one's is no error of OpenSealer: then Err, and every Seal and Unseal, say so; and so they
// do while the provider that wraps the data key has not been asked (KIM.unwrap).
func OpenSealer(ctx context.Context, s Store, dir string) (*Sealer, error) {
	stored, have, err := s.DataKey(ctx)
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(stored.Kind, WrapProvider) {
		return absentSealer(sealedBy(stored, errNotAsked)), nil
	}
	path := wrappingPath(dir, stored)
	w, err := readWrappingKey(path)
	if errors.Is(err, fs.ErrNotExist) && !have {
		// The file comes first: a crash before the row leaves a key that the next start adopts, and nothing is sealed.
		if err = makeWrappingKey(path); err != nil {
			return nil, fileError(err, "cannot make the wrapping key %s", path)
		}
		w, err = readWrappingKey(path)
	}
	if err != nil {
		return absentSealer(wrappingAbsent(path, err)), nil
	}
	defer psa.Wipe(w.key[:])
	var key []byte
	if !have {
		key = make([]byte, dataKeyBytes)
		rand.Read(key)
		stored = WrappedKey{Kind: WrapFile, WrappingID: w.id}
		stored.Wrapped = w.wrap(key, stored)
		if err := s.InitDataKey(ctx, stored); err != nil {
			psa.Wipe(key)
			return nil, err
		}
	} else if key, err = unwrap(stored, w); err != nil {
		return absentSealer(wrappingAbsent(path, err)), nil
	}
	sealer := absentSealer(nil)
	if err := sealer.open(key); err != nil {
		return nil, err
	}
	// A rewrap that was interrupted. What cannot be put in order now does no harm where it is.
	strangers, err := tidy(dir, stored)
	if err != nil {
		sealer.warn(err.Error())
	}
	for _, path := range strangers {
		sealer.warn(path + " is no wrapping key of this KIM; it is left alone")
	}
	path = wrappingPath(dir, stored)
	sealer.warn("the wrapping key " + path + " lies on the same disk as the KIM: whoever can read both can read the secret keys in it")
	if w.mode&0o077 != 0 {
		sealer.warn(fmt.Sprintf("the wrapping key %s is open to others (mode %04o); chmod 0600 it", path, w.mode))
	}
	return sealer, nil
}

func absentSealer(err error) *Sealer {
	s := &Sealer{}
	s.now.Store(&dataKey{absent: err})
	return s
}

func (s *Sealer) warn(text string) { s.warnings = append(s.warnings, text) }

// open takes the data key over, for good; where it is there already this one is wiped.
func (s *Sealer) open(key []byte) error {
	audit, err := hkdf.Key(sha256.New, key, nil, "parsecfs audit 1", sha256.Size)
	if err != nil {
		psa.Wipe(key)
		return psa.Errorf(psa.StatusGenericError, "cannot derive the audit key: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now.Load().aead != nil {
		psa.Wipe(key)
		return nil
	}
	d := &dataKey{key: secret.Clone(key), audit: audit}
	psa.Wipe(key)
	secret.Do(func() { d.aead = newGCM(d.key) })
	s.now.Store(d)
	return nil
}

// stay says why the data key is not there, where it is not; it is false if that was known.
func (s *Sealer) stay(err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.now.Load()
	if before.aead != nil || before.absent.Error() == err.Error() {
		return false
	}
	s.now.Store(&dataKey{absent: err})
	return true
}

// dataKey is a copy of the data key for the caller to wipe, nil while it is not there.
func (s *Sealer) dataKey() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.now.Load().key)
}

// close wipes the data key.
func (s *Sealer) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.now.Swap(&dataKey{absent: errClosed()})
	secret.Free(before.key)
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
		WithHint("put the KIM's own wrapping.key back (parsecfs state backup keeps it) and mount again; where there is a recovery key, parsecfs state rewrap --recovery-key FILE file makes a new one")
}

var errOtherKey = errors.New("it has another id")

func unwrap(stored WrappedKey, w wrappingKey) ([]byte, error) {
	if stored.Kind != WrapFile && stored.Kind != kindRecovery {
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

// wrap encrypts the data key for a row that says everything else.
func (w *wrappingKey) wrap(key []byte, row WrappedKey) []byte {
	return newGCM(w.key[:]).Seal(nil, nil, key, row.associated())
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
func (s *Sealer) Err() error { return s.now.Load().absent }

// AuditKey is the key under which requests are named in the audit trail (HMAC-SHA-256), nil where the data key is
// absent: derived from it (RFC 5869), so that it lives as long.
func (s *Sealer) AuditKey() []byte { return s.now.Load().audit }

// Warnings are what a start should tell its user.
func (s *Sealer) Warnings() []string { return s.warnings }

// Seal encrypts the secret of k, a key of the provider with this UUID. The result can be unsealed only for the same
// key, provider, type, bits, algorithm, usage and PCRs.
func (s *Sealer) Seal(k Key, provider [16]byte, secret []byte) ([]byte, error) {
	d := s.now.Load()
	if d.absent != nil {
		return nil, d.absent
	}
	return d.aead.Seal(nil, nil, secret, sealedFor(k, provider)), nil
}

// Unseal gives back what was sealed for k; the caller wipes it. What was changed, or sealed for another row, is
// StatusDataCorrupt.
func (s *Sealer) Unseal(k Key, provider [16]byte, sealed []byte) ([]byte, error) {
	d := s.now.Load()
	if d.absent != nil {
		return nil, d.absent
	}
	var b []byte
	var err error
	secret.Do(func() { b, err = d.aead.Open(nil, nil, sealed, sealedFor(k, provider)) })
	if err != nil {
		return nil, psa.Errorf(psa.StatusDataCorrupt, "the sealed secret of key %x does not belong to its row, or was damaged", k.ID).
			WithHint("restore the KIM from a backup")
	}
	return b, nil
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

// wrappingKey is the content of the file wrapping.key, and of a recovery key's.
type wrappingKey struct {
	id   [16]byte
	key  [32]byte
	mode fs.FileMode
}

// The file is three lines of fixed length: a head, which all have in the same length, the id and the key in hexadecimal.
const (
	wrappingHead  = "parsecfs wrapping key 1\n"
	recoveryHead  = "parsecfs recovery key 1\n"
	wrappingBytes = len(wrappingHead) + len("id  ") + 32 + 1 + len("key ") + 64 + 1
)

func newWrappingKey() (w wrappingKey) {
	rand.Read(w.id[:])
	rand.Read(w.key[:])
	return w
}

func (w *wrappingKey) marshal(head string) []byte {
	b := make([]byte, 0, wrappingBytes)
	b = append(b, head...)
	b = append(b, "id  "...)
	b = hex.AppendEncode(b, w.id[:])
	b = append(b, "\nkey "...)
	b = hex.AppendEncode(b, w.key[:])
	return append(b, '\n')
}

func parseWrappingKey(head string, b []byte) (w wrappingKey, err error) {
	bad := fmt.Errorf("it is no file of the kind %q", strings.TrimSpace(head))
	rest, ok := bytes.CutPrefix(b, []byte(head))
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
	b, mode, err := readKeyFile(path)
	if err != nil {
		return wrappingKey{}, err
	}
	defer psa.Wipe(b)
	w, err := parseWrappingKey(wrappingHead, b)
	w.mode = mode
	return w, err
}

// readKeyFile reads no more than a whole key has, and a byte; the caller wipes it.
func readKeyFile(path string) ([]byte, fs.FileMode, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	b := make([]byte, wrappingBytes+1)
	n, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		psa.Wipe(b)
		return nil, 0, err
	}
	return b[:n], info.Mode().Perm(), nil
}

// makeWrappingKey writes a new key aside and links it into place, so that the name never holds half a key and never
// another key than before.
func makeWrappingKey(path string) error {
	w := newWrappingKey()
	defer psa.Wipe(w.key[:])
	b := w.marshal(wrappingHead)
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
