package main

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"text/tabwriter"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// bareTPM signs with go-tpm alone, on a TPM of its own: keys wrapped by a storage root key, and one salted session that
// encrypts, as the provider has them.
type bareTPM struct {
	tpm     transport.TPMCloser
	parent  *tpm2.CreatePrimaryResponse
	session tpm2.Session
	keys    []*tpm2.CreateResponse
	loaded  *tpm2.LoadResponse
	next    int
}

func openBareTPM(socket string, keys int) (b *bareTPM, err error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	b = &bareTPM{tpm: transport.FromReadWriteCloser(conn)}
	if b.parent, err = (tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}).Execute(b.tpm); err != nil {
		return nil, err
	}
	public, err := b.parent.OutPublic.Contents()
	if err != nil {
		return nil, err
	}
	auth := []byte(rand.Text()) // without zero bytes
	for range keys {
		key, err := tpm2.Create{
			ParentHandle: tpm2.AuthHandle{Handle: b.parent.ObjectHandle, Name: b.parent.Name, Auth: tpm2.PasswordAuth(nil)},
			InSensitive:  tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: auth}, Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{})}},
			InPublic: tpm2.New2B(tpm2.TPMTPublic{
				Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
				ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true},
				Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
					Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull}, CurveID: tpm2.TPMECCNistP256, KDF: tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull}}),
			}),
		}.Execute(b.tpm)
		if err != nil {
			return nil, err
		}
		b.keys = append(b.keys, key)
	}
	b.session, _, err = tpm2.HMACSession(b.tpm, tpm2.TPMAlgSHA256, 16, tpm2.Auth(auth), tpm2.AESEncryption(128, tpm2.EncryptIn), tpm2.Salted(b.parent.ObjectHandle, *public))
	return b, err
}

func (b *bareTPM) load() (err error) {
	key := b.keys[b.next%len(b.keys)]
	b.next++
	b.loaded, err = tpm2.Load{ParentHandle: tpm2.AuthHandle{Handle: b.parent.ObjectHandle, Name: b.parent.Name, Auth: tpm2.PasswordAuth(nil)},
		InPrivate: key.OutPrivate, InPublic: key.OutPublic}.Execute(b.tpm)
	return err
}

func (b *bareTPM) flush() error {
	_, err := tpm2.FlushContext{FlushHandle: b.loaded.ObjectHandle}.Execute(b.tpm)
	b.loaded = nil
	return err
}

func (b *bareTPM) sign() error {
	sum := sha256.Sum256(message)
	_, err := tpm2.Sign{
		KeyHandle:  tpm2.AuthHandle{Handle: b.loaded.ObjectHandle, Name: b.loaded.Name, Auth: b.session},
		Digest:     tpm2.TPM2BDigest{Buffer: sum[:]},
		InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256})},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
	}.Execute(b.tpm)
	return err
}

// inTurn signs with one key after the other, over descriptors that are kept.
func inTurn(paths []string) func() (func() error, func(), error) {
	return func() (func() error, func(), error) {
		b := make([]byte, 4096)
		var fds []int
		end := func() {
			for _, fd := range fds {
				syscall.Close(fd)
			}
		}
		for _, path := range paths {
			fd, err := syscall.Open(path, syscall.O_RDWR, 0)
			if err != nil {
				end()
				return nil, nil, err
			}
			fds = append(fds, fd)
		}
		next := 0
		return func() error {
			next++
			return sign(fds[next%len(fds)], b)
		}, end, nil
	}
}

// runTPM measures one worker against a bare TPM on socket, with the keys below a directory.
func runTPM(socket, floor, keys string) error {
	paths, err := filepath.Glob(filepath.Join(keys, "*", "sign"))
	if err != nil || len(paths) == 0 {
		return fmt.Errorf("no keys in %s: %w", keys, err)
	}
	bare, err := openBareTPM(socket, len(paths))
	if err != nil {
		return err
	}
	defer bare.tpm.Close()
	if err := bare.load(); err != nil {
		return err
	}
	nothing := func() {}
	loaded := func() (func() error, func(), error) { return bare.sign, nothing, nil }
	rotated := func() (func() error, func(), error) {
		return func() error {
			if bare.loaded == nil {
				if err := bare.load(); err != nil {
					return err
				}
			}
			if err := bare.sign(); err != nil {
				return err
			}
			return bare.flush()
		}, nothing, nil
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, "TPM, one worker\tbare go-tpm\tfloor\tparsecfs\ttime/(bare+floor)\t")
	for _, line := range []struct {
		name        string
		bare, floor func() (func() error, func(), error)
		ours        func() (func() error, func(), error)
	}{
		{"a loaded key, kept descriptor", loaded, kept(floor), kept(paths[0])},
		{"a loaded key, fresh open", loaded, fresh(floor), fresh(paths[0])},
		{fmt.Sprint(len(paths), " keys in turn"), rotated, kept(floor), inTurn(paths)},
	} {
		var rates [3]float64
		for range rounds {
			for i, prepare := range []func() (func() error, func(), error){line.bare, line.floor, line.ours} {
				rate, err := measure(1, prepare)
				if err != nil {
					return fmt.Errorf("%s: %w", line.name, err)
				}
				rates[i] += rate / rounds
			}
		}
		fmt.Fprintf(out, "%s\t%.0f/s\t%.0f/s\t%.0f/s\t%.2f\t\n", line.name, rates[0], rates[1], rates[2], 1/rates[2]/(1/rates[0]+1/rates[1]))
	}
	return out.Flush()
}
