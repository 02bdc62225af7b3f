package fs

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/nodes"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// tellNothing is for events that need no look.
func tellNothing(*nodes.AuditEvent) {}

// trailLines reads the events of a trail's files, the oldest first, and counts those that were dropped.
func trailLines(t *testing.T, dir string, keep int) (operations []string, dropped int64) {
	t.Helper()
	names := []string{auditName}
	for n := 1; n <= keep; n++ {
		names = append([]string{fmt.Sprint(auditName, ".", n)}, names...)
	}
	for _, name := range names {
		f, err := os.Open(filepath.Join(dir, name))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			var line struct {
				Operation string
				Dropped   int64
			}
			if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
				t.Fatalf("%s: %q: %v", name, lines.Text(), err)
			}
			if line.Operation != "" {
				operations = append(operations, line.Operation)
			}
			dropped += line.Dropped
		}
	}
	return operations, dropped
}

func TestTrailRotates(t *testing.T) {
	dir := t.TempDir()
	tr, err := openTrail(dir, Audit{MaxBytes: 4096, Keep: 100}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	const workers, each = 8, 200
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range each {
				tr.Record(nodes.AuditEvent{Class: nodes.AuditDeed, Time: time.Now(), Operation: fmt.Sprint(w, "-", i),
					Status: "PSA_SUCCESS"}, tellNothing)
			}
		})
	}
	wg.Wait()
	if err := tr.close(); err != nil {
		t.Fatal(err)
	}
	got, dropped := trailLines(t, dir, 100)
	if len(got) != workers*each || dropped != 0 {
		t.Fatalf("%d events of %d, %d dropped", len(got), workers*each, dropped)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) < 2 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, info.Mode(), err)
		}
	}
	// It goes on where it was, and keeps no more files than it should.
	for range 3 {
		tr, err = openTrail(dir, Audit{MaxBytes: 4096, Keep: 2}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			tr.Record(nodes.AuditEvent{Class: nodes.AuditDeed, Operation: "more"}, tellNothing)
		}
		if err := tr.close(); err != nil {
			t.Fatal(err)
		}
	}
	got, _ = trailLines(t, dir, 2)
	if len(got) == 0 || got[len(got)-1] != "more" {
		t.Errorf("%d events, the last %v", len(got), got[len(got)-1:])
	}
}

// The trail of a state directory that was moved goes on there, and leaves the trail alone that has its path now.
func TestTrailMoved(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	tr, err := openTrail(dir, Audit{MaxBytes: 4096, Keep: 100}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	theirs := filepath.Join(dir, auditName)
	for _, err := range []error{os.Rename(dir, dir+"2"), os.Mkdir(dir, 0o700), os.WriteFile(theirs, []byte("another one's"), 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 200 {
		tr.Record(nodes.AuditEvent{Class: nodes.AuditDeed, Time: time.Now(), Operation: fmt.Sprint(i), Status: "PSA_SUCCESS"}, tellNothing)
	}
	if err := tr.close(); err != nil {
		t.Fatal(err)
	}
	if got, dropped := trailLines(t, dir+"2", 100); len(got) != 200 || dropped != 0 {
		t.Errorf("%d events of 200, %d dropped", len(got), dropped)
	}
	files, err := os.ReadDir(dir)
	if b, _ := os.ReadFile(theirs); err != nil || len(files) != 1 || string(b) != "another one's" {
		t.Errorf("the other trail has %d files, and says %q, %v", len(files), b, err)
	}
}

func waiting(tr *trail) int {
	tr.deeds.mu.Lock()
	defer tr.deeds.mu.Unlock()
	return len(tr.deeds.waiting)
}

func dropped(tr *trail) int64 {
	tr.deeds.mu.Lock()
	defer tr.deeds.mu.Unlock()
	return tr.deeds.dropped
}

// TestTrailOnAFullDisk: nobody waits for it; at the bound it stops or drops, and what was not dropped is written whole
// once there is room.
func TestTrailOnAFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small disk needs root")
	}
	for _, stop := range []bool{true, false} {
		t.Run(fmt.Sprint("stop ", stop), func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := unix.Unmount(dir, 0); err != nil {
					t.Error(err)
				}
			}()
			filler := filepath.Join(dir, "filler")
			tr, err := openTrail(dir, Audit{MaxBytes: 1 << 30, Keep: 2, Stop: stop}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filler, make([]byte, 128<<10), 0o600); err == nil {
				t.Fatal("the disk is not full")
			}
			// More than the queue and the writer's own buffer hold.
			sent := 0
			var full error
			for deadline := time.Now().Add(30 * time.Second); dropped(tr) == 0; sent++ {
				if full = tr.Ready(0, nodes.AuditDeed); full != nil {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("the queue never was full")
				}
				tr.Record(nodes.AuditEvent{Class: nodes.AuditDeed, Operation: fmt.Sprint("o", sent)}, tellNothing)
			}
			if stop && psa.StatusOf(full) != psa.StatusInsufficientStorage || !stop && full != nil {
				t.Errorf("at the bound: %v", full)
			}
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
				t.Fatal(err)
			}
			// Written once the writer tries again.
			for deadline := time.Now().Add(30 * time.Second); waiting(tr) > 0; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the queue stays full")
				}
			}
			if err := tr.Ready(0, nodes.AuditDeed); err != nil {
				t.Errorf("with room again: %v", err)
			}
			if err := tr.close(); err != nil {
				t.Fatal(err)
			}
			got, dropped := trailLines(t, dir, 2)
			if int64(len(got))+dropped != int64(sent) || stop && dropped > 0 || !stop && dropped == 0 {
				t.Errorf("%d events and %d dropped of %d", len(got), dropped, sent)
			}
		})
	}
}
