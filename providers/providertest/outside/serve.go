package outside

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/gob"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

const (
	identityFile = "identity"
	faultFile    = "fault"
)

// object is what a file holds: a key as the software provider has it.
type object struct {
	Attributes psa.Attributes
	Blob       providers.Blob
}

// server does one call for each connection.
type server struct {
	dir      string
	backend  providers.Provider
	identity string

	mu      sync.Mutex
	handles map[providers.Handle]*sync.Mutex // calls for one handle follow each other, in the order in which they came
}

// Serve keeps keys in dir, which it makes, and answers on the socket until ctx ends; ready is called when it listens.
// Objects are files named by their handle in hexadecimal, and those that AddForeign makes; any other file is none of
// its business.
//
// A file named fault in dir (SetFault) makes calls fail, a line each: "<call> <what>", with the calls create, destroy,
// identity and finish, and what one of
//
//	delay <duration>  answer later
//	lost              do it, and close the connection without an answer: the outcome is unknown
//	fail              do nothing, and say so: create with StatusInsufficientStorage, the others StatusGenericError
func Serve(ctx context.Context, dir, socket string, ready func()) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	identity, err := identityOf(dir)
	if err != nil {
		return err
	}
	b, err := backend(ctx)
	if err != nil {
		return err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	s := &server{dir: dir, backend: b, identity: identity, handles: map[providers.Handle]*sync.Mutex{}}
	var calls sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	ready()
	for {
		conn, err := listener.Accept()
		if err != nil {
			listener.Close()
			calls.Wait()
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
		calls.Go(func() {
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			s.serve(ctx, conn.(*net.UnixConn))
		})
	}
}

func identityOf(dir string) (string, error) {
	path := filepath.Join(dir, identityFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		id := make([]byte, 8)
		rand.Read(id)
		b = []byte(hex.EncodeToString(id))
		err = os.WriteFile(path, b, 0o600)
	}
	return string(b), err
}

// foreignPrefix begins the names of objects that others made.
const foreignPrefix = "object="

// AddForeign makes a key, as somebody else who uses the folder would, and gives its name for an adoption.
func AddForeign(ctx context.Context, dir, label string, a psa.Attributes) (reference string, err error) {
	b, err := backend(ctx)
	if err != nil {
		return "", err
	}
	blob, err := b.Create(ctx, providers.Handle{}, a, nil)
	if err != nil {
		return "", err
	}
	return foreignPrefix + label, writeObject(filepath.Join(dir, foreignPrefix+label), object{a, blob})
}

// Objects lists the objects in dir by name, and nothing else that lies there.
func Objects(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := []string{}
	for _, e := range entries {
		if b, err := hex.DecodeString(e.Name()); err == nil && len(b) == len(providers.Handle{}) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// SetFault replaces the faults; no lines, no faults.
func SetFault(dir, lines string) error {
	if lines == "" {
		err := os.Remove(filepath.Join(dir, faultFile))
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return err
	}
	aside := filepath.Join(dir, ".fault")
	if err := os.WriteFile(aside, []byte(lines), 0o600); err != nil {
		return err
	}
	return os.Rename(aside, filepath.Join(dir, faultFile))
}

// fault reads what is to go wrong with a call.
func (s *server) fault(call string) (delay time.Duration, lost, fail bool) {
	b, err := os.ReadFile(filepath.Join(s.dir, faultFile))
	if err != nil {
		return 0, false, false
	}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) < 2 || words[0] != call {
			continue
		}
		switch words[1] {
		case "delay":
			delay, _ = time.ParseDuration(words[len(words)-1])
		case "lost":
			lost = true
		case "fail":
			fail = true
		}
	}
	return delay, lost, fail
}

func (s *server) serve(ctx context.Context, conn *net.UnixConn) {
	var q request
	if err := gob.NewDecoder(conn).Decode(&q); err != nil {
		return
	}
	if q.Object != "" && filepath.Base(q.Object) != q.Object {
		return
	}
	if q.Call == "create" || q.Call == "destroy" {
		lock := s.lock(q.Handle)
		lock.Lock()
		defer lock.Unlock()
		// Who has given up may have asked for the opposite since.
		if hungUp(conn) {
			return
		}
	}
	delay, lost, fail := s.fault(q.Call)
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return
		}
	}
	var r response
	var err error
	switch {
	case fail && q.Call == "create":
		err = psa.Errorf(psa.StatusInsufficientStorage, "told to fail")
	case fail:
		err = psa.Errorf(psa.StatusGenericError, "told to fail")
	default:
		r, err = s.do(ctx, q)
	}
	if lost {
		return
	}
	if err != nil {
		r = response{Status: psa.StatusOf(err), Words: err.Error()}
	}
	// Where the asker has gone there is nobody to tell.
	_ = gob.NewEncoder(conn).Encode(r)
}

