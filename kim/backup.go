package kim

import (
	"archive/tar"
	"bytes"
	"context"
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
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/parsecfs/parsecfs/providers/psa"
)

const (
	backupFormat = 1
	manifestFile = "manifest.toml"
	// maxManifest bounds the one entry of a backup that is read into memory.
	maxManifest = 64 << 10
	// maxTail limits the zeros after the end: tools fill up their last record, which has 10 KiB by default.
	maxTail  = 1 << 20
	tarBlock = 512
)

// manifest is the first entry of a backup; it says what the others are.
type manifest struct {
	Format  int             `toml:"format" comment:"a backup of parsecfs; parsecfs state restore reads it"`
	Schema  int             `toml:"schema" comment:"of the KIM"`
	Created time.Time       `toml:"created"`
	Files   []manifestEntry `toml:"file"`
}

type manifestEntry struct {
	Name   string `toml:"name"`
	Size   int64  `toml:"size"`
	SHA256 string `toml:"sha256"`
}

// backup writes a tar of a consistent copy of the store and of the wrapping key without which its secrets stay sealed. A store
// whose wrapping key is gone, or that a provider wraps, is copied without one; but as long as the data key is at hand, the copy
// gets a wrapping key of its own in the place of one that is gone. Whoever has the backup has the keys.
func (k *KIM) backup(ctx context.Context, s Store, w io.Writer) (err error) {
	aside, err := k.asideDir()
	if err != nil {
		return fileError(err, "cannot make a backup")
	}
	defer func() { err = errors.Join(err, os.RemoveAll(aside)) }()
	row, _, err := s.DataKey(ctx)
	if err != nil && psa.StatusOf(err) != psa.StatusDataCorrupt {
		return err
	}
	// The wrapping key before the snapshot, which ends the KIM's stillness: a rewrap must not come between them.
	key, err := k.keyToKeep(row)
	defer func() { psa.Wipe(key) }()
	if err != nil {
		return err
	}
	copied := filepath.Join(aside, kimFile)
	if err := s.Snapshot(ctx, copied); err != nil {
		return err
	}
	if key == nil && row.Kind == WrapFile {
		if key, err = k.wrapCopy(ctx, copied); err != nil {
			return err
		}
	}
	f, err := os.Open(copied)
	if err != nil {
		return fileError(err, "cannot read %s", kimFile)
	}
	defer f.Close()
	sum := sha256.New()
	size, err := io.Copy(sum, contextReader{ctx, f})
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return fileError(err, "cannot read %s", kimFile)
	}
	m := manifest{Format: backupFormat, Schema: s.Schema(), Created: time.Now().UTC().Truncate(time.Second)}
	if key != nil {
		keySum := sha256.Sum256(key)
		m.Files = append(m.Files, manifestEntry{wrappingFile, int64(len(key)), hex.EncodeToString(keySum[:])})
	}
	m.Files = append(m.Files, manifestEntry{kimFile, size, hex.EncodeToString(sum.Sum(nil))})
	if err := writeBackup(w, m, key, contextReader{ctx, f}); err != nil {
		return fileError(err, "cannot write the backup")
	}
	return nil
}

// asideDir is where the copy lies, 0700, while it is written: in the state directory, or elsewhere where that was removed or cannot
// be named, since SQLite opens files by their real path.
func (k *KIM) asideDir() (string, error) {
	aside, err := asideDir(k.state.at())
	if errors.Is(err, fs.ErrNotExist) {
		return asideDir(os.TempDir())
	}
	if err != nil {
		return "", err
	}
	if path, err := filepath.EvalSymlinks(aside); err == nil {
		made, err1 := os.Stat(aside)
		named, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(made, named) {
			return path, nil
		}
	}
	if err := os.Remove(aside); err != nil {
		return "", err
	}
	return asideDir(os.TempDir())
}

// keyToKeep is the content of the wrapping key's file, which the caller wipes; nil: none belongs into a backup, or it is gone.
func (k *KIM) keyToKeep(row WrappedKey) ([]byte, error) {
	if strings.HasPrefix(row.Kind, WrapProvider) {
		return nil, nil // what may lie there is superseded
	}
	path := wrappingPath(k.state.at(), row)
	key, _, err := readKeyFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fileError(err, "cannot read %s", k.state.name(path))
	}
	return key, nil
}

