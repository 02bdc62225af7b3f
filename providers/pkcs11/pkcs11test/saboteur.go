package pkcs11test

import (
	_ "embed"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

//go:embed testdata/saboteur.c
var saboteurSource []byte

// Saboteur is a token whose module passes every call on to the real one, until it is told to do harm.
type Saboteur struct {
	Token
	control string
}

// Sabotaged is the same token, behind a module that can be told to do harm. What other programs do is better done by the
// token that it was made of.
func (k *Token) Sabotaged() *Saboteur {
	k.t.Helper()
	dir := Folder(k.t)
	source, library := filepath.Join(dir, "saboteur.c"), filepath.Join(dir, "saboteur.so")
	if err := os.WriteFile(source, saboteurSource, 0o600); err != nil {
		k.t.Fatal(err)
	}
	must(k.t, nil, "gcc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, source)
	s := &Saboteur{Token: *k, control: filepath.Join(dir, "control")}
	s.Library = library
	s.Env = append([]string{"SABOTEUR_MODULE=" + k.Library, "SABOTEUR_CONTROL=" + s.control}, k.Env...)
	if err := syscall.Mkfifo(s.fifo(), 0o600); err != nil {
		k.t.Fatal(err)
	}
	s.Harm("")
	return s
}

func (s *Saboteur) fifo() string { return s.control + ".fifo" }

// Hanging waits until a call hangs, and gives what lets it go on; each call that hangs goes on.
func (s *Saboteur) Hanging() (release func()) {
	s.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		f, err := os.OpenFile(s.fifo(), os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if err == nil {
			return func() { _ = f.Close() }
		}
		if !errors.Is(err, syscall.ENXIO) || time.Now().After(deadline) {
			s.t.Fatalf("no call hangs: %v", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Harm says what to do from the next call on, in every process that has the module loaded: a function and "crash",
// "crash-after" (the call is made), "hang" (until Hanging's release), "lie" (C_Sign alone: a bit of what it gave is another)
// or the CK_RV to give, as in "C_Sign 0x30". Empty is nothing. The functions are those of testdata/saboteur.c.
func (s *Saboteur) Harm(what string) {
	s.t.Helper()
	// Put in place whole: a call may read it at any moment.
	if err := os.WriteFile(s.control+".new", []byte(what+"\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(s.control+".new", s.control); err != nil {
		s.t.Fatal(err)
	}
}
