package fs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes"
	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// StateOptions say where the state lies and how to open it.
type StateOptions struct {
	Config   *Config
	StateDir string // absolute
	Log      *slog.Logger
	Step     func(string) // the KIM's, for tests; may be nil
}

// handoverTimeout is how long a start waits for a daemon that is on its way out.
const handoverTimeout = 10 * time.Second

// openKIM opens a KIM that no other process holds. It waits for a daemon that is ending, so that a script can mount again
// right after an unmount.
func openKIM(ctx context.Context, o StateOptions) (*kim.KIM, error) {
	options := kim.Options{
		Dir:              o.StateDir,
		Path:             o.Config.SQLite,
		Default:          o.Config.Core.DefaultProvider,
		OperationTimeout: o.Config.Core.OperationTimeout,
		GenerateTimeout:  o.Config.Core.GenerateTimeout,
		KeysPerUser:      o.Config.Core.KeysPerUser,
		DraftExpiry:      o.Config.Core.DraftExpiry,
		Log:              o.Log,
		Step:             o.Step,
	}
	if pin := o.Config.Wrapping.PIN; pin.Given() {
		options.WrappingPIN = pin.Read
	}
	for _, p := range o.Config.Providers {
		options.Providers = append(options.Providers, kim.ProviderConfig{
			Name: p.Name, Type: p.Type.Name, UID: p.UID, GID: p.GID, Mode: p.Mode,
			Open: func(ctx context.Context, dir, known string) (providers.Provider, error) {
				log := o.Log.With("provider", p.Name)
				own, err := p.Type.New(ctx, providers.Config{Name: p.Name, StateDir: dir, Settings: p.Settings, Known: known, Log: log})
				if err != nil {
					return nil, err
				}
				return providers.Narrow(own, providers.Narrowing{Lines: p.Capabilities, AllowDeprecated: o.Config.Core.AllowDeprecated, Log: log}), nil
			},
		})
	}
	for deadline := time.Now().Add(handoverTimeout); ; time.Sleep(50 * time.Millisecond) {
		k, err := kim.Open(ctx, options)
		if err == nil {
			return k, nil
		}
		// StatusBadState is a state that another process holds.
		if psa.StatusOf(err) != psa.StatusBadState {
			return nil, stateError(err)
		}
		// A daemon that is ending has closed its control socket before anything else.
		serving := false
		if c, err := dial(o.StateDir); err == nil {
			serving = c.ping() == nil
			c.close()
		}
		if serving || time.Now().After(deadline) || ctx.Err() != nil {
			return nil, stateError(err)
		}
	}
}

// KeyInfo is a key as keys list shows it.
type KeyInfo struct {
	Provider string    `json:"provider"`
	Name     string    `json:"name"` // users/UID/NAME where it is among a user's own names
	State    string    `json:"state"`
	Template string    `json:"template"`
	UID      uint32    `json:"uid"` // its directory's owner
	UUID     string    `json:"uuid"`
	Created  time.Time `json:"created"`
}

// ListKeys gives every key of one provider, or of all where provider is empty, in the order of their names; with an
// owner only theirs. It asks the daemon that holds the state, or opens the state itself.
func ListKeys(ctx context.Context, o StateOptions, provider string, owner *uint32, each func(KeyInfo) error) error {
	return withState(ctx, o,
		func(c *client) error {
			in := request{Command: commandKeys, Provider: provider, Owner: owner}
			return c.call(in, func(r *response) error { return each(*r.Key) })
		},
		func(k *kim.KIM) error { return listKeys(ctx, k, provider, owner, each) })
}

// ChownKeys gives the keys of the user owner, and their files of others' keys, to uid and gid. It calls each for every key,
// with its error.
func ChownKeys(ctx context.Context, o StateOptions, owner, uid, gid uint32, each func(KeyInfo, error) error) error {
	return change(ctx, o, request{Command: commandChown, Owner: &owner, UID: uid, GID: gid}, each)
}

// DestroyKeys destroys the keys whose directory belongs to the user owner. It calls each for every key, with its error.
func DestroyKeys(ctx context.Context, o StateOptions, owner uint32, each func(KeyInfo, error) error) error {
	return change(ctx, o, request{Command: commandDestroy, Owner: &owner}, each)
}

func change(ctx context.Context, o StateOptions, in request, each func(KeyInfo, error) error) error {
	return withState(ctx, o,
		func(c *client) error {
			return c.call(in, func(r *response) error {
				if r.Error == "" {
					return each(*r.Key, nil)
				}
				return each(*r.Key, &Error{KindOther, errors.New(r.Error), r.Hint})
			})
		},
		func(k *kim.KIM) error {
			may, err := ownAuthority(in)
			if err != nil {
				return err
			}
			return changeKeys(ctx, k, nil, fuse.Caller{}, may, in, each)
		})
}

