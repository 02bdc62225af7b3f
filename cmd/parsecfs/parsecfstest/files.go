package parsecfstest

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// WriteOnce opens a file, writes to it in one WRITE, and closes it; the error is the first that a user saw.
func WriteOnce(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// Ask is one transaction on one descriptor.
func Ask(path string, request ...[]byte) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for _, part := range request {
		if _, err := f.Write(part); err != nil {
			return nil, err
		}
	}
	var answer bytes.Buffer
	_, err = answer.ReadFrom(f)
	return answer.Bytes(), err
}

// Generate makes a key, of a template, in a new directory.
func Generate(t testing.TB, key, template string) {
	t.Helper()
	if err := os.Mkdir(key, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteOnce(filepath.Join(key, "generate"), []byte(template+"\n")); err != nil {
		t.Fatal(err)
	}
}

// PublicKey is the public key of a key's directory.
func PublicKey[K crypto.PublicKey](t testing.TB, key string) K {
	t.Helper()
	der, err := os.ReadFile(filepath.Join(key, "public.der"))
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		t.Fatal(err)
	}
	return public.(K)
}
