package main

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
)

// algorithm is one that is measured everywhere.
type algorithm struct {
	template, name string
	file           string // the operation
	message        []byte
	least          int                                          // bytes of an answer
	bare           func() (func([]byte) ([]byte, error), error) // makes a key, and the operation as a Go program has it
}

var (
	message = []byte("the message that is signed in every measurement")
	fourKiB = bytes.Repeat([]byte("4 KiB..."), 512)
)

// nonceBytes are in front of what AES-GCM encrypted.
const nonceBytes = 12

const templateP256 = "ecdsa-p256-sha256"

var algorithms = []algorithm{
	{templateP256, "ECDSA P-256", "sign", message, 60, func() (func([]byte) ([]byte, error), error) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		return func(message []byte) ([]byte, error) {
			sum := sha256.Sum256(message)
			return ecdsa.SignASN1(rand.Reader, key, sum[:])
		}, err
	}},
	{"ed25519", "Ed25519", "sign", message, ed25519.SignatureSize, func() (func([]byte) ([]byte, error), error) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return func(message []byte) ([]byte, error) { return ed25519.Sign(key, message), nil }, err
	}},
	{"rsa-2048-pkcs1v15-sha256", "RSA-2048", "sign", message, 256, func() (func([]byte) ([]byte, error), error) {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		return func(message []byte) ([]byte, error) {
			sum := sha256.Sum256(message)
			return rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
		}, err
	}},
	{"aes-256-gcm", "AES-256-GCM of 4 KiB", "encrypt", fourKiB, nonceBytes + len(fourKiB) + 16, func() (func([]byte) ([]byte, error), error) {
		block, err := aes.NewCipher([]byte(rand.Text() + rand.Text())[:32])
		if err != nil {
			return nil, err
		}
		aead, err := cipher.NewGCMWithRandomNonce(block)
		return func(plaintext []byte) ([]byte, error) { return aead.Seal(nil, nil, plaintext, nil), nil }, err
	}},
}

// inProcess computes as a Go program that holds the key itself.
func (a *algorithm) inProcess() (func() error, func(), error) {
	compute, err := a.bare()
	return func() error {
		_, err := compute(a.message)
		return err
	}, func() {}, err
}
