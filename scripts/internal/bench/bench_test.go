package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestMeasure(t *testing.T) {
	var done, ended atomic.Int64
	s, err := measure(3, 50*time.Millisecond, func() (func() error, func(), error) {
		return func() error {
			done.Add(1)
			time.Sleep(time.Millisecond)
			return nil
		}, func() { ended.Add(1) }, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := int64(len(s.latencies)); n == 0 || n > done.Load() {
		t.Errorf("%d of %d counted", n, done.Load())
	}
	if ended.Load() != 3 {
		t.Errorf("%d workers ended", ended.Load())
	}
	if least := s.latencies[0]; least < time.Millisecond {
		t.Errorf("%v is less than each takes", least)
	}
}

func TestMeasureFails(t *testing.T) {
	want := errors.New("no")
	var n, ended atomic.Int64
	if _, err := measure(4, time.Minute, func() (func() error, func(), error) {
		if n.Add(1) == 2 {
			return nil, nil, want
		}
		return func() error { return nil }, func() { ended.Add(1) }, nil
	}); !errors.Is(err, want) || ended.Load() != 3 {
		t.Errorf("a worker that cannot begin: %v, %d ended", err, ended.Load())
	}
	if _, err := measure(4, time.Minute, func() (func() error, func(), error) {
		return func() error { return want }, func() {}, nil
	}); !errors.Is(err, want) {
		t.Errorf("a worker that fails: %v", err)
	}
}

// What fails is recorded, and everything else is measured all the same.
func TestInTurns(t *testing.T) {
	b := &bench{json: filepath.Join(t.TempDir(), "results.json"), short: true}
	good := func() (func() error, func(), error) { return func() error { return nil }, func() {}, nil }
	bad := func() (func() error, func(), error) { return nil, nil, errors.New("no such thing") }
	if err := b.inTurns(9, time.Millisecond, []*cell{
		{request: Request{Part: partShell, Server: "bad", Way: "x", Workers: 1}, prepare: bad},
		{request: Request{Part: partShell, Server: "good", Way: "x", Workers: 2}, prepare: good},
	}); err != nil {
		t.Fatal(err)
	}
	r, err := readResults(b.json)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Failed) != 1 || r.Failed[0].What != "shell: bad x, 1 at once" || r.Failed[0].Why != "no such thing" {
		t.Errorf("failed: %v", r.Failed)
	}
	q := r.find(partShell, "good", "", "x", 2)
	if q == nil || len(q.Rounds) != shortRounds || q.PerSecond == 0 || q.P999 == 0 {
		t.Errorf("measured: %+v", q)
	}
}

func TestQuantiles(t *testing.T) {
	sorted := make([]int, 1000)
	for i := range sorted {
		sorted[i] = i
	}
	for share, want := range map[float64]int{0.5: 500, 0.99: 990, 0.999: 999, 1: 999} {
		if got := quantile(sorted, share); got != want {
			t.Errorf("%v of 0 to 999: %d, want %d", share, got, want)
		}
	}
	if got := median([]float64{9, 1, 5}); got != 5 {
		t.Errorf("median: %v", got)
	}
	if got := median([]float64{9, 1, 5, 3}); got != 4 {
		t.Errorf("median of four: %v", got)
	}
}

// The bytes are those of Parsec's book and its protobuf files.
func TestParsecRequest(t *testing.T) {
	body := signHash("k", []byte{1, 2})
	if got := hex.EncodeToString(body); got != "0a016b"+"1206"+"2204"+"0a02"+"1007"+"1a020102" {
		t.Errorf("PsaSignHash: %s", got)
	}
	got := parsecRequest(parsecSignHash, body, 1000)
	want := []byte{0x10, 0xa7, 0xc0, 0x5e, 30, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3}
	want = binary.LittleEndian.AppendUint32(want, uint32(len(body)))
	want = append(want, 4, 0, 4, 0, 0, 0, 0, 0, 0, 0)
	want = append(append(want, body...), 0xe8, 3, 0, 0)
	if !bytes.Equal(got, want) {
		t.Errorf("request\n%x, want\n%x", got, want)
	}
}

// The page is made of any results: of all parts, of some, of none.
func TestPage(t *testing.T) {
	request := func(part, server, way string, workers int, p50 float64) Request {
		round := Round{p50, 2 * p50, 1e6 / p50}
		return Request{Part: part, Server: server, Algorithm: templateP256, Way: way, Workers: workers,
			P50: round.P50, P99: round.P99, PerSecond: round.PerSecond, Rounds: []Round{round}}
	}
	ours := over(serverOurs, transportDevice)
	r := &Results{
		Parts: []string{partSignatures, partParsec, partStreams, "growth"},
		Requests: []Request{
			request(partSignatures, serverBare, wayInProcess, 1, 30),
			request(partSignatures, ours, wayKept, 1, 90), request(partSignatures, ours, wayKept, 16, 900),
			request(partSignatures, over(serverFloor, transportDevice), wayKept, 1, 88),
			request(partParsec, serverParsec, wayConnect, 1, 10000), request(partParsec, ours, wayFresh, 1, 100),
		},
		Streams: []Stream{
			{Server: serverOpenSSLStream, Bytes: 1 << 30, AtOnce: 1, Seconds: 1, Rounds: []float64{1}},
			{Server: ours, Bytes: 1 << 30, AtOnce: 1, Seconds: 3, ResidentMiB: 20, Rounds: []float64{3}},
		},
		Skipped: []Skipped{{"parsecfs, io_uring", "this kernel has none"}},
	}
	r.figure("growth", "mount", "10 keys", 0.04, "s")
	r.figure("growth", "mount", "20 keys", 0.05, "s")
	r.figure("growth", "find", "20 keys", 7, "s")
	r.cores()
	text, err := r.page()
	if err != nil {
		t.Fatal(err)
	}
	slower, rest, _ := strings.Cut(text, "## Where it is equally fast")
	alike, faster, _ := strings.Cut(rest, "## Where parsecfs is faster")
	for _, c := range []struct{ in, want string }{
		{slower, "| 3.00 times as long | a library in the process (bare Go) | 30.0 us | an open file kept (/dev/fuse) | 90.0 us |"},
		{slower, "| 3.00 times as long | `cat \\| openssl dgst -sha256 -sign` | 1.00 s | 1 of 1024 MiB through `sign` (/dev/fuse) | 3.00 s |"},
		{alike, "| as long | the minimal handler |"},
		{faster, "| 100 times as fast | Parsec 1.4.1 as shipped (polls each 10 ms) | 10000 us | a fresh open (/dev/fuse) | 100 us |"},
		{faster, "|  | 10 keys | 20 keys |\n| --- | ---: | ---: |\n| mount | 0.04 s | 0.05 s |\n| find | - | 7.00 s |"},
		{faster, "- parsecfs, io_uring: this kernel has none."},
		{faster, "](performance/kept.svg)"},
	} {
		if !strings.Contains(c.in, c.want) {
			t.Errorf("%q is not where it should be in\n%s", c.want, text)
		}
	}
	for _, wrong := range []string{"NaN", "Inf", "%!", "performance/shell.svg", "## A TPM"} {
		if strings.Contains(text, wrong) {
			t.Errorf("%q in\n%s", wrong, text)
		}
	}
	if _, err := (&Results{}).page(); err != nil {
		t.Error(err)
	}
	if list := (&Results{Parts: []string{partSignatures}}).charts(); len(list) != 0 {
		t.Errorf("charts of nothing: %v", list)
	}
}

// What the repository shows was made by this program from the results beside it.
func TestPageOfTheRepository(t *testing.T) {
	const docs = "../../../docs/"
	r, err := readResults(docs + "performance/results.json")
	if err != nil {
		t.Fatal(err)
	}
	want, err := r.page()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(docs + "performance.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/performance.md is not that of docs/performance/results.json: scripts/bench --redraw")
	}
	for _, c := range r.charts() {
		if _, err := os.Stat(docs + "performance/" + c.File); err != nil {
			t.Error(err)
		}
	}
}
