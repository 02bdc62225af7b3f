package fs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes"
)

const (
	// maxInflightBytes bounds what go-fuse holds for requests under way. Beyond it the kernel queues.
	maxInflightBytes = 64 << 20
	// drainExtra is how long a drain waits beyond the longest operation.
	drainExtra = 5 * time.Second
	// replyGrace lets an answer that was just computed reach its reader before the connection closes.
	replyGrace = 50 * time.Millisecond
	// connectionGrace is how long the connection may outlive the mount. It lives on while another mount namespace has a
	// copy of the mount.
	connectionGrace = 2 * time.Second
)

// MountOptions of Run. Paths are absolute.
type MountOptions struct {
	Config     *Config
	StateDir   string
	Mountpoint string // resolved by ResolveMountpoint
	NeedOthers bool   // fail if other users could not use the mount
	Version    string
	Log        *slog.Logger
	// Held is called once, when this process holds the state; its error, an *Error, ends Run. It may be nil.
	Held func() error
	// Ready is called once, when the tree can be used.
	Ready func()
	// Stop ends the mount: after the first signal it drains and unmounts, after a second one it does not drain.
	Stop <-chan os.Signal
	// Reload asks to read the configuration again, by Load.
	Reload <-chan os.Signal
	Load   func() (*Config, error)
	// Step is the KIM's, for tests.
	Step func(string)
}

// Run mounts, serves until Stop or until the tree is unmounted, and leaves nothing behind. Errors are *Error.
func Run(ctx context.Context, o MountOptions) error {
	if err := harden(); err != nil {
		return err
	}
	for _, inside := range []string{o.StateDir, o.Config.SQLite} {
		if inside == o.Mountpoint || strings.HasPrefix(inside, strings.TrimSuffix(o.Mountpoint, "/")+"/") {
			return &Error{KindMountpoint, fmt.Errorf("%s is below the mountpoint %s: the daemon would wait for itself", inside, o.Mountpoint),
				"choose another --state-dir or another mountpoint"}
		}
	}
	limitTimeouts(o.Config, o.Log)
	k, err := openKIM(ctx, StateOptions{o.Config, o.StateDir, o.Log, o.Step})
	if err != nil {
		return err
	}
	defer func() {
		if err := k.Close(); err != nil {
			o.Log.Error("closing the key info manager", "err", err)
		}
	}()
	if o.Held != nil {
		if err := o.Held(); err != nil {
			return err
		}
	}
	if err := checkWrapping(ctx, k, o.Config, o.StateDir); err != nil {
		return err
	}
	// The state is opened before the mountpoint is cleared: a second mount of the same state then reports who holds it.
	detached := func() { o.Log.Warn("detached the dead mount of an earlier daemon", "mountpoint", o.Mountpoint) }
	if err := clearMountpoint(o.Mountpoint, detached); err != nil {
		return err
	}
	for _, w := range k.Warnings() {
		o.Log.Warn(w)
	}
	tellMemory(o.Log)
	// A working directory on the mountpoint would keep it busy, and one inside the mount would make us wait for ourselves.
	if err := os.Chdir("/"); err != nil {
		return err
	}
	control, err := listen(o.StateDir, k, o.Config.Admins, o.Log)
	if err != nil {
		return &Error{Kind: KindState, Err: fmt.Errorf("control socket: %w", err)}
	}
	defer control.remove()
	var audit *trail
	if o.Config.Audit != nil {
		if audit, err = openTrail(o.StateDir, *o.Config.Audit, o.Log); err != nil {
			control.close()
			return err
		}
		defer func() {
			if err := audit.close(); err != nil {
				o.Log.Error("closing the audit trail", "err", err)
			}
		}()
	}
	s, err := mount(k, audit, o)
	if err != nil {
		control.close()
		return err
	}
	control.tree.Store(s.tree)
	control.mounted.Store(&Status{Mountpoint: o.Mountpoint, Transport: s.transport})
	if err := notify("READY=1\nSTATUS=mounted on " + o.Mountpoint); err != nil {
		o.Log.Warn("cannot notify the service manager", "err", err)
	}
	o.Ready()
	stopped, running := false, true
	for running {
		select {
		case <-o.Reload:
			reload(k, s.tree, control, o)
			continue
		case <-o.Stop:
			stopped = true
		case <-ctx.Done():
			stopped = true
		case <-s.served:
		}
		running = false
	}
	if err := notify("STOPPING=1"); err != nil {
		o.Log.Warn("cannot notify the service manager", "err", err)
	}
	control.close()
	return s.end(o, stopped)
}

