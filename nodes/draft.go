package nodes

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// attributesInput is what may be written into attributes and, as TOML, into generate. Fields that only tell are
// allowed, so that a text that was read can be written back.
type attributesInput struct {
	psa.Fields
	AllowDestroy *bool     `toml:"allow_destroy"`
	CallerNonce  *bool     `toml:"caller_nonce"`
	Failures     *int64    `toml:"failures"`
	Units        *[]string `toml:"units"`

	Name         any `toml:"name"`
	State        any `toml:"state"`
	Origin       any `toml:"origin"`
	Object       any `toml:"object"`
	Provider     any `toml:"provider"`
	UUID         any `toml:"uuid"`
	Created      any `toml:"created"`
	NoncesLeft   any `toml:"nonces_left"`
	Expires      any `toml:"expires"`
	Fingerprints any `toml:"fingerprints"`
}

// told are the fields that only tell, with what to do instead of writing another value.
func (x *attributesInput) told() []toldField {
	return []toldField{
		{"name", x.Name, "the key has the name of its directory: rename it with mv OLD NEW"},
		{"state", x.State, "generate, import or copy makes a draft a key, and rmdir destroys it"},
		{"origin", x.Origin, leaveOut},
		{"object", x.Object, "to adopt a key of the device, write its name into import"},
		{"provider", x.Provider, "a key cannot leave its provider: make one in the other provider's keys/"},
		{"uuid", x.UUID, leaveOut},
		{"created", x.Created, leaveOut},
		{"nonces_left", x.NoncesLeft, "used nonces cannot be reset: make a new key"},
		{"expires", x.Expires, "core_settings.draft_expiry sets it; touch the draft's directory to keep the draft longer"},
		{"fingerprints", x.Fingerprints, leaveOut},
	}
}

// toldField is one of them; value nil is not there.
type toldField struct {
	name  string
	value any
	hint  string
}

const leaveOut = "leave the line out: parsecfs sets it"

// mayTell refuses another value of a field that only tells than the one it has, or had when the text was read.
func (v *view) mayTell(k kim.Key, x attributesInput) error {
	fields := x.told()
	if !slices.ContainsFunc(fields, func(f toldField) bool { return f.value != nil }) {
		return nil
	}
	now := *v
	now.key = k
	text, err := now.attributes()
	if err != nil {
		return err
	}
	var has attributesInput
	if err := toml.Unmarshal(text, &has); err != nil {
		return err
	}
	for i, f := range has.told() {
		if given := fields[i].value; given != nil && !sameTold(given, f.value) && !v.wasTold(k, f, given) {
			return psa.Errorf(psa.StatusInvalidArgument, "%s cannot be set", f.name).WithHint(f.hint)
		}
	}
	return nil
}

func sameTold(a, b any) bool {
	if at, ok := a.(time.Time); ok {
		bt, ok := b.(time.Time)
		return ok && at.Equal(bt)
	}
	return reflect.DeepEqual(a, b)
}

// wasTold says whether a field had the value before, where it moves by itself: a text that was read a while ago can be
// written back.
func (v *view) wasTold(k kim.Key, now toldField, given any) bool {
	switch now.name {
	case "nonces_left":
		left, ok := now.value.(int64)
		before, is := given.(int64)
		return ok && is && before > left && before <= kim.MaxNonces
	case "expires":
		expires, ok := now.value.(time.Time)
		before, is := given.(time.Time)
		return ok && is && before.Before(expires) && !before.Before(k.Created.Add(v.t.kim.DraftExpiry()))
	}
	return false
}

// over is psa.Fields.Over with the templates of this provider in its refusals.
func (v *view) over(a psa.Attributes, x attributesInput) (psa.Attributes, error) {
	a, err := x.Over(a)
	return a, psa.SuggestTemplates(err, v.provider.Capabilities())
}

// suggest adds to a refusal of what this provider does not make what is nearest to it here.
func (v *view) suggest(a psa.Attributes, err error) error {
	template, offered := a.Template(), psa.Templates(v.provider.Capabilities())
	if psa.StatusOf(err) != psa.StatusNotSupported || template == "" || slices.Contains(offered, template) {
		return err
	}
	hint := "see the provider's templates file"
	if near := psa.Nearest(template, offered, 3); len(near) > 0 {
		hint = "the nearest ones: " + strings.Join(near, ", ") + "; " + hint
	}
	return psa.Errorf(psa.StatusNotSupported, "%w", err).WithHint(hint)
}

