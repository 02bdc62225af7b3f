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

// sealSchema is the version of what a seal contains and is bound to. It is part of the associated data, so it changes only
// with a new way to seal, never with the layout of the store.
const sealSchema = 1

// wrapSchema is the version of the data key's wrapping. Since 2, all rows of the store have MACs. Somebody who removes them
// cannot make a wrapping that claims that they never existed.
const wrapSchema = 2

const dataKeyBytes = 32

// Sealer seals the secrets of rows with the KIM's data key: AES-256-GCM, bound to the row's key, provider and policy
// (Store keeps the rows). The data key may become available later.
type Sealer struct {
	mu       sync.Mutex // who changes now
	now      atomic.Pointer[dataKey]
	warnings []string
}

// dataKey is the data key and the keys derived from it, or the reason why it is not available.
type dataKey struct {
	key    []byte
	aead   cipher.AEAD
	audit  []byte
	absent error
}

// opened is a data key that was unwrapped. Whoever gets it wipes it.
type opened struct {
	key    []byte
	schema int // of its wrapping
}

// Kinds of wrappings, as core_settings.wrapping spells them.
const (
	WrapFile     = "file"
	WrapProvider = "tpm:" // and the provider's name
	kindRecovery = "recovery"
)

// OpenSealer unwraps the data key and guards the store with it, or makes one if the KIM has none yet. dir has the wrapping
// key. If the wrapping key is missing, damaged or belongs to another KIM, OpenSealer does not fail, but Err, Seal and Unseal
// do. They also fail while the provider that wraps the data key was not called yet (KIM.unwrap).
func OpenSealer(ctx context.Context, s Store, dir string) (*Sealer, error) {
	stored, have, err := s.DataKey(ctx)
	if psa.StatusOf(err) == psa.StatusDataCorrupt {
		return absentSealer(lostDataKey(err)), nil
	}
	if err != nil {
		return nil, err
	}
	if !have {
		if stored, err = makeDataKey(ctx, s, dir); psa.StatusOf(err) == psa.StatusProviderAbsent {
			return absentSealer(err), nil
		}
		if err != nil {
			return nil, err
		}
	}
	if strings.HasPrefix(stored.Kind, WrapProvider) {
		return absentSealer(sealedBy(stored, errNotAsked)), nil
	}
	path := wrappingPath(dir, stored)
	w, err := readWrappingKey(path)
	if err != nil {
		return absentSealer(wrappingAbsent(path, err)), nil
	}
	defer psa.Wipe(w.key[:])
	key, err := unwrap(stored, w)
	if err != nil {
		return absentSealer(wrappingAbsent(path, err)), nil
	}
	sealer := absentSealer(nil)
	if err := guard(ctx, s, stored, key, sealer.warn, func(next *WrappedKey) error {
		next.WrappingID = w.id
		next.Wrapped = w.wrap(key.key, *next)
		return nil
	}); err != nil {
		psa.Wipe(key.key)
		return nil, err
	}
	if err := sealer.open(key.key); err != nil {
		return nil, err
	}
	// A rewrap may have been interrupted. Files that cannot be put in order now do no harm.
	strangers, err := tidy(dir, stored)
	if err != nil {
		sealer.warn(err.Error())
	}
	for _, path := range strangers {
		sealer.warn(path + " is not a wrapping key of this KIM; it is left alone")
	}
	path = wrappingPath(dir, stored)
	sealer.warn("the wrapping key " + path + " is on the same disk as the KIM: whoever can read both can read the secret keys in the KIM")
	if w.mode&0o077 != 0 {
		sealer.warn(fmt.Sprintf("other users can read the wrapping key %s (mode %04o); run chmod 0600 on it", path, w.mode))
	}
	return sealer, nil
}

// makeDataKey makes the data key of a new KIM, and its wrapping key. If the KIM had one before, it makes none, because the
// sealed secrets would be lost for ever.
func makeDataKey(ctx context.Context, s Store, dir string) (stored WrappedKey, err error) {
	known, err := s.Providers(ctx)
	if err != nil {
		return stored, err
	}
	if len(known) > 0 {
		return stored, lostDataKey(errors.New("its row is gone"))
	}
	if err := noWrappingKey(dir); err != nil {
		return stored, err
	}
	// The wrapping key is beside its final place until the row is stored, so that a crash in between leaves nothing that looks
	// like the key of a KIM.
	w := newWrappingKey()
	defer psa.Wipe(w.key[:])
	b := w.marshal(wrappingHead)
	defer psa.Wipe(b)
	path := candidatePath(dir, [16]byte{}, w.id)
	if err = writePrivate(path, b); err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return stored, fileError(err, "cannot make the wrapping key %s", path)
	}
	key := make([]byte, dataKeyBytes)
	defer psa.Wipe(key)
	rand.Read(key)
	guard, err := NewRowKey(key)
	if err != nil {
		return stored, err
	}
	stored = WrappedKey{Kind: WrapFile, WrappingID: w.id}
	stored.Wrapped = w.wrap(key, stored)
	return stored, s.InitDataKey(ctx, stored, guard)
}

