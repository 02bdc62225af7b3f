package clients

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
	"github.com/parsecfs/parsecfs/cmd/parsecfs/tests/stores"
	"github.com/parsecfs/parsecfs/providers/providertest/outside"
)

// language is one whose programs sign the file MESSAGE with the operation file SIGN into the file SIGNATURE. They are told how;
// a way whose name begins with "eight" signs MESSAGE.0 to MESSAGE.7 at once.
type language struct {
	name string
	run  string // a script of sh, with $HOW, $SIGN, $MESSAGE, $SIGNATURE, and $CLIENTS, where the programs are
	// build is the command that compiles it in $CLIENTS.
	build string
	// needs are the commands that it cannot do without.
	needs []string
	// leaves says that it may fail in the middle, and leave what it has.
	leaves bool
	// long ones cost CI more than they are worth in it.
	long bool

	// sure ways hold one descriptor or use slots, and are never refused.
	sure []string
	// unsure ways open the file twice, and may be refused, but never get another answer.
	unsure []string
	// refused ways cannot work. They end at once, with one of the errnos here, and last_error says why.
	refused map[string]string
}

var languages = []language{
	{name: "bash", run: `exec bash -c "$HOW"`, needs: []string{"bash"},
		sure:   []string{`exec 3<>"$SIGN" && printf %s "$(cat "$MESSAGE")" >&3 && cat <&3 >"$SIGNATURE"`},
		unsure: []string{`printf %s "$(cat "$MESSAGE")" >"$SIGN" && cat "$SIGN" >"$SIGNATURE"`}},
	{name: "dash", run: `exec dash -c "$HOW"`, needs: []string{"dash"},
		sure: []string{
			`exec 3<>"$SIGN" && cat "$MESSAGE" >&3 && cat <&3 >"$SIGNATURE"`,
			`{ cat "$MESSAGE" >&3 && cat <&3 >"$SIGNATURE"; } 3<>"$SIGN"`,
			`cp "$MESSAGE" "$SIGN.d/cp" && cp "$SIGN.d/cp" "$SIGNATURE" && rm "$SIGN.d/cp"`,
			`tee "$SIGN.d/tee" <"$MESSAGE" >/dev/null && cat "$SIGN.d/tee" >"$SIGNATURE" && rm "$SIGN.d/tee"`,
			`eight() { for n in 0 1 2 3 4 5 6 7; do { cat "$MESSAGE.$n" >&3 && cat <&3 >"$SIGNATURE.$n"; } 3<>"$SIGN" & done; wait; }; eight`,
		},
		unsure: []string{
			`cat "$MESSAGE" >"$SIGN" && cat "$SIGN" >"$SIGNATURE"`,
			`cp "$MESSAGE" "$SIGN" && cp "$SIGN" "$SIGNATURE"`,
			`dd if="$MESSAGE" of="$SIGN" bs=7 status=none conv=notrunc && dd if="$SIGN" of="$SIGNATURE" status=none`,
			`dd if="$MESSAGE" of="$SIGN" bs=3 status=none conv=fsync && dd if="$SIGN" of="$SIGNATURE" bs=1 status=none`,
			`tee "$SIGN" <"$MESSAGE" >/dev/null && tee "$SIGNATURE" <"$SIGN" >/dev/null`,
		}},
	{name: "busybox", run: `exec busybox sh -c "$HOW"`, needs: []string{"busybox"},
		sure: []string{
			`exec 3<>"$SIGN" && busybox cat "$MESSAGE" >&3 && busybox cat <&3 >"$SIGNATURE"`,
			`busybox cp "$MESSAGE" "$SIGN.d/cp" && busybox cp "$SIGN.d/cp" "$SIGNATURE" && busybox rm "$SIGN.d/cp"`,
			`eight() { for n in 0 1 2 3 4 5 6 7; do { busybox cat "$MESSAGE.$n" >&3 && busybox cat <&3 >"$SIGNATURE.$n"; } 3<>"$SIGN" & done; wait; }; eight`,
		},
		unsure: []string{
			`busybox cat "$MESSAGE" >"$SIGN" && busybox cat "$SIGN" >"$SIGNATURE"`,
			`busybox cp "$MESSAGE" "$SIGN" && busybox cp "$SIGN" "$SIGNATURE"`,
			`busybox dd if="$MESSAGE" of="$SIGN" bs=7 2>/dev/null && busybox dd if="$SIGN" of="$SIGNATURE" 2>/dev/null`,
			`busybox tee "$SIGN" <"$MESSAGE" >/dev/null && busybox tee "$SIGNATURE" <"$SIGN" >/dev/null`,
		}},
	{name: "c", run: `exec "$CLIENTS/sign-c" "$HOW" "$SIGN" "$MESSAGE" "$SIGNATURE"`, needs: []string{"gcc"},
		build:   `gcc -O1 -Wall -Werror -pthread -o sign-c sign.c`,
		sure:    []string{"read", "pread", "readv", "ioctl", "eight", "eight-ioctls"},
		unsure:  []string{"files"},
		refused: map[string]string{"eight-files": "EBUSY", "mmap": kernel, "mmap-private": kernel, "sendfile": kernel}},
	{name: "c stdio", run: `exec "$CLIENTS/timer" "$SIGN" "$MESSAGE" "$SIGNATURE"`, needs: []string{"gcc"},
		build: `gcc -O1 -Wall -Werror -o timer timer.c`,
		sure:  []string{"with a timer"}},
	{name: "python", run: `exec python3 "$CLIENTS/sign.py" "$HOW" "$SIGN" "$MESSAGE" "$SIGNATURE"`, needs: []string{"python3"},
		sure:    strings.Fields("descriptor unbuffered seek w+b os.read os.pread copyfileobj slot ioctl eight eight-slots eight-ioctls"),
		unsure:  strings.Fields("pathlib copyfile eight-processes"),
		refused: map[string]string{"eight-files": "EBUSY", "mmap": kernel}},
	{name: "go", run: `exec "$CLIENTS/goclient" "$HOW" "$SIGN" "$MESSAGE" "$SIGNATURE"`,
		build:   `go build -o goclient goclient.go`,
		sure:    []string{"os.File", "os.Create", "syscall.Read", "ReadAt", "io.Copy", "ioctl", "slot", "copy-slot", "eight", "eight-slots", "eight-ioctls"},
		unsure:  []string{"files", "copies"},
		refused: map[string]string{"eight-files": "EBUSY", "mmap": kernel}},
	{name: "node", run: `exec node "$CLIENTS/sign.js" "$HOW" "$SIGN" "$MESSAGE" "$SIGNATURE"`, needs: []string{"node"},
		sure:   strings.Fields("sync wholeSync promises whole streams slot eight"),
		unsure: strings.Fields("files filesPromises copyStreams"),
		// copyFile reads as many bytes as the file promised before there was an answer, and copies the mode.
		refused: map[string]string{"eight-files": "EBUSY", "copyFile": "ENODATA", "copySlot": "EPERM"}},
	{name: "node with io_uring", run: `UV_USE_IO_URING=1 exec node "$CLIENTS/sign.js" "$HOW" "$SIGN" "$MESSAGE" "$SIGNATURE"`, needs: []string{"node"}, leaves: true,
		sure:   strings.Fields("promises whole eight"),
		unsure: []string{"filesPromises"},
		// The kernel keeps no position of a file for io_uring here, and streams read by it. The pieces of a read come in any order.
		refused: map[string]string{"eight-files": "EBUSY", "streams": "ENODATA EINVAL", "copyStreams": "ENODATA EINVAL"}},
	{name: "ruby", run: `exec ruby "$CLIENTS/sign.rb" "$HOW" "$SIGN" "$MESSAGE" "$SIGNATURE"`, needs: []string{"ruby"},
		sure:    []string{"descriptor", "rewind", "sysread", "pread", "copy_stream descriptor", "slot", "eight", "eight-slots"},
		unsure:  []string{"files", "cp", "copy_stream", "eight-processes"},
		refused: map[string]string{"eight-files": "EBUSY"}},
	{name: "perl", run: `exec perl "$CLIENTS/sign.pl" "$HOW" "$SIGN" "$MESSAGE" "$SIGNATURE"`, needs: []string{"perl"},
		sure:    strings.Fields("sysread buffered slot eight eight-slots eight-threads"),
		unsure:  strings.Fields("files copy eight-processes"),
		refused: map[string]string{"eight-files": "EBUSY"}},
	{name: "php", run: `exec php "$CLIENTS/sign.php" "$HOW" "$SIGN" "$MESSAGE" "$SIGNATURE"`, needs: []string{"php"},
		sure:   strings.Fields("descriptor fread rewind copy_to_stream SplFileObject slot copy-slot eight eight-slots"),
		unsure: strings.Fields("files copy readfile eight-processes")},
	{name: "lua", run: `exec lua5.4 "$CLIENTS/sign.lua" "$HOW" "$SIGN" "$MESSAGE" "$SIGNATURE"`, needs: []string{"lua5.4"},
		sure:   strings.Fields("descriptor unbuffered slot"),
		unsure: []string{"files"}},
	{name: "java", run: `exec java -Xshare:auto -cp "$CLIENTS" Sign "$HOW" "$SIGN" "$MESSAGE" "$SIGNATURE"`, needs: []string{"java", "javac"}, long: true,
		build: `javac Sign.java`,
		sure: []string{"RandomAccessFile", "FileChannel", "FileChannel at offsets", "AsynchronousFileChannel", "streams on a descriptor",
			"slot", "eight", "eight-slots"},
		unsure:  []string{"files", "copy", "transferTo"},
		refused: map[string]string{"eight-files": "EBUSY", "copy over": "EPERM", "mmap": kernel}},
	{name: "rust", run: `exec "$CLIENTS/sign-rs" "$HOW" "$SIGN" "$MESSAGE" "$SIGNATURE"`, needs: []string{"rustc"}, long: true,
		build:   `rustc --edition 2021 -o sign-rs sign.rs`,
		sure:    []string{"descriptor", "seek", "read_at", "io::copy", "slot", "eight", "eight-slots"},
		unsure:  []string{"files", "io::copy of files", "fs::copy"},
		refused: map[string]string{"eight-files": "EBUSY"}},
	{name: "c#", run: `exec mono "$CLIENTS/Sign.exe" "$HOW" "$SIGN" "$MESSAGE" "$SIGNATURE"`, needs: []string{"mono", "mcs"}, long: true,
		build:   `mcs Sign.cs`,
		sure:    strings.Fields("FileStream seek CopyTo async slot eight eight-slots"),
		unsure:  strings.Fields("files streams"),
		refused: map[string]string{"eight-files": "EBUSY"}},
	// They read keys and certificates, which an operation file is not.
	{name: "openssl", run: `eval "exec openssl $HOW"`, needs: []string{"openssl"},
		refused: map[string]string{`dgst -sha256 -sign "$SIGN" "$MESSAGE"`: "ENODATA", `pkey -in "$SIGN"`: "ENODATA"}},
}

