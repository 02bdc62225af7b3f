package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/providers/pkcs11/pkcs11test"
)

// tokenProvider is the [[provider]] of a token in a configuration; more are further lines.
func tokenProvider(name string, k *pkcs11test.Token, more ...string) string {
	environment := make([]string, len(k.Env))
	for i, v := range k.Env {
		name, value, _ := strings.Cut(v, "=")
		environment[i] = fmt.Sprintf("%s = %q", name, value)
	}
	text := fmt.Sprintf("[[provider]]\nname = %q\nprovider_type = \"Pkcs11\"\nkey_info_manager = \"kim\"\nlibrary_path = %q\ntoken_label = %q\nenvironment = { %s }\n",
		name, k.Library, k.Label, strings.Join(environment, ", "))
	if k.InitArgs != "" {
		text += fmt.Sprintf("init_args = %q\n", k.InitArgs)
	}
	if !slices.ContainsFunc(more, func(line string) bool { return strings.Contains(line, "pin") }) {
		more = append(more, fmt.Sprintf("user_pin = %q", k.PIN))
	}
	return text + strings.Join(more, "\n") + "\n"
}

// tokens are those that TestKillAtEachStep leaves out.
var tokens = []store{
	{name: "nss", token: true, start: func(t *testing.T) (string, func() []string) {
		k := pkcs11test.NSS(t)
		return kimTable + tokenProvider("p", k), k.Objects
	}},
	{name: "tpm2-pkcs11", token: true, start: func(t *testing.T) (string, func() []string) {
		k := pkcs11test.TPM2(t)
		return kimTable + tokenProvider("p", k), func() []string {
			ours, _ := keyObjects(t, k)
			return ours
		}
	}},
}

// begin starts the device of a store that has none yet.
func (s *store) begin(t *testing.T) {
	t.Helper()
	if s.start != nil {
		s.config, s.objects = s.start(t)
	}
}

// keyObjects lists the private keys that were made here, which have a public one each, and the objects of all other keys.
func keyObjects(t *testing.T, k *pkcs11test.Token) (ours, others []string) {
	t.Helper()
	parts := map[string]int{}
	for _, o := range k.Objects() {
		m := labelled.FindStringSubmatch(o)
		switch {
		case m == nil: // none of a key
		case strings.HasPrefix(m[2], "parsecfs "):
			parts[m[2]]++
			if m[1] == "Private" {
				ours = append(ours, m[2])
			}
		default:
			others = append(others, o)
		}
	}
	for label, n := range parts {
		if n != 2 {
			t.Errorf("%d objects are called %s", n, label)
		}
	}
	return ours, others
}

// softHSM is a store on a token that other programs use too: each key of theirs that is not as they left it is told.
func softHSM(t *testing.T) store {
	t.Helper()
	k := pkcs11test.SoftHSM(t, "crash")[0]
	ids := 0
	var theirs []string
	list := func() []string {
		ours, others := keyObjects(t, k)
		if theirs != nil && !slices.Equal(theirs, others) {
			t.Fatalf("foreign objects were touched: %q; before: %q", others, theirs)
		}
		theirs = others
		return ours
	}
	foreignKey := func(label string) string {
		list()
		ids++
		id := fmt.Sprintf("f%03x", ids)
		k.Generate("EC:prime256v1", id, label)
		theirs = nil
		list()
		return "id=" + id
	}
	foreignKey(foreign)
	return store{name: "softhsm", token: true, config: kimTable + tokenProvider("p", k), objects: list, foreign: foreignKey}
}

// labelled finds class and label of a key that pkcs11-tool lists.
var labelled = regexp.MustCompile(`(?s)^(Private|Public|Secret) Key Object.*\n *label: *([^\n]*)\n`)