// changeKeys does what the request asks for, which may permits, with each key that it is about; tree is nil where nothing
// is mounted.
func changeKeys(ctx context.Context, k *kim.KIM, tree *nodes.Tree, by fuse.Caller, may authority, in request, each func(KeyInfo, error) error) error {
	return eachKey(ctx, k, "", func(p *kim.Provider, key kim.Key) error {
		owner, err := k.Owner(ctx, key)
		if psa.StatusOf(err) == psa.StatusDataCorrupt {
			return each(keyInfo(p, key, owner), err) // the other keys are still handled
		}
		if err != nil {
			return err
		}
		switch {
		case in.Command == commandDestroy && owner == *in.Owner:
			err = k.Destroy(ctx, key.Number, uint32(os.Geteuid()))
			if tree != nil {
				tree.Destroyed(by, in.Command, p, key.Number, key.Path(), err)
			}
		case in.Command == commandChown && may.changes(owner) != nil:
			if key.UID != *in.Owner {
				return nil
			}
			err = may.changes(owner)
		case in.Command == commandChown:
			// The user may own files of other users' keys.
			if tree != nil {
				err = tree.Chown(ctx, by, p, key.Number, *in.Owner, in.UID, in.GID)
			} else {
				err = k.SetOwner(ctx, key.Number, *in.Owner, in.UID, in.GID)
			}
			if psa.StatusOf(err) == psa.StatusDoesNotExist {
				return nil
			}
			if owner == *in.Owner {
				owner = in.UID
			}
			if now, failed := k.Key(ctx, key.Number); err == nil && failed == nil {
				key = now // it may be among the new owner's own names
			}
		default:
			return nil
		}
		return each(keyInfo(p, key, owner), err)
	})
}

// ForgetKey removes a key from the KIM, but not from its device, which need not be present.
func ForgetKey(ctx context.Context, o StateOptions, provider, name string) error {
	in := request{Command: commandForget, Provider: provider, Name: name}
	return withState(ctx, o,
		func(c *client) error { return c.call(in, nil) },
		func(k *kim.KIM) error { return forgetKey(ctx, k, nil, fuse.Caller{}, in) })
}

func forgetKey(ctx context.Context, k *kim.KIM, tree *nodes.Tree, by fuse.Caller, in request) error {
	p, err := providerNamed(k, in.Provider)
	if err != nil {
		return err
	}
	space, name, err := kim.SplitPath(kim.Shared, in.Name)
	if err != nil {
		return err
	}
	key, err := p.Named(ctx, space, name)
	if err == nil {
		err = k.Forget(ctx, key.Number)
	}
	if tree != nil {
		tree.Destroyed(by, in.Command, p, key.Number, kim.Key{Space: space, Name: name}.Path(), err)
	}
	return err
}

// RenameProvider gives a provider another name. No daemon may be running; the configuration may have either name.
func RenameProvider(ctx context.Context, o StateOptions, from, to string) error {
	if err := checkProviderName(to); err != nil {
		return &Error{KindUsage, err, "parsecfs provider rename OLD NEW"}
	}
	if err := kim.RenameProvider(ctx, kim.Options{Dir: o.StateDir, Path: o.Config.SQLite}, from, to); err != nil {
		return stateError(err)
	}
	return nil
}

// ForeignInfo is a key on a device, as keys foreign shows it.
type ForeignInfo struct {
	Provider string `json:"provider"`
	Object   string `json:"object"` // what an import takes
	Label    string `json:"label"`
	Type     string `json:"type"` // "" if no key can be made of it
	Bits     int    `json:"bits"`
	Template string `json:"template"` // what it gets if the draft has no template
	Holder   string `json:"holder"`   // the key here that already uses it
}

// ForeignKeys lists the keys on the device of one provider. If provider is empty, it lists those of every provider that can
// have keys of other programs.
func ForeignKeys(ctx context.Context, o StateOptions, provider string, each func(ForeignInfo) error) error {
	return withState(ctx, o,
		func(c *client) error {
			in := request{Command: commandForeign, Provider: provider}
			return c.call(in, func(r *response) error { return each(*r.Foreign) })
		},
		func(k *kim.KIM) error { return foreignKeys(ctx, k, provider, uint32(os.Geteuid()), each) })
}

func foreignKeys(ctx context.Context, k *kim.KIM, provider string, uid uint32, each func(ForeignInfo) error) error {
	asked := k.Providers()
	if provider != "" {
		p, err := providerNamed(k, provider)
		if err != nil {
			return err
		}
		asked = []*kim.Provider{p}
	}
	for _, p := range asked {
		list, err := p.Foreign(ctx, uid)
		if provider == "" && psa.StatusOf(err) == psa.StatusNotSupported {
			continue
		}
		if err != nil {
			return err
		}
		for _, f := range list {
			info := ForeignInfo{Provider: p.Name(), Object: f.Object, Label: f.Label, Bits: f.Attributes.Bits, Template: f.Attributes.Template(), Holder: f.Holder}
			if f.Attributes.Type != psa.KeyTypeNone {
				info.Type = f.Attributes.Type.String()
			}
			if err := each(info); err != nil {
				return err
			}
		}
	}
	return nil
}

