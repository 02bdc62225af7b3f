package pkcs11

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
	"github.com/parsecfs/parsecfs/cmd/parsecfs/tests/stores"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/providers/pkcs11/pkcs11test"
)

// tokenStore is a mount on a token, with keys, beside a provider in software; core and more are further configuration.
func tokenStore(t *testing.T, k *pkcs11test.Token, core, more string) *stores.Keystore {
	t.Helper()
	config := core + stores.KIM + stores.TokenProvider("p", k) + more + "[[provider]]\nname = \"other\"\nprovider_type = \"Software\"\nkey_info_manager = \"kim\"\n"
	s := &stores.Keystore{T: t, Store: stores.Store{Name: "token"}, Keys: map[string][]byte{}, M: parsecfstest.Mount(t, parsecfstest.Options{Config: config})}
	for name, make := range map[string]func(string) ([]byte, error){"generated": s.Create, "second": s.Create, "third": s.Create, "imported": s.Import} {
		public, err := make(name)
		if err != nil {
			t.Fatal(err)
		}
		s.Keys[name] = public
	}
	return s
}

// othersGoOn has the provider in software do something.
func othersGoOn(s *stores.Keystore) {
	s.T.Helper()
	if b, err := parsecfstest.Ask(filepath.Join(s.M.Dir, "providers/other/hash/sha256"), []byte("message")); err != nil || len(b) != 32 {
		s.T.Errorf("another provider: %x, %v", b, err)
	}
}

// away holds the mount to what it promises of a token that is not there: its keys stay, and do nothing.
func away(s *stores.Keystore) {
	t := s.T
	t.Helper()
	for name, public := range s.Keys {
		if err := s.Works(name, public); !errors.Is(err, syscall.ENODEV) {
			t.Errorf("%s without its token: %v", name, err)
		}
		err := syscall.Rmdir(s.Path(name))
		for errors.Is(err, syscall.EINTR) { // by Go's own signals, where it takes long
			err = syscall.Rmdir(s.Path(name))
		}
		if !errors.Is(err, syscall.ENODEV) {
			t.Errorf("rmdir of %s without its token: %v", name, err)
		}
		if b, err := os.ReadFile(s.Path(name, "public.der")); err != nil || !bytes.Equal(b, public) {
			t.Errorf("the public key of %s: %x, %v", name, b, err)
		}
		if b, err := os.ReadFile(s.Path(name, "last_error")); err != nil || !strings.Contains(string(b), "ENODEV") {
			t.Errorf("last_error of %s is %q, %v", name, b, err)
		}
	}
	entries, err := os.ReadDir(s.Path())
	if err != nil || len(entries) != len(s.Keys) {
		t.Errorf("%d keys are listed, not %d: %v", len(entries), len(s.Keys), err)
	}
	if _, err := s.Create("lost"); err == nil {
		t.Error("a key was made without the token")
	}
	if err := syscall.Rmdir(s.Path("lost")); err != nil {
		t.Errorf("a draft: %v", err)
	}
	othersGoOn(s)
}

// TestPKCS11TokenGoesAndComes: while the token is away its keys answer ENODEV, and rmdir changes nothing; when it is back
// all work without a restart, and with one.
func TestPKCS11TokenGoesAndComes(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	k := pkcs11test.SoftHSM(t, "goes")[0]
	s := tokenStore(t, k, "", "")
	before := k.Objects()
	for round := range 3 {
		s.AllWork()
		k.Remove()
		if round > 0 {
			s.Until("degraded: ")
		}
		away(s)
		s.Until("degraded: ")
		switch round {
		case 1:
			s.M.Restart()
			s.Until("degraded: ")
			away(s)
			k.Return()
		case 2:
			s.M.Kill()
			k.Return()
			s.M.Restart()
		default:
			k.Return()
		}
		s.Until("ready")
		s.AllWork()
		if after := k.Objects(); !slices.Equal(before, after) {
			t.Fatalf("the objects were %q and are %q", before, after)
		}
	}
}