// kernel stands for an errno of the kernel's own: parsecfs is not asked, and last_error says nothing.
const kernel = "-"

// outcome is what becomes of a client.
type outcome int

const (
	signs outcome = iota
	maySign
	fails
)

// patience is how long a client may take: who loops for ever never ends.
const patience = time.Minute

// TestClients: whatever program signs, as root or not, it ends with a signature that OpenSSL verifies, or with a
// non-zero exit. The operation takes 20 ms, so that signals arrive in it.
func TestClients(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	dir := parsecfstest.TempDir(t)
	// Other users may not reach the checkout.
	if err := os.CopyFS(dir, os.DirFS("testdata")); err != nil {
		t.Fatal(err)
	}
	slow := stores.Outside()
	slow.Begin(t)
	if err := outside.SetFault(slow.Dir, "finish delay 20ms"); err != nil {
		t.Fatal(err)
	}
	m := parsecfstest.Mount(t, parsecfstest.Options{Config: slow.Config})
	var answered, refused atomic.Int32
	t.Run("languages", func(t *testing.T) {
		for _, l := range languages {
			t.Run(l.name, func(t *testing.T) {
				t.Parallel()
				if l.long && !parsecfstest.Long() {
					t.Skip("its tools are large; scripts/test -long has it")
				}
				l.prepare(t, dir)
				for _, uid := range []uint32{0, 65534} {
					u := user{t: t, uid: uid, home: filepath.Join(dir, fmt.Sprint(l.name, " of ", uid)), keys: filepath.Join(m.Dir, "providers/p/keys"), clients: dir}
					u.begin()
					try := func(how string, want outcome, errno string) {
						t.Run(fmt.Sprintf("uid %d/%s", uid, strings.ReplaceAll(how, "/", "")), func(t *testing.T) {
							if u.try(t, l, how, want, errno) {
								answered.Add(1)
							} else {
								refused.Add(1)
							}
						})
					}
					for _, how := range l.sure {
						try(how, signs, "")
					}
					for _, how := range l.unsure {
						try(how, maySign, "")
					}
					for _, how := range slices.Sorted(maps.Keys(l.refused)) {
						try(how, fails, l.refused[how])
					}
				}
			})
		}
	})
	t.Logf("%d clients signed, %d were refused", answered.Load(), refused.Load())
}

