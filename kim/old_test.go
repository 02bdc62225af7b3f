package kim_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/software"
)

var ctx = context.Background()

func softwareConfig(name string) kim.ProviderConfig {
	return kim.ProviderConfig{Name: name, Type: software.Type.Name, Mode: 0o755,
		Open: func(ctx context.Context, dir, _ string) (providers.Provider, error) {
			return software.Type.New(ctx, providers.Config{Name: name, StateDir: dir})
		}}
}

func open(t *testing.T, o kim.Options) *kim.KIM {
	t.Helper()
	k, err := kim.Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
			t.Error(err)
		}
	})
	return k
}

// generate makes a key by its template.
func generate(t *testing.T, k *kim.KIM, p *kim.Provider, name, template string) kim.Key {
	t.Helper()
	key, err := p.CreateDraft(ctx, kim.Shared, name, 1000, 1000, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	a, err := psa.ParseTemplate(template)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Generate(ctx, key.Number, 1000, template, a, nil); err != nil {
		t.Fatal(err)
	}
	if key, err = k.Key(ctx, key.Number); err != nil || key.State != kim.Ready {
		t.Fatalf("%+v, %v", key, err)
	}
	return key
}

// do is one operation.
func do(k *kim.KIM, number int64, op psa.Op, data []byte) (map[string][]byte, error) {
	run, err := k.Begin(ctx, number, 1000, op)
	if err != nil {
		return nil, err
	}
	defer run.Abort()
	if _, err := run.Write(data); err != nil {
		return nil, err
	}
	result, err := run.Finish(ctx)
	return result.Outputs, err
}

// signs makes a signature with an ECDSA key over P-256 and checks it.
func signs(k *kim.KIM, key kim.Key) error {
	message := []byte("a message for " + key.Name)
	o, err := do(k, key.Number, psa.Op{Operation: psa.Sign, Algorithm: psa.ECDSA(psa.SHA256)}, message)
	if err != nil {
		return err
	}
	der, err := psa.ECDSARawToDER(o["signature"])
	if err != nil {
		return err
	}
	public, err := x509.ParsePKIXPublicKey(key.Public)
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(message); !ecdsa.VerifyASN1(public.(*ecdsa.PublicKey), sum[:], der) {
		return errors.New("the signature is not valid")
	}
	return nil
}

var gcm = psa.Op{Algorithm: psa.GCM, Limit: 1 << 20}

// chain is kept beside the key "forever", since schema 2.
const chain = "a chain in PEM"

// units are those of the key "forever", since schema 2.
var units = []string{"web.service", "worker@.service"}

// pcrs are those of the key "draft", since schema 3.
const pcrs psa.PCRs = 1<<7 | 1<<23

// object is that of the adopted key "theirs", since schema 4.
const object = "id=0a1b"

// owner has a key "ec" among their own names, and a directory for it that others may search, since schema 7.
const owner = 1001

const kept = "kept since this store was made"

// makeStore fills a new state directory with all that a store can hold.
func makeStore(t *testing.T, dir string) {
	k, err := kim.Open(ctx, kim.Options{Dir: dir, Providers: []kim.ProviderConfig{softwareConfig("software")}})
	if err != nil {
		t.Fatal(err)
	}
	p := k.Default()
	ec := generate(t, k, p, "ec", "ecdsa-p256-sha256")
	forever := generate(t, k, p, "temporary", "ecdsa-p256-sha256")
	aes := generate(t, k, p, "aes", "aes-256-gcm")
	mode := uint32(0o660)
	draft, err := p.CreateDraft(ctx, kim.Shared, "draft", 1001, 1001, 0o700)
	errs := []error{err,
		k.Rename(ctx, forever.Number, kim.Shared, "forever"),
		k.SetAllowDestroy(ctx, forever.Number, false),
		k.SetUnits(ctx, forever.Number, units),
		k.SetCallerNonce(ctx, aes.Number, true), // since schema 5
		k.SetCertificate(ctx, forever.Number, []byte(chain)),
		k.SetInode(ctx, kim.Inode{Ino: uint64(ec.Number)*256 + 16, Mode: &mode}),
		k.SetDraft(ctx, draft.Number, "ed25519", psa.Attributes{Type: psa.ECCKeyPair(psa.TwistedEdwards), Bits: 255, Algorithm: psa.PureEdDSA, Usage: psa.UsageSignMessage, PCRs: pcrs}),
	}
	own := kim.UserInode(p.Number(), owner)
	_, err = p.CreateDraft(ctx, kim.OwnSpace(owner), "ec", owner, owner, 0o755)
	errs = append(errs, err, k.SetInode(ctx, kim.Inode{Ino: own, Mode: new(uint32(0o711))}),
		k.SetXattr(ctx, own, "user.a", []byte("b"), kim.XattrSet))
	_, err = k.CreateAlias(ctx, kim.Alias{Name: "web", Target: "../providers/software/keys/ec"})
	errs = append(errs, err)
	op := gcm
	op.Operation = psa.Encrypt
	sealed, err := do(k, aes.Number, op, []byte(kept))
	errs = append(errs, err, k.Close(), os.WriteFile(filepath.Join(dir, "aes.sealed"), append(sealed["nonce"], sealed["ciphertext"]...), 0o600))
	// What a crash leaves: a key half made and one half destroyed.
	s, err := kim.OpenSQLite(ctx, filepath.Join(dir, "kim.sqlite3"))
	if err == nil {
		_, err = kim.OpenSealer(ctx, s, dir)
	}
	if err != nil {
		t.Fatal(err)
	}
	half, err := s.InsertDraft(ctx, kim.NewDraft{Provider: p.Number(), Name: "half-made"})
	errs = append(errs, err)
	var h providers.Handle
	rand.Read(h[:])
	_, err = s.BeginCreate(ctx, half.Number, h, ec.Template, ec.Attributes, kim.Generated)
	errs = append(errs, err)
	half, err = s.InsertDraft(ctx, kim.NewDraft{Provider: p.Number(), Name: "half-destroyed"})
	errs = append(errs, err)
	rand.Read(h[:])
	_, err = s.BeginCreate(ctx, half.Number, h, ec.Template, ec.Attributes, kim.Generated)
	errs = append(errs, err, s.FinishCreate(ctx, half.Number, ec.Public, nil))
	_, err = s.BeginDestroy(ctx, half.Number)
	errs = append(errs, err)
	theirs, err := s.InsertDraft(ctx, kim.NewDraft{Provider: p.Number(), Name: "theirs"})
	rand.Read(h[:])
	errs = append(errs, err, s.Adopt(ctx, theirs.Number, kim.Adoption{Handle: h, Template: ec.Template, Attributes: ec.Attributes, Device: "token", Object: object, Public: ec.Public}), s.Close())
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"lock", "kim.sqlite3.lock", "kim.sqlite3-reserve"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOldStores opens a store of every schema that was ever written, with keys that must still work. Where the newest
// schema has none yet the test makes it, to be committed.
func TestOldStores(t *testing.T) {
	s, err := kim.OpenSQLite(ctx, filepath.Join(t.TempDir(), "kim.sqlite3"))
	if err != nil {
		t.Fatal(err)
	}
	newest := filepath.Join("testdata/stores", strconv.Itoa(s.Schema()))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(newest); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(newest), 0o755); err != nil {
			t.Fatal(err)
		}
		makeStore(t, newest)
		t.Fatalf("made %s: commit it", newest)
	}
	dirs, err := filepath.Glob("testdata/stores/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range dirs {
		t.Run(filepath.Base(from), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			// git keeps no modes.
			if err := os.Chmod(filepath.Join(dir, "wrapping.key"), 0o600); err != nil {
				t.Fatal(err)
			}
			k := open(t, kim.Options{Dir: dir, Providers: []kim.ProviderConfig{softwareConfig("software")}})
			checkStore(t, k, dir, filepath.Base(from))
			if key, err := k.Default().Lookup(ctx, kim.Shared, "forever"); err != nil || filepath.Base(from) != "1" && !slices.Equal(key.Units, units) {
				t.Errorf("units %q, %v", key.Units, err)
			} else if got, err := k.Certificate(ctx, key.Number); err != nil || filepath.Base(from) != "1" && string(got) != chain {
				t.Errorf("the certificate is %q, %v", got, err)
			}
			for _, name := range []string{"aes", "ec"} {
				want := name == "aes" && filepath.Base(from) >= "5"
				if key, err := k.Default().Lookup(ctx, kim.Shared, name); err != nil || key.CallerNonce != want {
					t.Errorf("%s: caller_nonce is %v, %v", name, key.CallerNonce, err)
				}
			}
			if key, err := k.Default().Lookup(ctx, kim.Shared, "draft"); err != nil || (key.Attributes.PCRs == pcrs) != (filepath.Base(from) >= "3") {
				t.Errorf("the draft's PCRs are %v, %v", key.Attributes.PCRs.List(), err)
			}
			spaces, err := k.Default().Spaces(ctx, kim.Shared-1, 10)
			want := []kim.Space{kim.Shared}
			if filepath.Base(from) >= "7" {
				want = append(want, kim.OwnSpace(owner))
			}
			if err != nil || !slices.Equal(spaces, want) {
				t.Errorf("there are keys in %v, %v", spaces, err)
			}
			if filepath.Base(from) >= "7" {
				key, err := k.Default().Lookup(ctx, kim.OwnSpace(owner), "ec")
				if err != nil || key.State != kim.Draft || key.UID != owner || key.Path() != "users/1001/ec" {
					t.Errorf("a user's own key: %+v, %v", key, err)
				}
				if i, _, err := k.Inode(ctx, kim.UserInode(k.Default().Number(), owner)); err != nil || i.Mode == nil || *i.Mode != 0o711 {
					t.Errorf("a user's directory: %+v, %v", i, err)
				}
			}
			if info, err := os.Stat(filepath.Join(dir, "kim.sqlite3")); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("the KIM's mode: %v, %v", info.Mode(), err)
			}
			if err := k.Close(); err != nil {
				t.Fatal(err)
			}
			hasMACs(t, dir)
		})
	}
}

