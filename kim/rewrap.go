package kim

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/psa/secret"
)

// The steps of a rewrap that are passed to Options.Step.
const (
	stepRewrap          = "rewrap:asked"
	stepRewrapCandidate = "rewrap:candidate"
	stepRewrapWrapped   = "rewrap:wrapped"
	stepRewrapRecovery  = "rewrap:recovery"
	stepRewrapRekeying  = "rewrap:rekeying"
	stepRewrapReplaced  = "rewrap:replaced"
	stepRewrapTidied    = "rewrap:tidied"
)

// RewrapSteps are the names of all steps of a rewrap; not every kind has each.
var RewrapSteps = []string{stepRewrap, stepRewrapCandidate, stepRewrapWrapped, stepRewrapRecovery, stepRewrapRekeying, stepRewrapReplaced, stepRewrapTidied}

// Rewrapping says how to wrap the data key.
type Rewrapping struct {
	Kind string // "file" or "tpm:PROVIDER"
	// PCRs bind it to a TPM's state; nil leaves them as they are where the kind stays, and is none where it changes.
	PCRs *psa.PCRs
	// PIN is what a provider wants before it unwraps; empty is none, whatever there was before.
	PIN []byte
	// Recovery is the content of a recovery key's file, which is the store's recovery key from now on; where the data key
	// cannot be had otherwise it must be that already, and opens it. nil changes nothing.
	Recovery []byte
	// NewDataKey makes a new data key and seals all secrets anew, so that no backup of before opens what comes after. It is
	// done always where a provider wraps what a file wrapped: copies of that file are on the disk, and in backups.
	NewDataKey bool
}

// Wrapping is how the data key is wrapped now, and whether there is a recovery key.
func (k *KIM) Wrapping(ctx context.Context) (kind string, pcrs psa.PCRs, recovery bool, err error) {
	row, _, err := k.store.DataKey(ctx)
	if err == nil {
		_, recovery, err = k.store.RecoveryKey(ctx)
	}
	return row.Kind, row.PCRs, recovery, err
}

