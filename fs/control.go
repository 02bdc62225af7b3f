package fs

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes"
	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// The control socket carries JSON: one request a connection, then a stream of responses of which the last has End.
const (
	commandPing    = "ping"
	commandKeys    = "keys list"
	commandChown   = "keys chown"
	commandDestroy = "keys destroy"
	commandForget  = "keys forget"
	commandForeign = "keys foreign"
	commandBackup  = "state backup"
	commandRewrap  = "state rewrap"
	commandAccept  = "state accept-loss"
	commandStatus  = "status"

	maxRequestBytes  = 4096
	maxResponseBytes = 256 << 10
	maxControlConns  = 16
	connsOfOne       = 4 // of one user who is not root, and kept free for root
	maxChunkBytes    = 64 << 10
	controlTimeout   = 30 * time.Second // for each message
	turnAwayTimeout  = 100 * time.Millisecond
	dialTimeout      = 5 * time.Second
	rewrapTimeout    = 10 * time.Minute // for the answer, which a device has its part in
)

type request struct {
	Command  string  `json:"command"`
	Provider string  `json:"provider,omitempty"`
	Name     string  `json:"name,omitempty"`  // of forget: the key
	Owner    *uint32 `json:"owner,omitempty"` // whose keys; nil is everybody's
	UID      uint32  `json:"uid,omitempty"`   // of chown: who gets them
	GID      uint32  `json:"gid,omitempty"`
	Wrapping string  `json:"wrapping,omitempty"` // of rewrap: the new kind
	PCRs     *uint32 `json:"pcrs,omitempty"`     // of rewrap
	Recovery []byte  `json:"recovery,omitempty"` // of rewrap: the content of the recovery key's file
	NewKey   bool    `json:"new_key,omitempty"`  // of rewrap: a new data key
	PIN      []byte  `json:"pin,omitempty"`      // of rewrap: what a provider wants from now on
}

type response struct {
	Key     *KeyInfo     `json:"key,omitempty"`
	Foreign *ForeignInfo `json:"foreign,omitempty"`
	Data    []byte       `json:"data,omitempty"`
	Status  *Status      `json:"status,omitempty"`
	End     bool         `json:"end,omitempty"`
	Error   string       `json:"error,omitempty"`
	Hint    string       `json:"hint,omitempty"`
}

// answers says whether a response, other than the last one, is of the kind that the command asks for.
func (r *response) answers(command string) bool {
	switch command {
	case commandBackup:
		return len(r.Data) > 0
	case commandForeign:
		return r.Foreign != nil
	case commandStatus:
		return r.Status != nil
	}
	return r.Key != nil
}

// control is the daemon's end of the socket.
type control struct {
	kim      *kim.KIM
	stateDir string
	admins   atomic.Pointer[[]uint32]
	refusals refusals
	tree     atomic.Pointer[nodes.Tree] // nil until there is one
	mounted  atomic.Pointer[Status]     // nil until it is; without providers
	log      *slog.Logger
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	place sync.Mutex // held while the socket or its modes change
	at    *socket

	mu    sync.Mutex
	conns map[uint32]int // of each user
}

// socket is a listener, and where people find it.
type socket struct {
	dir      *os.File // O_PATH
	ours     bool     // dir is the state directory that this daemon holds
	made     bool     // dir was made by this daemon in the place of one that was removed
	listener *net.UnixListener
	file     os.FileInfo
}

func (s *socket) name() string { return filepath.Join(held(s.dir), controlName) }

// bind makes the socket in a directory, which it takes. One that is there is an error: another daemon may have made it a moment
// ago.
func bind(dir *os.File) (*socket, error) {
	s := &socket{dir: dir}
	var err error
	if s.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: s.name(), Net: "unix"}); err != nil {
		dir.Close()
		return nil, err
	}
	s.listener.SetUnlinkOnClose(false) // see remove
	if s.file, err = os.Lstat(s.name()); err != nil {
		s.listener.Close()
		dir.Close()
		return nil, err
	}
	return s, nil
}

