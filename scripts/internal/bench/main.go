// Bench measures ECDSA P-256 signatures: bare in Go, through a minimal go-fuse handler that signs (the floor of what a
// file system can do), and through parsecfs.
//
//	bench serve DIR         mount the minimal handler on DIR, until SIGTERM
//	bench run FLOOR SIGN AUDITED UNITS
//	                        measure, with the minimal handler's file and keys' sign: plain, with an audit trail and
//	                        with the authenticator SystemdUnit; and print the table
//	bench turns KEYS UID
//	                        measure a signature of root's beside UID, who generates 40 RSA-4096 keys, and print the ratio
//	bench compare OURS THEIRS
//	                        measure the keys plain, lost and foreign in the keys/ of two mounts, and print the ratios
//	bench tpm SOCKET FLOOR KEYS
//	                        measure keys in a TPM against go-tpm alone on another TPM, and print the table
//	bench pkcs11 LIBRARY LABEL PIN FLOOR SIGN
//	                        measure a key in a token against its module alone, and print the table
//	bench growth PARSECFS DIR NUMBER...
//	                        measure mounts with these numbers of keys, made below the empty DIR, and print the table and JSON
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

func main() {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "serve":
		err = serve(os.Args[2])
	case len(os.Args) == 6 && os.Args[1] == "run":
		err = run(os.Args[2], os.Args[3], os.Args[4], os.Args[5])
	case len(os.Args) == 4 && os.Args[1] == "turns":
		err = turns(os.Args[2], os.Args[3])
	case len(os.Args) == 3 && os.Args[1] == "generate":
		err = generate(os.Args[2])
	case len(os.Args) == 4 && os.Args[1] == "compare":
		err = compare(os.Args[2], os.Args[3])
	case len(os.Args) == 5 && os.Args[1] == "tpm":
		err = runTPM(os.Args[2], os.Args[3], os.Args[4])
	case len(os.Args) == 7 && os.Args[1] == "pkcs11":
		err = runPKCS11(os.Args[2], os.Args[3], os.Args[4], os.Args[5], os.Args[6])
	case len(os.Args) > 2 && os.Args[1] == "growth":
		err = runGrowth(os.Args[2:])
	case len(os.Args) == 2 && os.Args[1] == "echo":
		err = echo()
	default:
		err = fmt.Errorf("usage: bench serve DIR | bench run FLOOR SIGN AUDITED UNITS | bench turns KEYS UID | bench compare OURS THEIRS | bench tpm SOCKET FLOOR KEYS | bench pkcs11 LIBRARY LABEL PIN FLOOR SIGN | bench growth PARSECFS DIR NUMBER")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// floor is a file that signs what is written to an open of it when that is read; without a key it gives as many bytes.
type floor struct {
	fs.Inode
	key *ecdsa.PrivateKey
}

type floorHandle struct {
	key *ecdsa.PrivateKey
	mu  sync.Mutex
	msg []byte
	sig []byte
}

var (
	_ = (fs.NodeOpener)((*floor)(nil))
	_ = (fs.NodeGetattrer)((*floor)(nil))
	_ = (fs.FileWriter)((*floorHandle)(nil))
	_ = (fs.FileReader)((*floorHandle)(nil))
)

func (f *floor) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = 0o600
	return 0
}

func (f *floor) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if f.key == nil { // the least that a file system can do
		return &floorHandle{}, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH | fuse.FOPEN_PARALLEL_DIRECT_WRITES, 0
	}
	return &floorHandle{key: f.key}, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH, 0
}

func (h *floorHandle) Write(_ context.Context, p []byte, _ int64) (uint32, syscall.Errno) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.msg, h.sig = append([]byte(nil), p...), nil
	return uint32(len(p)), 0
}

func (h *floorHandle) Read(context.Context, []byte, int64) (fuse.ReadResult, syscall.Errno) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.msg == nil {
		return fuse.ReadResultData(nil), 0
	}
	if h.key == nil {
		h.msg = nil
		return fuse.ReadResultData(make([]byte, answered)), 0
	}
	sum := sha256.Sum256(h.msg)
	h.msg = nil
	sig, err := ecdsa.SignASN1(rand.Reader, h.key, sum[:])
	if err != nil {
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(sig), 0
}

