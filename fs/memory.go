package fs

import (
	"log/slog"

	"github.com/parsecfs/parsecfs/providers/psa/secret"
)

// tellMemory says what this build and this process's limits do not keep out of memory and swap.
func tellMemory(log *slog.Logger) {
	if err := secret.Locked(); err != nil {
		log.Warn("keys may be swapped out: no memory can be locked", "err", err,
			"hint", "raise the limit: LimitMEMLOCK= of the service, ulimit -l")
	}
	if !secret.Erases {
		log.Info("copies of destroyed keys may stay in memory: this build does not erase them", "hint", "build with GOEXPERIMENT=runtimesecret")
	}
}