// listen opens the socket for root, the daemon's own user and admins. The caller holds the state directory, so a socket
// that exists already belongs to a dead daemon.
func listen(stateDir string, k *kim.KIM, admins []uint32, log *slog.Logger) (*control, error) {
	dir, err := openStateDir(stateDir)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(filepath.Join(held(dir), controlName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		dir.Close()
		return nil, err
	}
	s, err := bind(dir)
	if err != nil {
		return nil, err
	}
	s.ours = true
	ctx, cancel := context.WithCancel(context.Background())
	c := &control{kim: k, stateDir: stateDir, log: log, at: s, ctx: ctx, cancel: cancel, conns: map[uint32]int{}}
	if err := c.setAdmins(admins); err != nil {
		cancel()
		s.listener.Close()
		c.remove()
		return nil, err
	}
	c.wg.Go(func() { c.accept(s.listener) })
	c.wg.Go(c.stay)
	return c, nil
}

// stayInterval is how often the socket is looked for.
const stayInterval = time.Second

// stay makes the socket again where it was removed, with its directory perhaps: what is left of the keys is saved by a command.
func (c *control) stay() {
	ticker := time.NewTicker(stayInterval)
	defer ticker.Stop()
	told := false
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-ticker.C:
		}
		err := c.again()
		if err != nil && !told {
			c.log.Error("the control socket was removed and cannot be made again: commands do not reach this daemon", "err", err)
		}
		told = err != nil
	}
}

func (c *control) again() error {
	c.place.Lock()
	defer c.place.Unlock()
	if _, err := os.Lstat(c.at.name()); !errors.Is(err, os.ErrNotExist) || c.ctx.Err() != nil {
		return nil // one that was replaced belongs to whoever did that
	}
	dir, made, err := c.home()
	if err != nil {
		return err
	}
	s, err := bind(dir)
	if err != nil {
		return err
	}
	same := os.SameFile(stat(c.at.dir), stat(dir))
	s.ours, s.made = same && c.at.ours, made || same && c.at.made
	c.at.listener.Close()
	c.at.dir.Close()
	c.at = s
	c.wg.Go(func() { c.accept(s.listener) })
	if err := c.setModes(); err != nil {
		return err
	}
	c.log.Warn("the control socket was removed; made it again", "dir", c.stateDir)
	return nil
}