// Backup writes a consistent copy of the state, as a tar.
func Backup(ctx context.Context, o StateOptions, w io.Writer) error {
	return withState(ctx, o,
		func(c *client) error {
			return c.call(request{Command: commandBackup}, func(r *response) error {
				_, err := w.Write(r.Data)
				return err
			})
		},
		func(k *kim.KIM) error { return k.Backup(ctx, w) })
}

// Rewrapping says how the data key is to be wrapped.
type Rewrapping struct {
	Kind         string    // "file" or "tpm:PROVIDER"
	PCRs         *psa.PCRs // as kim.Rewrapping has them
	RecoveryFile string    // the recovery key's; "" is without one
	NewDataKey   bool
}

// Rewrap wraps the data key in another way. It reads the recovery key from its file; if there is none, it makes one, for
// wrapping by a provider and for a new data key, and made says so. A provider asks for the configuration's PIN from now on,
// or for no PIN if the configuration has none. This program reads and writes the files: a daemon only gets their content.
func Rewrap(ctx context.Context, o StateOptions, how Rewrapping) (made bool, err error) {
	kind, file := how.Kind, how.RecoveryFile
	if name, ok := strings.CutPrefix(kind, kim.WrapProvider); kind != kim.WrapFile && (!ok || name == "") {
		return false, &Error{KindUsage, fmt.Errorf("unknown wrapping %q; allowed: %s, %sPROVIDER", kind, kim.WrapFile, kim.WrapProvider), "parsecfs state rewrap --help"}
	}
	r := kim.Rewrapping{Kind: kind, PCRs: how.PCRs, NewDataKey: how.NewDataKey}
	defer func() {
		psa.Wipe(r.Recovery)
		psa.Wipe(r.PIN)
	}()
	if kind != kim.WrapFile {
		if r.PIN, err = o.Config.Wrapping.PIN.Read(); err != nil {
			return false, &Error{KindOther, err, psa.HintOf(err)}
		}
	}
	if file != "" {
		r.Recovery, err = kim.ReadRecoveryKey(file)
		if errors.Is(err, os.ErrNotExist) && (kind != kim.WrapFile || how.NewDataKey) {
			made = true
			r.Recovery, err = kim.WriteRecoveryKey(file, o.StateDir)
		}
		if err != nil {
			return false, &Error{KindOther, err, psa.HintOf(err)}
		}
	}
	if o.Step != nil && made {
		o.Step(StepRecoveryWritten)
	}
	err = withState(ctx, o,
		func(c *client) error {
			in := request{Command: commandRewrap, Wrapping: kind, Recovery: r.Recovery, PIN: r.PIN, NewKey: r.NewDataKey}
			if r.PCRs != nil {
				in.PCRs = new(uint32(*r.PCRs))
			}
			return c.call(in, nil)
		},
		func(k *kim.KIM) error {
			if err := k.Rewrap(ctx, r); err != nil {
				return &Error{KindOther, err, psa.HintOf(err)}
			}
			return nil
		})
	if e, ok := errors.AsType[*Error](err); ok && made {
		return made, &Error{e.Kind, fmt.Errorf("%w; the new recovery key is in %s: use it again", e.Err, file), e.Hint}
	}
	return made, err
}

// AcceptLoss accepts a store that is older than its TPM says, such as a restored backup.
func AcceptLoss(ctx context.Context, o StateOptions) error {
	return withState(ctx, o,
		func(c *client) error { return c.call(request{Command: commandAccept}, nil) },
		func(k *kim.KIM) error {
			if err := k.AcceptLoss(ctx); err != nil {
				return &Error{KindOther, err, psa.HintOf(err)}
			}
			return nil
		})
}

// StepRecoveryWritten is the step of Rewrap, beside kim.RewrapSteps, at which the recovery key's file is durable.
const StepRecoveryWritten = "rewrap:written"