// wrapCopy gives a copy of the store a new wrapping key, of which it returns the content; nil: nobody has the data key.
func (k *KIM) wrapCopy(ctx context.Context, path string) ([]byte, error) {
	key := k.sealer.dataKey()
	if key == nil {
		return nil, nil
	}
	defer psa.Wipe(key)
	guard, err := NewRowKey(key)
	if err != nil {
		return nil, err
	}
	s, err := OpenSQLite(ctx, path)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if err := s.Guard(ctx, guard); err != nil && psa.StatusOf(err) != psa.StatusDataCorrupt {
		return nil, err
	}
	row, _, err := s.DataKey(ctx)
	if err != nil {
		return nil, err
	}
	w := newWrappingKey()
	defer psa.Wipe(w.key[:])
	next := WrappedKey{Kind: WrapFile, WrappingID: w.id, Before: row.WrappingID}
	next.Wrapped = w.wrap(key, next)
	if err := errors.Join(s.ReplaceDataKey(ctx, row.WrappingID, next), s.Close()); err != nil {
		return nil, err
	}
	return w.marshal(wrappingHead), nil
}

// writeBackup writes a manifest and the entries that it lists.
func writeBackup(w io.Writer, m manifest, key []byte, store io.Reader) error {
	text, err := toml.Marshal(m)
	if err != nil {
		return psa.Errorf(psa.StatusGenericError, "cannot write the manifest: %w", err)
	}
	t := tar.NewWriter(w)
	entry := func(name string, size int64, from io.Reader) error {
		err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: m.Created, Format: tar.FormatPAX})
		if err != nil {
			return err
		}
		_, err = io.Copy(t, from)
		return err
	}
	if err := entry(manifestFile, int64(len(text)), bytes.NewReader(text)); err != nil {
		return err
	}
	for _, f := range m.Files {
		from := store
		if f.Name == wrappingFile {
			from = bytes.NewReader(key)
		}
		if err := entry(f.Name, f.Size, from); err != nil {
			return err
		}
	}
	return t.Close()
}

// contextReader ends a long copy when its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// Restore unpacks a backup into the state directory dir, which it makes if it is missing. The directory must have no KIM and
// no other wrapping key (StatusAlreadyExists). Restore puts nothing into place before it has read and checked the whole
// backup. An incomplete backup is StatusDataInvalid, and one of a newer parsecfs is StatusNotSupported.
func Restore(ctx context.Context, dir string, r io.Reader) error {
	return RestoreTo(ctx, dir, filepath.Join(dir, kimFile), r)
}

// RestoreTo is Restore for a KIM outside the state directory (sqlite_db_path).
func RestoreTo(ctx context.Context, dir, path string, r io.Reader) (err error) {
	l, err := LockDir(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Unlock()) }()
	for _, tail := range []string{"", "-wal", "-journal"} {
		if _, err := os.Lstat(path + tail); err == nil {
			return psa.Errorf(psa.StatusAlreadyExists, "a KIM already exists: %s", path+tail).
				WithHint("move it and its wrapping.key away, or restore into another --state-dir")
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fileError(err, "cannot restore to %s", path)
		}
	}
	if all, err := candidates(dir); err != nil {
		return fileError(err, "cannot restore to %s", path)
	} else if len(all) > 0 {
		return psa.Errorf(psa.StatusAlreadyExists, "there is a wrapping key from an interrupted rewrap: %s", all[0].path).
			WithHint("move it away together with the KIM that it belongs to, or restore into another --state-dir")
	}
	// Beside its final place, so that it gets there by a link.
	aside, err := asideDir(filepath.Dir(path))
	if err != nil {
		return fileError(err, "cannot restore to %s", path)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(aside)) }()
	key, version, err := unpack(ctx, aside, r)
	if err != nil {
		return err
	}
	defer psa.Wipe(key)
	if err := checkSchema(filepath.Join(aside, kimFile), version); err != nil {
		return err
	}
	if err := checkRestored(ctx, filepath.Join(aside, kimFile), key != nil); err != nil {
		return err
	}
	// The KIM comes last: as long as it is missing, the restore can be repeated.
	if key != nil {
		if err := placeWrappingKey(dir, key); err != nil {
			return err
		}
	}
	if err := place(filepath.Join(aside, kimFile), path); err != nil {
		return fileError(err, "cannot put the KIM at %s", path)
	}
	return nil
}

