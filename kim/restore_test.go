package kim

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// entries of a backup, in their order.
type archived struct {
	name string
	body []byte
}

func entriesOf(t *testing.T, backup []byte) (all []archived) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(backup))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, archived{name: h.Name, body: body})
	}
}

// archive makes a backup whose manifest is true, apart from the schema.
func archive(t *testing.T, version int, files ...archived) []byte {
	t.Helper()
	manifest := fmt.Sprintf("format = 1\nschema = %d\n", version)
	for _, f := range files {
		sum := sha256.Sum256(f.body)
		manifest += fmt.Sprintf("[[file]]\nname = %q\nsize = %d\nsha256 = %q\n", f.name, len(f.body), hex.EncodeToString(sum[:]))
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range append([]archived{{name: manifestFile, body: []byte(manifest)}}, files...) {
		err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Size: int64(len(f.body)), Mode: 0o600, Format: tar.FormatPAX})
		if err == nil {
			_, err = w.Write(f.body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// sparse makes the header of the entry that begins at a block GNU's sparse one, of so many bytes in a file of none.
func sparse(b []byte, at int, size int64) []byte {
	b = bytes.Clone(b)
	h := b[at : at+tarBlock]
	h[156] = 'S'
	copy(h[257:265], "ustar  \x00")
	clear(h[345:])
	copy(h[483:495], fmt.Sprintf("%011o\x00", size))
	copy(h[386:398], fmt.Sprintf("%011o\x00", size))
	copy(h[398:410], fmt.Sprintf("%011o\x00", 0))
	copy(h[148:156], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// TestHostileBackups: what is no backup to the last byte is refused, with nothing in its place and no disk taken; zeros
// behind the end are a tool's.
func TestHostileBackups(t *testing.T) {
	ctx := context.Background()
	dir := filepath.Join(t.TempDir(), "state")
	k, err := Open(ctx, Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := k.Backup(ctx, &b); err != nil {
		t.Fatal(err)
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	whole := b.Bytes()
	files := entriesOf(t, whole)[1:]
	if len(files) != 2 || files[0].name != wrappingFile || files[1].name != kimFile {
		t.Fatalf("a backup has %d files", len(files))
	}
	key, store := files[0], files[1]

	emptied := filepath.Join(t.TempDir(), "kim.sqlite3")
	s, err := OpenSQLite(ctx, emptied)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "copy.sqlite3")
	if err := s.Snapshot(ctx, copied); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	empty, err := os.ReadFile(copied)
	if err != nil {
		t.Fatal(err)
	}
	again := archive(t, schema, key, store)
	at := bytes.Index(again, append([]byte(kimFile), 0)) // its header, behind what the manifest says
	for n := at; at%tarBlock != 0; at = n {
		n += 1 + bytes.Index(again[n+1:], append([]byte(kimFile), 0))
	}
	for name, c := range map[string]struct {
		b    []byte
		want psa.Status
	}{
		"whole":                       {whole, psa.StatusSuccess},
		"made again":                  {again, psa.StatusSuccess},
		"zeros behind it":             {append(bytes.Clone(whole), make([]byte, 20*tarBlock)...), psa.StatusSuccess},
		"garbage behind it":           {append(bytes.Clone(whole), "garbage"...), psa.StatusDataInvalid},
		"a second archive behind it":  {append(bytes.Clone(whole), whole...), psa.StatusDataInvalid},
		"garbage behind zeros":        {append(append(bytes.Clone(whole), make([]byte, 20*tarBlock)...), 1), psa.StatusDataInvalid},
		"zeros without end":           {append(bytes.Clone(whole), make([]byte, 2<<20)...), psa.StatusDataInvalid},
		"no end":                      {whole[:len(whole)-2*tarBlock], psa.StatusDataInvalid},
		"half an end":                 {whole[:len(whole)-tarBlock], psa.StatusDataInvalid},
		"an older schema":             {archive(t, schema-1, key, store), psa.StatusDataInvalid},
		"a KIM of no bytes":           {archive(t, schema, key, archived{name: kimFile}), psa.StatusDataInvalid},
		"a KIM of zeros":              {archive(t, schema, key, archived{name: kimFile, body: make([]byte, 4096)}), psa.StatusDataInvalid},
		"an empty KIM beside its key": {archive(t, schema, key, archived{name: kimFile, body: empty}), psa.StatusDataInvalid},
		"an empty KIM alone":          {archive(t, schema, archived{name: kimFile, body: empty}), psa.StatusSuccess},
		"GNU's sparse file":           {sparse(again, at, 1<<40), psa.StatusDataInvalid},
	} {
		dir := filepath.Join(t.TempDir(), "state")
		err := Restore(ctx, dir, bytes.NewReader(c.b))
		if psa.StatusOf(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
		if _, there := os.Stat(filepath.Join(dir, kimFile)); (there == nil) != (err == nil) {
			t.Errorf("%s: %v, and the KIM: %v", name, err, there)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "*restore*")); len(left) > 0 {
			t.Errorf("%s left %s", name, strings.Join(left, " "))
		}
	}
}

// TestSparsePAX: a sparse file in pax records is refused at its header.
func TestSparsePAX(t *testing.T) {
	for _, records := range []map[string]string{
		{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "4096"},
		{"GNU.sparse.map": "0,1", "GNU.sparse.size": "4096"},
	} {
		if plain(&tar.Header{Typeflag: tar.TypeReg, PAXRecords: records}) {
			t.Errorf("%v is a plain file", records)
		}
	}
	if !plain(&tar.Header{Typeflag: tar.TypeReg, PAXRecords: map[string]string{"mtime": "1.5"}}) {
		t.Error("a time is no plain file")
	}
}