// Rewrap wraps the data key in another way. At every moment the store has a wrapping that opens it: what the old wrapping
// needs is removed only after the new one was tried and is durable. Wrapping by a provider without a recovery key is
// StatusNotPermitted.
func (k *KIM) Rewrap(ctx context.Context, o Rewrapping) error {
	provider, byProvider := strings.CutPrefix(o.Kind, WrapProvider)
	if o.Kind != WrapFile && !byProvider {
		return psa.Errorf(psa.StatusInvalidArgument, "unknown wrapping %q; allowed: %s, %sPROVIDER", o.Kind, WrapFile, WrapProvider)
	}
	if o.PCRs != nil && (*o.PCRs>>(psa.MaxPCR+1) != 0 || !byProvider && *o.PCRs != 0) {
		return psa.Errorf(psa.StatusInvalidArgument, "wrong PCRs %#x; allowed: 0 to %d, and only for a TPM", uint32(*o.PCRs), psa.MaxPCR)
	}
	if !byProvider && len(o.PIN) > 0 {
		return psa.Errorf(psa.StatusInvalidArgument, "only wrapping by a provider can have a PIN")
	}
	if err := k.state.lost("the state directory"); err != nil {
		return err // the files of wrapping keys are named by their path
	}
	if !k.rewrapping.TryLock() {
		return psa.Errorf(psa.StatusBadState, "the data key is already being rewrapped").WithHint("try again")
	}
	defer k.rewrapping.Unlock()
	if k.inDoubt {
		return psa.Errorf(psa.StatusBadState, "it is not known whether the last rewrap was stored").WithHint("mount again, then try again")
	}
	// A backup has the row and the file of one wrapping.
	if err := k.still.Acquire(ctx, 1); err != nil {
		return psa.Errorf(psa.StatusTimeout, "a backup is being made: %w", err)
	}
	defer k.still.Release(1)
	k.o.Step(stepRewrap)
	row, have, err := k.store.DataKey(ctx)
	if err == nil && !have {
		err = psa.Errorf(psa.StatusBadState, "the KIM has no data key")
	}
	if err != nil {
		return err
	}
	recovery, recoverable, err := k.store.RecoveryKey(ctx)
	if err != nil {
		return err
	}
	key, err := k.dataKeyFor(ctx, row, recovery, o.Recovery)
	if err != nil {
		return err
	}
	defer psa.Wipe(key)
	o.NewDataKey = o.NewDataKey || byProvider && row.Kind == WrapFile
	switch {
	case byProvider && !recoverable && o.Recovery == nil:
		return psa.Errorf(psa.StatusNotPermitted, "there is no recovery key: without one, all keys are lost if the device is lost").
			WithHint("add --recovery-key FILE, and keep this new file elsewhere")
	case o.NewDataKey && recoverable && o.Recovery == nil:
		return psa.Errorf(psa.StatusNotPermitted, "the recovery key must be given, because it has to open the new data key too").
			WithHint("add --recovery-key FILE: the file that you have, or a new file that replaces it")
	}
	strangers, err := tidy(k.o.Dir, row)
	if err != nil {
		return err
	}
	if usual := filepath.Join(k.o.Dir, wrappingFile); !byProvider && slices.Contains(strangers, usual) {
		return psa.Errorf(psa.StatusAlreadyExists, "%s is not a wrapping key of this KIM", usual).WithHint("move it away first")
	}
	next := WrappedKey{Kind: o.Kind, Before: row.Before}
	if row.Kind == WrapFile {
		next.Before = row.WrappingID
	}
	to := key
	if o.NewDataKey {
		to = make([]byte, dataKeyBytes)
		defer psa.Wipe(to)
		rand.Read(to)
	}
	if byProvider {
		if o.PCRs != nil {
			next.PCRs = *o.PCRs
		} else if row.Kind == o.Kind {
			next.PCRs = row.PCRs
		}
		err = k.wrapBy(ctx, provider, to, o.PIN, &next)
	} else {
		err = k.wrapInFile(row, to, &next)
	}
	if err != nil {
		return err
	}
	k.o.Step(stepRewrapWrapped)
	if o.Recovery != nil {
		if recovery, err = wrapForRecovery(to, o.Recovery); err != nil {
			return err
		}
	}
	_, counter, err := k.store.Generation(ctx)
	if err != nil && !k.legacy && psa.StatusOf(err) != psa.StatusDataCorrupt {
		return err
	}
	// A failed commit may have happened after all. The next start finds out, so what either row needs is kept.
	if o.NewDataKey || k.legacy {
		err = k.rekey(ctx, row, next, o, recovery, to)
	} else {
		err = k.replace(ctx, row, next, o, recovery)
	}
	if err != nil {
		k.inDoubt = psa.StatusOf(err) != psa.StatusBadState
		return err
	}
	k.o.Step(stepRewrapReplaced)
	k.o.Log.Info("the data key was rewrapped", "kind", next.Kind, "pcrs", next.PCRs.List(), "pin", len(o.PIN) > 0, "new", o.NewDataKey)
	if _, err := tidy(k.o.Dir, next); err != nil {
		return err
	}
	k.o.Step(stepRewrapTidied)
	if err := k.moveGeneration(ctx, row, next, key, to, counter); err != nil {
		k.o.Log.Warn("the device has no counter yet, so an old copy of the KIM is noticed only after the next start", "err", err)
	}
	return nil
}

// replace stores another wrapping of the same data key, and a recovery key if one was given.
func (k *KIM) replace(ctx context.Context, row, next WrappedKey, o Rewrapping, recovery WrappedKey) error {
	if o.Recovery != nil {
		// Not before: an older one counts until the new way was tried.
		if err := k.store.SetRecoveryKey(ctx, recovery); err != nil {
			return err
		}
		k.o.Step(stepRewrapRecovery)
	}
	return k.store.ReplaceDataKey(context.WithoutCancel(ctx), row.WrappingID, next)
}