// tokenStore is a mount on a token, with keys, beside a provider in software; core and more are further configuration.
func tokenStore(t *testing.T, k *pkcs11test.Token, core, more string) *keystore {
	t.Helper()
	config := core + kimTable + tokenProvider("p", k) + more + "[[provider]]\nname = \"other\"\nprovider_type = \"Software\"\nkey_info_manager = \"kim\"\n"
	s := &keystore{t: t, store: store{name: "token"}, keys: map[string][]byte{}, m: mountParsecfs(t, mountOptions{Config: config})}
	for name, make := range map[string]func(string) ([]byte, error){"generated": s.create, "second": s.create, "third": s.create, "imported": s.imported} {
		public, err := make(name)
		if err != nil {
			t.Fatal(err)
		}
		s.keys[name] = public
	}
	return s
}

// othersGoOn has the provider in software do something.
func (s *keystore) othersGoOn() {
	s.t.Helper()
	if b, err := ask(filepath.Join(s.m.Dir, "providers/other/hash/sha256"), []byte("message")); err != nil || len(b) != 32 {
		s.t.Errorf("another provider: %x, %v", b, err)
	}
}

// away holds the mount to what it promises of a token that is not there: its keys stay, and do nothing.
func (s *keystore) away() {
	t := s.t
	t.Helper()
	for name, public := range s.keys {
		if err := s.works(name, public); !errors.Is(err, syscall.ENODEV) {
			t.Errorf("%s without its token: %v", name, err)
		}
		if err := syscall.Rmdir(s.path(name)); !errors.Is(err, syscall.ENODEV) {
			t.Errorf("rmdir of %s without its token: %v", name, err)
		}
		if b, err := os.ReadFile(s.path(name, "public.der")); err != nil || !bytes.Equal(b, public) {
			t.Errorf("the public key of %s: %x, %v", name, b, err)
		}
		if b, err := os.ReadFile(s.path(name, "last_error")); err != nil || !strings.Contains(string(b), "ENODEV") {
			t.Errorf("last_error of %s is %q, %v", name, b, err)
		}
	}
	entries, err := os.ReadDir(s.path())
	if err != nil || len(entries) != len(s.keys) {
		t.Errorf("%d keys are listed, not %d: %v", len(entries), len(s.keys), err)
	}
	if _, err := s.create("lost"); err == nil {
		t.Error("a key was made without the token")
	}
	if err := syscall.Rmdir(s.path("lost")); err != nil {
		t.Errorf("a draft: %v", err)
	}
	s.othersGoOn()
}

// TestPKCS11TokenGoesAndComes: while the token is away its keys answer ENODEV, and rmdir changes nothing; when it is back
// all work without a restart, and with one.
func TestPKCS11TokenGoesAndComes(t *testing.T) {
	requireFUSE(t)
	k := pkcs11test.SoftHSM(t, "goes")[0]
	s := tokenStore(t, k, "", "")
	before := k.Objects()
	for round := range 3 {
		s.allWork()
		k.Remove()
		if round > 0 {
			s.until("degraded: ")
		}
		s.away()
		s.until("degraded: ")
		switch round {
		case 1:
			s.m.restart()
			s.until("degraded: ")
			s.away()
			k.Return()
		case 2:
			s.m.kill()
			k.Return()
			s.m.restart()
		default:
			k.Return()
		}
		s.until("ready")
		s.allWork()
		if after := k.Objects(); !slices.Equal(before, after) {
			t.Fatalf("the objects were %q and are %q", before, after)
		}
	}
}

// TestPKCS11TwoTokens: two providers on two tokens of one module have keys of the same names, each its own.
func TestPKCS11TwoTokens(t *testing.T) {
	requireFUSE(t)
	tokens := pkcs11test.SoftHSM(t, "one", "two")
	s := tokenStore(t, tokens[0], "", tokenProvider("q", tokens[1]))
	q := filepath.Join(s.m.Dir, "providers/q/keys")
	second := &keystore{t: t, keys: map[string][]byte{}, m: s.m, provider: "q"}
	for name, public := range s.keys {
		other, err := second.create(name)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(other, public) {
			t.Errorf("%s is one key on both tokens", name)
		}
		second.keys[name] = other
	}
	both := func() {
		t.Helper()
		s.allWork()
		second.allWork()
		for i := range tokens {
			if ours, _ := keyObjects(t, tokens[i]); len(ours) != len(s.keys) {
				t.Errorf("token %d has %q", i, ours)
			}
		}
	}
	both()
	s.m.restart()
	both()
	tokens[0].Remove()
	s.away()
	second.allWork()
	if err := syscall.Rmdir(filepath.Join(q, "third")); err != nil {
		t.Errorf("rmdir on the token that is there: %v", err)
	}
	delete(second.keys, "third")
	tokens[0].Return()
	s.until("ready")
	s.allWork()
	if err := syscall.Rmdir(s.path("third")); err != nil {
		t.Error(err)
	}
	delete(s.keys, "third")
	both()
}

