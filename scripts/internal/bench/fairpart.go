package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// fair records what one user with one worker feels of another one with many. Both users are processes of their own, with keys of their
// own.
func (b *bench) fair() error {
	if err := b.fairOver(transportDevice); err != nil {
		return err
	}
	if err := b.fairOver(transportUring); err != nil {
		b.results.skip(over(serverOurs, transportUring)+", fairness", err)
	}
	return nil
}

func (b *bench) fairOver(transport string) error {
	d, err := b.mount(partFairness, transport, softwareOnly)
	if err != nil {
		return err
	}
	keys := filepath.Join(d.dir, "providers/default/keys")
	for _, c := range []struct{ own, others string }{
		{templateP256, templateP256}, {"rsa-2048-pss-sha256", "rsa-2048-pss-sha256"}, {templateP256, "rsa-2048-pss-sha256"},
	} {
		for _, how := range []string{"fresh", "kept", "ioctl"} {
			name := fmt.Sprintf("%s: %s beside %s, %s", transport, c.own, c.others, how)
			if err := b.fairPair(keys, c.own, c.others, how, name); err != nil {
				b.results.fail(partFairness+": "+name, err)
			}
		}
	}
	return nil
}

func (b *bench) fairPair(keys, own, others, how, name string) error {
	one, err := fairKey(keys, own, fairOne)
	if err != nil {
		return err
	}
	crowd, err := fairKey(keys, others, fairCrowd)
	if err != nil {
		return err
	}
	counter, err := fairCounter()
	if err != nil {
		return err
	}
	defer os.Remove(counter)
	var numbers [7][]float64
	rounds := fairRounds
	if b.short {
		rounds = 1
	}
	for range rounds {
		alone, err := fairRun(one, how, counter)
		if err != nil {
			return err
		}
		beside, rate, err := fairBeside(one, crowd, how, counter)
		if err != nil {
			return err
		}
		for i, v := range []float64{alone.P50, beside.P50, alone.P99, beside.P99, beside.P99 / alone.P99, beside.Passed50, rate} {
			numbers[i] = append(numbers[i], v)
		}
	}
	for i, of := range []struct{ name, unit string }{
		{"median, alone", "us"}, {"median, beside", "us"}, {"99 % below, alone", "us"}, {"99 % below, beside", "us"},
		{"times as long (99 %)", ""}, {"others' signatures that passed one, median", ""}, {"the others' signatures", "each second"},
	} {
		b.results.figure(partFairness, name, of.name, hundredths(median(numbers[i])), of.unit)
	}
	return nil
}