// rekey stores another data key, in one transaction with all that depends on it. Nothing is sealed or unsealed meanwhile.
func (k *KIM) rekey(ctx context.Context, row, next WrappedKey, o Rewrapping, recovery WrappedKey, key []byte) error {
	sealed, err := newDataKey(bytes.Clone(key))
	if err != nil {
		return err
	}
	defer secret.Free(sealed.key)
	guard, err := NewRowKey(key)
	if err != nil {
		return err
	}
	r := Rekeying{Old: row.WrappingID, Row: next, Guard: guard}
	if o.Recovery != nil {
		r.Recovery = &recovery
	}
	k.sealing.Lock()
	defer k.sealing.Unlock()
	if o.NewDataKey {
		now := k.sealer.now.Load()
		r.Reseal = func(key Key, provider [16]byte, secret []byte) ([]byte, error) {
			return now.reseal(sealed, key, provider, secret)
		}
	}
	k.o.Step(stepRewrapRekeying)
	damaged, err := k.store.Rekey(context.WithoutCancel(ctx), r)
	if err != nil {
		if psa.StatusOf(err) != psa.StatusBadState {
			k.store.Unguard()
			k.sealer.lose(psa.Errorf(psa.StatusProviderAbsent, "it is not known which data key the store has now: %w", err).WithHint("mount again"))
		}
		return err
	}
	if damaged > 0 {
		k.o.Log.Error("damaged rows of the KIM could not be sealed with the new data key: their secrets are lost", "rows", damaged)
	}
	k.legacy = false
	return k.sealer.replace(bytes.Clone(key))
}

// wrapForRecovery wraps a data key by the recovery key in the content of a file.
func wrapForRecovery(key, given []byte) (WrappedKey, error) {
	w, err := parseWrappingKey(recoveryHead, given)
	if err != nil {
		return WrappedKey{}, psa.Errorf(psa.StatusInvalidArgument, "wrong recovery key: %w", err)
	}
	defer psa.Wipe(w.key[:])
	row := WrappedKey{Kind: kindRecovery, WrappingID: w.id}
	row.Wrapped = w.wrap(key, row)
	return row, nil
}

// dataKeyFor returns the data key, which the caller wipes. It uses the given recovery key if that belongs to the store.
func (k *KIM) dataKeyFor(ctx context.Context, row, recovery WrappedKey, given []byte) ([]byte, error) {
	var w wrappingKey
	if given != nil {
		var err error
		if w, err = parseWrappingKey(recoveryHead, given); err != nil {
			return nil, psa.Errorf(psa.StatusInvalidArgument, "wrong recovery key: %w", err)
		}
		defer psa.Wipe(w.key[:])
	}
	key := k.sealer.dataKey()
	if given != nil && recovery.WrappingID == w.id {
		recovered, err := unwrap(recovery, w)
		if err == nil && key != nil && subtle.ConstantTimeCompare(key, recovered.key) != 1 {
			err = errors.New("it opens another data key")
		}
		if err == nil && key == nil {
			err = k.recovered(ctx, row, recovered.key)
		}
		psa.Wipe(key)
		if err != nil {
			psa.Wipe(recovered.key)
			return nil, psa.Errorf(psa.StatusDataCorrupt, "the recovery key does not belong to this KIM: %w", err)
		}
		return recovered.key, nil
	}
	if provider, ok := strings.CutPrefix(row.Kind, WrapProvider); ok && key == nil {
		if p := k.Provider(provider); p != nil {
			if err := p.look(ctx, k.o.OperationTimeout); err != nil {
				k.notUnwrapped(ctx, p, err)
			} else if err := k.unwrap(ctx, p); err != nil {
				p.log.Warn("the provider cannot unwrap the data key", "err", err)
			}
			key = k.sealer.dataKey()
		}
	}
	switch {
	case key == nil && given != nil:
		return nil, psa.Errorf(psa.StatusNotPermitted, "this is not the recovery key of this KIM").
			WithHint("use the file that was written or used when the store was last wrapped")
	case key == nil:
		return nil, k.sealer.Err()
	}
	return key, nil
}