// readAttributes reads the TOML of b's whole lines; end 0 without an error is text that says nothing yet, or whose last
// value goes on.
func readAttributes(b []byte) (end int, x attributesInput, err error) {
	end = bytes.LastIndexByte(b, '\n') + 1
	if len(bytes.TrimSpace(b[:end])) == 0 {
		return 0, x, nil
	}
	err = toml.NewDecoder(bytes.NewReader(b[:end])).DisallowUnknownFields().Decode(&x)
	if err == nil {
		return end, x, nil
	}
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) && len(unknown.Errors) > 0 {
		line, _ := unknown.Errors[0].Position()
		return 0, x, psa.Errorf(psa.StatusInvalidArgument, "line %d: unknown attribute %q", line, strings.Join(unknown.Errors[0].Key(), ".")).
			WithHint("allowed: template, key_type, key_bits, permitted_algorithm, usage, pcrs, allow_destroy, caller_nonce, failures, units")
	}
	var wrong *toml.DecodeError
	if !errors.As(err, &wrong) {
		return 0, x, psa.Errorf(psa.StatusInvalidArgument, "%v", err)
	}
	line, _ := wrong.Position()
	if line > bytes.Count(b, []byte("\n")) {
		return 0, attributesInput{}, nil
	}
	return 0, x, psa.Errorf(psa.StatusInvalidArgument, "line %d: %s", line, strings.TrimPrefix(wrong.Error(), "toml: "))
}

func attributesStage(v *view) stage {
	return stage{again: true, scan: func(b []byte, _ bool) (int, func(context.Context) error, error) {
		end, x, err := readAttributes(b)
		if err != nil || end == 0 {
			return 0, nil, err
		}
		return end, func(ctx context.Context) error { return v.setAttributes(ctx, x) }, nil
	}}
}

// setAttributes changes a draft, and of a key only what its owner may still decide: a policy never changes.
func (v *view) setAttributes(ctx context.Context, x attributesInput) error {
	k, err := v.t.kim.Key(ctx, v.key.Number)
	if err != nil {
		return gone(err)
	}
	if err := v.mayTell(k, x); err != nil {
		return err
	}
	a, err := v.over(k.Attributes, x)
	if err != nil {
		return err
	}
	// so that the key is not given away between the question whose it is and what the answer allows
	v.t.changing.Lock()
	defer v.t.changing.Unlock()
	if err := v.mayDecide(ctx, k, x); err != nil {
		return err
	}
	if a != k.Attributes {
		if k.State != kim.Draft {
			return psa.Errorf(psa.StatusNotPermitted, "the policy of a key cannot be changed").WithHint("make a new key")
		}
		if err := v.t.kim.SetDraft(ctx, k.Number, a.Template(), a); err != nil {
			return err
		}
	}
	return v.setOwners(ctx, k, x)
}

// decisions are the changes of what is a key's owner's to decide as long as the key lives.
func (v *view) decisions(k kim.Key, x attributesInput) (changes []func(context.Context) error) {
	if x.AllowDestroy != nil && *x.AllowDestroy == k.KeepForever {
		changes = append(changes, func(ctx context.Context) error { return v.t.kim.SetAllowDestroy(ctx, k.Number, *x.AllowDestroy) })
	}
	if x.CallerNonce != nil && *x.CallerNonce != k.CallerNonce {
		changes = append(changes, func(ctx context.Context) error {
			err := v.t.kim.SetCallerNonce(ctx, k.Number, *x.CallerNonce)
			if err == nil && !*x.CallerNonce {
				v.t.gate.Lost(inoOf(k.Number, 0))
			}
			return err
		})
	}
	if x.Failures != nil && *x.Failures != k.Failures {
		changes = append(changes, func(ctx context.Context) error { return v.t.kim.ResetFailures(ctx, k.Number, v.uid == 0) })
	}
	if x.Units != nil && !slices.Equal(*x.Units, k.Units) {
		changes = append(changes, func(ctx context.Context) error {
			if err := v.t.kim.SetUnits(ctx, k.Number, *x.Units); err != nil {
				return err
			}
			v.t.gate.Lost(inoOf(k.Number, 0))
			return nil
		})
	}
	return changes
}

// mayDecide refuses what is its owner's to decide to everybody else who may write here, before anything changes.
func (v *view) mayDecide(ctx context.Context, k kim.Key, x attributesInput) error {
	if len(v.decisions(k, x)) == 0 {
		return nil
	}
	if err := validUnits(x.Units); err != nil {
		return err
	}
	if x.Failures != nil && *x.Failures != 0 && *x.Failures != k.Failures {
		return psa.Errorf(psa.StatusInvalidArgument, "failures can only be set to 0")
	}
	owner, err := v.t.kim.Owner(ctx, k)
	if err != nil {
		return err
	}
	if v.uid != owner && v.uid != 0 {
		return gate.Refuse(syscall.EPERM, "only the key's owner can set allow_destroy, caller_nonce, failures and units", "")
	}
	return v.borrowed()
}

func validUnits(units *[]string) error {
	if units == nil {
		return nil
	}
	if len(*units) > caller.UnitsMost {
		return psa.Errorf(psa.StatusInvalidArgument, "units can have at most %d entries", caller.UnitsMost)
	}
	for _, unit := range *units {
		if err := caller.ValidUnit(unit); err != nil {
			return psa.Errorf(psa.StatusInvalidArgument, "units: %w", err)
		}
	}
	return nil
}

