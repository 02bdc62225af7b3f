package pkcs11test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// NSS makes a database of NSS, whose softokn has two tokens: this one, which keeps keys, is "NSS Certificate DB"; the
// other, "NSS Generic Crypto Services", has the same serial number. It has no security officer's PIN.
func NSS(t *testing.T) *Token {
	t.Helper()
	k := &Token{
		Library: module(t, "/usr/lib/*/libsoftokn3.so", "/usr/lib/*/nss/libsoftokn3.so", "/usr/lib*/libsoftokn3.so"),
		Label:   "NSS Certificate DB",
		Serial:  "0000000000000000",
		PIN:     pin,
		t:       t,
		uid:     os.Geteuid(),
		dir:     Folder(t),
	}
	k.home = k.dir
	k.InitArgs = "configdir='sql:" + k.dir + "' certPrefix='' keyPrefix='' secmod='secmod.db' flags="
	if err := os.WriteFile(k.pinFile(), []byte(pin+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, nil, "certutil", "-N", "-d", "sql:"+k.dir, "-f", k.pinFile())
	return k
}

func (k *Token) pinFile() string { return filepath.Join(k.dir, "pin") }

// nssObjects lists the private keys, as certutil does.
func (k *Token) nssObjects() []string {
	k.t.Helper()
	out, err := runAs(k.uid, nil, "certutil", "-K", "-d", "sql:"+k.dir, "-f", k.pinFile())
	if err != nil {
		if strings.Contains(err.Error(), "no keys found") {
			return nil
		}
		k.t.Fatal(err)
	}
	var objects []string
	for line := range strings.Lines(out) {
		// "< 0> rsa  9f2c...  label", after a line about the token.
		if _, object, ok := strings.Cut(line, ">"); ok {
			objects = append(objects, object)
		}
	}
	slices.Sort(objects)
	return objects
}

// nssP256 has certutil make the key.
func (k *Token) nssP256() (id string) {
	k.t.Helper()
	noise := filepath.Join(k.dir, "noise")
	if err := os.WriteFile(noise, make([]byte, 64), 0o644); err != nil {
		k.t.Fatal(err)
	}
	before := k.nssObjects()
	k.must("certutil", "-G", "-k", "ec", "-q", "nistp256", "-d", "sql:"+k.dir, "-f", k.pinFile(), "-z", noise)
	for _, o := range k.nssObjects() {
		if !slices.Contains(before, o) {
			return strings.Fields(o)[1]
		}
	}
	k.t.Fatal("certutil made no key")
	return ""
}