// TestPKCS11TwoTokens: two providers on two tokens of one module have keys of the same names, each its own.
func TestPKCS11TwoTokens(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	tokens := pkcs11test.SoftHSM(t, "one", "two")
	s := tokenStore(t, tokens[0], "", stores.TokenProvider("q", tokens[1]))
	q := filepath.Join(s.M.Dir, "providers/q/keys")
	second := &stores.Keystore{T: t, Keys: map[string][]byte{}, M: s.M, Provider: "q"}
	for name, public := range s.Keys {
		other, err := second.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(other, public) {
			t.Errorf("%s is one key on both tokens", name)
		}
		second.Keys[name] = other
	}
	both := func() {
		t.Helper()
		s.AllWork()
		second.AllWork()
		for i := range tokens {
			if ours, _ := stores.KeyObjects(t, tokens[i]); len(ours) != len(s.Keys) {
				t.Errorf("token %d has %q", i, ours)
			}
		}
	}
	both()
	s.Restart()
	second.Until("ready")
	both()
	tokens[0].Remove()
	away(s)
	second.AllWork()
	if err := syscall.Rmdir(filepath.Join(q, "third")); err != nil {
		t.Errorf("rmdir on the token that is there: %v", err)
	}
	delete(second.Keys, "third")
	tokens[0].Return()
	s.Until("ready")
	s.AllWork()
	if err := syscall.Rmdir(s.Path("third")); err != nil {
		t.Error(err)
	}
	delete(s.Keys, "third")
	both()
}

// TestPKCS11WrongPIN: a wrong PIN is told, and tried once, however often somebody asks: the token is not locked, and the
// right one works without a restart. A TPM takes no PIN at all after the third wrong one.
func TestPKCS11WrongPIN(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	for name, start := range map[string]func(*testing.T) *pkcs11test.Token{
		"softhsm": func(t *testing.T) *pkcs11test.Token { return pkcs11test.SoftHSM(t, "pin")[0] }, "tpm2-pkcs11": pkcs11test.TPM2,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
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
			s := &stores.Keystore{T: t, Keys: map[string][]byte{}, M: parsecfstest.Mount(t, parsecfstest.Options{Config: stores.KIM + stores.TokenProvider("p", k, fmt.Sprintf("pin_source = %q", file))})}
			public, err := s.Adopt("key", "id=01")
			if err != nil {
				t.Fatal(err)
			}
			s.Keys["key"] = public
			s.AllWork()
			write("wrong")
			for range 2 {
				s.M.Restart()
				for range 4 {
					s.Until("degraded: ", "CKR_PIN_INCORRECT", "hint: ")
					if err := s.Works("key", public); err == nil {
						t.Error("a signature without a PIN")
					}
					if _, err := os.ReadFile(filepath.Join(s.M.Dir, "providers/p/random")); err == nil {
						t.Error("random bytes without a PIN")
					}
				}
				k.Objects() // with the right PIN
			}
			write(k.PIN)
			s.Until("ready")
			s.AllWork()
			s.Restart()
			s.AllWork()
		})
	}
}

// TestPKCS11PINFile: a PIN that others can read is none, and the status says which file it is.
func TestPKCS11PINFile(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	k := pkcs11test.SoftHSM(t, "pin file")[0]
	file := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(file, []byte(k.PIN), 0o604); err != nil {
		t.Fatal(err)
	}
	uri := "uri = \"pkcs11:token=pin%20file;serial=" + k.Serial + "?module-path=" + k.Library + "&pin-source=file:" + file + "\""
	text := strings.NewReplacer(fmt.Sprintf("library_path = %q\n", k.Library), "", fmt.Sprintf("token_label = %q\n", k.Label), "").Replace(stores.TokenProvider("p", k, uri))
	s := &stores.Keystore{T: t, Keys: map[string][]byte{}, M: parsecfstest.Mount(t, parsecfstest.Options{Config: stores.KIM + text})}
	s.Until("degraded: ", file, "hint: chmod 0400 "+file)
	if status := s.Status(); strings.Contains(status, k.PIN) {
		t.Errorf("the status is %q", status)
	}
	if err := os.Chmod(file, 0o400); err != nil {
		t.Fatal(err)
	}
	s.Until("ready")
	public, err := s.Create("key")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Works("key", public); err != nil {
		t.Error(err)
	}
}

