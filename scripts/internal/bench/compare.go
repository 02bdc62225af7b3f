package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"
)

// compared is how many rounds a ratio is the median of.
const compared = 5

// compare measures keys of two mounts in turns: plain, of which no right was ever taken away; lost, of which somebody else
// lost one, and whose owner signs; and foreign, the same, where who signs owns nothing, so that each call is looked into.
// The loss is longer ago than any revision looks back.
func compare(ours, theirs string) error {
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(out, "ours/theirs, median of %d rounds\tours\ttheirs\tratio\tleast\tmost\t\n", compared)
	kinds := []struct {
		name    string
		workers int
		by      func(string) work
	}{
		{"fresh open", 1, fresh},
		{"kept descriptor", 1, kept},
		{"16 workers, fresh open", 16, fresh},
		{"16 workers, kept descriptors", 16, kept},
	}
	for _, kind := range kinds {
		if err := row(out, "plain: "+kind.name, kind.workers, kind.by(file(ours, "plain")), kind.by(file(theirs, "plain"))); err != nil {
			return err
		}
	}
	for _, key := range []string{"lost", "foreign"} {
		a, err := signs(file(ours, key)).held()
		if err != nil {
			return err
		}
		b, err := signs(file(theirs, key)).held()
		if err != nil {
			return err
		}
		if err := lose(file(ours, key), file(theirs, key)); err != nil {
			return err
		}
		if err := row(out, key+": fresh open", 1, fresh(file(ours, key)), fresh(file(theirs, key))); err != nil {
			return err
		}
		if err := row(out, key+": descriptor from before", 1, a, b); err != nil {
			return err
		}
	}
	return out.Flush()
}

func file(keys, key string) string { return filepath.Join(keys, key, "sign") }

func row(out *tabwriter.Writer, name string, workers int, ours, theirs work) error {
	var rates [2][]float64
	var ratios []float64
	for round := range compared {
		for turn := range 2 {
			i := (round + turn) % 2 // each begins in turn
			s, err := measureSome(workers, time.Second, []work{ours, theirs}[i])
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			rates[i] = append(rates[i], s.perSecond)
		}
		ratios = append(ratios, rates[0][len(ratios)]/rates[1][len(ratios)])
	}
	for _, list := range [][]float64{rates[0], rates[1], ratios} {
		slices.Sort(list)
	}
	fmt.Fprintf(out, "%s\t%.0f/s\t%.0f/s\t%.2f\t%.2f\t%.2f\t\n", name, rates[0][compared/2], rates[1][compared/2],
		ratios[compared/2], ratios[0], ratios[compared-1])
	return nil
}

// lose takes a right away that somebody else had.
func lose(files ...string) error {
	for _, file := range files {
		for _, mode := range []os.FileMode{0o660, 0o600} {
			if err := os.Chmod(file, mode); err != nil {
				return err
			}
		}
	}
	time.Sleep(11 * time.Second)
	return nil
}
