// Package pkcs11test makes PKCS#11 tokens for tests, each in a folder of its own: SoftHSM, NSS softokn, and tpm2-pkcs11
// over a TPM of tpmtest. Nothing of the machine's own configuration is read or changed.
package pkcs11test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Token is an initialised token. Its folder, and what runs for it, end with the test.
type Token struct {
	Library  string   // the module's file
	Label    string   // CK_TOKEN_INFO.label, without the padding
	Serial   string   // CK_TOKEN_INFO.serialNumber, without the padding; NSS and tpm2-pkcs11 give all tokens the same
	PIN      string   // the user's
	SOPIN    string   // the security officer's; "" where there is none
	Env      []string // NAME=value, of the process that loads the module
	InitArgs string   // what C_Initialize takes in pReserved: NSS's string; "" is none

	t    *testing.T
	uid  int    // whose it is
	home string // the folder that has all of it
	dir  string // of the kind of token: the database, the folder of tokens, the store
	away string // where Remove puts it
}

const (
	pin   = "parsecfs-1234"
	soPIN = "parsecfs-5678"
)

// Folder makes a folder with a short name: a socket's path has 107 bytes, and a test's name is long.
func Folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "p11")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// module is the first file that one of the patterns matches: Debian's folders carry the machine's name.
func module(t *testing.T, patterns ...string) string {
	t.Helper()
	for _, pattern := range patterns {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		if len(found) > 0 {
			return found[0]
		}
	}
	t.Fatalf("no module: there is no %s", strings.Join(patterns, ", nor "))
	return ""
}

// run gives what a program prints; env is added to the test's own.
func run(env []string, name string, args ...string) (string, error) {
	return runAs(os.Geteuid(), env, name, args...)
}

func runAs(uid int, env []string, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	if uid != os.Geteuid() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	cmd.Env = append(os.Environ(), env...)
	var out, words bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &words
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, &out, &words)
	}
	return out.String(), nil
}

func must(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	out, err := run(env, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// must runs a program as the user whose token it is.
func (k *Token) must(name string, args ...string) string {
	k.t.Helper()
	out, err := runAs(k.uid, k.Env, name, args...)
	if err != nil {
		k.t.Fatal(err)
	}
	return out
}

// GiveTo makes the token another user's, and that user's group of the same number, who alone reads it then.
func (k *Token) GiveTo(uid int) {
	k.t.Helper()
	k.uid = uid
	err := filepath.WalkDir(k.home, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Type()&fs.ModeSocket != 0 {
			return err
		}
		return os.Lchown(path, uid, uid)
	})
	if err != nil {
		k.t.Fatal(err)
	}
}

// Tool runs OpenSC's pkcs11-tool with the token, logged in, as another program would use it, and gives what it prints.
// It cannot load NSS softokn, which wants InitArgs.
func (k *Token) Tool(args ...string) string {
	k.t.Helper()
	return k.must("pkcs11-tool",
		append([]string{"--module", k.Library, "--token-label", k.Label, "--login", "--pin", k.PIN}, args...)...)
}

// Generate lets another program make a key pair: keyType is pkcs11-tool's, as EC:prime256v1 or rsa:2048; id is
// hexadecimal.
func (k *Token) Generate(keyType, id, label string) {
	k.t.Helper()
	k.Tool("--keypairgen", "--key-type", keyType, "--id", id, "--label", label)
}

// P256 lets another program make a signing key on P-256, and gives its CKA_ID in hexadecimal.
func (k *Token) P256() (id string) {
	k.t.Helper()
	if k.InitArgs != "" {
		return k.nssP256()
	}
	const theirs = "0a0b0c0d"
	k.Generate("EC:prime256v1", theirs, "theirs")
	return theirs
}

// Objects lists what is in the token, sorted, an element for each object, as other programs see it: what stayed
// untouched is equal. Each has its class, label, CKA_ID and usage.
func (k *Token) Objects() []string {
	k.t.Helper()
	if k.InitArgs != "" {
		return k.nssObjects()
	}
	var objects []string
	for line := range strings.Lines(k.Tool("--list-objects")) {
		if strings.HasPrefix(line, " ") && len(objects) > 0 {
			objects[len(objects)-1] += line
		} else if strings.HasPrefix(line, "Data object ") { // its handle follows, which is another one each time
			objects = append(objects, "Data object\n")
		} else {
			objects = append(objects, line)
		}
	}
	slices.Sort(objects)
	return objects
}

// Remove takes the token away, as somebody who pulls it out: a module that is loaded notices at its next call. Only
// SoftHSM's tokens can be removed.
//
// SoftHSM reads the token's folder at each call, and looks for tokens in C_Initialize alone. With the folder away
// C_GetTokenInfo, and all that writes, is CKR_GENERAL_ERROR; an object is CKR_OBJECT_HANDLE_INVALID; C_FindObjects finds
// none, without an error; sessions, C_OpenSession and the list of slots stay. After a C_Initialize the slot is not there.
func (k *Token) Remove() {
	k.t.Helper()
	k.move(k.dir, k.away)
}

// Return ends Remove. A module that was called in between notices in its next C_Initialize only; one that was not, goes
// on as if nothing had been.
func (k *Token) Return() {
	k.t.Helper()
	k.move(k.away, k.dir)
}

func (k *Token) move(from, to string) {
	k.t.Helper()
	if k.away == "" {
		k.t.Fatalf("the token %s cannot be removed", k.Label)
	}
	if err := os.Rename(from, to); err != nil {
		k.t.Fatal(err)
	}
}