// reload applies what can change while the tree is mounted: owners and modes of the providers' directories, and whom the
// authenticators let in. A wrong configuration changes nothing.
func reload(k *kim.KIM, tree *nodes.Tree, control *control, o MountOptions) {
	c, err := o.Load()
	if err != nil {
		o.Log.Error("the configuration was not reloaded", "err", err)
		return
	}
	for _, p := range c.Providers {
		known := k.Provider(p.Name)
		if known == nil {
			o.Log.Warn("a new provider is not used before the next mount", "provider", p.Name)
			continue
		}
		if known.SetDirectory(p.UID, p.GID, p.Mode) {
			tree.ProviderChanged(known)
		}
	}
	tree.SetUnitRules(c.Units)
	tree.SetAdmins(c.Admins)
	if err := control.setAdmins(c.Admins); err != nil {
		o.Log.Error("cannot set the control socket's mode", "err", err)
	}
	o.Log.Info("reloaded the owners, groups and modes of providers, the admins and the unit rules; the rest of the configuration is read at the next mount")
}

// server is a mounted tree.
type server struct {
	tree      *nodes.Tree
	fuse      *fuse.Server  // nil with rings
	transport Transport     // uring or device
	served    chan struct{} // closed when the connection has ended
}

func mount(k *kim.KIM, audit *trail, o MountOptions) (*server, error) {
	rings, err := prepareRings(o)
	if err != nil {
		return nil, err
	}
	c, err := connect(o.Mountpoint, o.NeedOthers)
	if err != nil {
		if rings != nil {
			rings.Close()
		}
		return nil, err
	}
	if !c.othersAllowed {
		o.Log.Info("only the user who mounts can use the tree: /etc/fuse.conf has no user_allow_other")
	}
	settings := nodes.Options{
		KIM:                 k,
		Version:             o.Version,
		BodyLimit:           o.Config.Core.BodyLenLimit,
		Dropbox:             o.Config.Mount.Dropbox,
		Lasting:             lasting(o.Config.Mount.AttrTimeout),
		TransactionsPerUser: o.Config.Core.TransactionsPerUser,
		BufferPerUser:       o.Config.Core.BufferPerUser,
		OthersAllowed:       c.othersAllowed,
		Units:               o.Config.Units,
		Admins:              o.Config.Admins,
		Log:                 o.Log,
	}
	if audit != nil {
		settings.Audit, settings.AuditPath = audit, audit.deeds.path
	}
	tree := nodes.New(settings)
	logger := slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug)
	options := &gofs.Options{
		NullPermissions: true, // mode 0000 means it
		EntryTimeout:    &o.Config.Mount.AttrTimeout,
		AttrTimeout:     &o.Config.Mount.AttrTimeout,
		RootStableAttr:  &gofs.StableAttr{Ino: nodes.RootIno},
		Logger:          logger,
		MountOptions: fuse.MountOptions{
			FsName:                  "parsecfs",
			Name:                    "parsecfs",
			MaxWrite:                maxTransfer,
			MaxInflightRequestBytes: maxInflightBytes,
			EnableAcl:               true,
			DisableReadDirPlus:      true,
			// Answers are in memory: with splice go-fuse would first try a pipe for each.
			DisableSplice: true,
			// EnableSymlinkCaching stays off: the kernel would keep what mine says to one user for all.
			// With ACLs the umask must not be applied before a default ACL was asked; nodes apply it. io_uring repeats a read that
			// was short at the same place where it is not asynchronous.
			ExtraCapabilities: fuse.CAP_DONT_MASK | fuse.CAP_ASYNC_DIO,
			PanicHandler:      panicHandler(o.Log),
			Logger:            logger,
		},
	}
	if rings != nil {
		options.ServerCallbacks = rings
	}
	raw := tree.Wrap(gofs.NewNodeFS(tree.Root(), options))
	if rings != nil {
		raw = tree.Prompt(raw)
	}
	s := &server{tree: tree, served: make(chan struct{}), transport: TransportDevice}
	if rings != nil {
		err := rings.Serve(c.fd, raw, &options.MountOptions)
		if err == nil {
			s.transport = TransportURing
			go func() {
				defer close(s.served)
				rings.Wait()
			}()
			return s, s.begin(raw, o)
		}
		if c.fd, err = withoutRings(o, err); err != nil {
			return nil, err
		}
	}
	// go-fuse owns the descriptor from here on.
	s.fuse, err = fuse.NewServer(raw, fmt.Sprintf("/dev/fd/%d", c.fd), &options.MountOptions)
	if err != nil {
		s.unmount(o)
		return nil, &Error{Kind: KindFUSE, Err: fmt.Errorf("cannot serve the FUSE connection: %w", err)}
	}
	go func() {
		defer close(s.served)
		s.fuse.Serve()
	}()
	if err := s.fuse.WaitMount(); err != nil {
		s.unmount(o)
		return nil, &Error{Kind: KindFUSE, Err: err}
	}
	return s, s.begin(raw, o)
}

