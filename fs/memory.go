package fs

import (
	"log/slog"

	"github.com/parsecfs/parsecfs/providers/psa/secret"
)

// tellMemory logs which secrets this build and this process's limits can leave in memory and in swap.
func tellMemory(log *slog.Logger) {
	if err := secret.Locked(); err != nil {
		log.Warn("keys may be swapped to disk: memory cannot be locked", "err", err,
			"hint", "raise the limit: LimitMEMLOCK= in the service, or ulimit -l")
	}
	if !secret.Erases {
		log.Info("copies of destroyed keys may stay in memory: this build does not erase them", "hint", "build with GOEXPERIMENT=runtimesecret")
	}
}
