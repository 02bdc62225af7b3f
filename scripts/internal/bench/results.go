package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Results are what one run measured, as JSON has it. Times of requests are in microseconds.
type Results struct {
	Date     time.Time `json:"date"`
	Commit   string    `json:"commit"`
	Changed  bool      `json:"changed"` // the tree had changes that are not in the commit
	Short    bool      `json:"short"`   // few and short rounds: a trial of the program, not a measurement
	Seconds  float64   `json:"seconds"` // that the run took
	Machine  Machine   `json:"machine"`
	Parts    []string  `json:"parts"`
	Skipped  []Skipped `json:"skipped,omitempty"`
	Failed   []Skipped `json:"failed,omitempty"`
	Requests []Request `json:"requests"`
	Streams  []Stream  `json:"streams,omitempty"`
	Figures  []Figure  `json:"figures,omitempty"`
}

// Machine is where it was measured.
type Machine struct {
	CPU        string  `json:"cpu"`
	Processors int     `json:"processors"`
	MemoryMiB  int     `json:"memory_mib"`
	Kernel     string  `json:"kernel"`
	System     string  `json:"system"`
	Go         string  `json:"go"`
	Load       float64 `json:"load_before"` // of the minute before
}

// Skipped is what was not measured, or could not be.
type Skipped struct {
	What string `json:"what"`
	Why  string `json:"why"`
}

// Request is the measurement of some workers that each ask again and again.
type Request struct {
	Part      string  `json:"part"`
	Server    string  `json:"server"`
	Algorithm string  `json:"algorithm,omitempty"`
	Way       string  `json:"way"`
	Workers   int     `json:"workers"`
	P50       float64 `json:"p50_us"`             // medians of the rounds
	P99       float64 `json:"p99_us"`             //
	P999      float64 `json:"p99_9_us,omitempty"` // of all rounds together, where there are enough requests
	PerSecond float64 `json:"per_second"`         // median of the rounds
	Cores     float64 `json:"cores_of_crypto"`    // that the cryptography alone would take for this rate
	Count     int     `json:"count"`              // of requests in all rounds
	Rounds    []Round `json:"rounds"`
}

// Round is one of a request's rounds.
type Round struct {
	P50       float64 `json:"p50_us"`
	P99       float64 `json:"p99_us"`
	PerSecond float64 `json:"per_second"`
}

// Stream is a measurement of long messages.
type Stream struct {
	Server      string    `json:"server"`
	Bytes       int64     `json:"bytes"` // of each
	AtOnce      int       `json:"at_once"`
	Seconds     float64   `json:"seconds"`                       // until the last one ended, median of the rounds
	ResidentMiB float64   `json:"daemon_resident_mib,omitempty"` // the most of all rounds
	Rounds      []float64 `json:"rounds"`
}

// Figure is any other number.
type Figure struct {
	Part  string  `json:"part"`
	Name  string  `json:"name"`
	Of    string  `json:"of"` // one of the things that all have such a number
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

func (r *Request) name() string {
	return strings.Join(strings.Fields(fmt.Sprintf("%s: %s %s %s, %d at once", r.Part, r.Server, r.Algorithm, r.Way, r.Workers)), " ")
}

// skip records what is not measured, once.
func (r *Results) skip(what string, why error) {
	s := Skipped{what, why.Error()}
	if slices.Contains(r.Skipped, s) {
		return
	}
	fmt.Fprintf(os.Stderr, "skipped: %s: %s\n", what, why)
	r.Skipped = append(r.Skipped, s)
}

func (r *Results) fail(what string, err error) {
	fmt.Fprintf(os.Stderr, "failed: %s: %v\n", what, err)
	r.Failed = append(r.Failed, Skipped{what, err.Error()})
}

// figure records a number that is no request's.
func (r *Results) figure(part, name, of string, value float64, unit string) {
	r.Figures = append(r.Figures, Figure{part, name, of, value, unit})
}

// find is a request's measurement; nil where there is none.
func (r *Results) find(part, server, algorithm, way string, workers int) *Request {
	for i := range r.Requests {
		q := &r.Requests[i]
		if q.Part == part && q.Server == server && q.Algorithm == algorithm && q.Way == way && q.Workers == workers {
			return q
		}
	}
	return nil
}

// cores fills in how many processors the cryptography alone would keep busy at each rate.
func (r *Results) cores() {
	for i := range r.Requests {
		q := &r.Requests[i]
		if bare := r.find(partSignatures, serverBare, q.Algorithm, wayInProcess, 1); bare != nil {
			q.Cores = hundredths(q.PerSecond * bare.P50 / 1e6)
		}
	}
}

func readResults(file string) (*Results, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := &Results{}
	return r, json.Unmarshal(data, r)
}

func (r *Results) write(file string) error {
	data, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o644)
}

// print writes what a part measured as a table.
func (r *Results) print(w io.Writer, part string) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(out, "\n== %s\nwhat answers\talgorithm\thow it is asked\tat once\t%s\tcores of cryptography\n", part, strings.Join(timeColumns, "\t"))
	for _, q := range r.Requests {
		if q.Part == part {
			fmt.Fprintf(out, "%s\t%s\t%s\t%d\t%s\t%s\n", q.Server, q.Algorithm, q.Way, q.Workers, strings.Join(q.times(), "\t"), number(q.Cores))
		}
	}
	if part == partStreams {
		for _, s := range r.Streams {
			fmt.Fprintf(out, "%s\t%d MiB, %d at once\t%.2f s\t%s MiB of the daemon resident\n",
				s.Server, s.Bytes>>20, s.AtOnce, s.Seconds, number(s.ResidentMiB))
		}
	}
	for _, f := range r.Figures {
		if f.Part == part {
			fmt.Fprintf(out, "%s\t%s\t%s %s\n", f.Name, f.Of, number(f.Value), f.Unit)
		}
	}
	return out.Flush()
}

// number has three digits that say something, and is "-" where nothing was measured.
func number(v float64) string {
	switch {
	case v == 0:
		return "-"
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
