package kim_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// BenchmarkCreate makes the rows of keys: a draft, the journal's entry, the key. One writer, and several at once.
func BenchmarkCreate(b *testing.B) {
	for _, writers := range []int{1, 8, 32} {
		b.Run(fmt.Sprint(writers), func(b *testing.B) {
			s, p := benchStore(b)
			var next atomic.Int64
			var all sync.WaitGroup
			b.ReportAllocs()
			b.ResetTimer()
			for range writers {
				all.Go(func() {
					for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
						if err := makeRow(s, p, fmt.Sprintf("key-%08d", i)); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
		})
	}
}

func benchStore(t testing.TB) (kim.Store, int64) {
	s, err := kim.OpenSQLite(ctx, filepath.Join(t.TempDir(), "kim.sqlite3"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	guard, err := kim.NewRowKey(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.InitDataKey(ctx, kim.WrappedKey{Kind: "file", WrappingID: [16]byte{1}, Wrapped: []byte("wrapped")}, guard); err != nil {
		t.Fatal(err)
	}
	p, err := s.EnsureProvider(ctx, "software", "Software")
	if err != nil {
		t.Fatal(err)
	}
	return s, p.Number
}

// makeRow makes a key's row as the journal does.
func makeRow(s kim.Store, provider int64, name string) error {
	mode := uint32(0o755)
	k, err := s.InsertDraft(ctx, kim.NewDraft{Provider: provider, Name: name, UID: 1000, GID: 1000, Quota: 1 << 30, Inodes: []kim.Inode{{Mode: &mode}}})
	if err != nil {
		return err
	}
	var h providers.Handle
	rand.Read(h[:])
	a, err := psa.ParseTemplate("ecdsa-p256-sha256")
	if err != nil {
		return err
	}
	if _, err := s.BeginCreate(context.Background(), k.Number, h, "ecdsa-p256-sha256", a, kim.Generated); err != nil {
		return err
	}
	return s.FinishCreate(context.Background(), k.Number, make([]byte, 91), make([]byte, 180))
}