func (s *server) lock(h providers.Handle) *sync.Mutex {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.handles[h] == nil {
		s.handles[h] = new(sync.Mutex)
	}
	return s.handles[h]
}

// hungUp says whether the other side has closed the connection.
func hungUp(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		n, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		gone = err == nil && n == 0
	})
	return gone || err != nil
}

func (s *server) path(q request) string {
	name := hex.EncodeToString(q.Handle[:])
	if q.Object != "" {
		name = strings.TrimPrefix(q.Object, "id=")
	}
	return filepath.Join(s.dir, name)
}

// read gives an object as it is stored.
func (s *server) read(q request) (o object, err error) {
	b, err := os.ReadFile(s.path(q))
	if errors.Is(err, fs.ErrNotExist) {
		return o, psa.Errorf(psa.StatusDoesNotExist, "there is no object %s", filepath.Base(s.path(q)))
	}
	if err == nil {
		err = gob.NewDecoder(bytes.NewReader(b)).Decode(&o)
	}
	if err != nil {
		err = fmt.Errorf("object %s: %w", filepath.Base(s.path(q)), err)
	}
	return o, err
}

func (s *server) list() (all []providers.Foreign, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		f := providers.Foreign{Object: "id=" + e.Name()}
		if b, err := hex.DecodeString(e.Name()); err == nil && len(b) == len(f.Handle) {
			copy(f.Handle[:], b)
		} else if label, ok := strings.CutPrefix(e.Name(), foreignPrefix); ok {
			f.Object, f.Label = e.Name(), label
		} else {
			continue
		}
		o, err := s.read(request{Object: f.Object})
		if err != nil {
			return nil, err
		}
		f.Attributes = o.Attributes
		all = append(all, f)
	}
	return all, nil
}

func (s *server) do(ctx context.Context, q request) (response, error) {
	switch q.Call {
	case "identity":
		return response{Identity: s.identity}, nil
	case "create":
		return s.create(ctx, q)
	case "destroy":
		err := os.Remove(s.path(q))
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			err = syncDir(s.dir)
		}
		return response{}, err
	case "finish":
		return s.finish(ctx, q)
	case "list":
		list, err := s.list()
		return response{Foreign: list}, err
	case "public":
		o, err := s.read(q)
		return response{Public: o.Blob.Public}, err
	}
	return response{}, psa.Errorf(psa.StatusNotSupported, "no call %q", q.Call)
}

// create writes the object aside and links it into place, so that a handle never has two.
func (s *server) create(ctx context.Context, q request) (response, error) {
	if _, err := os.Lstat(s.path(q)); err == nil {
		return response{}, psa.Errorf(psa.StatusAlreadyExists, "the handle has an object")
	}
	blob, err := s.backend.Create(ctx, q.Handle, q.Attributes, q.Material)
	if err != nil {
		return response{}, err
	}
	return response{Public: blob.Public}, writeObject(s.path(q), object{q.Attributes, blob})
}

// writeObject makes a new file, whole and durable.
func writeObject(path string, o object) error {
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(o); err != nil {
		return err
	}
	dir, name := filepath.Split(path)
	aside := filepath.Join(dir, "."+name)
	defer os.Remove(aside)
	if err := writeSynced(aside, b.Bytes()); err != nil {
		return err
	}
	if err := os.Link(aside, path); err != nil {
		return err
	}
	return syncDir(dir)
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (s *server) finish(ctx context.Context, q request) (response, error) {
	o, err := s.read(q)
	if err != nil {
		return response{}, err
	}
	k, err := s.backend.Open(ctx, q.Handle, o.Attributes, o.Blob)
	if err != nil {
		return response{}, err
	}
	defer k.Close()
	run, err := k.Begin(ctx, q.Op)
	if err != nil {
		return response{}, err
	}
	if _, err := run.Write(q.Data); err != nil {
		run.Abort()
		return response{}, err
	}
	result, err := run.Finish(ctx)
	return response{Outputs: result.Outputs}, err
}
