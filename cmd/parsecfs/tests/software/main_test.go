// Package software has tests of what users see of the software provider: who waits for whom, and what stays in memory.
package software

import (
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

func TestMain(m *testing.M) { parsecfstest.Main(m) }
