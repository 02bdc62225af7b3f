package clients

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
	"github.com/parsecfs/parsecfs/cmd/parsecfs/tests/stores"
	"github.com/parsecfs/parsecfs/providers/providertest/outside"
)

// client is a way to sign the file MESSAGE with the operation file SIGN into the file SIGNATURE.
type client struct {
	name, script string
	// sure clients hold one descriptor, and are never refused.
	sure bool
}

var clients = []client{
	{"bash descriptor", `exec bash -c 'exec 3<>"$SIGN" && printf %s "$(cat "$MESSAGE")" >&3 && cat <&3 >"$SIGNATURE"'`, true},
	{"bash drop box", `exec bash -c 'printf %s "$(cat "$MESSAGE")" >"$SIGN" && cat "$SIGN" >"$SIGNATURE"'`, false},
	{"dash descriptor", `exec dash -c 'exec 3<>"$SIGN" && cat "$MESSAGE" >&3 && cat <&3 >"$SIGNATURE"'`, true},
	{"dash drop box", `exec dash -c 'cat "$MESSAGE" >"$SIGN" && cat "$SIGN" >"$SIGNATURE"'`, false},
	{"busybox sh descriptor", `exec busybox sh -c 'exec 3<>"$SIGN" && busybox cat "$MESSAGE" >&3 && busybox cat <&3 >"$SIGNATURE"'`, true},
	{"busybox sh drop box", `exec busybox sh -c 'busybox cat "$MESSAGE" >"$SIGN" && busybox cat "$SIGN" >"$SIGNATURE"'`, false},
	{"cat", `cat "$MESSAGE" >"$SIGN" && cat "$SIGN" >"$SIGNATURE"`, false},
	{"cat descriptor", `{ cat "$MESSAGE" >&3 && cat <&3 >"$SIGNATURE"; } 3<>"$SIGN"`, true},
	{"cp", `cp "$MESSAGE" "$SIGN" && cp "$SIGN" "$SIGNATURE"`, false},
	{"cp slot", `cp "$MESSAGE" "$SIGN.d/cp" && cp "$SIGN.d/cp" "$SIGNATURE" && rm "$SIGN.d/cp"`, true},
	{"dd", `dd if="$MESSAGE" of="$SIGN" bs=7 status=none conv=notrunc && dd if="$SIGN" of="$SIGNATURE" status=none`, false},
	{"dd truncating and syncing", `dd if="$MESSAGE" of="$SIGN" bs=3 status=none conv=fsync && dd if="$SIGN" of="$SIGNATURE" bs=1 status=none`, false},
	{"tee", `tee "$SIGN" <"$MESSAGE" >/dev/null && tee "$SIGNATURE" <"$SIGN" >/dev/null`, false},
	{"tee slot", `tee "$SIGN.d/tee" <"$MESSAGE" >/dev/null && cat "$SIGN.d/tee" >"$SIGNATURE" && rm "$SIGN.d/tee"`, true},
	{"python buffered", `exec python3 "$CLIENTS/sign.py" buffered "$SIGN" "$MESSAGE" "$SIGNATURE"`, true},
	{"python unbuffered", `exec python3 "$CLIENTS/sign.py" unbuffered "$SIGN" "$MESSAGE" "$SIGNATURE"`, true},
	{"python os.read", `exec python3 "$CLIENTS/sign.py" os.read "$SIGN" "$MESSAGE" "$SIGNATURE"`, true},
	{"python os.pread", `exec python3 "$CLIENTS/sign.py" os.pread "$SIGN" "$MESSAGE" "$SIGNATURE"`, true},
	{"python pathlib", `exec python3 "$CLIENTS/sign.py" pathlib "$SIGN" "$MESSAGE" "$SIGNATURE"`, false},
	{"python shutil", `exec python3 "$CLIENTS/sign.py" shutil "$SIGN" "$MESSAGE" "$SIGNATURE"`, false},
	{"go os.File", `exec "$CLIENTS/goclient" file "$SIGN" "$MESSAGE" "$SIGNATURE"`, true},
	{"go syscall.Read", `exec "$CLIENTS/goclient" syscall "$SIGN" "$MESSAGE" "$SIGNATURE"`, true},
	{"node sync", `exec node "$CLIENTS/sign.js" sync "$SIGN" "$MESSAGE" "$SIGNATURE"`, true},
	{"node promises", `exec node "$CLIENTS/sign.js" promises "$SIGN" "$MESSAGE" "$SIGNATURE"`, true},
	{"node files", `exec node "$CLIENTS/sign.js" files "$SIGN" "$MESSAGE" "$SIGNATURE"`, false},
	{"c stdio with a timer", `exec "$CLIENTS/timer" "$SIGN" "$MESSAGE" "$SIGNATURE"`, true},
}