// decide changes what is its owner's to decide, for its owner.
func (v *view) decide(ctx context.Context, k kim.Key, x attributesInput) error {
	if len(v.decisions(k, x)) == 0 {
		return nil // and waits for nobody's commit
	}
	v.t.changing.Lock()
	defer v.t.changing.Unlock()
	if err := v.mayDecide(ctx, k, x); err != nil {
		return err
	}
	return v.setOwners(ctx, k, x)
}

// setOwners changes what is its owner's to decide, which mayDecide allowed.
func (v *view) setOwners(ctx context.Context, k kim.Key, x attributesInput) error {
	for _, change := range v.decisions(k, x) {
		if err := change(ctx); err != nil {
			return err
		}
	}
	return nil
}

func generateStage(v *view) stage {
	create := func(a psa.Attributes, x attributesInput) func(context.Context) error {
		return func(ctx context.Context) error {
			k, err := v.t.kim.Key(ctx, v.key.Number)
			if err != nil {
				return gone(err)
			}
			if err := v.mayTell(k, x); err != nil {
				return err
			}
			if err := v.decide(ctx, k, x); err != nil {
				return err
			}
			return v.suggest(a, v.t.kim.Generate(ctx, v.key.Number, v.uid, a.Template(), a, nil))
		}
	}
	return stage{atClose: isTOML, scan: func(b []byte, alone bool) (int, func(context.Context) error, error) {
		line, _, whole := bytes.Cut(b, []byte("\n"))
		if isTOML(b) {
			end, x, err := readAttributes(b)
			if err != nil || end == 0 {
				return 0, nil, err
			}
			a, err := v.over(v.key.Attributes, x)
			if err != nil {
				return 0, nil, err
			}
			if a == (psa.Attributes{}) {
				return 0, nil, nil // comments only, as at the top of a capabilities file
			}
			return end, create(a, x), nil
		}
		words := strings.Fields(string(line))
		if len(words) == 0 {
			if !whole {
				return 0, nil, nil
			}
			if v.key.Attributes.Type == psa.KeyTypeNone {
				return 0, nil, psa.Errorf(psa.StatusInvalidArgument, "the attributes of this draft are empty").
					WithHint("write a template, such as ecdsa-p256-sha256; the provider's templates file has all of them")
			}
			return len(line) + 1, create(v.key.Attributes, attributesInput{}), nil
		}
		a, err := psa.ParseTemplate(words[0])
		if !whole && (!alone || err != nil && len(words) == 1 && mayBegin(words[0])) {
			return 0, nil, nil
		}
		if err != nil {
			return 0, nil, psa.SuggestTemplates(err, v.provider.Capabilities())
		}
		return min(len(line)+1, len(b)), create(a, attributesInput{}), nil
	}}
}

// mayBegin says whether a word may be the beginning of a template or of an attribute's name.
func mayBegin(word string) bool {
	return psa.TemplateBegins(word) || slices.ContainsFunc(reflect.VisibleFields(reflect.TypeFor[attributesInput]()), func(f reflect.StructField) bool {
		return strings.HasPrefix(f.Tag.Get("toml"), word)
	})
}

// isTOML tells attributes from a template.
func isTOML(b []byte) bool {
	line, _, _ := bytes.Cut(b, []byte("\n"))
	return bytes.ContainsRune(line, '=') || bytes.HasPrefix(bytes.TrimSpace(line), []byte("#"))
}

func importStage(v *view) stage {
	var found *psa.Material
	rest := psa.ScanBlank
	scan := func(b []byte, alone bool) (int, func(context.Context) error, error) {
		end, reference, more := psa.ScanReference(b, alone, v.key.Attributes)
		if end > 0 {
			return end, v.adopt(reference), nil
		}
		if more {
			return 0, nil, nil
		}
		end, m, a, err := psa.ScanMaterial(b, v.key.Attributes)
		if err != nil {
			return 0, nil, err
		}
		if end == 0 {
			if alone {
				err = psa.NoBeginning(b, v.key.Attributes)
			}
			return 0, nil, err
		}
		// Who has such a file need not be who may use the key in the TPM: root took it over, or does.
		if m.Format == psa.FormatTSS2 && (v.borrowed() != nil || v.uid != 0 && v.uid != v.t.uid) {
			m.Wipe()
			return 0, nil, psa.Errorf(psa.StatusNotPermitted, "only root can import a key that a TPM wrapped")
		}
		found = m
		if psa.InPEM(b[:end]) {
			rest = psa.ScanRest
		}
		return end, func(ctx context.Context) error {
			defer m.Wipe()
			return v.t.kim.Generate(ctx, v.key.Number, v.uid, a.Template(), a, m)
		}, nil
	}
	return stage{
		scan:       scan,
		drop:       func() { found.Wipe() },
		rest:       func(b []byte) (int, error) { return rest(b) },
		incomplete: func(b []byte) error { return psa.Sniff(b, v.key.Attributes) },
	}
}