// noWrappingKey refuses a wrapping key of an earlier KIM, and removes what a killed first start left behind.
func noWrappingKey(dir string) error {
	all, err := candidates(dir)
	if err != nil {
		return fileError(err, "cannot look for wrapping keys in %s", dir)
	}
	had := filepath.Join(dir, wrappingFile)
	if _, err = os.Lstat(had); errors.Is(err, fs.ErrNotExist) {
		had, err = "", nil
	}
	for _, c := range all {
		if c.old != [16]byte{} {
			had = c.path
		} else if err == nil {
			err = os.Remove(c.path)
		}
	}
	if err != nil {
		return fileError(err, "cannot make a wrapping key in %s", dir)
	}
	if had != "" {
		return psa.Errorf(psa.StatusDataCorrupt, "the KIM is empty, but there is a wrapping key, %s: the keys of its KIM are lost", had).
			WithHint("restore the KIM from a backup; or, to start a new one, move " + had + " away")
	}
	return nil
}

func lostDataKey(why error) error {
	return psa.Errorf(psa.StatusProviderAbsent, "secrets in the KIM stay sealed, and its rows cannot be verified: the data key is lost: %w", why).
		WithHint("restore the KIM from a backup")
}

// guard makes the store verify its rows with the data key, and warns of damage to the store as a whole. If the store is from
// before rows had MACs, its rows get them now. Its data key gets another wrapping by rewrap, so that the store can never be
// passed off as such an old store again.
func guard(ctx context.Context, store Store, row WrappedKey, key opened, warn func(string), rewrap func(*WrappedKey) error) error {
	guard, err := NewRowKey(key.key)
	if err != nil {
		return err
	}
	if key.schema == wrapSchema {
		err := store.Guard(ctx, guard)
		if psa.StatusOf(err) == psa.StatusDataCorrupt {
			warn(fmt.Sprintf("%v; %s", err, psa.HintOf(err)))
			return nil
		}
		return err
	}
	next := WrappedKey{Kind: row.Kind, PCRs: row.PCRs, Before: row.Before}
	if err := rewrap(&next); err != nil {
		return err
	}
	damaged, err := store.Rekey(ctx, Rekeying{Old: row.WrappingID, Row: next, Guard: guard})
	if damaged > 0 {
		warn(fmt.Sprintf("%d rows of the KIM cannot be read", damaged))
	}
	return err
}

func absentSealer(err error) *Sealer {
	s := &Sealer{}
	s.now.Store(&dataKey{absent: err})
	return s
}

func (s *Sealer) warn(text string) { s.warnings = append(s.warnings, text) }

// open takes ownership of the data key. If there is one already, it wipes this one.
func (s *Sealer) open(key []byte) error {
	d, err := newDataKey(key)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now.Load().aead != nil {
		secret.Free(d.key)
		return nil
	}
	s.now.Store(d)
	return nil
}

// replace takes ownership of another data key, which replaces the present one.
func (s *Sealer) replace(key []byte) error {
	d, err := newDataKey(key)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	secret.Free(s.now.Swap(d).key)
	return nil
}

// newDataKey takes ownership of the key.
func newDataKey(key []byte) (*dataKey, error) {
	audit, err := hkdf.Key(sha256.New, key, nil, "parsecfs audit 1", sha256.Size)
	if err != nil {
		psa.Wipe(key)
		return nil, psa.Errorf(psa.StatusGenericError, "cannot derive the audit key: %w", err)
	}
	d := &dataKey{key: secret.Clone(key), audit: audit}
	psa.Wipe(key)
	secret.Do(func() { d.aead = newGCM(d.key) })
	return d, nil
}

// stay records why the data key is not available. It returns false if the key is available, or the reason was known.
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

// lose wipes the data key, and records why it is gone.
func (s *Sealer) lose(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	secret.Free(s.now.Swap(&dataKey{absent: why}).key)
}

