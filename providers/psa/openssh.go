package psa

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"encoding/pem"

	"golang.org/x/crypto/ssh"
)

const (
	sshLabel = "OPENSSH PRIVATE KEY"
	sshMagic = "openssh-key-v1\x00"
)

// parseOpenSSH reads a private key in OpenSSH's own format (PROTOCOL.key). An encrypted one is refused before any work.
func parseOpenSSH(b []byte) (any, error) {
	damaged := func(err error) error {
		return Errorf(StatusInvalidArgument, "the OpenSSH private key is damaged: %w", err)
	}
	var file struct {
		Cipher, KDF, KDFOptions string
		Keys                    uint32
		Public                  []byte
		Private                 []byte
		Rest                    []byte `ssh:"rest"`
	}
	rest, ok := bytes.CutPrefix(b, []byte(sshMagic))
	if !ok {
		return nil, Errorf(StatusInvalidArgument, "the OpenSSH private key is damaged: its beginning is wrong")
	}
	if err := ssh.Unmarshal(rest, &file); err != nil {
		return nil, damaged(err)
	}
	if file.Cipher != "none" || file.KDF != "none" {
		return nil, Errorf(StatusNotSupported, "the private key is encrypted").
			WithHint("decrypt a copy of it: cp FILE KEY; ssh-keygen -p -N '' -f KEY; cat KEY > import; shred -u KEY")
	}
	public, err := ssh.ParsePublicKey(file.Public)
	if err != nil {
		return nil, damaged(err)
	}
	switch public.Type() {
	case ssh.KeyAlgoRSA, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoED25519:
	default:
		return nil, Errorf(StatusNotSupported, "an OpenSSH private key of type %s is not supported", quote(public.Type())).WithHint(importable)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: sshLabel, Bytes: b}) // the library reads nothing else
	defer Wipe(text)
	key, err := ssh.ParseRawPrivateKey(text)
	if err != nil {
		return nil, damaged(err)
	}
	if k, ok := key.(*ed25519.PrivateKey); ok { // the library believes its second half
		own := ed25519.NewKeyFromSeed(k.Seed())
		if !bytes.Equal(own, *k) {
			return nil, errContradiction("its public key belongs to another private key")
		}
		key = own
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, Errorf(StatusNotSupported, "the OpenSSH private key cannot sign")
	}
	own, err := ssh.NewPublicKey(signer.Public())
	if err != nil {
		return nil, damaged(err)
	}
	// Two check numbers stand before the key, which begins as the public one does, but with RSA.
	inner := bytes.HasPrefix(file.Private[min(8, len(file.Private)):], own.Marshal()) || own.Type() == ssh.KeyAlgoRSA
	if !bytes.Equal(own.Marshal(), file.Public) || !inner {
		return nil, errContradiction("its public key belongs to another private key")
	}
	return key, nil
}
