package main

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync/atomic"
	"time"
)

// work is what each worker of a measurement does: prepare gives it something to do again and again, and an end.
type work func() (do func() error, end func(), err error)

// patience is how much longer than its time a measurement may take before it counts as hung.
const patience = time.Minute

var errHangs = errors.New("hangs")

// sample is one measurement of some workers.
type sample struct {
	latencies []time.Duration // sorted
	perSecond float64
}

// measure lets workers do something for a time, after a fifth of it to warm up. What ends within that time counts.
func measure(workers int, span time.Duration, prepare work) (sample, error) {
	// A processor of Go's for each worker: none waits until Go notices that another one sleeps in a system call.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(runtime.NumCPU(), workers+1)))
	type result struct {
		latencies []time.Duration
		err       error
	}
	results := make(chan result, workers)
	ready := make(chan error, workers)
	start := make(chan struct{})
	var from, to time.Time // written before start is closed
	var stopped atomic.Bool
	for range workers {
		go func() {
			do, end, err := prepare()
			ready <- err
			if err != nil {
				return
			}
			<-start
			latencies := make([]time.Duration, 0, 1024)
			for begun := time.Now(); begun.Before(to) && !stopped.Load(); {
				if err = do(); err != nil {
					stopped.Store(true)
					break
				}
				ended := time.Now()
				if ended.After(from) && ended.Before(to) {
					latencies = append(latencies, ended.Sub(begun))
				}
				begun = ended
			}
			end()
			results <- result{latencies, err}
		}()
	}
	late := time.After(span + patience)
	var failed error
	prepared := 0
	for range workers {
		select {
		case err := <-ready:
			if err == nil {
				prepared++
				continue
			}
			failed = err
		case <-late:
			return sample{}, errHangs
		}
	}
	from = time.Now().Add(span / 5)
	to = from.Add(span)
	if failed != nil {
		to = from
		stopped.Store(true)
	}
	close(start)
	var s sample
	for range prepared {
		select {
		case r := <-results:
			if r.err != nil {
				failed = r.err
			}
			s.latencies = append(s.latencies, r.latencies...)
		case <-late:
			return sample{}, errHangs
		}
	}
	if failed != nil {
		return sample{}, failed
	}
	slices.Sort(s.latencies)
	s.perSecond = float64(len(s.latencies)) / span.Seconds()
	return s, nil
}

// quantile is a value of a sorted list below which a share of it lies.
func quantile[T any](sorted []T, share float64) T {
	return sorted[min(int(share*float64(len(sorted))), len(sorted)-1)]
}

func median(list []float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return quantile(sorted, 0.5)
}

func microseconds(d time.Duration) float64 { return hundredths(float64(d.Nanoseconds()) / 1000) }

// hundredths are as exact as anything here is.
func hundredths(v float64) float64 { return math.Round(100*v) / 100 }

// cell is one line of a part's table: something that is measured once in each round.
type cell struct {
	request Request
	prepare work
	all     []time.Duration // of all rounds
	failed  error
}

// newCell is one with P-256 unless its algorithm is changed.
func newCell(part, server, way string, workers int, by work) *cell {
	return &cell{request: Request{Part: part, Server: server, Algorithm: templateP256, Way: way, Workers: workers}, prepare: by}
}

// leastForMille is how many requests a 99.9th percentile takes: then two are above it.
const leastForMille = 2000

// slowSpan is for what does not happen even once in a round, where the machine has other work too.
const slowSpan = 5 * time.Second

// measureSome measures until something was done.
func measureSome(workers int, span time.Duration, prepare work) (sample, error) {
	s, err := measure(workers, span, prepare)
	if err != nil || len(s.latencies) > 0 {
		return s, err
	}
	if s, err = measure(workers, slowSpan, prepare); err == nil && len(s.latencies) == 0 {
		err = fmt.Errorf("nothing was done within %v", slowSpan)
	}
	return s, err
}

// inTurns measures all cells, once in each round, every other round from the last to the first: a machine that slows down
// slows all of them. A cell that fails is left out and recorded, the others go on.
func (b *bench) inTurns(rounds int, span time.Duration, cells []*cell) error {
	if b.short {
		rounds, span = shortRounds, max(span/5, shortSpan)
	}
	for round := range rounds {
		for i := range cells {
			c := cells[i]
			if round%2 == 1 {
				c = cells[len(cells)-1-i]
			}
			if c.failed != nil {
				continue
			}
			s, err := measureSome(c.request.Workers, span, c.prepare)
			if errors.Is(err, errHangs) {
				b.hung = true
				return fmt.Errorf("%s: %w for %v", c.request.name(), err, patience) // its workers are still there
			}
			if err != nil {
				c.failed = err
				continue
			}
			c.all = append(c.all, s.latencies...)
			c.request.Rounds = append(c.request.Rounds, Round{
				P50: microseconds(quantile(s.latencies, 0.5)), P99: microseconds(quantile(s.latencies, 0.99)), PerSecond: hundredths(s.perSecond),
			})
		}
	}
	for _, c := range cells {
		if c.failed != nil {
			b.results.fail(c.request.name(), c.failed)
			continue
		}
		b.results.Requests = append(b.results.Requests, c.finish())
	}
	return b.write()
}

// finish makes one line of a cell's rounds.
func (c *cell) finish() Request {
	r := c.request
	column := func(of func(Round) float64) float64 {
		var list []float64
		for _, round := range r.Rounds {
			list = append(list, of(round))
		}
		return median(list)
	}
	r.P50 = column(func(r Round) float64 { return r.P50 })
	r.P99 = column(func(r Round) float64 { return r.P99 })
	r.PerSecond = column(func(r Round) float64 { return r.PerSecond })
	r.Count = len(c.all)
	if r.Count >= leastForMille {
		slices.Sort(c.all)
		r.P999 = microseconds(quantile(c.all, 0.999))
	}
	return r
}
