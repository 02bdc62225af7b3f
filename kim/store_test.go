package kim_test

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/kim/kimtest"
)

func TestStoreSQLite(t *testing.T) {
	kimtest.Run(t, func(dir string) (kim.Store, error) {
		return kim.OpenSQLite(context.Background(), filepath.Join(dir, "kim.sqlite3"))
	})
}
