package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/software"
)

const (
	// growthWriters make a store's keys: together they fill a commit.
	growthWriters = 64
	// grownSignatures are with random keys, from the first on.
	grownSignatures = 1000
	// grownCreations are by eight writers, an eighth of them by one, as many destructions.
	grownCreations = 400
	grownTemplate  = "ecdsa-p256-sha256"
)

// grown is what a mount with a number of keys does. Times are in seconds.
type grown struct {
	Keys            int     `json:"keys"`
	Making          float64 // through kim.Store
	KIM             int64   // with the WAL
	Mount           float64 // until it is ready
	MountRead       int64   // by system calls
	MountResident   int64   `json:"mount_resident"`
	First           float64 // signature of all, with a random key
	Thousandth      float64 // the median of the last hundred, each with a key that was not used before
	List            float64 // ls -f
	ListFirst       float64 // until its first name
	ListResident    int64   `json:"list_resident"`
	CreateOne       float64 // keys a second
	CreateEight     float64 `json:"create_eight"`
	DestroyEight    float64 `json:"destroy_eight"`
	Backup          float64 `json:"backup"`
	BackupBytes     int64   `json:"backup_bytes"`
	HighestResident int64   // of the daemon, in all of this
}

// growth measures mounts with these numbers of keys, made below dir, which must be empty; parsecfs is the program.
func growth(parsecfs, dir string, numbers []int) ([]grown, error) {
	var all []grown
	for _, n := range numbers {
		g, err := grow(parsecfs, filepath.Join(dir, strconv.Itoa(n)), n)
		if err != nil {
			return nil, fmt.Errorf("%d keys: %w", n, err)
		}
		all = append(all, g)
	}
	return all, nil
}

func grownName(i int) string { return fmt.Sprintf("key-%07d", i) }

// fill makes the state of a mount with n keys through kim.Store: each with the journal's steps and a secret of its own.
func fill(ctx context.Context, dir string, n int) (err error) {
	s, err := kim.OpenSQLite(ctx, filepath.Join(dir, "kim.sqlite3"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	sealer, err := kim.OpenSealer(ctx, s, dir)
	if err != nil {
		return err
	}
	row, err := s.EnsureProvider(ctx, "software", software.Type.Name)
	if err != nil {
		return err
	}
	impl, err := software.Type.New(ctx, providers.Config{Name: "software", StateDir: dir})
	if err != nil {
		return err
	}
	defer impl.Close()
	a, err := psa.ParseTemplate(grownTemplate)
	if err != nil {
		return err
	}
	one := func(i int) error {
		k, err := s.InsertDraft(ctx, kim.NewDraft{Provider: row.Number, Name: grownName(i), Inodes: []kim.Inode{{Mode: new(uint32(0o755))}}})
		if err != nil {
			return err
		}
		var h providers.Handle
		rand.Read(h[:])
		if k, err = s.BeginCreate(ctx, k.Number, h, grownTemplate, a, kim.Generated); err != nil {
			return err
		}
		blob, err := impl.Create(ctx, h, a, nil)
		if err != nil {
			return err
		}
		defer psa.Wipe(blob.Secret)
		sealed, err := sealer.Seal(k, row.UUID, blob.Secret)
		if err != nil {
			return err
		}
		return s.FinishCreate(ctx, k.Number, blob.Public, sealed)
	}
	var next atomic.Int64
	return together(growthWriters, func(int) error {
		for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
			if err := one(int(i)); err != nil {
				return err
			}
		}
		return nil
	})
}

// together runs f in n goroutines.
func together(n int, f func(i int) error) error {
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { errs[i] = f(i) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// daemon is a mount of parsecfs.
type daemon struct {
	cmd   *exec.Cmd
	mount string
	state string
	run   string // the program
}

// startDaemon mounts, and says how long it took.
func startDaemon(parsecfs, dir string, keys int) (d *daemon, took float64, err error) {
	d = &daemon{mount: filepath.Join(dir, "mnt"), state: filepath.Join(dir, "state"), run: parsecfs}
	config := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf(`[core_settings]
keys_per_user = %d

[[key_manager]]
name = "kim"
manager_type = "SQLite"

[[provider]]
name = "software"
provider_type = "Software"
key_info_manager = "kim"
`, 2*keys+10000)
	if err := errors.Join(os.MkdirAll(d.mount, 0o755), os.WriteFile(config, []byte(text), 0o600)); err != nil {
		return nil, 0, err
	}
	d.cmd = exec.Command(parsecfs, "mount", "--config", config, "--state-dir", d.state, d.mount)
	says, err := d.cmd.StderrPipe()
	if err != nil {
		return nil, 0, err
	}
	begun := time.Now()
	if err := d.cmd.Start(); err != nil {
		return nil, 0, err
	}
	var said bytes.Buffer
	lines := bufio.NewScanner(says)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "parsecfs: mounted on ") {
			took = time.Since(begun).Seconds()
			go func() {
				for lines.Scan() {
				}
			}()
			return d, took, nil
		}
		fmt.Fprintln(&said, lines.Text())
	}
	return nil, 0, fmt.Errorf("parsecfs does not mount: %w\n%s", d.cmd.Wait(), said.Bytes())
}

func (d *daemon) stop() error {
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return d.cmd.Wait()
}

// proc is a number of the daemon that /proc has in a file after a word.
func (d *daemon) proc(file, word string) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", d.cmd.Process.Pid, file))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, word+":"); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if strings.HasSuffix(strings.TrimSpace(rest), "kB") {
				n <<= 10
			}
			return n, err
		}
	}
	return 0, fmt.Errorf("%s has no %s", file, word)
}