// placeWrappingKey puts a key from a backup into the state directory, which must have the same one or none.
func placeWrappingKey(dir string, key []byte) error {
	path := filepath.Join(dir, wrappingFile)
	w, err := parseWrappingKey(wrappingHead, key)
	if err != nil {
		return psa.Errorf(psa.StatusDataInvalid, "the wrapping key in the backup is damaged: %w", err)
	}
	defer psa.Wipe(w.key[:])
	if have, err := readWrappingKey(path); !errors.Is(err, fs.ErrNotExist) {
		same := err == nil && have.id == w.id && have.key == w.key
		psa.Wipe(have.key[:])
		if same {
			return nil
		}
		return psa.Errorf(psa.StatusAlreadyExists, "another wrapping key already exists: %s", path).
			WithHint("move it away, or restore into another --state-dir")
	}
	if err := makeWrappingFile(path, w.id, key); err != nil {
		return fileError(err, "cannot write the wrapping key %s", path)
	}
	return nil
}

// checkSchema compares the schema in a manifest with that of the KIM, before the KIM is opened and updated.
func checkSchema(path string, version int) error {
	f, err := os.Open(path)
	if err != nil {
		return fileError(err, "cannot read %s", path)
	}
	defer f.Close()
	// The database header's user version (SQLite, Database File Format, 1.3).
	var b [4]byte
	if _, err := f.ReadAt(b[:], 60); err != nil {
		return notWhole("%s is not an SQLite file: %w", kimFile, err)
	}
	if got := binary.BigEndian.Uint32(b[:]); got != uint32(version) {
		return notWhole("%s has schema %d, but %s says %d", kimFile, got, manifestFile, version)
	}
	return nil
}

// checkRestored opens the KIM once, which updates it, and reads all of it. A KIM that came with a wrapping key must have a
// data key: otherwise it would become a new store, and its keys would be lost silently.
func checkRestored(ctx context.Context, path string, withKey bool) error {
	s, err := OpenSQLite(ctx, path)
	if err != nil {
		return err
	}
	defer s.Close()
	sq := s.(*sqliteStore)
	if err := sq.check(ctx); err != nil {
		return err
	}
	if _, found, err := s.DataKey(ctx); withKey && err == nil && !found {
		return notWhole("%s has no data key, but there is a wrapping key beside it", kimFile)
	}
	if err := sq.skipNumbers(ctx); err != nil {
		return err
	}
	if err := s.Close(); err != nil {
		return err
	}
	if err := syncFile(path); err != nil {
		return fileError(err, "cannot write %s", path)
	}
	return nil
}

func notWhole(format string, args ...any) error {
	return psa.Errorf(psa.StatusDataInvalid, "this is not a complete backup of parsecfs: %w", fmt.Errorf(format, args...))
}

// unpack writes the KIM of a backup to dir, and gives its wrapping key, nil if it has none, and the schema that its manifest
// names. The archive's paths and modes are never used.
func unpack(ctx context.Context, dir string, r io.Reader) (key []byte, version int, err error) {
	all := &countingReader{r: contextReader{ctx, r}}
	t := tar.NewReader(all)
	defer func() {
		if err != nil {
			psa.Wipe(key)
			key = nil
		}
		if ctx.Err() != nil {
			err = ctx.Err()
		}
	}()
	m, err := readManifest(t)
	if err != nil {
		return nil, 0, err
	}
	for _, want := range m.Files {
		h, err := t.Next()
		if err != nil {
			return key, 0, notWhole("%s is missing: %w", want.Name, err)
		}
		if h.Name != want.Name || !plain(h) || h.Size != want.Size {
			return key, 0, notWhole("entry %q is not %s with %d bytes", h.Name, want.Name, want.Size)
		}
		sum := sha256.New()
		switch want.Name {
		case wrappingFile:
			key = make([]byte, want.Size)
			_, err = io.ReadFull(t, key)
			sum.Write(key)
		case kimFile:
			err = unpackFile(filepath.Join(dir, kimFile), io.TeeReader(t, sum))
		}
		if psa.StatusOf(err) == psa.StatusInsufficientStorage || psa.StatusOf(err) == psa.StatusStorageFailure {
			return key, 0, err
		}
		if err != nil {
			return key, 0, notWhole("%s: %w", want.Name, err)
		}
		if hex.EncodeToString(sum.Sum(nil)) != want.SHA256 {
			return key, 0, notWhole("%s is damaged: its SHA-256 is not the one in the manifest", want.Name)
		}
	}
	return key, m.Schema, checkEnd(t, all)
}

