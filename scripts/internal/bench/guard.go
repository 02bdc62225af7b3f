package main

import (
	"fmt"
	"path/filepath"
	"time"
)

// The guard's bound is far above what is measured: it finds a path that has become several times slower, on any machine.
const (
	guardBound  = 4.0
	guardTries  = 8
	guardRounds = 3
	guardSpan   = 150 * time.Millisecond
)

// guard fails where parsecfs takes more than guardBound times what the minimal handler takes, in each of some tries.
func (b *bench) guard() error {
	floor, err := b.floor(transportDevice)
	if err != nil {
		return err
	}
	ours, err := b.mount("plain", transportDevice, softwareOnly)
	if err != nil {
		return err
	}
	t, err := ours.signer("guard")
	if err != nil {
		return err
	}
	least := signs(filepath.Join(floor.dir, templateP256))
	for _, w := range []struct {
		name        string
		floor, ours work
	}{{wayFresh, least.fresh, t.fresh}, {wayKept, least.kept, t.kept}} {
		var ratio float64
		for try := range guardTries {
			var times [2][]float64
			for round := range guardRounds {
				for turn := range 2 {
					i := (turn + round) % 2
					s, err := measureSome(1, guardSpan, []work{w.floor, w.ours}[i])
					if err != nil {
						return err
					}
					times[i] = append(times[i], microseconds(quantile(s.latencies, 0.5)))
				}
			}
			ratio = median(times[1]) / median(times[0])
			fmt.Printf("%s: %.0f us, the minimal handler %.0f us: %.2f times (try %d, at most %.0f)\n",
				w.name, median(times[1]), median(times[0]), ratio, try+1, guardBound)
			if ratio <= guardBound {
				break
			}
		}
		if ratio > guardBound {
			return fmt.Errorf("%s: parsecfs took more than %.0f times what the minimal handler took, %d times", w.name, guardBound, guardTries)
		}
		b.results.figure(partGuard, "times the minimal handler", w.name, ratio, "")
	}
	return nil
}