// recovered opens the KIM with a data key that the recovery key gave.
func (k *KIM) recovered(ctx context.Context, row WrappedKey, key []byte) error {
	k.unwrapping.Lock()
	defer k.unwrapping.Unlock()
	if row.MAC == nil { // of a time before rows had MACs: Rekey gives them theirs
		k.legacy = true
		return k.sealer.open(bytes.Clone(key))
	}
	guard, err := NewRowKey(key)
	if err != nil {
		return err
	}
	if err := k.store.Guard(ctx, guard); psa.StatusOf(err) == psa.StatusDataCorrupt {
		k.o.Log.Error(err.Error(), "hint", psa.HintOf(err))
	} else if err != nil {
		return err
	}
	if err := k.sealer.open(bytes.Clone(key)); err != nil {
		return err
	}
	k.unlocked()
	return nil
}

// A provider wraps the data key together with the id of the wrapping and, since schema 2, the schema. The id reveals what was
// wrapped for another row or another store. A whole row of another store is noticed too, since its data key verifies no row.
func wrapSecret(key []byte, id [16]byte) []byte {
	secret := append(make([]byte, 0, len(key)+len(id)+1), key...)
	return append(append(secret, id[:]...), wrapSchema)
}

// wrapBy has the provider wrap the data key, and unwrap it again.
func (k *KIM) wrapBy(ctx context.Context, name string, key, pin []byte, next *WrappedKey) error {
	p := k.Provider(name)
	if p == nil {
		return psa.Errorf(psa.StatusDoesNotExist, "no provider %q is configured", name)
	}
	if err := p.look(ctx, k.o.OperationTimeout); err != nil {
		return err
	}
	wrapper, err := p.wrapper()
	if err != nil {
		return err
	}
	rand.Read(next.WrappingID[:])
	secret := wrapSecret(key, next.WrappingID) // the call's, which may outlast this one
	own := bytes.Clone(pin)
	pcrs := next.PCRs
	next.Wrapped, err = call(ctx, p, daemonUID, k.o.OperationTimeout, func(ctx context.Context) ([]byte, error) {
		defer psa.Wipe(secret)
		defer psa.Wipe(own)
		return wrapper.Wrap(ctx, secret, pcrs, own)
	}, func([]byte, error) {})
	if !begun(err) {
		psa.Wipe(secret)
		psa.Wipe(own)
	}
	if err != nil {
		return err
	}
	got, err := p.unwrapRow(ctx, wrapper, *next, pin)
	if err != nil {
		return err
	}
	defer psa.Wipe(got.key)
	if subtle.ConstantTimeCompare(got.key, key) != 1 {
		return psa.Errorf(psa.StatusHardwareFailure, "provider %s cannot unwrap what it wrapped", name)
	}
	return nil
}

func (p *Provider) wrapper() (providers.Wrapper, error) {
	impl, err := p.instance()
	if err != nil {
		return nil, err
	}
	w, ok := impl.(providers.Wrapper)
	if !ok {
		return nil, psa.Errorf(psa.StatusNotSupported, "provider %s cannot wrap secrets", p.Name())
	}
	return w, nil
}