// hasMACs holds that each row has one, and that it counts.
func hasMACs(t *testing.T, dir string) {
	t.Helper()
	db, err := sql.Open("sqlite3", filepath.Join(dir, "kim.sqlite3"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, table := range []string{"keys", "inodes", "providers", "aliases", "xattrs", "data_key", "anchor", "users", "owners"} {
		var without int
		if err := db.QueryRow("SELECT count(*) FROM " + table + " WHERE mac IS NULL OR length(mac) <> 32").Scan(&without); err != nil || without > 0 {
			t.Errorf("%d rows of %s have no MAC, %v", without, table, err)
		}
	}
	if _, err := db.Exec("UPDATE inodes SET mode = 438"); err != nil {
		t.Fatal(err)
	}
	k := open(t, kim.Options{Dir: dir, Providers: []kim.ProviderConfig{softwareConfig("software")}})
	key, err := k.Default().Lookup(ctx, kim.Shared, "ec")
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = k.Inode(ctx, uint64(key.Number)*256+16)
	wantStatus(t, err, psa.StatusDataCorrupt)
}

func checkStore(t *testing.T, k *kim.KIM, dir, schema string) {
	p := k.Default()
	if p == nil {
		t.Fatal("no default provider")
	}
	if status := p.Status(ctx); p.Name() != "software" || status != "ready" {
		t.Fatalf("the default provider is %s, %s", p.Name(), status)
	}
	list, err := p.List(ctx, kim.Shared, "", 100)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]kim.State{}
	for _, key := range list {
		found[key.Name] = key.State
	}
	want := map[string]kim.State{"aes": kim.Ready, "draft": kim.Draft, "ec": kim.Ready, "forever": kim.Ready, "half-made": kim.Draft}
	if schema >= "4" {
		want["theirs"] = kim.Ready
		if key, err := p.Lookup(ctx, kim.Shared, "theirs"); err != nil || key.Object != object || key.Origin != kim.Adopted || !key.KeepForever {
			t.Errorf("the adopted key: %+v, %v", key, err)
		}
	}
	for name, state := range want {
		if found[name] != state {
			t.Errorf("%s is %q, want %q", name, found[name], state)
		}
	}
	if len(found) != len(want) {
		t.Errorf("found %v", found)
	}
	for _, name := range []string{"ec", "forever"} {
		key, err := p.Lookup(ctx, kim.Shared, name)
		if err == nil {
			err = signs(k, key)
		}
		if err != nil || key.UID != 1000 || key.Template != "ecdsa-p256-sha256" || key.Origin != kim.Generated {
			t.Errorf("%s: %v", name, err)
		}
		if name == "forever" {
			if err := k.Destroy(ctx, key.Number, 1000); psa.StatusOf(err) != psa.StatusNotPermitted {
				t.Errorf("destroying a key that is kept for ever: %v", err)
			}
			continue
		}
		if i, ok, err := k.Inode(ctx, uint64(key.Number)*256+16); err != nil || !ok || i.Mode == nil || *i.Mode != 0o660 {
			t.Errorf("the mode of sign: %+v, %v", i, err)
		}
	}
	if a, err := k.Alias(ctx, "web"); err != nil || a.Target != "../providers/software/keys/ec" {
		t.Errorf("%+v, %v", a, err)
	}
	if draft, err := p.Lookup(ctx, kim.Shared, "draft"); err != nil || draft.Template != "ed25519" || draft.Attributes.Bits != 255 || draft.UID != 1001 {
		t.Errorf("%+v, %v", draft, err)
	}
	sealed, err := os.ReadFile(filepath.Join(dir, "aes.sealed"))
	if err != nil {
		t.Fatal(err)
	}
	aes, err := p.Lookup(ctx, kim.Shared, "aes")
	if err != nil {
		t.Fatal(err)
	}
	op := gcm
	op.Operation, op.Inputs = psa.Decrypt, map[string][]byte{"nonce": sealed[:12]}
	o, err := do(k, aes.Number, op, sealed[12:])
	if err != nil || !bytes.Equal(o["plaintext"], []byte(kept)) {
		t.Errorf("decrypted %q, %v", o["plaintext"], err)
	}
}
