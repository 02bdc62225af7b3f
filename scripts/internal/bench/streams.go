package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const serverOpenSSLStream = "cat | openssl dgst -sha256 -sign"

// streams measures long messages, from a file to a signature in a file, until the last one has ended.
func (b *bench) streams() error {
	dir := filepath.Join(b.work, "streams")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	size, loads := int64(1<<30), []struct{ atOnce, rounds int }{{1, 3}, {16, 2}}
	if b.short {
		size = 16 << 20
	}
	long := filepath.Join(dir, "message")
	if err := os.WriteFile(long, nil, 0o644); err != nil {
		return err
	}
	if err := os.Truncate(long, size); err != nil { // without blocks: no disk is measured
		return err
	}
	env := []string{"DIR=" + dir}
	runOne := func(script string, more ...string) error {
		do, end, err := command(script, append(more, env...)...)()
		if err != nil {
			return err
		}
		defer end()
		return do()
	}
	servers := []struct {
		name, script, sign string
		d                  *serving
	}{{name: serverOpenSSLStream, script: `cat $DIR/message | openssl dgst -sha256 -sign $DIR/key.pem -out $DIR/signature-$N`}}
	if err := runOne(`openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out $DIR/key.pem`); err != nil {
		b.results.skip("openssl", err)
		servers = nil
	}
	for _, transport := range []string{transportDevice, transportUring} {
		server := over(serverOurs, transport)
		d, err := b.mount("streams", transport, softwareOnly)
		if err != nil {
			if err := b.without(server, transport, err); err != nil {
				return err
			}
			continue
		}
		t, err := d.signer("streams")
		if err != nil {
			return err
		}
		servers = append(servers, struct {
			name, script, sign string
			d                  *serving
		}{server, `{ cat $DIR/message >&3; cat <&3 > $DIR/signature-$N; } 3<>$SIGN`, t.path, d})
	}
	if err := runOne(`cat $DIR/message > /dev/null`); err != nil { // then it is in the page cache
		return err
	}
	for _, load := range loads {
		streams := make([]Stream, len(servers))
		for round := range load.rounds {
			for turn := range servers {
				i := (turn + round) % len(servers)
				server, s := &servers[i], &streams[i]
				if server.d != nil {
					server.d.forgetPeak()
				}
				begun := time.Now()
				errs := make(chan error, load.atOnce)
				for n := range load.atOnce {
					go func() { errs <- runOne(server.script, "SIGN="+server.sign, fmt.Sprint("N=", n)) }()
				}
				for range load.atOnce {
					if err := <-errs; err != nil {
						return fmt.Errorf("%s: %w", server.name, err)
					}
				}
				s.Rounds = append(s.Rounds, hundredths(time.Since(begun).Seconds()))
				if server.d != nil {
					s.ResidentMiB = max(s.ResidentMiB, hundredths(server.d.peakMiB()))
				}
			}
		}
		for i, s := range streams {
			s.Server, s.Bytes, s.AtOnce, s.Seconds = servers[i].name, size, load.atOnce, median(s.Rounds)
			b.results.Streams = append(b.results.Streams, s)
		}
	}
	return nil
}

// forgetPeak lets the most that is resident begin anew.
func (d *serving) forgetPeak() {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", d.cmd.Process.Pid), []byte("5"), 0)
}

// peakMiB is the most that was resident.
func (d *serving) peakMiB() float64 {
	var kib float64
	for line := range strings.Lines(read(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))) {
		if _, err := fmt.Sscanf(line, "VmHWM: %f kB", &kib); err == nil {
			return kib / 1024
		}
	}
	return 0
}