// unwrapRow returns the data key in a row that this provider wrapped, using this PIN. It records a refused PIN.
func (p *Provider) unwrapRow(ctx context.Context, wrapper providers.Wrapper, row WrappedKey, pin []byte) (opened, error) {
	own := bytes.Clone(pin) // the call's, which may outlast this one
	sum := sha256.Sum256(pin)
	secret, err := call(ctx, p, daemonUID, p.k.o.OperationTimeout, func(ctx context.Context) ([]byte, error) {
		defer psa.Wipe(own)
		secret, err := wrapper.Unwrap(ctx, row.Wrapped, own)
		p.k.pins.note(row, sum, err)
		return secret, err
	}, func(late []byte, _ error) { psa.Wipe(late) })
	if err != nil {
		if !begun(err) {
			psa.Wipe(own)
		}
		return opened{}, err
	}
	const before = dataKeyBytes + len(row.WrappingID)
	schema := 0
	switch {
	case len(secret) == before:
		schema = 1
	case len(secret) == before+1 && secret[before] == wrapSchema:
		schema = wrapSchema
	}
	if schema == 0 || [16]byte(secret[dataKeyBytes:before]) != row.WrappingID {
		psa.Wipe(secret)
		return opened{}, psa.Errorf(psa.StatusDataCorrupt, "it unwraps something that is not this KIM's data key")
	}
	return opened{secret[:dataKeyBytes:dataKeyBytes], schema}, nil
}

// unwrap opens the data key, if this provider wrapped it and it is not open yet. The provider must respond.
func (k *KIM) unwrap(ctx context.Context, p *Provider) error { return k.unwrapAs(ctx, p, false) }

// unwrapAs is unwrap, but accepts an old store if accept is set.
func (k *KIM) unwrapAs(ctx context.Context, p *Provider, accept bool) error {
	k.unwrapping.Lock() // one after another: the later one finds what the first did
	defer k.unwrapping.Unlock()
	row, err := k.wrappedBy(ctx, p)
	if err != nil || row == nil {
		return err
	}
	var key opened
	wrapper, err := p.wrapper()
	if err == nil {
		key, err = p.unwrapWithPIN(ctx, wrapper, *row)
	}
	if err == nil {
		err = guard(ctx, k.store, *row, key, func(text string) { k.o.Log.Warn(text) },
			func(next *WrappedKey) error { return k.wrapBy(ctx, p.Name(), key.key, nil, next) })
	}
	if err == nil {
		err = k.checkGeneration(ctx, p, key.key, accept)
	}
	if err != nil {
		psa.Wipe(key.key)
		k.store.Unguard() // nothing is changed in a store that nobody may use
		return k.stayAbsent(*row, err)
	}
	if err := k.sealer.open(key.key); err != nil {
		return err
	}
	p.log.Info("the provider unwrapped the data key")
	k.unlocked()
	if k.state.lost("the state directory") != nil || !k.rewrapping.TryLock() {
		return nil // whoever rewraps it, or the next start, puts the files in order
	}
	defer k.rewrapping.Unlock()
	// The row may be another one by now.
	now, _, err := k.store.DataKey(ctx)
	if err != nil {
		return err
	}
	strangers, err := tidy(k.o.Dir, now)
	if err != nil {
		p.log.Warn("cannot remove a wrapping key that is no longer used", "err", err)
	}
	for _, path := range strangers {
		p.log.Warn("a file is not a wrapping key of this KIM; it is left alone", "path", path)
	}
	return nil
}

// notUnwrapped records why the provider cannot unwrap the data key, if this provider wrapped it.
func (k *KIM) notUnwrapped(ctx context.Context, p *Provider, why error) {
	row, err := k.wrappedBy(ctx, p)
	if err == nil && row != nil {
		_ = k.stayAbsent(*row, why) // why is told by who found it
	}
}

// wrappedBy is the row that the provider is to unwrap, nil if there is none.
func (k *KIM) wrappedBy(ctx context.Context, p *Provider) (*WrappedKey, error) {
	if k.sealer.Err() == nil {
		return nil, nil
	}
	row, _, err := k.store.DataKey(ctx)
	if err != nil || row.Kind != WrapProvider+p.Name() {
		return nil, err
	}
	return &row, nil
}

func (k *KIM) stayAbsent(row WrappedKey, why error) error {
	err := sealedBy(row, why)
	if k.sealer.stay(err) {
		k.o.Log.Warn(err.Error(), "hint", psa.HintOf(err))
	}
	return err
}