// plain says whether an entry is a file that the archive holds in full. A sparse file, in GNU's form or that of pax records,
// can be terabytes of zeros.
func plain(h *tar.Header) bool {
	for record := range h.PAXRecords {
		if strings.HasPrefix(record, "GNU.sparse.") {
			return false
		}
	}
	return h.Typeflag == tar.TypeReg
}

// checkEnd checks that a backup ends like a tar after its last entry: with two or more blocks of zeros, and nothing else.
func checkEnd(t *tar.Reader, all *countingReader) error {
	left := all.n + (tarBlock-all.n%tarBlock)%tarBlock + 2*tarBlock
	if h, err := t.Next(); err == nil {
		return notWhole("it has an entry %q that its manifest does not list", h.Name)
	} else if !errors.Is(err, io.EOF) {
		return notWhole("%w", err)
	}
	if all.n < left {
		return notWhole("its end is missing")
	}
	b := make([]byte, maxTail+1)
	n, err := io.ReadFull(all, b)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return notWhole("%w", err)
	}
	if n > maxTail || len(bytes.Trim(b[:n], "\x00")) > 0 {
		return notWhole("it has extra bytes after its end")
	}
	return nil
}

// countingReader counts the bytes that were read.
type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func readManifest(t *tar.Reader) (m manifest, err error) {
	h, err := t.Next()
	if err != nil {
		return m, notWhole("%w", err)
	}
	if h.Name != manifestFile || !plain(h) || h.Size > maxManifest {
		return m, notWhole("its first entry is not %s", manifestFile)
	}
	text := make([]byte, h.Size)
	if _, err := io.ReadFull(t, text); err != nil {
		return m, notWhole("%s: %w", manifestFile, err)
	}
	if err := toml.Unmarshal(text, &m); err != nil {
		return m, notWhole("%s: %w", manifestFile, err)
	}
	if m.Format > backupFormat || m.Schema > schema {
		return m, psa.Errorf(psa.StatusNotSupported, "the backup was made by a newer parsecfs: format %d, schema %d; this one knows %d and %d",
			m.Format, m.Schema, backupFormat, schema).WithHint("restore it with that newer parsecfs")
	}
	if m.Format < 1 || m.Schema < 1 {
		return m, notWhole("%s has format %d, schema %d", manifestFile, m.Format, m.Schema)
	}
	seen := map[string]bool{}
	for _, f := range m.Files {
		if f.Name != kimFile && f.Name != wrappingFile || seen[f.Name] || f.Size < 0 || f.Name == wrappingFile && f.Size != int64(wrappingBytes) {
			return m, notWhole("%s lists a wrong entry %q with %d bytes", manifestFile, f.Name, f.Size)
		}
		seen[f.Name] = true
	}
	if !seen[kimFile] {
		return m, notWhole("%s does not list %s", manifestFile, kimFile)
	}
	return m, nil
}

// unpackFile writes a new private file. Errors of the disk have a status, errors of the archive have none.
func unpackFile(path string, r io.Reader) error {
	f, err := createPrivate(path)
	if err != nil {
		return fileError(err, "cannot write %s", path)
	}
	_, err = io.Copy(f, r)
	if err, ok := errors.AsType[*fs.PathError](err); ok {
		f.Close()
		return fileError(err, "cannot write %s", path)
	}
	if err != nil {
		f.Close()
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fileError(err, "cannot write %s", path)
	}
	return nil
}