// home is the state directory for a new socket, made if it was removed. An empty one in its place is as good; one with files in it
// is another daemon's, or will be.
func (c *control) home() (dir *os.File, made bool, err error) {
	if c.at.ours && !kim.Removed(c.at.dir) {
		fd, err := unix.FcntlInt(c.at.dir.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		return os.NewFile(uintptr(fd), c.stateDir), false, err
	}
	err = os.Mkdir(c.stateDir, 0o700)
	made = err == nil
	if err != nil && !errors.Is(err, os.ErrExist) {
		return nil, false, err
	}
	if err := providers.CheckTrusted(c.stateDir); err != nil {
		return nil, false, err
	}
	entries, err := os.ReadDir(c.stateDir)
	if err != nil {
		return nil, false, err
	}
	if len(entries) > 0 {
		return nil, false, fmt.Errorf("%s is another directory now, with files in it", c.stateDir)
	}
	dir, err = openStateDir(c.stateDir)
	return dir, made, err
}

// stat is nil for a file that cannot be asked.
func stat(f *os.File) os.FileInfo {
	info, err := os.Stat(held(f))
	if err != nil {
		return nil
	}
	return info
}

// searchable lets others reach the socket. They still cannot list the state directory.
const searchable = 0o011

// setAdmins says who else is served. Without admins the modes of the socket and of the state directory keep others away.
// With admins everybody can reach the socket, and the daemon checks who asks; all other files there are 0600.
func (c *control) setAdmins(admins []uint32) error {
	c.place.Lock()
	defer c.place.Unlock()
	c.admins.Store(&admins)
	return c.setModes()
}

func (c *control) setModes() error {
	admins := *c.admins.Load()
	dir := held(c.at.dir)
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	socket, before := os.FileMode(0o600), info.Mode().Perm()
	mode := before &^ searchableAlone(before)
	if len(admins) > 0 {
		socket, mode = 0o666, before|searchable
	}
	if mode != before {
		if err := os.Chmod(dir, mode); err != nil {
			return err
		}
	}
	return os.Chmod(c.at.name(), socket)
}

// searchableAlone are the bits of a directory's mode that setAdmins may have set. A class that has other bits too got
// them from somebody else.
func searchableAlone(mode os.FileMode) (bits os.FileMode) {
	for _, shift := range []int{0, 3} {
		if mode>>shift&0o7 == 0o1 {
			bits |= 0o1 << shift
		}
	}
	return bits
}

// closeWait is how long close waits for commands that use the disk.
const closeWait = 2 * time.Second

// close stops listening, ends every connection, and waits for their commands. It does not wait long: a disk that hangs must
// not keep the mount, and a command that waits for it ends with the daemon.
func (c *control) close() {
	c.cancel()
	ended := make(chan struct{})
	go func() {
		c.place.Lock() // whoever looks for the socket may wait for the disk
		c.at.listener.Close()
		c.place.Unlock()
		c.wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(closeWait):
		c.log.Warn("control socket: a command is still running; the daemon does not wait for it any longer")
	}
}

// remove removes the socket. That can wait for the disk, so it is called after the mount is gone.
func (c *control) remove() {
	c.place.Lock()
	defer c.place.Unlock()
	defer c.at.dir.Close()
	if now, err := os.Lstat(c.at.name()); err != nil || !os.SameFile(now, c.at.file) {
		return // another daemon has the directory by now
	}
	if err := os.Remove(c.at.name()); err != nil {
		c.log.Warn("control socket", "err", err)
		return
	}
	if named, err := os.Stat(c.stateDir); c.at.made && err == nil && os.SameFile(named, stat(c.at.dir)) {
		_ = os.Remove(c.stateDir) // where nothing else came into it
	}
}

func (c *control) accept(from *net.UnixListener) {
	for {
		conn, err := from.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			c.log.Error("control socket", "err", err)
			// Descriptors may be used up for a moment.
			select {
			case <-time.After(100 * time.Millisecond):
			case <-c.ctx.Done():
			}
			continue
		}
		by, err := peer(conn)
		may := authorityOf(by.Uid, *c.admins.Load())
		if err != nil || may == stranger {
			c.turnAway(conn, by, err)
			continue
		}
		if !c.enter(by.Uid) {
			conn.Close()
			continue
		}
		c.wg.Go(func() {
			defer c.leave(by.Uid)
			c.serve(conn, by, may)
		})
	}
}

// enter counts a connection of a user. One user cannot take all places, and some are kept for root.
func (c *control) enter(uid uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := 0
	for _, n := range c.conns {
		all += n
	}
	if all >= maxControlConns || uid != 0 && (c.conns[uid] >= connsOfOne || all-c.conns[0] >= maxControlConns-connsOfOne) {
		return false
	}
	c.conns[uid]++
	return true
}

func (c *control) leave(uid uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conns[uid]--; c.conns[uid] == 0 {
		delete(c.conns, uid)
	}
}

// turnAway answers somebody who is not served. It needs no place of its own, since the answer fits into the socket's buffer.
func (c *control) turnAway(conn *net.UnixConn, by fuse.Caller, err error) {
	defer conn.Close()
	c.warn(by, "connect", err)
	if tree := c.tree.Load(); tree != nil {
		tree.TurnedAway(by)
	}
	if err := conn.SetWriteDeadline(time.Now().Add(turnAwayTimeout)); err != nil {
		return
	}
	if err := json.NewEncoder(conn).Encode(response{End: true, Error: errNotServed.Error(), Hint: notServedHint}); err != nil {
		c.log.Debug("control socket", "err", err)
	}
}

