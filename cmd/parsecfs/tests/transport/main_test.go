package transport

import (
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

func TestMain(m *testing.M) { parsecfstest.Main(m) }
