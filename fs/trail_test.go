package fs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/nodes"
	"github.com/parsecfs/parsecfs/providers/psa"
)

func testTrail(t *testing.T, dir string, c Audit) *trail {
	t.Helper()
	tr, err := openTrail(dir, c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// eventually waits for what the writer does by itself.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not in 30 s: " + what)
		}
	}
}

// onDisk is all that the files of one kind say.
func onDisk(t *testing.T, path string) string {
	t.Helper()
	names, err := filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // it was just rotated
			t.Fatal(err)
		}
		all.Write(b)
	}
	return all.String()
}

// TestYoungDeedsStay: where all of the space is younger than keep_for nothing goes; root's deeds are refused or dropped, and
// operations go on.
func TestYoungDeedsStay(t *testing.T) {
	t.Parallel()
	for _, stop := range []bool{true, false} {
		t.Run(fmt.Sprint("stop ", stop), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			tr := testTrail(t, dir, Audit{MaxBytes: 4096, Keep: 2, KeepFor: time.Hour, Stop: stop})
			sent := 0
			send := func() {
				tr.Record(nodes.AuditEvent{Class: nodes.AuditDeed, Operation: fmt.Sprint("deed-", sent)}, tellNothing)
				sent++
			}
			eventually(t, "the trail is full", func() bool {
				if !tr.deeds.young.Load() {
					send()
				}
				return tr.deeds.young.Load()
			})
			if err := tr.Ready(0, nodes.AuditDeed); stop && psa.StatusOf(err) != psa.StatusInsufficientStorage || !stop && err != nil {
				t.Errorf("a deed may happen: %v", err)
			}
			for _, class := range []nodes.AuditClass{nodes.AuditUse, nodes.AuditOpen} {
				if err := tr.Ready(61001, class); err != nil {
					t.Errorf("class %d: %v", class, err)
				}
			}
			if text := onDisk(t, tr.deeds.path); !strings.Contains(text, `"deed-0"`) {
				t.Error("the first deed is gone")
			}
			// Once the oldest file is old enough it goes, and nothing that waited is lost.
			old := time.Now().Add(-2 * time.Hour)
			if err := os.Chtimes(tr.deeds.path+".2", old, old); err != nil {
				t.Fatal(err)
			}
			gone, err := os.ReadFile(tr.deeds.path + ".2")
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "there is room again", func() bool { return !tr.deeds.young.Load() && waiting(tr) == 0 })
			if err := tr.Ready(0, nodes.AuditDeed); err != nil {
				t.Errorf("with room again: %v", err)
			}
			if err := tr.close(); err != nil {
				t.Fatal(err)
			}
			text := onDisk(t, tr.deeds.path)
			for i := range sent {
				deed := fmt.Sprintf(`"deed-%d"`, i)
				if n := strings.Count(text, deed); n != 1 && !strings.Contains(string(gone), deed) || n > 1 {
					t.Errorf("%s is there %d times", deed, n)
				}
			}
		})
	}
}

// TestDeedsOfUsersFillNothing: what users do to keys of their own has shares, a crowd's too; root's deeds have the rest.
func TestDeedsOfUsersFillNothing(t *testing.T) {
	t.Parallel()
	const deeds, space = 20000, 2 * 65536
	dir := t.TempDir()
	tr := testTrail(t, dir, Audit{MaxBytes: space / 2, Keep: 2, KeepFor: time.Hour, Stop: true})
	tr.Record(nodes.AuditEvent{Class: nodes.AuditDeed, UID: 61001, Operation: "first"}, tellNothing)
	for i := range deeds {
		uid := uint32(61002)
		if i%2 == 1 { // subordinate ones
			uid = 100000 + uint32(i)
		}
		if err := tr.Ready(uid, nodes.AuditDeed); err != nil {
			t.Fatalf("user %d after %d deeds: %v", uid, i, err)
		}
		tr.Record(nodes.AuditEvent{Class: nodes.AuditDeed, UID: uid, KeyNumber: int64(i % 2), Operation: "loop"}, tellNothing)
	}
	for range deeds { // by a setuid program that somebody else began
		tr.Record(nodes.AuditEvent{Class: nodes.AuditAttempt, Operation: "tricked"}, tellNothing)
	}
	tr.Record(nodes.AuditEvent{Class: nodes.AuditDeed, UID: 61003, Operation: "later"}, tellNothing)
	tr.Record(nodes.AuditEvent{Class: nodes.AuditCommand, UID: 100009, Operation: "command"}, tellNothing)
	tr.Record(nodes.AuditEvent{Class: nodes.AuditDeed, Operation: "root's"}, tellNothing)
	if err := tr.close(); err != nil {
		t.Fatal(err)
	}
	text := onDisk(t, tr.deeds.path)
	for _, operation := range []string{"first", "later", "command", "root's"} {
		if !strings.Contains(text, fmt.Sprintf("%q", operation)) {
			t.Errorf("%q is not among the deeds", operation)
		}
	}
	if len(text) > space/2 {
		t.Errorf("users' deeds take %d of %d bytes", len(text), space)
	}
	full := strings.Count(text, `"loop"`) + strings.Count(text, `"tricked"`)
	counted := 0
	for line := range strings.Lines(onDisk(t, tr.operations.path)) {
		_, n, _ := strings.Cut(line, `"count":`)
		fmt.Sscan(n, &counted) // the last one is of all
		full += counted
	}
	if full != 2*deeds {
		t.Errorf("%d deeds of %d, counted ones too", full, 2*deeds)
	}
}