// serve answers one request, and checks who asks. The socket's mode is not enough even without admins, because a
// descriptor of it can be handed on.
func (c *control) serve(conn *net.UnixConn, by fuse.Caller, may authority) {
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(controlTimeout)) // before the end can set another one
	stop := context.AfterFunc(c.ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	out := json.NewEncoder(conn)
	send := func(r response) error {
		if err := conn.SetWriteDeadline(time.Now().Add(controlTimeout)); err != nil {
			return err
		}
		if err := c.ctx.Err(); err != nil { // checked last: close may just have set another deadline
			return err
		}
		return out.Encode(r)
	}
	in, err := readRequest(conn)
	if err != nil {
		send(response{End: true, Error: "control socket: " + err.Error()})
		return
	}
	defer psa.Wipe(in.Recovery)
	defer psa.Wipe(in.PIN)
	if err := may.permits(in); err != nil {
		c.refused(by, in.Command, err)
		send(response{End: true, Error: err.Error(), Hint: psa.HintOf(err)})
		return
	}
	switch in.Command {
	case commandPing:
	case commandKeys:
		err = listKeys(c.ctx, c.kim, in.Provider, in.Owner, func(k KeyInfo) error { return send(response{Key: &k}) })
	case commandChown, commandDestroy:
		err = changeKeys(c.ctx, c.kim, c.tree.Load(), by, may, in, func(k KeyInfo, err error) error {
			r := response{Key: &k}
			if err != nil {
				r.Error, r.Hint = err.Error(), psa.HintOf(err)
			}
			return send(r)
		})
	case commandStatus:
		err = c.status(func(s Status) error { return send(response{Status: &s}) })
	case commandForget:
		err = forgetKey(c.ctx, c.kim, c.tree.Load(), by, in)
	case commandForeign:
		err = foreignKeys(c.ctx, c.kim, in.Provider, by.Uid, func(f ForeignInfo) error { return send(response{Foreign: &f}) })
	case commandBackup:
		begun := time.Now()
		err = c.kim.Backup(c.ctx, chunks(func(p []byte) error { return send(response{Data: p}) }))
		c.did(by, in.Command, begun, err)
	case commandRewrap:
		r := kim.Rewrapping{Kind: in.Wrapping, Recovery: in.Recovery, PIN: in.PIN, NewDataKey: in.NewKey}
		if in.PCRs != nil {
			r.PCRs = new(psa.PCRs(*in.PCRs))
		}
		begun := time.Now()
		err = c.kim.Rewrap(c.ctx, r)
		c.did(by, in.Command, begun, err)
	case commandAccept:
		begun := time.Now()
		err = c.kim.AcceptLoss(c.ctx)
		c.did(by, in.Command, begun, err)
	default:
		err = fmt.Errorf("control socket: unknown command %q", in.Command)
	}
	last := response{End: true}
	if err != nil {
		last.Error, last.Hint = err.Error(), psa.HintOf(err)
	}
	if err := send(last); err != nil && c.ctx.Err() == nil {
		c.log.Debug("control socket", "err", err)
	}
}

// readRequest reads a request, which is one line, and wipes its buffer.
func readRequest(r io.Reader) (in request, err error) {
	b := make([]byte, maxRequestBytes)
	defer psa.Wipe(b)
	for n := 0; ; {
		if n == len(b) {
			return in, io.ErrUnexpectedEOF
		}
		m, err := r.Read(b[n:])
		n += m
		if line, _, ok := bytes.Cut(b[:n], []byte("\n")); ok {
			if err := json.Unmarshal(line, &in); err != nil {
				psa.Wipe(in.Recovery)
				psa.Wipe(in.PIN)
				return request{}, err
			}
			return in, nil
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return in, err
		}
	}
}

// chunks is a Writer that passes on at most maxChunkBytes at once.
type chunks func(p []byte) error

func (f chunks) Write(p []byte) (int, error) {
	for n := 0; n < len(p); {
		end := min(n+maxChunkBytes, len(p))
		if err := f(p[n:end]); err != nil {
			return n, err
		}
		n = end
	}
	return len(p), nil
}

// refused writes to the log and the audit trail who was refused at the socket.
func (c *control) refused(by fuse.Caller, command string, err error) {
	c.warn(by, command, err)
	if tree := c.tree.Load(); tree != nil {
		tree.Refused(by, command)
	}
}

// did writes a command that is not about a key to the audit trail.
func (c *control) did(by fuse.Caller, command string, begun time.Time, err error) {
	if tree := c.tree.Load(); tree != nil {
		tree.Commanded(by, command, begun, err)
	}
}