// TestClients: whatever program signs, as root or not, it ends with a signature that OpenSSL verifies, or with a
// non-zero exit. The operation takes 20 ms, so that signals arrive in it.
func TestClients(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	dir := parsecfstest.TempDir(t)
	for _, program := range []string{"bash", "dash", "busybox", "python3", "node", "gcc", "openssl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v: scripts/test installs it", err)
		}
	}
	// Other users may not reach the checkout.
	if err := os.CopyFS(dir, os.DirFS("testdata")); err != nil {
		t.Fatal(err)
	}
	for _, build := range [][]string{
		{"gcc", "-O1", "-Wall", "-Werror", "-o", dir + "/timer", dir + "/timer.c"},
		{"go", "build", "-o", dir + "/goclient", dir + "/goclient.go"},
	} {
		if out, err := exec.Command(build[0], build[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	slow := stores.Outside()
	slow.Begin(t)
	if err := outside.SetFault(slow.Dir, "finish delay 20ms"); err != nil {
		t.Fatal(err)
	}
	m := parsecfstest.Mount(t, parsecfstest.Options{Config: slow.Config})
	answered, refused := 0, 0
	for _, uid := range []uint32{0, 65534} {
		key := filepath.Join(m.Dir, "providers/p/keys", fmt.Sprint("of-", uid))
		home := filepath.Join(dir, fmt.Sprint(uid))
		as := func(script string, env ...string) (string, error) {
			cmd := exec.Command("sh", "-c", script)
			cmd.Env = append(os.Environ(), env...)
			cmd.Dir = home
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
			out, err := cmd.CombinedOutput()
			return string(out), err
		}
		if err := os.Mkdir(home, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(home, int(uid), int(uid)); err != nil {
			t.Fatal(err)
		}
		if out, err := as(`mkdir "$KEY" && echo ecdsa-p256-sha256 >"$KEY/generate"`, "KEY="+key); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for i, c := range clients {
			t.Run(fmt.Sprintf("uid %d/%s", uid, c.name), func(t *testing.T) {
				message, signature := filepath.Join(home, fmt.Sprint("message-", i)), filepath.Join(home, fmt.Sprint("signature-", i))
				if err := os.WriteFile(message, []byte("signed by "+c.name), 0o644); err != nil {
					t.Fatal(err)
				}
				out, err := as(c.script, "SIGN="+key+"/sign", "MESSAGE="+message, "SIGNATURE="+signature, "CLIENTS="+dir)
				if err != nil {
					refused++
					t.Logf("%v: %s", err, out)
					if c.sure {
						t.Error("it holds one descriptor, and was refused")
					}
					return
				}
				answered++
				if out, err := exec.Command("openssl", "dgst", "-sha256", "-verify", key+"/public.pem", "-signature", signature, message).CombinedOutput(); err != nil {
					t.Errorf("WRONG ANSWER: %v: %s", err, out)
				}
			})
		}
	}
	t.Logf("%d clients signed, %d were refused", answered, refused)
}