// TestPKCS11WrongPIN: a wrong PIN is told, and tried once, however often somebody asks: the token is not locked, and the
// right one works without a restart. A TPM takes no PIN at all after the third wrong one.
func TestPKCS11WrongPIN(t *testing.T) {
	requireFUSE(t)
	for name, start := range map[string]func(*testing.T) *pkcs11test.Token{
		"softhsm": func(t *testing.T) *pkcs11test.Token { return pkcs11test.SoftHSM(t, "pin")[0] }, "tpm2-pkcs11": pkcs11test.TPM2,
	} {
		t.Run(name, func(t *testing.T) {
			k := start(t)
			k.Generate("EC:prime256v1", "01", "theirs")
			file := filepath.Join(t.TempDir(), "pin")
			write := func(pin string) {
				t.Helper()
				if err := os.WriteFile(file, []byte(pin+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write(k.PIN)
			s := &keystore{t: t, keys: map[string][]byte{}, m: mountParsecfs(t, mountOptions{Config: kimTable + tokenProvider("p", k, fmt.Sprintf("pin_source = %q", file))})}
			public, err := s.adopted("key", "id=01")
			if err != nil {
				t.Fatal(err)
			}
			s.keys["key"] = public
			s.allWork()
			write("wrong")
			for range 2 {
				s.m.restart()
				for range 4 {
					s.until("degraded: ")
					if status := s.status(); !strings.Contains(status, "CKR_PIN_INCORRECT") || !strings.Contains(status, "hint: ") {
						t.Errorf("the status is %q", status)
					}
					if err := s.works("key", public); err == nil {
						t.Error("a signature without a PIN")
					}
					if _, err := os.ReadFile(filepath.Join(s.m.Dir, "providers/p/random")); err == nil {
						t.Error("random bytes without a PIN")
					}
				}
				k.Objects() // with the right PIN
			}
			write(k.PIN)
			s.until("ready")
			s.allWork()
			s.m.restart()
			s.allWork()
		})
	}
}

// TestPKCS11PINFile: a PIN that others can read is none, and the status says which file it is.
func TestPKCS11PINFile(t *testing.T) {
	requireFUSE(t)
	k := pkcs11test.SoftHSM(t, "pin file")[0]
	file := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(file, []byte(k.PIN), 0o604); err != nil {
		t.Fatal(err)
	}
	uri := "uri = \"pkcs11:token=pin%20file;serial=" + k.Serial + "?module-path=" + k.Library + "&pin-source=file:" + file + "\""
	text := strings.NewReplacer(fmt.Sprintf("library_path = %q\n", k.Library), "", fmt.Sprintf("token_label = %q\n", k.Label), "").Replace(tokenProvider("p", k, uri))
	s := &keystore{t: t, keys: map[string][]byte{}, m: mountParsecfs(t, mountOptions{Config: kimTable + text})}
	s.until("degraded: ")
	if status := s.status(); !strings.Contains(status, file) || !strings.Contains(status, "hint: chmod 0400 "+file) || strings.Contains(status, k.PIN) {
		t.Errorf("the status is %q", status)
	}
	if err := os.Chmod(file, 0o400); err != nil {
		t.Fatal(err)
	}
	s.until("ready")
	public, err := s.create("key")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.works("key", public); err != nil {
		t.Error(err)
	}
}

// TestPKCS11Reinitialised: a token that somebody emptied is another one, whatever its label and serial number are: nothing
// is made or destroyed on it, no name is lost, and status says why.
func TestPKCS11Reinitialised(t *testing.T) {
	requireFUSE(t)
	k := pkcs11test.SoftHSM(t, "emptied")[0]
	s := tokenStore(t, k, "", "")
	s.allWork()
	k.Reinitialise()
	k.Generate("EC:prime256v1", "01", "theirs")
	before := k.Objects()
	for range 2 {
		for name, public := range s.keys {
			if err := s.works(name, public); !errors.Is(err, syscall.ENODEV) {
				t.Errorf("%s after the token was emptied: %v", name, err)
			}
		}
		s.until("degraded: ")
		if status := s.status(); !strings.Contains(status, "another ") {
			t.Errorf("the status is %q", status)
		}
		s.away()
		if _, err := s.adopted("adopted", "id=01"); !errors.Is(err, syscall.ENODEV) {
			t.Errorf("adoption from the other token: %v", err)
		}
		if err := syscall.Rmdir(s.path("adopted")); err != nil {
			t.Errorf("a draft: %v", err)
		}
		s.m.restart()
	}
	if after := k.Objects(); !slices.Equal(before, after) {
		t.Errorf("the objects were %q and are %q", before, after)
	}
}

// refused says whether a key may answer so while its module dies.
func refused(err error) bool {
	return errors.Is(err, syscall.EIO) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.EAGAIN)
}

// TestPKCS11ModuleDies ends the module by SIGSEGV under 16 workers, again and again: no wrong answer, no mount that ends,
// and other tokens of the module go on.
func TestPKCS11ModuleDies(t *testing.T) {
	requireFUSE(t)
	tokens := pkcs11test.SoftHSM(t, "dies", "lives")
	k := tokens[0].Sabotaged()
	s := tokenStore(t, &k.Token, "", tokenProvider("q", tokens[1]))
	second := &keystore{t: t, keys: map[string][]byte{}, m: s.m, provider: "q"}
	public, err := second.create("key")
	if err != nil {
		t.Fatal(err)
	}
	second.keys["key"] = public
	before := tokens[0].Objects()
	rounds := 4
	if long() {
		rounds = 40
	}
	var signed, refusals atomic.Int64
	for round := range rounds {
		stop := make(chan struct{})
		var workers sync.WaitGroup
		beforeHarm := signed.Load()
		for w := range 16 {
			name := []string{"generated", "second", "third", "imported"}[w%4]
			workers.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					switch err := s.works(name, s.keys[name]); {
					case err == nil:
						signed.Add(1)
					case refused(err):
						refusals.Add(1)
					default:
						t.Error(err)
					}
				}
			})
		}
		for signed.Load() < beforeHarm+50 && !t.Failed() {
			time.Sleep(time.Millisecond)
		}
		k.Harm([]string{"C_Sign crash", "C_Sign crash-after"}[round%2])
		failures := refusals.Load()
		for refusals.Load() < failures+20 && !t.Failed() {
			second.allWork()
			s.othersGoOn()
		}
		k.Harm("")
		close(stop)
		workers.Wait()
		s.until("ready")
		s.allWork()
		if t.Failed() {
			break
		}
	}
	t.Logf("%d signatures, %d refusals", signed.Load(), refusals.Load())
	if after := tokens[0].Objects(); !slices.Equal(before, after) {
		t.Errorf("the objects were %q and are %q", before, after)
	}
}