// sealedBy says why a provider cannot unwrap the data key.
func sealedBy(row WrappedKey, why error) error {
	name := strings.TrimPrefix(row.Kind, WrapProvider)
	hint := "parsecfs opens them when the device that wrapped the data key is back; if the device is lost for good, run parsecfs state rewrap --recovery-key FILE file"
	switch {
	case errors.Is(why, errOldStore):
		hint = psa.HintOf(why)
	case errors.Is(why, providers.ErrPIN):
		hint = pinHint(row, why)
	case psa.StatusOf(why) == psa.StatusNotPermitted:
		hint = "if you changed the platform on purpose, such as with new firmware, run parsecfs state rewrap --recovery-key FILE " + row.Kind
	}
	return psa.Errorf(psa.StatusProviderAbsent, "secrets in the KIM stay sealed: provider %s cannot unwrap the data key: %w", name, why).
		WithHint(hint)
}

var errNotAsked = psa.Errorf(psa.StatusProviderAbsent, "the provider has not responded yet, or is not configured")

// Files of wrapping keys. The key in wrapping.key is valid until a rewrap has stored a row with the id of another key. That
// key is beside it, in wrapping.key.OLD.NEW. The name has the ids of both rows, so it is never in doubt to which row the file
// belongs. It is then renamed over the old one.

// candidate is such a file.
type candidate struct {
	path    string
	old, id [16]byte
}

func candidatePath(dir string, old, id [16]byte) string {
	return filepath.Join(dir, wrappingFile+"."+hex.EncodeToString(old[:])+"."+hex.EncodeToString(id[:]))
}

func candidates(dir string) (all []candidate, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), wrappingFile+".")
		c := candidate{path: filepath.Join(dir, e.Name())}
		old, id, _ := strings.Cut(rest, ".")
		if !ok || len(old) != 32 || len(id) != 32 {
			continue
		}
		_, err1 := hex.Decode(c.old[:], []byte(old))
		_, err2 := hex.Decode(c.id[:], []byte(id))
		if err1 == nil && err2 == nil {
			all = append(all, c)
		}
	}
	return all, nil
}

// wrappingPath is the file with the wrapping key of the row. After an interrupted rewrap it is beside the usual one.
func wrappingPath(dir string, row WrappedKey) string {
	usual := filepath.Join(dir, wrappingFile)
	w, err := readWrappingKey(usual)
	psa.Wipe(w.key[:])
	if err == nil && w.id == row.WrappingID {
		return usual
	}
	all, _ := candidates(dir) // what cannot be read has no candidate, and the usual place says why
	for _, c := range all {
		if c.id == row.WrappingID {
			return c.path
		}
	}
	return usual
}

// wrapInFile wraps the data key with a new wrapping key, and puts its file beside the usual one.
func (k *KIM) wrapInFile(row WrappedKey, key []byte, next *WrappedKey) (err error) {
	w := newWrappingKey()
	defer psa.Wipe(w.key[:])
	next.WrappingID = w.id
	next.Wrapped = w.wrap(key, *next)
	path := candidatePath(k.o.Dir, row.WrappingID, w.id)
	defer func() {
		if err != nil {
			_ = os.Remove(path) // what stays of it is no row's
			err = fileError(err, "cannot make the wrapping key %s", path)
		}
	}()
	b := w.marshal(wrappingHead)
	defer psa.Wipe(b)
	if err := writePrivate(path, b); err != nil {
		return err
	}
	k.o.Step(stepRewrapCandidate)
	if err := syncDir(k.o.Dir); err != nil {
		return err
	}
	again, err := readWrappingKey(path)
	if err != nil {
		return err
	}
	defer psa.Wipe(again.key[:])
	got, err := unwrap(*next, again)
	if err != nil {
		return err
	}
	defer psa.Wipe(got.key)
	if subtle.ConstantTimeCompare(got.key, key) != 1 {
		return errors.New("it unwraps another data key")
	}
	return nil
}

