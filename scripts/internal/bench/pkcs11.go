package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/miekg/pkcs11"
)

// bareToken signs with a PKCS #11 module alone: sessions that are kept, and one key on the token, as parsecfs's is, whose
// handle is known.
type bareToken struct {
	module      *pkcs11.Ctx
	slot        uint
	login       pkcs11.SessionHandle
	public, key pkcs11.ObjectHandle
}

func openBareToken(library, label, pin string) (*bareToken, error) {
	b := &bareToken{module: pkcs11.New(library)}
	if b.module == nil {
		return nil, fmt.Errorf("%s cannot be loaded", library)
	}
	if err := b.module.Initialize(); err != nil {
		return nil, err
	}
	slots, err := b.module.GetSlotList(true)
	if err != nil {
		return nil, err
	}
	for _, slot := range slots {
		info, err := b.module.GetTokenInfo(slot)
		if err != nil || strings.TrimRight(info.Label, " ") != label {
			continue
		}
		b.slot = slot
		if b.login, err = b.module.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION); err != nil {
			return nil, err
		}
		if err := b.module.Login(b.login, pkcs11.CKU_USER, pin); err != nil {
			return nil, err
		}
		p256 := []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}
		b.public, b.key, err = b.module.GenerateKeyPair(b.login, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil)},
			[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, p256), pkcs11.NewAttribute(pkcs11.CKA_VERIFY, true)},
			[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true), pkcs11.NewAttribute(pkcs11.CKA_SIGN, true), pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true)})
		return b, err
	}
	return nil, fmt.Errorf("no token %q", label)
}

func (b *bareToken) close() error {
	return errors.Join(b.module.DestroyObject(b.login, b.key), b.module.DestroyObject(b.login, b.public), b.module.CloseAllSessions(b.slot), b.module.Finalize())
}

// worker has a session of its own.
func (b *bareToken) worker() (func() error, func(), error) {
	session, err := b.module.OpenSession(b.slot, pkcs11.CKF_SERIAL_SESSION)
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)}
	return func() error {
		sum := sha256.Sum256(message)
		if err := b.module.SignInit(session, mechanism, b.key); err != nil {
			return err
		}
		_, err := b.module.Sign(session, sum[:])
		return err
	}, func() { _ = b.module.CloseSession(session) }, err
}

// The bytes of a signature's round trip to another process and back.
const asked, answered = 96, 80

// echo answers on the socket that is its descriptor 3, until that is closed.
func echo() error {
	b := make([]byte, asked)
	for {
		n, err := syscall.Read(3, b)
		if err != nil || n == 0 {
			return err
		}
		if _, err := syscall.Write(3, b[:answered]); err != nil {
			return err
		}
	}
}

// roundTrip asks a process that does nothing but answer.
func roundTrip() (func() error, func(), error) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "echo")
	cmd := exec.Command("/proc/self/exe", "echo")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	err = cmd.Start()
	theirs.Close()
	b := make([]byte, asked)
	return func() error {
			if _, err := syscall.Write(pair[0], b); err != nil {
				return err
			}
			_, err := syscall.Read(pair[0], b)
			return err
		}, func() {
			syscall.Close(pair[0])
			_ = cmd.Wait() // it has nothing to say
		}, err
}

// runPKCS11 measures a key in a token through the mount against the module alone, on the same token. What the
// module, a handler that does nothing, and the round trip take together is the least that any file system on go-fuse takes
// with the module in another process: at best, it gives that part of the module's rate.
func runPKCS11(library, label, pin, floor, path string) error {
	token, err := openBareToken(library, label, pin)
	if err != nil {
		return err
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, "PKCS #11\tbare module\tfloor\tround trip\tempty\tparsecfs\ttime/(bare+floor+trip)\tparsecfs/bare\tat best\t")
	for _, line := range []struct {
		name    string
		workers int
		by      func(string) func() (func() error, func(), error)
	}{
		{"one worker, kept descriptor", 1, kept},
		{"one worker, fresh open", 1, fresh},
		{"16 workers, kept descriptors", 16, kept},
		{"16 workers, fresh open", 16, fresh},
	} {
		var rates [5]float64
		for range rounds {
			for i, prepare := range []func() (func() error, func(), error){token.worker, line.by(floor), roundTrip, line.by(filepath.Join(filepath.Dir(floor), "empty")), line.by(path)} {
				rate, err := measure(line.workers, prepare)
				if err != nil {
					return fmt.Errorf("%s: %w", line.name, err)
				}
				rates[i] += rate / rounds
			}
		}
		sum := 1/rates[0] + 1/rates[1] + 1/rates[2]
		least := 1/rates[0] + 1/rates[2] + 1/rates[3]
		fmt.Fprintf(out, "%s\t%.0f/s\t%.0f/s\t%.0f/s\t%.0f/s\t%.0f/s\t%.2f\t%.2f\t%.2f\t\n", line.name, rates[0], rates[1], rates[2], rates[3], rates[4],
			1/rates[4]/sum, rates[4]/rates[0], 1/least/rates[0])
	}
	return errors.Join(out.Flush(), token.close())
}