// TestPKCS11Reinitialised: a token that somebody emptied is another one, whatever its label and serial number are: nothing
// is made or destroyed on it, no name is lost, and status says why.
func TestPKCS11Reinitialised(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	k := pkcs11test.SoftHSM(t, "emptied")[0]
	s := tokenStore(t, k, "", "")
	s.AllWork()
	k.Reinitialise()
	k.Generate("EC:prime256v1", "01", "theirs")
	before := k.Objects()
	for range 2 {
		for name, public := range s.Keys {
			if err := s.Works(name, public); !errors.Is(err, syscall.ENODEV) {
				t.Errorf("%s after the token was emptied: %v", name, err)
			}
		}
		s.Until("degraded: ", "another ")
		away(s)
		if _, err := s.Adopt("adopted", "id=01"); !errors.Is(err, syscall.ENODEV) {
			t.Errorf("adoption from the other token: %v", err)
		}
		if err := syscall.Rmdir(s.Path("adopted")); err != nil {
			t.Errorf("a draft: %v", err)
		}
		s.M.Restart()
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
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	tokens := pkcs11test.SoftHSM(t, "dies", "lives")
	k := tokens[0].Sabotaged()
	s := tokenStore(t, &k.Token, "", stores.TokenProvider("q", tokens[1]))
	second := &stores.Keystore{T: t, Keys: map[string][]byte{}, M: s.M, Provider: "q"}
	public, err := second.Create("key")
	if err != nil {
		t.Fatal(err)
	}
	second.Keys["key"] = public
	before := tokens[0].Objects()
	rounds := 4
	if parsecfstest.Long() {
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
					switch err := s.Works(name, s.Keys[name]); {
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
			second.AllWork()
			othersGoOn(s)
		}
		k.Harm("")
		close(stop)
		workers.Wait()
		// The look that the last death set off may find the device away once more, after "ready" was read.
		away := func() bool { return errors.Is(s.Works("generated", s.Keys["generated"]), syscall.ENODEV) }
		s.Until("ready")
		for end := time.Now().Add(20 * time.Second); away() && time.Now().Before(end); {
			s.Until("ready")
		}
		s.AllWork()
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
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	k := pkcs11test.SoftHSM(t, "hangs")[0].Sabotaged()
	s := tokenStore(t, &k.Token, "[core_settings]\noperation_timeout = \"3s\"\n", "")
	ended := make(chan error)
	k.Harm("C_Sign hang")
	go func() { ended <- s.Works("generated", s.Keys["generated"]) }()
	release := k.Hanging()
	k.Harm("")
	for range 3 {
		s.AllWork()
		othersGoOn(s)
	}
	if err := <-ended; !errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("a module that hangs: %v", err)
	}
	s.AllWork()
	release()
	s.Until("ready")
	s.AllWork()

	k.Harm("C_Sign hang")
	client := exec.Command("sh", "-c", `exec 3<>"$0"; printf message >&3; exec cat <&3`, s.Path("second", "sign"))
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	release = k.Hanging()
	k.Harm("")
	if err := client.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = client.Wait() // it was killed
	s.AllWork()
	release()
	s.Until("ready")
	s.AllWork()
}

// workersOf are the processes of modules that a daemon started, each as a pidfd, which is readable when it has ended.
func workersOf(t *testing.T, daemon int) (pidfds []int) {
	t.Helper()
	for pid := range workerStatuses(t, daemon) {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		pidfds = append(pidfds, fd)
	}
	return pidfds
}

// workerStatuses are the numbers of the processes of modules that a daemon started, with what /proc/PID/status says.
func workerStatuses(t *testing.T, daemon int) map[int]string {
	t.Helper()
	statuses := map[int]string{}
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
		statuses[pid] = string(status)
	}
	return statuses
}

// TestPKCS11LeavesNoProcess: a module's process ends with the daemon, whatever ends that, and whatever the module does.
func TestPKCS11LeavesNoProcess(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	k := pkcs11test.SoftHSM(t, "ends")[0].Sabotaged()
	s := tokenStore(t, &k.Token, "[core_settings]\noperation_timeout = \"2s\"\n", "")
	for _, end := range []struct {
		name, harm string
		how        func()
	}{
		{"kill -9", "", s.M.Kill},
		{"kill -9 while it signs", "C_Sign hang", s.M.Kill},
		{"kill -9 while it starts", "C_Initialize hang", s.M.Kill},
		{"SIGTERM", "", func() { s.M.Stop() }},
		{"SIGTERM while it signs", "C_Sign hang", func() { s.M.Stop() }},
		{"SIGTERM while it starts", "C_Initialize hang", func() { s.M.Stop() }},
	} {
		k.Harm("")
		if strings.HasPrefix(end.harm, "C_Initialize") {
			k.Harm(end.harm)
		}
		s.M.Restart()
		signed := make(chan error, 1)
		release := func() {}
		switch end.harm {
		case "":
			s.Until("ready")
			s.AllWork()
		case "C_Sign hang":
			k.Harm(end.harm)
			go func() { signed <- s.Works("second", s.Keys["second"]) }()
			release = k.Hanging()
		default:
			release = k.Hanging()
		}
		pidfds := workersOf(t, s.M.Process().Pid)
		if len(pidfds) != 1 {
			t.Fatalf("%s: %d processes", end.name, len(pidfds))
		}
		end.how()
		if end.harm == "C_Sign hang" {
			if err := <-signed; err == nil {
				t.Errorf("%s: signed", end.name)
			}
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfds[0]), Events: unix.POLLIN}}, 20_000)
		for errors.Is(err, unix.EINTR) { // Go's own signals
			n, err = unix.Poll([]unix.PollFd{{Fd: int32(pidfds[0]), Events: unix.POLLIN}}, 20_000)
		}
		if n != 1 {
			t.Errorf("%s: the module's process lives on: %v", end.name, err)
		}
		release()
	}
	k.Harm("")
	s.M.Restart()
	s.Until("ready")
	s.AllWork()
}