// TestPKCS11Hangs: a call that hangs costs its caller operation_timeout, and nobody else anything; who is killed meanwhile
// is gone at once.
func TestPKCS11Hangs(t *testing.T) {
	requireFUSE(t)
	k := pkcs11test.SoftHSM(t, "hangs")[0].Sabotaged()
	s := tokenStore(t, &k.Token, "[core_settings]\noperation_timeout = \"3s\"\n", "")
	ended := make(chan error)
	k.Harm("C_Sign hang")
	go func() { ended <- s.works("generated", s.keys["generated"]) }()
	release := k.Hanging()
	k.Harm("")
	for range 3 {
		s.allWork()
		s.othersGoOn()
	}
	if err := <-ended; !errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("a module that hangs: %v", err)
	}
	s.allWork()
	release()
	s.until("ready")
	s.allWork()

	k.Harm("C_Sign hang")
	client := exec.Command("sh", "-c", `exec 3<>"$0"; printf message >&3; exec cat <&3`, s.path("second", "sign"))
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	release = k.Hanging()
	k.Harm("")
	if err := client.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = client.Wait() // it was killed
	s.allWork()
	release()
	s.until("ready")
	s.allWork()
}

// workersOf are the processes of modules that a daemon started, each as a pidfd, which is readable when it has ended.
func workersOf(t *testing.T, daemon int) (pidfds []int) {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		cmdline, _ := os.ReadFile(p + "/cmdline") // it may end
		status, _ := os.ReadFile(p + "/status")
		if !bytes.HasPrefix(cmdline, []byte("parsecfs-pkcs11\x00")) || !bytes.Contains(status, fmt.Appendf(nil, "\nPPid:\t%d\n", daemon)) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(p))
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		pidfds = append(pidfds, fd)
	}
	return pidfds
}