// begin asks the tree for its root. Through the mount the daemon would wait for itself.
func (s *server) begin(raw fuse.RawFileSystem, o MountOptions) error {
	var out fuse.AttrOut
	status := raw.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}}, &out)
	if status.Ok() {
		return nil
	}
	s.unmount(o)
	return &Error{Kind: KindFUSE, Err: fmt.Errorf("the tree's root: %v", status)}
}

// lastingTime is how long the kernel may keep what nobody but it, and we, who tell it, changes.
const lastingTime = time.Hour

// lasting is lastingTime, unless the kernel is to keep nothing.
func lasting(attrTimeout time.Duration) time.Duration {
	if attrTimeout == 0 {
		return 0
	}
	return lastingTime
}

// panicHandler answers EIO for a request whose handler panicked, so that no client can end the daemon.
func panicHandler(log *slog.Logger) func(any) fuse.Status {
	return func(v any) fuse.Status {
		// A panic's value may contain the request. The text of an error comes from the runtime.
		what := fmt.Sprintf("%T", v)
		if err, ok := v.(error); ok {
			what = err.Error()
		}
		log.Error("a request failed with a panic: this is a bug in parsecfs", "panic", what, "stack", string(debug.Stack()))
		return fuse.EIO
	}
}

// end drains and unmounts. If the connection has ended already, it finds out why.
func (s *server) end(o MountOptions, stopped bool) error {
	drain, cancel := context.WithTimeout(context.Background(), o.Config.Core.OperationTimeout+drainExtra)
	defer cancel()
	go func() {
		select {
		case <-o.Stop:
			cancel()
		case <-drain.Done():
		}
	}()
	o.Log.Info("draining", "mountpoint", o.Mountpoint)
	s.tree.Drain(drain)
	if stopped {
		s.unmount(o)
		s.tree.Close()
		return nil
	}
	s.tree.Close()
	// If the mount is still there, somebody aborted its connection through fusectl.
	if m, err := mountAt(o.Mountpoint); err == nil && m != nil && m.FSType == mountType && !isAlive(o.Mountpoint) {
		unmount(o.Mountpoint, true)
		return &Error{KindFUSE, errors.New("the kernel aborted the connection"), "dmesg and /sys/fs/fuse/connections may say why"}
	}
	o.Log.Info("another program unmounted the tree", "mountpoint", o.Mountpoint)
	return nil
}

// unmount unmounts. A mount that stays busy is detached, and its open files fail when the process has ended.
func (s *server) unmount(o MountOptions) {
	var err error
	// Files that were just closed still hold the mount for a moment.
	for _, delay := range []time.Duration{0, 10, 30, 60, 100} {
		time.Sleep(delay * time.Millisecond)
		if err = unmount(o.Mountpoint, false); !errors.Is(err, unix.EBUSY) {
			break
		}
	}
	if err == nil && s.fuse == nil && s.transport == TransportDevice {
		return
	}
	if err == nil {
		select {
		case <-s.served:
		case <-time.After(connectionGrace):
			o.Log.Warn("another mount namespace has a copy of the mount, which stops working when the daemon ends", "mountpoint", o.Mountpoint)
		}
		return
	}
	if errors.Is(err, unix.EBUSY) {
		o.Log.Warn("the mountpoint is in use: it was detached, and its open files fail when the daemon has ended", "mountpoint", o.Mountpoint)
	}
	if err := unmount(o.Mountpoint, true); err != nil && !errors.Is(err, unix.EINVAL) {
		o.Log.Error("cannot unmount", "mountpoint", o.Mountpoint, "err", err)
	}
	time.Sleep(replyGrace)
}

// limitTimeouts keeps operations below the kernel's limit for a request: beyond it the kernel aborts the mount.
func limitTimeouts(c *Config, log *slog.Logger) {
	limit := requestTimeout()
	if limit == 0 {
		return
	}
	most := max(limit-time.Second, time.Second)
	for _, t := range []struct {
		name string
		d    *time.Duration
	}{{"operation_timeout", &c.Core.OperationTimeout}, {"generate_timeout", &c.Core.GenerateTimeout}} {
		if *t.d > most {
			log.Warn(fmt.Sprintf("%s is lowered to %v: the kernel aborts a mount when a request takes longer than sysctl fs.fuse.max_request_timeout (%v)", t.name, most, limit))
			*t.d = most
		}
	}
}

// DefaultStateDir is /var/lib/parsecfs for root, and $XDG_STATE_HOME/parsecfs for anybody else.
func DefaultStateDir() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/lib/parsecfs", nil
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "parsecfs"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", &Error{KindUsage, fmt.Errorf("cannot choose a state directory: %w", err), "give --state-dir"}
	}
	return filepath.Join(home, ".local", "state", "parsecfs"), nil
}