// dataKey is a copy of the data key, which the caller wipes, nil while it is not available.
func (s *Sealer) dataKey() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.now.Load().key)
}

// close wipes the data key.
func (s *Sealer) close() { s.lose(errClosed()) }

func wrappingAbsent(path string, err error) error {
	what := "is damaged"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		what = "is missing"
	case errors.Is(err, errOtherKey):
		what = "belongs to another KIM"
	case errors.As(err, new(*fs.PathError)):
		what = "cannot be read"
	}
	return psa.Errorf(psa.StatusProviderAbsent, "secrets in the KIM stay sealed: the wrapping key %s %s: %w", path, what, err).
		WithHint("put the KIM's own wrapping.key back (a parsecfs state backup has it) and mount again; or, if you have a recovery key, run parsecfs state rewrap --recovery-key FILE file")
}

var errOtherKey = errors.New("it has another id")

func unwrap(stored WrappedKey, w wrappingKey) (opened, error) {
	if stored.Kind != WrapFile && stored.Kind != kindRecovery {
		return opened{}, fmt.Errorf("the KIM needs a wrapping key of kind %q", stored.Kind)
	}
	if stored.WrappingID != w.id {
		return opened{}, fmt.Errorf("%w: %x, not %x", errOtherKey, w.id, stored.WrappingID)
	}
	for schema := wrapSchema; schema > 0; schema-- {
		key, err := newGCM(w.key[:]).Open(nil, nil, stored.Wrapped, stored.associated(schema))
		if err != nil {
			continue
		}
		if len(key) != dataKeyBytes {
			psa.Wipe(key)
			return opened{}, errors.New("it unwraps something that is not a data key")
		}
		return opened{key, schema}, nil
	}
	return opened{}, errors.New("it cannot unwrap the data key")
}

// wrap encrypts the data key for a row whose other fields are set.
func (w *wrappingKey) wrap(key []byte, row WrappedKey) []byte {
	return newGCM(w.key[:]).Seal(nil, nil, key, row.associated(wrapSchema))
}

func (w WrappedKey) associated(schema int) []byte {
	return fmt.Appendf(nil, "parsecfs data key %d %s %x", schema, w.Kind, w.WrappingID)
}

// newGCM is AES-GCM that makes its own nonce and puts it before the ciphertext.
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

// AuditKey is the key that names requests in the audit trail (HMAC-SHA-256). It is derived from the data key (RFC 5869) and
// lives as long; it is nil while the data key is absent.
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

// Unseal returns what was sealed for k; the caller wipes it. A seal that was changed, or made for another row, is
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
		return nil, damagedSecret(k)
	}
	return b, nil
}

// reseal seals what this data key sealed for k again, under the data key to.
func (d *dataKey) reseal(to *dataKey, k Key, provider [16]byte, sealed []byte) ([]byte, error) {
	var b []byte
	var err error
	secret.Do(func() { b, err = d.aead.Open(nil, nil, sealed, sealedFor(k, provider)) })
	if err != nil {
		return nil, damagedSecret(k)
	}
	defer psa.Wipe(b)
	return to.aead.Seal(nil, nil, b, sealedFor(k, provider)), nil
}

func damagedSecret(k Key) error {
	return psa.Errorf(psa.StatusDataCorrupt, "the sealed secret of key %s is damaged, or belongs to another row", UUID(k.ID)).
		WithHint("restore the KIM from a backup")
}

// sealedFor is the associated data. Its parts have fixed lengths, except the last, so that two rows never have the same.
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

// The file has three lines of fixed length: a head, the id, and the key in hexadecimal. All heads have the same length.
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
	bad := fmt.Errorf("it is not a file of the kind %q", strings.TrimSpace(head))
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

// readKeyFile reads at most one byte more than a key file has. The caller wipes it.
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

// makeWrappingFile writes a wrapping key aside and links it into place, so that the name never holds half a key and never
// another key than before.
func makeWrappingFile(path string, id [16]byte, content []byte) error {
	aside := filepath.Join(filepath.Dir(path), asidePrefix+hex.EncodeToString(id[:]))
	defer os.Remove(aside)
	if err := writePrivate(aside, content); err != nil {
		return err
	}
	return place(aside, path)
}

// writePrivate writes a new file with mode 0600. Its content is durable, its name is not yet.
func writePrivate(path string, b []byte) error {
	f, err := createPrivate(path)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}