// TestDeedsMakeRoom: on a full disk the oldest operations go.
func TestDeedsMakeRoom(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small disk needs root")
	}
	t.Parallel()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=128k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	tr := testTrail(t, dir, Audit{MaxBytes: 1 << 20, Keep: 8, KeepFor: time.Hour, OperationsMaxBytes: 8192, OperationsKeep: 1000, Stop: true})
	eventually(t, "the disk is full", func() bool {
		for range 100 {
			tr.Record(nodes.AuditEvent{Class: nodes.AuditUse, Operation: "sign"}, tellNothing)
		}
		return tr.Ready(0, nodes.AuditUse) != nil
	})
	pad := strings.Repeat("x", 200)
	for i := range 100 {
		tr.Record(nodes.AuditEvent{Class: nodes.AuditDeed, Operation: fmt.Sprint("deed-", i), Key: pad}, tellNothing)
	}
	eventually(t, "the deeds are written", func() bool { return strings.Contains(onDisk(t, tr.deeds.path), `"deed-99"`) })
	if err := tr.Ready(0, nodes.AuditDeed); err != nil {
		t.Error(err)
	}
	tr.close() // what operations lost is not the question
}

// slowDisk is a directory whose files take no more bytes until it is told.
type slowDisk struct {
	gofs.LoopbackNode
	hold chan struct{}
}

type slowFile struct {
	gofs.FileHandle
	hold chan struct{}
}

// WrapChild makes what is below like it.
func (n *slowDisk) WrapChild(_ context.Context, child gofs.InodeEmbedder) gofs.InodeEmbedder {
	return &slowDisk{gofs.LoopbackNode{RootData: child.(*gofs.LoopbackNode).RootData}, n.hold}
}

func (f *slowFile) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	<-f.hold
	return f.FileHandle.(gofs.FileWriter).Write(ctx, data, off)
}

func (f *slowFile) Getattr(ctx context.Context, out *fuse.AttrOut) syscall.Errno {
	return f.FileHandle.(gofs.FileGetattrer).Getattr(ctx, out)
}

func (f *slowFile) Flush(context.Context) syscall.Errno         { return 0 }
func (f *slowFile) Fsync(context.Context, uint32) syscall.Errno { return 0 }

func (f *slowFile) Release(ctx context.Context) syscall.Errno {
	return f.FileHandle.(gofs.FileReleaser).Release(ctx)
}

func (n *slowDisk) Create(ctx context.Context, name string, flags, mode uint32,
	out *fuse.EntryOut) (*gofs.Inode, gofs.FileHandle, uint32, syscall.Errno) {
	inode, f, bits, errno := n.LoopbackNode.Create(ctx, name, flags&^uint32(os.O_APPEND), mode, out)
	if errno != 0 {
		return nil, nil, 0, errno
	}
	return inode, &slowFile{f, n.hold}, bits, 0
}

// TestSlowDisk: Record waits for no disk; a user whose events wait stops nobody else, and what is counted goes on.
func TestSlowDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	t.Parallel()
	below, dir := t.TempDir(), t.TempDir()
	hold := make(chan struct{})
	release := sync.OnceFunc(func() { close(hold) })
	defer release()
	root := &gofs.LoopbackRoot{Path: below}
	top := &slowDisk{gofs.LoopbackNode{RootData: root}, hold}
	root.RootNode = top
	server, err := gofs.Mount(dir, top, &gofs.Options{MountOptions: fuse.MountOptions{DirectMountStrict: true}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
		}
	}()
	tr := testTrail(t, dir, Audit{MaxBytes: 1 << 30, Keep: 2, KeepFor: time.Hour, Stop: true})
	const signer, other = 61001, 61002
	sent := 0
	eventually(t, "the signer is stopped", func() bool {
		for tr.Ready(signer, nodes.AuditUse) == nil && sent < 1<<20 {
			tr.Record(nodes.AuditEvent{Class: nodes.AuditUse, UID: signer, Operation: "sign"}, tellNothing)
			sent++
		}
		return tr.Ready(signer, nodes.AuditUse) != nil
	})
	for _, c := range []struct {
		uid   uint32
		class nodes.AuditClass
	}{{other, nodes.AuditUse}, {0, nodes.AuditUse}, {signer, nodes.AuditOpen}, {signer, nodes.AuditDeed}, {other, nodes.AuditDeed}} {
		if err := tr.Ready(c.uid, c.class); err != nil {
			t.Errorf("user %d, class %d: %v", c.uid, c.class, err)
		}
	}
	for range 100000 {
		tr.Record(nodes.AuditEvent{UID: other, Operation: "hash"}, tellNothing)
	}
	release()
	if err := tr.close(); err != nil {
		t.Fatal(err)
	}
	text := onDisk(t, filepath.Join(below, operationsName))
	if n := strings.Count(text, `"sign"`); n != sent {
		t.Errorf("%d of %d operations", n, sent)
	}
	if !strings.Contains(text, `"count":100000`) {
		t.Error("what was counted is not there")
	}
}

// TestRefusalsAreTold: the log gets one line for each user and second, and the number of the rest.
func TestRefusalsAreTold(t *testing.T) {
	t.Parallel()
	var r refusals
	now, lines := time.Now(), 0
	for i := range 100000 {
		first, before := r.add(61000+uint32(i%1000), now)
		if first {
			lines++
		}
		lines += len(before)
	}
	if lines > refusalUsers+1 {
		t.Errorf("%d lines in a second", lines)
	}
	_, before := r.add(61000, now.Add(time.Second))
	told := int64(lines)
	for _, b := range before {
		told += b.times
	}
	if told != 100000 {
		t.Errorf("%d of 100000 refusals are told", told)
	}
}
