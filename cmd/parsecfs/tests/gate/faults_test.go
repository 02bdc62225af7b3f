package gate

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

// Of the tests of single faults: the first owner or maker, who gets the key later, and who wants in.
const (
	maker    = 61001
	heir     = 61002
	attacker = 61003
	admin    = 61009
)

// A descriptor that root's program has read is no better than it was before.
func TestPassedToSetuidProgram(t *testing.T) {
	t.Parallel()
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	key := filepath.Join(m.Dir, "providers/software/keys/k")
	o, a := newUser(t, maker), newUser(t, attacker)
	o.must("os.mkdir(%q)", key)
	o.must("put(%q, 'ecdsa-p256-sha256\\n')", key+"/generate")
	root(t, "setfacl", "-m", "u:61003:rw", key+"/sign")
	programs := map[string][]string{"a program that reads": {reader(t)}}
	if info, err := os.Stat("/usr/bin/su"); err == nil && info.Mode()&os.ModeSetuid != 0 {
		programs["su"] = []string{"/usr/bin/su", "root", "-c", "id"}
	}
	for name := range programs {
		a.must("hold(%q, %q, os.O_RDWR)", name, key+"/sign")
		a.must("transact(%q)", name)
	}
	root(t, "setfacl", "-x", "u:61003", key+"/sign")
	for name, argv := range programs {
		a.must("write(%q, b'x')", name)
		a.must("run(%s, stdin=%q)", list(argv), name)
		a.want("EKEYREVOKED", "read(%q)", name)
		for range 3 {
			a.want("EKEYREVOKED", "transact(%q)", name)
		}
	}
}

// list writes arguments as Python does.
func list(argv []string) string {
	var quoted []string
	for _, arg := range argv {
		quoted = append(quoted, fmt.Sprintf("%q", arg))
	}
	return strings.Join(quoted, ", ")
}

// reader is a setuid program of root's that reads its standard input.
func reader(t *testing.T) string {
	t.Helper()
	program := filepath.Join(parsecfstest.TempDir(t), "reader")
	root(t, "gcc", "-O1", "-o", program, "testdata/reader.c")
	root(t, "chmod", "4755", program)
	return program
}

// A draft that was handed over becomes its new owner's key, and nobody else's.
func TestDraftHandedOver(t *testing.T) {
	t.Parallel()
	const toml = `template = "ecdsa-p256-sha256"\nusage = "PSA_KEY_USAGE_SIGN_MESSAGE | PSA_KEY_USAGE_VERIFY_MESSAGE | PSA_KEY_USAGE_EXPORT"\n`
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	keys := filepath.Join(m.Dir, "providers/software/keys")
	pem := filepath.Join(parsecfstest.TempDir(t), "key.pem")
	root(t, "openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", pem)
	root(t, "chmod", "644", pem)
	h := newUser(t, heir)
	root(t, "sh", "-euc", `mkdir "$1/source" && printf '%b' "$2" >"$1/source/generate" && chmod 666 "$1/source/export"`, "sh", keys,
		strings.Replace(toml, "_EXPORT", "_EXPORT | PSA_KEY_USAGE_COPY", 1))
	for i, over := range []struct {
		name string
		hand func(uid, draft string)
		who  func(a *user) *user // makes it a key
	}{
		{"chown -R", func(_, draft string) { root(t, "chown", "-R", "61002:61002", draft) }, func(*user) *user { return h }},
		{"keys chown", func(uid, _ string) {
			root(t, parsecfstest.Path(t), "keys", "chown", "--state-dir", m.StateDir, "--owner", uid, "61002")
		},
			func(*user) *user { return h }},
		// generate is still its maker's: he makes the key, and it is not his
		{"chown of the directory", func(_, draft string) { root(t, "chown", "61002:61002", draft) }, func(a *user) *user { return a }},
	} {
		for j, born := range []struct{ name, attributes, make string }{
			{"an empty line", toml, `put(%q + "/generate", "\n")`},
			{"a template", "", `put(%q + "/generate", "ecdsa-p256-sha256\n")`},
			{"TOML", "", `put(%q + "/generate", '` + toml + `')`},
			{"import", toml, `put(%q + "/import", open("` + pem + `").read())`},
			{"copy", "", `put(%q + "/copy", "source\n")`},
		} {
			t.Run(over.name+", "+born.name, func(t *testing.T) {
				uid := 61300 + 10*i + j
				a := newUser(t, uid)
				draft := filepath.Join(keys, fmt.Sprint("draft-", uid))
				a.must("os.mkdir(%q)", draft)
				if born.attributes != "" {
					a.must("put(%q, '%s')", draft+"/attributes", born.attributes)
				}
				old := names(t, draft)
				over.hand(fmt.Sprint(uid), draft)
				if told := over.who(a).do(born.make, draft); told != "ok" {
					t.Fatalf("it becomes no key: %s", told)
				}
				var theirs []string
				for _, f := range names(t, draft) {
					var st unix.Stat_t
					if err := unix.Lstat(filepath.Join(draft, f), &st); err != nil {
						t.Error(err)
					} else if st.Uid != heir && !slices.Contains(old, f) {
						theirs = append(theirs, f)
					}
				}
				if theirs != nil {
					t.Errorf("of its maker: %s", strings.Join(theirs, ", "))
				}
				for _, f := range []string{"sign", "csr", "export", "attributes", "certificate"} {
					told := a.do("hold('new', %q, os.O_RDWR)", filepath.Join(draft, f))
					if told != "EACCES" && (told != "ENOENT" || f != "export") && !slices.Contains(old, f) {
						t.Errorf("its maker opens %s: %s", f, told)
					}
				}
				if told := h.do("signs(%q)", draft+"/sign"); told != "ok" {
					t.Errorf("its owner signs: %s", told)
				}
			})
		}
	}
}

