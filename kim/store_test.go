package kim_test

import (
	"context"
	"flag"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/kim/kimtest"
)

// TestStoreSQLite runs the suite. What each of its statements costs does not grow with the keys.
func TestStoreSQLite(t *testing.T) {
	p := plans{all: map[string][]string{}}
	kimtest.Run(t, func(dir string) (kim.Store, error) {
		s, err := kim.OpenSQLite(context.Background(), filepath.Join(dir, "kim.sqlite3"))
		if err != nil {
			return nil, err
		}
		return planned{s, t, &p, &sync.Once{}}, nil
	})
	if strings.Contains(flag.Lookup("test.run").Value.String(), "/") {
		return // a part of the suite comes to a part of the statements
	}
	s, err := kim.OpenSQLite(context.Background(), filepath.Join(t.TempDir(), "kim.sqlite3"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p.complete(t, s)
	p.check(t)
}

// TestRowsAreFresh: whoever saw a change of a key never sees it gone again, and its writer sees it at once.
func TestRowsAreFresh(t *testing.T) {
	k := open(t, kim.Options{Dir: t.TempDir(), Providers: []kim.ProviderConfig{softwareConfig("software")}})
	key := generate(t, k, k.Default(), "key", "ecdsa-p256-sha256")
	latest := func() int {
		row, err := k.Key(ctx, key.Number)
		if err != nil {
			t.Error(err)
			return 0
		}
		if len(row.Units) == 0 {
			return 0
		}
		n, err := strconv.Atoi(strings.TrimSuffix(row.Units[0], ".service"))
		if err != nil {
			t.Error(err)
		}
		return n
	}
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for last := 0; ; {
				n := latest()
				if n < last {
					t.Errorf("%d after %d", n, last)
				}
				last = n
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for n := 1; n <= 200; n++ {
		if err := k.SetUnits(ctx, key.Number, []string{fmt.Sprint(n, ".service")}); err != nil {
			t.Fatal(err)
		}
		if got := latest(); got != n {
			t.Fatalf("its writer sees %d, not %d", got, n)
		}
	}
	close(done)
	readers.Wait()
}
