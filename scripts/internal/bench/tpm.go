package main

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

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
func inTurn(targets []*target) (func() error, func(), error) {
	b := make([]byte, answerBytes)
	var fds []int
	end := func() {
		for _, fd := range fds {
			syscall.Close(fd)
		}
	}
	for _, t := range targets {
		fd, err := syscall.Open(t.path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
		if err != nil {
			end()
			return nil, nil, err
		}
		fds = append(fds, fd)
	}
	next := 0
	return func() error {
		next++
		return targets[next%len(fds)].ask(fds[next%len(fds)], b)
	}, end, nil
}

// swtpm starts a TPM, and returns the socket of its commands.
func (b *bench) swtpm(name string) (string, error) {
	dir := filepath.Join(b.work, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	socket := filepath.Join(dir, "data")
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir, "--server", "type=unixio,path="+socket,
		"--ctrl", "type=unixio,path="+socket+".ctrl", "--flags", "startup-clear,not-need-init")
	if err := cmd.Start(); err != nil {
		return "", err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for range 100 {
		if _, err := os.Stat(socket); err == nil {
			return socket, nil
		}
		select {
		case err := <-ended:
			return "", fmt.Errorf("swtpm: %w", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	return "", errors.New("swtpm has made no socket")
}

const (
	serverGoTPM = "go-tpm alone"
	oneKey      = "one key, "
	manyKeys    = "50 keys in turn, "
)

// manyTPMKeys are more than a TPM can hold loaded.
const manyTPMKeys = 50

// tpm measures one worker through go-tpm alone, on a TPM of its own, and through parsecfs.
func (b *bench) tpm() error {
	if _, err := exec.LookPath("swtpm"); err != nil {
		b.results.skip(partTPM, err)
		return nil
	}
	socket, err := b.swtpm("bare-tpm")
	if err != nil {
		return err
	}
	bare, err := openBareTPM(socket, manyTPMKeys)
	if err != nil {
		return err
	}
	defer bare.tpm.Close()
	again := func() (func() error, func(), error) {
		return func() error {
			if bare.loaded == nil {
				if err := bare.load(); err != nil {
					return err
				}
			}
			return bare.sign()
		}, func() {}, nil
	}
	rotated := func() (func() error, func(), error) {
		do, end, err := again()
		return func() error {
			if err := do(); err != nil {
				return err
			}
			return bare.flush()
		}, end, err
	}
	cells := []*cell{
		newCell(partTPM, serverGoTPM, oneKey+wayInProcess, 1, again),
		newCell(partTPM, serverGoTPM, manyKeys+wayInProcess, 1, rotated),
	}
	for _, transport := range []string{transportDevice, transportUring} {
		d, err := b.tpmMount(transport)
		if err != nil {
			if err := b.without(over(serverOurs, transport), transport, err); err != nil {
				return err
			}
			continue
		}
		var targets []*target
		for i := range manyTPMKeys {
			dir, err := d.key("tpm", fmt.Sprint(i), templateP256)
			if err != nil {
				return err
			}
			targets = append(targets, signs(filepath.Join(dir, "sign")))
		}
		server := over(serverOurs, transport)
		cells = append(cells,
			newCell(partTPM, server, oneKey+wayFresh, 1, targets[0].fresh),
			newCell(partTPM, server, oneKey+wayKept, 1, targets[0].kept),
			newCell(partTPM, server, manyKeys+wayKept, 1, func() (func() error, func(), error) { return inTurn(targets) }))
	}
	return b.inTurns(mainRounds, mainSpan, cells)
}

// tpmMount has a TPM for itself.
func (b *bench) tpmMount(transport string) (*serving, error) {
	if _, err := b.transport(transport); err != nil {
		return nil, err
	}
	socket, err := b.swtpm("tpm-of-" + transport)
	if err != nil {
		return nil, err
	}
	return b.mount("tpm", transport, fmt.Sprintf(`
[[key_manager]]
name = "sqlite"
manager_type = "SQLite"
[[provider]]
name = "tpm"
provider_type = "Tpm"
tcti = "swtpm:path=%s"
`, socket))
}
