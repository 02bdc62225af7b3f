//go:build parsecfstest

package main

import (
	"os"
	"syscall"

	"github.com/parsecfs/parsecfs/fs"
	"github.com/parsecfs/parsecfs/providers/providertest/outside"
)

// The command that tests run has a provider whose server outlives it, and kills itself where a test says.
func init() {
	registry = append(registry, outside.Type)
	testOnlyTransport = fs.Transport(os.Getenv("PARSECFS_TEST_TRANSPORT"))
	if at := os.Getenv("PARSECFS_TEST_KILL_AT"); at != "" {
		testOnlyStep = func(step string) {
			if step == at {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}
	}
}