func (d *daemon) keys() string { return filepath.Join(d.mount, "providers/software/keys") }

// sign makes a signature on a fresh open.
func (d *daemon) sign(key string) error {
	f, err := os.OpenFile(filepath.Join(d.keys(), key, "sign"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write([]byte("a message")); err != nil {
		return err
	}
	if n, err := f.Read(make([]byte, 256)); err != nil || n == 0 {
		return fmt.Errorf("a signature of %d bytes: %w", n, err)
	}
	return nil
}

// list has ls -f read the keys' names, and says how long it took, and how long until the first.
func (d *daemon) list(want int) (took, first float64, err error) {
	cmd := exec.Command("ls", "-f", d.keys())
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, 0, err
	}
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	n := 0
	for lines := bufio.NewScanner(out); lines.Scan(); n++ {
		if n == 0 {
			first = time.Since(begun).Seconds()
		}
	}
	if err := cmd.Wait(); err != nil {
		return 0, 0, err
	}
	if n != want {
		return 0, 0, fmt.Errorf("ls -f lists %d names of %d", n, want)
	}
	return time.Since(begun).Seconds(), first, nil
}

// create makes n keys by so many writers, and says how many a second.
func (d *daemon) create(prefix string, writers, n int) (rate float64, err error) {
	begun := time.Now()
	err = together(writers, func(w int) error {
		for i := w; i < n; i += writers {
			key := filepath.Join(d.keys(), prefix+strconv.Itoa(i))
			if err := os.Mkdir(key, 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(key, "generate"), []byte(grownTemplate+"\n"), 0o600); err != nil {
				return err
			}
		}
		return nil
	})
	return float64(n) / time.Since(begun).Seconds(), err
}

// destroy removes what create made.
func (d *daemon) destroy(prefix string, writers, n int) (rate float64, err error) {
	begun := time.Now()
	err = together(writers, func(w int) error {
		for i := w; i < n; i += writers {
			if err := syscall.Rmdir(filepath.Join(d.keys(), prefix+strconv.Itoa(i))); err != nil {
				return err
			}
		}
		return nil
	})
	return float64(n) / time.Since(begun).Seconds(), err
}

func (d *daemon) backup(to string) (took float64, size int64, err error) {
	begun := time.Now()
	out, err := exec.Command(d.run, "state", "backup", "--state-dir", d.state, to).CombinedOutput()
	if err != nil {
		return 0, 0, fmt.Errorf("state backup: %w: %s", err, out)
	}
	took = time.Since(begun).Seconds()
	info, err := os.Stat(to)
	if err != nil {
		return 0, 0, err
	}
	return took, info.Size(), os.Remove(to)
}

// grow measures one mount.
func grow(parsecfs, dir string, n int) (g grown, err error) {
	g.Keys = n
	state := filepath.Join(dir, "state")
	if err := os.MkdirAll(state, 0o700); err != nil {
		return g, err
	}
	begun := time.Now()
	if err := fill(context.Background(), state, n); err != nil {
		return g, err
	}
	g.Making = time.Since(begun).Seconds()
	for _, tail := range []string{"", "-wal"} {
		if info, err := os.Stat(filepath.Join(state, "kim.sqlite3"+tail)); err == nil {
			g.KIM += info.Size()
		}
	}
	d, took, err := startDaemon(parsecfs, dir, n)
	if err != nil {
		return g, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	g.Mount = took
	if g.MountRead, err = d.proc("io", "rchar"); err != nil {
		return g, err
	}
	if g.MountResident, err = d.proc("status", "VmRSS"); err != nil {
		return g, err
	}
	if err := g.signatures(d, n); err != nil {
		return g, err
	}
	if g.List, g.ListFirst, err = d.list(n); err != nil {
		return g, err
	}
	if g.ListResident, err = d.proc("status", "VmRSS"); err != nil {
		return g, err
	}
	if g.CreateOne, err = d.create("one-", 1, grownCreations/8); err != nil {
		return g, err
	}
	if g.CreateEight, err = d.create("eight-", 8, grownCreations); err != nil {
		return g, err
	}
	if g.DestroyEight, err = d.destroy("eight-", 8, grownCreations); err != nil {
		return g, err
	}
	if g.Backup, g.BackupBytes, err = d.backup(filepath.Join(dir, "backup.tar")); err != nil {
		return g, err
	}
	g.HighestResident, err = d.proc("status", "VmHWM")
	return g, err
}

func (g *grown) signatures(d *daemon, n int) error {
	var took []float64
	for _, i := range mathrand.Perm(n)[:min(n, grownSignatures)] {
		begun := time.Now()
		if err := d.sign(grownName(i)); err != nil {
			return err
		}
		took = append(took, time.Since(begun).Seconds())
	}
	g.First = took[0]
	last := took[max(0, len(took)-100):]
	slices.Sort(last)
	g.Thousandth = last[len(last)/2]
	return nil
}