// names lists a folder.
func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		list = append(list, f.Name())
	}
	return list
}

// Whoever opened a staged text and lost the right to it changes nothing any more, now or later.
func TestStagedTextsAfterHandOver(t *testing.T) {
	t.Parallel()
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	keys := filepath.Join(m.Dir, "providers/software/keys")
	pem := filepath.Join(parsecfstest.TempDir(t), "key.pem")
	root(t, "openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", pem)
	root(t, "chmod", "644", pem)
	for _, wait := range []time.Duration{0, lateness} {
		t.Run(wait.String(), func(t *testing.T) {
			t.Parallel()
			a, h := newUser(t, attacker), newUser(t, heir)
			name := func(what string) string { return filepath.Join(keys, what+"-"+wait.String()) }
			for _, draft := range []string{"import", "generate", "attributes", "closed", "flushed"} {
				a.must("os.mkdir(%q)", name(draft))
			}
			a.must("os.mkdir(%q)", name("key"))
			a.must("put(%q, 'ed25519\\n')", name("key")+"/generate")
			for what, file := range map[string]string{"import": "import", "generate": "generate", "attributes": "attributes", "closed": "generate", "flushed": "generate", "key": "attributes"} {
				a.must("hold(%q, %q, os.O_WRONLY)", what, name(what)+"/"+file)
			}
			// takes effect at a FLUSH
			a.must(`write("closed", 'template = "ed25519"\n')`)
			a.must(`write("flushed", 'template = "ed25519"\n')`)
			var all []string
			for _, what := range []string{"import", "generate", "attributes", "closed", "flushed", "key"} {
				all = append(all, name(what))
			}
			root(t, append([]string{"sh", "-c", `chown -Rf 61002:61002 "$@"; exec chmod 700 "$@"`, "sh"}, all...)...)
			time.Sleep(wait) // what is tested is that time changes nothing
			a.want("EKEYREVOKED", `write("import", open(%q).read())`, pem)
			a.want("EKEYREVOKED", `write("generate", "ed25519\n")`)
			a.want("EKEYREVOKED", `write("attributes", 'template = "ed25519"\n')`)
			a.want("EKEYREVOKED", `write("key", "allow_destroy = false\n")`)
			a.want("EKEYREVOKED", `flush("flushed")`)
			a.want("EKEYREVOKED", `close("closed")`)
			for _, draft := range []string{"import", "generate", "attributes", "closed", "flushed"} {
				text := h.do("text(%q)", name(draft)+"/attributes")
				if !strings.Contains(text, "state = 'draft'") || strings.Contains(text, "ed25519") {
					t.Errorf("the draft that was handed over with %s open: %s", draft, text)
				}
			}
			h.want("ok", "os.rmdir(%q)", name("key"))
		})
	}
}

// What waits for the end of a staged text is the writer's: root's program, which closes it too, does not make it count.
func TestStagedTextClosedByRoot(t *testing.T) {
	t.Parallel()
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	draft := filepath.Join(m.Dir, "providers/software/keys/k")
	a, h := newUser(t, attacker), newUser(t, heir)
	program := reader(t)
	a.must("os.mkdir(%q)", draft)
	a.must("hold('generate', %q, os.O_WRONLY)", draft+"/generate")
	a.must(`write('generate', 'template = "ed25519"\n')`)
	root(t, "sh", "-c", `chown -Rf 61002:61002 "$1"; exec chmod 700 "$1"`, "sh", draft)
	a.must("run(%q, stdin='generate')", program)
	a.want("EKEYREVOKED", "close('generate')")
	if text := h.do("text(%q)", draft+"/attributes"); !strings.Contains(text, "state = 'draft'") {
		t.Errorf("the draft that was handed over: %s", text)
	}
}