// warn logs who was refused at the socket, and how often earlier users were.
func (c *control) warn(by fuse.Caller, command string, err error) {
	first, before := c.refusals.add(by.Uid, time.Now())
	for _, r := range before {
		c.log.Warn("control socket: refused again", "uid", r.who, "times", r.times)
	}
	if first {
		c.log.Warn("control socket: refused", "uid", by.Uid, "pid", by.Pid, "command", command, "err", err)
	}
}

// peer is who connected, as it was then (unix(7), SO_PEERCRED).
func peer(conn *net.UnixConn) (by fuse.Caller, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return by, err
	}
	cerr := raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			by = fuse.Caller{Owner: fuse.Owner{Uid: cred.Uid, Gid: cred.Gid}, Pid: uint32(cred.Pid)}
		}
	})
	return by, errors.Join(err, cerr)
}

// errNotServed says that the daemon does not listen to this user.
var errNotServed = errors.New("only root, the daemon's user and admins can use the control socket")

const notServedHint = "ask root to add you to admins in [authenticator]"

// errNoDaemon says that no daemon serves this state directory.
var errNoDaemon = errors.New("no daemon serves this state directory")

// client is the command's end of the socket.
type client struct{ conn *net.UnixConn }

func dial(stateDir string) (*client, error) {
	// The owner of the directory could own the socket, and would get a recovery key. Only root checks: others may be admins
	// of a daemon that is not theirs.
	if os.Geteuid() == 0 {
		if err := providers.CheckTrusted(stateDir); psa.StatusOf(err) == psa.StatusNotPermitted {
			return nil, &Error{KindState, fmt.Errorf("the state directory %s: %w", stateDir, err), psa.HintOf(err)}
		}
	}
	dir, err := openStateDir(stateDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errNoDaemon
	}
	if errors.Is(err, os.ErrPermission) {
		return nil, &Error{KindState, errNotServed, notServedHint}
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	name := filepath.Join(held(dir), controlName)
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: name, Net: "unix"})
	for until := time.Now().Add(dialTimeout); errors.Is(err, unix.EAGAIN) && time.Now().Before(until); {
		time.Sleep(time.Millisecond) // the socket's backlog is full
		conn, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: name, Net: "unix"})
	}
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		return nil, errNoDaemon
	case errors.Is(err, unix.EACCES):
		return nil, &Error{KindState, errNotServed, notServedHint}
	case err != nil:
		return nil, err
	}
	return &client{conn}, nil
}

func (c *client) close() { c.conn.Close() }

// ping returns once the daemon has answered.
func (c *client) ping() error { return c.call(request{Command: commandPing}, nil) }

// call sends a request and gives each response but the last to each; nil means that there must be none.
func (c *client) call(in request, each func(*response) error) error {
	c.conn.SetDeadline(time.Now().Add(controlTimeout))
	// A daemon that refuses does not read the request: its answer matters, not the error of sending.
	unsent := json.NewEncoder(c.conn).Encode(in)
	lines := bufio.NewReaderSize(c.conn, maxResponseBytes)
	for {
		wait := controlTimeout
		if in.Command == commandRewrap {
			wait = rewrapTimeout
		}
		c.conn.SetDeadline(time.Now().Add(wait))
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			err = errors.New("the daemon ended before it answered")
		}
		if err != nil {
			return &Error{Kind: KindState, Err: fmt.Errorf("control socket: %w", cmp.Or(unsent, err))}
		}
		var r response
		if err := json.Unmarshal(line, &r); err != nil {
			return &Error{Kind: KindState, Err: fmt.Errorf("control socket: %w", err)}
		}
		switch {
		case r.End && r.Error != "":
			return &Error{KindOther, errors.New(r.Error), r.Hint}
		case r.End:
			return nil
		case each == nil, !r.answers(in.Command):
			return &Error{Kind: KindState, Err: errors.New("control socket: the daemon sent an answer to another command")}
		}
		if err := each(&r); err != nil {
			return err
		}
	}
}