// checkWrapping refuses a store whose data key is not wrapped as the configuration says.
func checkWrapping(ctx context.Context, k *kim.KIM, c *Config, stateDir string) error {
	want := c.Wrapping
	if want.Kind == "" {
		return nil
	}
	kind, pcrs, recovery, err := k.Wrapping(ctx)
	if err != nil {
		return stateError(err)
	}
	command := "parsecfs state rewrap --config " + c.File
	if usual, err := DefaultStateDir(); err != nil || usual != stateDir {
		command += " --state-dir " + stateDir
	}
	if !recovery && want.Kind != kim.WrapFile {
		command += " --recovery-key FILE"
	}
	command += " " + want.Kind
	switch {
	case kind != want.Kind:
		return &Error{KindConfig, fmt.Errorf("%s: wrapping is %q, but the store's data key is wrapped by %q", c.File, want.Kind, kind), command}
	case want.PCRs != nil && pcrs != *want.PCRs:
		return &Error{KindConfig, fmt.Errorf("%s: wrapping_pcrs is %v, but the store's data key is bound to %v", c.File, want.PCRs.List(), pcrs.List()), command}
	case !recovery && want.Kind != kim.WrapFile:
		return &Error{KindConfig, fmt.Errorf("%s: wrapping is %q, but the store has no recovery key", c.File, want.Kind), command}
	case want.PIN.Given():
		// If that is not known, the provider's status says why.
		if pin, err := k.WrappedWithPIN(ctx); err == nil && !pin {
			err := fmt.Errorf("%s: wrapping_pin_source is set, but the store's data key is wrapped without a PIN", c.File)
			return &Error{KindConfig, err, command}
		}
	}
	return nil
}

// Restore unpacks a backup into a state directory that holds no KIM yet, and where the configuration keeps the KIM.
func Restore(ctx context.Context, o StateOptions, r io.Reader) error {
	var err error
	if o.Config.SQLite == "" {
		err = kim.Restore(ctx, o.StateDir, r)
	} else {
		err = kim.RestoreTo(ctx, o.StateDir, o.Config.SQLite, r)
	}
	if err != nil {
		return stateError(err)
	}
	return nil
}

// stateError is a failure of the KIM with the hint that it carries.
func stateError(err error) error { return &Error{KindState, err, psa.HintOf(err)} }

// withState runs remote if a daemon serves the state, and local otherwise.
func withState(ctx context.Context, o StateOptions, remote func(*client) error, local func(*kim.KIM) error) error {
	c, err := dial(o.StateDir)
	if err == nil {
		defer c.close()
		return remote(c)
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if !errors.Is(err, errNoDaemon) {
		return &Error{Kind: KindState, Err: err}
	}
	// Opening a missing state would create a new, empty one.
	if _, err := os.Stat(o.StateDir); err != nil {
		return &Error{KindState, fmt.Errorf("no state in %s: %w", o.StateDir, err), "use the daemon's --state-dir; the first mount creates the state"}
	}
	k, err := openKIM(ctx, o)
	if err != nil {
		return err
	}
	err = local(k)
	return errors.Join(err, k.Close())
}

func listKeys(ctx context.Context, k *kim.KIM, provider string, only *uint32, each func(KeyInfo) error) error {
	return eachKey(ctx, k, provider, func(p *kim.Provider, key kim.Key) error {
		owner, err := k.Owner(ctx, key)
		info := keyInfo(p, key, owner)
		switch {
		case psa.StatusOf(err) == psa.StatusDataCorrupt && only == nil:
			info.State = "damaged"
		case psa.StatusOf(err) == psa.StatusDataCorrupt:
			return nil // nobody knows whose key it is
		case err != nil:
			return err
		case only != nil && owner != *only:
			return nil
		}
		return each(info)
	})
}

func keyInfo(p *kim.Provider, key kim.Key, owner uint32) KeyInfo {
	return KeyInfo{p.Name(), key.Listed(), string(key.State), key.Template, owner, kim.UUID(key.ID), key.Created.UTC()}
}

// eachKey goes through the keys of one provider, or of all where provider is empty: by name, those with shared names first.
func eachKey(ctx context.Context, k *kim.KIM, provider string, each func(*kim.Provider, kim.Key) error) error {
	all := k.Providers()
	if provider != "" {
		p, err := providerNamed(k, provider)
		if err != nil {
			return err
		}
		all = []*kim.Provider{p}
	}
	for _, p := range all {
		if err := p.All(ctx, func(key kim.Key) error { return each(p, key) }); err != nil {
			return err
		}
	}
	return nil
}

func providerNamed(k *kim.KIM, name string) (*kim.Provider, error) {
	if p := k.Provider(name); p != nil {
		return p, nil
	}
	names := []string{}
	for _, p := range k.Providers() {
		names = append(names, strconv.Quote(p.Name()))
	}
	return nil, fmt.Errorf("there is no provider %q; the providers are: %s", name, cmp.Or(strings.Join(names, ", "), "none"))
}

// controlName is the control socket's name below the state directory.
const controlName = "control.sock"

// openStateDir opens the state directory. An admin may only search it.
func openStateDir(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// held is a path of an open directory: it leads there wherever the directory is moved, and is short, since the address of a
// socket holds 108 bytes.
func held(dir *os.File) string { return filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd()))) }