// tidy moves the wrapping key of the row into place, and removes those that the row shows to be superseded. Its caller has
// the data key. It leaves other files alone, and returns them.
func tidy(dir string, row WrappedKey) (strangers []string, err error) {
	usual := filepath.Join(dir, wrappingFile)
	failed := func(err error) ([]string, error) {
		return strangers, fileError(err, "cannot put the wrapping keys in %s in order", dir)
	}
	w, err := readWrappingKey(usual)
	psa.Wipe(w.key[:])
	missing := errors.Is(err, fs.ErrNotExist)
	superseded := err == nil && w.id == row.Before && row.Before != [16]byte{}
	current := err == nil && w.id == row.WrappingID && row.Kind == WrapFile
	all, err := candidates(dir)
	if err != nil {
		return failed(err)
	}
	var mine string
	changed := false
	for _, c := range all {
		switch {
		case c.id == row.WrappingID && !current:
			mine = c.path
		case c.old == row.WrappingID, c.id == row.WrappingID, c.id == row.Before && row.Before != [16]byte{}:
			// It was made for an earlier row, or for one that was never stored, or it is a copy of the current key.
			if err := os.Remove(c.path); err != nil {
				return failed(err)
			}
			changed = true
		default:
			strangers = append(strangers, c.path)
		}
	}
	switch {
	case mine != "" && (missing || superseded):
		err, changed = os.Rename(mine, usual), true
	case superseded && row.Kind != WrapFile:
		err, changed = os.Remove(usual), true
	case !missing && !current && !superseded:
		strangers = append(strangers, usual)
	}
	if err == nil && changed {
		err = syncDir(dir)
	}
	if err != nil {
		return failed(err)
	}
	return strangers, nil
}

// Recovery keys.

// WriteRecoveryKey writes a new recovery key to a new file, 0600 and durable when it returns. It returns the content, which
// the caller wipes. The file must not be in the state directory, because it is needed when that is lost.
func WriteRecoveryKey(path, stateDir string) ([]byte, error) {
	in, name := filepath.Split(path)
	dir, inside, err := below(cmp.Or(in, "."), stateDir)
	if err != nil {
		return nil, fileError(err, "cannot write the recovery key %s", path)
	}
	if inside {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "the recovery key %s would be in the state directory %s, and be lost with it", path, stateDir).
			WithHint("choose a file elsewhere, best on a disk of another machine")
	}
	w := newWrappingKey()
	defer psa.Wipe(w.key[:])
	b := w.marshal(recoveryHead)
	path = filepath.Join(dir, name)
	err = writePrivate(path, b)
	if errors.Is(err, fs.ErrExist) {
		psa.Wipe(b)
		return nil, psa.Errorf(psa.StatusAlreadyExists, "%s exists already", path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		psa.Wipe(b)
		_ = os.Remove(path) // no row has it
		return nil, fileError(err, "cannot write the recovery key %s", path)
	}
	return b, nil
}

// ReadRecoveryKey returns the content of a recovery key's file, which the caller wipes. A missing file is fs.ErrNotExist.
func ReadRecoveryKey(path string) ([]byte, error) {
	b, _, err := readKeyFile(path)
	if err != nil {
		return nil, fileError(err, "cannot read the recovery key %s", path)
	}
	w, err := parseWrappingKey(recoveryHead, b)
	psa.Wipe(w.key[:])
	if err != nil {
		psa.Wipe(b)
		return nil, psa.Errorf(psa.StatusInvalidArgument, "%s is not a recovery key: %w", path, err)
	}
	return b, nil
}

// below returns a directory's real path, and whether it is top or inside top, whatever links lead to them.
func below(dir, top string) (real string, inside bool, err error) {
	if real, err = filepath.EvalSymlinks(dir); err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return "", false, err
	}
	want, err := os.Stat(top)
	if errors.Is(err, fs.ErrNotExist) {
		return real, false, nil
	}
	if err != nil {
		return "", false, err
	}
	for up := real; ; up = filepath.Dir(up) {
		info, err := os.Stat(up)
		if err != nil {
			return "", false, err
		}
		if os.SameFile(info, want) || up == filepath.Dir(up) {
			return real, os.SameFile(info, want), nil
		}
	}
}