// prepare compiles the language's programs.
func (l language) prepare(t *testing.T, dir string) {
	for _, program := range append(l.needs, "openssl") {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v: scripts/test installs it", err)
		}
	}
	if l.build == "" {
		return
	}
	cmd := exec.Command("sh", "-c", l.build)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// user runs clients.
type user struct {
	t    *testing.T
	uid  uint32
	home string // the user's own folder
	keys string // where the user makes keys
	made int

	clients string
}

func (u *user) begin() {
	if err := errors.Join(os.Mkdir(u.home, 0o755), os.Chown(u.home, int(u.uid), int(u.uid))); err != nil {
		u.t.Fatal(err)
	}
}

// run runs a script as the user, and ends it with all that it started where it does not end by itself.
func (u *user) run(script string, env ...string) (out string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", script)
	cmd.Env = append(os.Environ(), env...)
	cmd.Dir = u.home
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.uid, Gid: u.uid}, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	b, err := cmd.CombinedOutput()
	return string(b), errors.Join(err, ctx.Err())
}

// try signs in one way with a new key, and says whether it signed.
func (u *user) try(t *testing.T, l language, how string, want outcome, errno string) bool {
	u.made++
	key := filepath.Join(u.keys, strings.NewReplacer(" ", "-", "#", "sharp").Replace(fmt.Sprintf("%s-%d-%d", l.name, u.uid, u.made)))
	if out, err := u.run(`mkdir "$KEY" && echo ecdsa-p256-sha256 >"$KEY/generate"`, "KEY="+key); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	base := filepath.Join(u.home, fmt.Sprint(u.made))
	pairs := map[string]string{base + ".message": base + ".signature"}
	for n := range 8 {
		pairs[fmt.Sprint(base, ".message.", n)] = fmt.Sprint(base, ".signature.", n)
	}
	for message := range pairs {
		if err := os.WriteFile(message, []byte("signed by "+l.name+": "+filepath.Base(message)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := u.run(l.run, "HOW="+how, "SIGN="+key+"/sign", "MESSAGE="+base+".message", "SIGNATURE="+base+".signature", "CLIENTS="+u.clients)
	if errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("it does not end: %s", out)
	}
	signed := 0
	for message, signature := range pairs {
		if _, err := os.Stat(signature); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		verify := exec.Command("openssl", "dgst", "-sha256", "-verify", key+"/public.pem", "-signature", signature, message)
		if said, wrong := verify.CombinedOutput(); wrong == nil {
			signed++
		} else if b, _ := os.ReadFile(signature); err == nil || len(b) > 0 && !l.leaves {
			t.Errorf("WRONG ANSWER: %v: %s%q\n%s", wrong, said, b, out)
		}
	}
	if err == nil {
		wanted := 1
		if strings.HasPrefix(how, "eight") {
			wanted = 8
		}
		if signed != wanted {
			t.Errorf("it ended well with %d signatures: %s", signed, out)
		}
		if want == fails {
			t.Errorf("it ended well: %s", out)
		}
		return true
	}
	t.Logf("%v: %s", err, out)
	switch {
	case want == signs:
		t.Error("it holds one descriptor, or a slot, and was refused")
	case want == fails:
		u.reason(t, key, errno, err)
	}
	return false
}

// reason checks how a client failed.
func (u *user) reason(t *testing.T, key, errno string, err error) {
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() <= 0 || exit.ExitCode() > 125 {
		t.Errorf("it did not end by itself: %v", err)
	}
	if errno == kernel {
		return
	}
	said, err := u.run(`cat "$KEY/last_error"`, "KEY="+key)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(strings.Fields(errno), func(e string) bool { return strings.Contains(said, "\t"+e+"\t") }) {
		t.Errorf("last_error does not say %s: %q", errno, said)
	}
}