func serve(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	root := &fs.Inode{}
	second := time.Second
	server, err := fs.Mount(dir, root, &fs.Options{
		EntryTimeout: &second, AttrTimeout: &second,
		OnAdd: func(ctx context.Context) {
			root.AddChild("empty", root.NewPersistentInode(ctx, &floor{}, fs.StableAttr{}), false)
			root.AddChild("sign", root.NewPersistentInode(ctx, &floor{key: key}, fs.StableAttr{}), false)
		},
		MountOptions: fuse.MountOptions{DirectMount: true, FsName: "floor", Name: "floor", Options: []string{"default_permissions"}},
	})
	if err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-stop
		if err := server.Unmount(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	}()
	server.Wait()
	return nil
}

var message = []byte("the message that is signed in every measurement")

// Each number of the table is the mean of some rounds of this duration, after a tenth of it to warm up.
const (
	rounds   = 4
	duration = time.Second
)

// measure counts how often workers do something that each prepares for itself.
func measure(workers int, prepare func() (do func() error, end func(), err error)) (perSecond float64, err error) {
	var count atomic.Int64
	var counting, stopped atomic.Bool
	errs := make(chan error, workers)
	for range workers {
		go func() {
			do, end, err := prepare()
			if err == nil {
				for !stopped.Load() && err == nil {
					if err = do(); counting.Load() {
						count.Add(1)
					}
				}
				end()
			}
			errs <- err
		}()
	}
	time.Sleep(duration / 10)
	counting.Store(true)
	begun := time.Now()
	time.Sleep(duration)
	counting.Store(false)
	took := time.Since(begun)
	n := count.Load()
	stopped.Store(true)
	for range workers {
		if e := <-errs; e != nil {
			err = e
		}
	}
	return float64(n) / took.Seconds(), err
}

func bare() (func() error, func(), error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	return func() error {
		sum := sha256.Sum256(message)
		_, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
		return err
	}, func() {}, err
}

func sign(fd int, b []byte) error {
	if n, err := syscall.Write(fd, message); err != nil || n != len(message) {
		return fmt.Errorf("write: %d, %w", n, err)
	}
	if n, err := syscall.Read(fd, b); err != nil || n == 0 {
		return fmt.Errorf("read: %d, %w", n, err)
	}
	return nil
}

func fresh(path string) func() (func() error, func(), error) {
	return func() (func() error, func(), error) {
		b := make([]byte, 4096)
		return func() error {
			fd, err := syscall.Open(path, syscall.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer syscall.Close(fd)
			return sign(fd, b)
		}, func() {}, nil
	}
}

func kept(path string) func() (func() error, func(), error) {
	return func() (func() error, func(), error) {
		b := make([]byte, 4096)
		fd, err := syscall.Open(path, syscall.O_RDWR, 0)
		return func() error { return sign(fd, b) }, func() { syscall.Close(fd) }, err
	}
}

func run(floor, parsecfs, audited, units string) error {
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, "how\tbare Go\tfloor\tparsecfs\twith audit\twith units\tparsecfs/floor\taudit/parsecfs\tunits/parsecfs\t")
	for _, line := range []struct {
		name    string
		workers int
		by      func(string) func() (func() error, func(), error)
	}{
		{"fresh open", 1, fresh},
		{"kept descriptor", 1, kept},
		{"16 workers, fresh open", 16, fresh},
		{"16 workers, kept descriptors", 16, kept},
	} {
		var rates [5]float64
		for range rounds { // in turns, so that a machine that slows down slows all of them
			for i, prepare := range []func() (func() error, func(), error){bare, line.by(floor), line.by(parsecfs), line.by(audited), line.by(units)} {
				rate, err := measure(line.workers, prepare)
				if err != nil {
					return fmt.Errorf("%s: %w", line.name, err)
				}
				rates[i] += rate / rounds
			}
		}
		fmt.Fprintf(out, "%s\t%.0f/s\t%.0f/s\t%.0f/s\t%.0f/s\t%.0f/s\t%.2f\t%.2f\t%.2f\t\n", line.name, rates[0], rates[1], rates[2], rates[3], rates[4],
			rates[2]/rates[1], rates[3]/rates[2], rates[4]/rates[2])
	}
	return out.Flush()
}