// TestPKCS11LeavesNoProcess: a module's process ends with the daemon, whatever ends that, and whatever the module does.
func TestPKCS11LeavesNoProcess(t *testing.T) {
	requireFUSE(t)
	k := pkcs11test.SoftHSM(t, "ends")[0].Sabotaged()
	s := tokenStore(t, &k.Token, "[core_settings]\noperation_timeout = \"2s\"\n", "")
	for _, end := range []struct {
		name, harm string
		how        func()
	}{
		{"kill -9", "", s.m.kill},
		{"kill -9 while it signs", "C_Sign hang", s.m.kill},
		{"kill -9 while it starts", "C_Initialize hang", s.m.kill},
		{"SIGTERM", "", func() { s.m.stop() }},
		{"SIGTERM while it signs", "C_Sign hang", func() { s.m.stop() }},
		{"SIGTERM while it starts", "C_Initialize hang", func() { s.m.stop() }},
	} {
		k.Harm("")
		if strings.HasPrefix(end.harm, "C_Initialize") {
			k.Harm(end.harm)
		}
		s.m.restart()
		signed := make(chan error, 1)
		release := func() {}
		switch end.harm {
		case "":
			s.allWork()
		case "C_Sign hang":
			k.Harm(end.harm)
			go func() { signed <- s.works("second", s.keys["second"]) }()
			release = k.Hanging()
		default:
			release = k.Hanging()
		}
		pidfds := workersOf(t, s.m.cmd.Process.Pid)
		if len(pidfds) != 1 {
			t.Fatalf("%s: %d processes", end.name, len(pidfds))
		}
		end.how()
		if end.harm == "C_Sign hang" {
			if err := <-signed; err == nil {
				t.Errorf("%s: signed", end.name)
			}
		}
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfds[0]), Events: unix.POLLIN}}, 20_000); n != 1 {
			t.Errorf("%s: the module's process lives on: %v", end.name, err)
		}
		release()
	}
	k.Harm("")
	s.m.restart()
	s.until("ready")
	s.allWork()
}

// TestPKCS11LastError: last_error has what the token said, by its name.
func TestPKCS11LastError(t *testing.T) {
	requireFUSE(t)
	k := pkcs11test.SoftHSM(t, "says")[0].Sabotaged()
	s := tokenStore(t, &k.Token, "", "")
	for rv, want := range map[string]struct {
		name  string
		errno syscall.Errno
	}{
		"0x30": {"CKR_DEVICE_ERROR", syscall.EIO}, "0x68": {"CKR_KEY_FUNCTION_NOT_PERMITTED", syscall.EACCES},
		"0x70": {"CKR_MECHANISM_INVALID", syscall.EOPNOTSUPP}, "0x80000001": {"CKR 0x80000001", syscall.EIO},
	} {
		k.Harm("C_Sign " + rv)
		if err := s.works("generated", s.keys["generated"]); !errors.Is(err, want.errno) {
			t.Errorf("%s: %v", want.name, err)
		}
		if b, err := os.ReadFile(s.path("generated", "last_error")); err != nil || !strings.Contains(strings.SplitN(string(b), "\n", 2)[0], "C_Sign: "+want.name) {
			t.Errorf("last_error is %q, %v", b, err)
		}
		k.Harm("")
		s.until("ready")
		s.allWork()
	}
}