// A refusal lasts as long as its reason: with the right back, the same descriptor goes on, and without it it does not.
func TestRightGivenBack(t *testing.T) {
	t.Parallel()
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	key := filepath.Join(m.Dir, "providers/software/keys/k")
	root(t, "sh", "-euc", `mkdir "$1" && echo ed25519 >"$1/generate"`, "sh", key)
	give := func() { root(t, "setfacl", "-m", "u:61003:rw", key+"/sign") }
	give()
	a := newUser(t, attacker)
	a.must("hold('sign', %q, os.O_RDWR)", key+"/sign")
	for range 3 {
		a.want("ok", "transact('sign')")
		root(t, "setfacl", "-x", "u:61003", key+"/sign")
		a.want("EKEYREVOKED", "transact('sign')")
		give()
	}
}

// A slot of several inputs is not let in again when time has passed.
func TestDirectorySlotAfterLoss(t *testing.T) {
	t.Parallel()
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	key := filepath.Join(m.Dir, "providers/software/keys/k")
	root(t, "sh", "-euc", `mkdir "$1" && echo aes-256-gcm >"$1/generate" && setfacl -m u:61003:rw "$1/encrypt"`, "sh", key)
	a := newUser(t, attacker)
	a.must("os.mkdir(%q)", key+"/encrypt.d/x")
	a.must("hold('slot', %q, os.O_PATH)", key+"/encrypt.d/x")
	ask := func() string {
		told := a.do("hold('plaintext', 'plaintext', os.O_WRONLY | os.O_TRUNC, at='slot') or hold('ciphertext', 'ciphertext', os.O_RDONLY, at='slot') or " +
			"write('plaintext', 'secret') or read('ciphertext')")
		a.do("close('plaintext')")
		a.do("close('ciphertext')")
		return told
	}
	if told := ask(); told != "ok" {
		t.Fatal(told)
	}
	root(t, "setfacl", "-x", "u:61003", key+"/encrypt")
	for _, wait := range []time.Duration{0, lateness} {
		time.Sleep(wait) // what is tested is that time changes nothing
		if told := ask(); told != "EKEYREVOKED" {
			t.Errorf("after %s: %s", wait, told)
		}
	}
}

// A bind mount of one file leads around the directories above it, and not around their rights.
func TestBoundFileAfterLoss(t *testing.T) {
	t.Parallel()
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	key := filepath.Join(m.Dir, "providers/software/keys/k")
	root(t, "sh", "-euc", `mkdir "$1" && echo ed25519 >"$1/generate" && setfacl -m u:61003:rw "$1/sign"`, "sh", key)
	bound := filepath.Join(parsecfstest.TempDir(t), "bound")
	root(t, "touch", bound)
	root(t, "mount", "--bind", key+"/sign", bound)
	t.Cleanup(func() { root(t, "umount", bound) })
	a := newUser(t, attacker)
	a.must("signs(%q)", bound)
	root(t, "chmod", "700", key)
	for _, wait := range []time.Duration{0, lateness} {
		time.Sleep(wait) // what is tested is that time changes nothing
		a.want("EACCES", "signs(%q)", bound)
	}
	root(t, "chmod", "711", key)
	a.want("ok", "signs(%q)", bound)
}

// The drop box: who lost a right between the request and the answer gets none, by whichever descriptor.
func TestDropBoxAfterLoss(t *testing.T) {
	t.Parallel()
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	keys := filepath.Join(m.Dir, "providers/software/keys")
	for _, take := range []string{"setfacl -x u:61003 k/sign", "setfacl -m u:61003:r k/sign", "setfacl -m u:61003:w k/sign", "chmod 700 k", "chmod 1700 ."} {
		t.Run(take, func(t *testing.T) {
			root(t, "sh", "-euc", `cd "$1" && mkdir k && echo ed25519 >k/generate && setfacl -m u:61003:rw k/sign`, "sh", keys)
			t.Cleanup(func() { root(t, "sh", "-euc", `cd "$1" && chmod 1777 . && rmdir k`, "sh", keys) })
			sign := keys + "/k/sign"
			ask := func(a *user, taken bool) {
				// written before, by one who opens for reading before; written later, and read by a new open
				lose := func() {
					if taken {
						root(t, "sh", "-euc", `cd "$1" && eval "$2"`, "sh", keys, take)
					}
				}
				reads := func(what string) {
					told := a.do("read('r')")
					if taken == (told == "ok") || taken && told != "EKEYREVOKED" && told != "EACCES" {
						t.Errorf("%s, lost: %t: %s", what, taken, told)
					}
				}
				a.must("hold('w', %q, os.O_WRONLY)", sign)
				a.must("write('w', 'message')")
				a.must("close('w')")
				a.must("hold('r', %q, os.O_RDONLY)", sign)
				lose()
				reads("both before")
				a.must("close('r')")
				if taken {
					return
				}
				a.must("hold('w', %q, os.O_WRONLY)", sign)
				a.must("hold('r', %q, os.O_RDONLY)", sign)
				a.must("write('w', 'message')")
				a.must("close('w')")
				reads("opened before it was written")
				a.must("close('r')")
			}
			ask(newUser(t, attacker), false)
			ask(newUser(t, attacker), true)
		})
	}
}

