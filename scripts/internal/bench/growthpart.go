package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// growth measures mounts with few keys and with many; million has more of them than fit into the time of all parts.
func (b *bench) growth() error  { return b.grow(partGrowth, 1000, 100_000) }
func (b *bench) million() error { return b.grow(partMillion, 1000, 1_000_000) }

func (b *bench) grow(part string, numbers ...int) error {
	if b.short {
		numbers = []int{100, 1000}
	}
	dir := filepath.Join(b.work, part)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	all, err := growth(b.parsecfs, dir, numbers)
	if err != nil {
		return err
	}
	const mib = 1 << 20
	for _, g := range all {
		for _, f := range []struct {
			name  string
			value float64
			unit  string
		}{
			{"the keys are made through the store", g.Making, "s"},
			{"size of the store", float64(g.KIM) / mib, "MiB"},
			{"until the mount is ready", g.Mount * 1e3, "ms"},
			{"read until then", float64(g.MountRead) / mib, "MiB"},
			{"resident then", float64(g.MountResident) / mib, "MiB"},
			{"first signature, with a random key", g.First * 1e6, "us"},
			{"about the thousandth one, each with another key", g.Thousandth * 1e6, "us"},
			{"ls -f lists all keys", g.List, "s"},
			{"until its first name", g.ListFirst * 1e3, "ms"},
			{"keys made by one writer", g.CreateOne, "each second"},
			{"keys made by eight writers", g.CreateEight, "each second"},
			{"keys destroyed by eight", g.DestroyEight, "each second"},
			{"a backup", g.Backup, "s"},
			{"its size", float64(g.BackupBytes) / mib, "MiB"},
			{"the most that was resident", float64(g.HighestResident) / mib, "MiB"},
		} {
			b.results.figure(part, f.name, fmt.Sprintf("%d keys", g.Keys), f.value, f.unit)
		}
	}
	return os.RemoveAll(dir)
}