func lastLine(text string) string {
	text = strings.TrimSuffix(text, "\n")
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// TestPKCS11LastError: last_error has what the token said, by its name.
func TestPKCS11LastError(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
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
		if err := s.Works("generated", s.Keys["generated"]); !errors.Is(err, want.errno) {
			t.Errorf("%s: %v", want.name, err)
		}
		if b, err := os.ReadFile(s.Path("generated", "last_error")); err != nil || !strings.Contains(lastLine(string(b)), "C_Sign: "+want.name) {
			t.Errorf("last_error is %q, %v", b, err)
		}
		k.Harm("")
		s.Until("ready")
		s.AllWork()
	}
}

// TestPKCS11Twins: who cannot name one of several objects is told their names, or that the token must tell them apart first.
func TestPKCS11Twins(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root: only root and admins adopt")
	}
	k := pkcs11test.SoftHSM(t, "twins")[0]
	for _, object := range []string{"0a01 mail", "0a02 mail", "0b01 twin", "0b01 twin"} {
		id, label, _ := strings.Cut(object, " ")
		k.Generate("EC:prime256v1", id, label)
	}
	before := k.Objects()
	s := &stores.Keystore{T: t, M: parsecfstest.Mount(t, parsecfstest.Options{Config: stores.KIM + stores.TokenProvider("p", k)})}
	tool := "hint: some of them have the same ID and label: give each an ID of its own with the token's tool (pkcs11-tool --set-id)"
	for i, c := range []struct{ object, words, hint string }{
		{"object=mail", "the token has 2 keys object=mail", "hint: write one of: id=0a01;object=mail, id=0a02;object=mail"},
		{"object=twin", "the token has 2 keys object=twin", tool},
		{"id=0b01", "the token has 2 keys id=0b01", tool},
		{"id=0b01;object=twin", "the token has 2 keys id=0b01;object=twin", tool},
	} {
		name := strconv.Itoa(i)
		if _, err := s.Adopt(name, c.object); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%s: %v", c.object, err)
		}
		line, err := os.ReadFile(s.Path(name, "last_error"))
		if columns := strings.Split(lastLine(string(line)), "\t"); err != nil || len(columns) < 8 || !strings.HasPrefix(columns[6], c.words) ||
			columns[7] != c.hint {
			t.Errorf("%s: last_error is %q, %v", c.object, line, err)
		}
	}
	public, err := s.Adopt("one", "id=0a01;object=mail")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Works("one", public); err != nil {
		t.Error(err)
	}
	if after := k.Objects(); !slices.Equal(before, after) {
		t.Errorf("the objects were %q and are %q", before, after)
	}
}

// TestPKCS11AnotherUser: a mount's token is another user's, whose the module's process is, and who can do nothing with it but
// that: keys work, after a crash too, and none is lost.
func TestPKCS11AnotherUser(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root: it starts processes of other users")
	}
	const stranger = 2011
	k := pkcs11test.SoftHSM(t, "theirs")[0]
	k.GiveTo(stranger)
	s := tokenStore(t, k, "", fmt.Sprintf("user = \"%d:%[1]d\"\n", stranger))
	s.AllWork()
	statuses := workerStatuses(t, s.M.Process().Pid)
	if len(statuses) == 0 {
		t.Error("the module runs nowhere")
	}
	for _, status := range statuses {
		for _, line := range []string{"Uid:\t2011\t2011\t2011\t2011\n", "Groups:\t \n", "CapBnd:\t0000000000000000\n", "NoNewPrivs:\t1\n"} {
			if !strings.Contains(status, "\n"+line) {
				t.Errorf("the module's process has not %q:\n%s", line, status)
			}
		}
	}
	before := k.Objects()
	s.M.Kill()
	s.M.Restart()
	s.Until("ready")
	s.AllWork()
	if after := k.Objects(); !slices.Equal(before, after) {
		t.Errorf("the objects were %q and are %q", before, after)
	}
}