// An admin sees to the keys of users who left, and to root's not; nobody is user -1.
func TestAdmins(t *testing.T) {
	t.Parallel()
	m := parsecfstest.Mount(t, parsecfstest.Options{Config: `
[authenticator]
auth_type = "UnixPeerCredentials"
admins = [{ name = "61009" }]
[[key_manager]]
name = "kim"
manager_type = "SQLite"
[[provider]]
name = "software"
provider_type = "Software"
`})
	keys := filepath.Join(m.Dir, "providers/software/keys")
	root(t, "sh", "-euc", `cd "$1"; mkdir root draft; echo ed25519 >root/generate`, "sh", keys)
	u := newUser(t, maker)
	u.must("os.mkdir(%q)", keys+"/left")
	u.must("put(%q, 'ed25519\\n')", keys+"/left/generate")
	owners := func() string {
		var all []string
		for _, name := range []string{"root", "draft", "left"} {
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(keys, name), &st); err != nil {
				all = append(all, name+" "+err.Error())
				continue
			}
			all = append(all, fmt.Sprint(name, " ", st.Uid))
		}
		return strings.Join(all, ", ")
	}
	// The command's own arguments, as the admin.
	for _, args := range []string{"chown --owner 0 61009", "chown --owner 61001 0", "destroy --owner 0", "chown --owner 61001 4294967295", "chown --owner 4294967295 61001"} {
		argv := append([]string{"--reuid=61009", "--regid=61009", "--clear-groups", parsecfstest.Path(t), "keys"}, strings.Fields(args)...)
		argv = append(argv, "--config", m.ConfigFile, "--state-dir", m.StateDir)
		out, err := exec.Command("setpriv", argv...).CombinedOutput()
		if err == nil {
			t.Errorf("an admin: keys %s: %s", args, out)
		}
	}
	// The bytes on the socket: what the command would refuse itself.
	requests := []struct {
		uid     int
		request string
		refused bool
	}{
		{admin, `{"command":"keys chown","owner":0,"uid":61009,"gid":61009}`, true},
		{admin, `{"command":"keys destroy","owner":0}`, true},
		{admin, `{"command":"keys chown","owner":61001,"uid":0,"gid":0}`, true},
		{admin, `{"command":"keys chown","owner":61001,"uid":4294967295,"gid":61001}`, true},
		{admin, `{"command":"keys chown","owner":61001,"uid":61001,"gid":4294967295}`, true},
		{0, `{"command":"keys chown","owner":61001,"uid":4294967295,"gid":61001}`, true},
		{0, `{"command":"keys chown","owner":61001,"uid":61001,"gid":4294967295}`, true},
		{0, `{"command":"keys chown","owner":4294967295,"uid":61001,"gid":61001}`, true},
		{admin, `{"command":"keys chown","owner":61001,"uid":61002,"gid":61002}`, false},
	}
	const before = "root 0, draft 0, left 61001"
	if got := owners(); got != before {
		t.Errorf("after what an admin typed: %s", got)
	}
	asking := map[int]*user{0: newUser(t, 0), admin: newUser(t, admin)}
	for _, q := range requests {
		told := asking[q.uid].do("ask_socket(%q, %q)", filepath.Join(m.StateDir, "control.sock"), q.request)
		if (told != "ok") != q.refused {
			t.Errorf("user %d: %s: %q", q.uid, q.request, told)
		}
		want := before
		if !q.refused {
			want = "root 0, draft 0, left 61002"
		}
		if got := owners(); got != want {
			t.Errorf("after user %d's %s: %s", q.uid, q.request, got)
		}
	}
	for _, name := range []string{"root", "draft", "left"} {
		if err := os.Remove(filepath.Join(keys, name)); err != nil {
			t.Errorf("root destroys %s: %v", name, err)
		}
	}
}
