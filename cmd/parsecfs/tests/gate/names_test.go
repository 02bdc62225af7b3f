package gate

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

// namesConfig is one provider with a trail, and three keys a user.
const namesConfig = `
[core_settings]
keys_per_user = 3
[audit]
[[key_manager]]
name = "kim"
manager_type = "SQLite"
[[provider]]
name = "p"
provider_type = "Software"
`

// Two users who call their keys the same.
const (
	first  = 61041
	second = 61042
)

// TestTwoUsersOneName: two users have one name among their own. Neither lists, opens, destroys or shadows the other's key, nor
// learns of it.
func TestTwoUsersOneName(t *testing.T) {
	t.Parallel()
	m := parsecfstest.Mount(t, parsecfstest.Options{Config: namesConfig})
	p := filepath.Join(m.Dir, "providers/p")
	mine, theirs := p+"/mine", fmt.Sprint(p, "/users/", first)
	a, b := newUser(t, first), newUser(t, second)
	for _, u := range []*user{a, b} {
		u.want(fmt.Sprintf("users/%d", u.uid), "os.readlink(%q)", mine)
		u.want(fmt.Sprint(len(fmt.Sprintf("users/%d", u.uid))), "os.lstat(%q).st_size", mine)
		u.want("drwx------", "__import__('stat').filemode(os.stat(%q).st_mode)", mine)
		u.must("os.mkdir(%q)", mine+"/web")
		u.must("put(%q, %q)", mine+"/web/generate", map[int]string{first: "ecdsa-p256-sha256\n", second: "ed25519\n"}[u.uid])
		u.must("signs(%q)", mine+"/web/sign")
		u.want("EEXIST", "os.mkdir(%q)", mine+"/web")
		u.want("['web']", "repr(os.listdir(%q))", mine)
		u.want("[]", "repr(os.listdir(%q))", p+"/keys")
	}
	a.must("os.mkdir(%q)", mine+"/draft")

	t.Run("errno", func(t *testing.T) {
		b := newUser(t, second)
		for _, do := range []string{
			"os.stat(%q) and None", "os.lstat(%q) and None", "os.listdir(%q)", "hold('x', %q, os.O_PATH)", "hold('x', %q + '/sign', os.O_RDWR)",
			"signs(%q + '/sign')", "signs(%q + '/verify')", "text(%q + '/public.pem')", "text(%q + '/last_error')", "os.mkdir(%q)", "os.rmdir(%q)",
			"os.rename(%q, '" + mine + "/stolen')", "os.rename('" + mine + "/web', %q)", "os.chmod(%q, 0o777)", "os.chown(%q, 61042, 61042)",
			"os.setxattr(%q, 'user.x', b'')", "os.getxattr(%q, 'user.x')", "os.utime(%q)", "os.unlink(%q)", "os.symlink('x', %q)", "os.chdir(%q)",
			"os.link('" + mine + "/web/sign', %q)", "watch(%q)", "os.statvfs(%q)",
		} {
			for _, name := range []string{"web", "draft", "none"} {
				b.want("EACCES", do, theirs+"/"+name)
			}
		}
		for _, do := range []string{"os.listdir(%q)", "os.chmod(%q, 0o777)", "watch(%q)", "os.rmdir(%q)", "os.mkdir(%q + '/x')"} {
			for _, uid := range []int{first, 61049} { // who has no keys
				told := b.do(do, fmt.Sprint(p, "/users/", uid))
				if want := map[string]string{"os.chmod(%q, 0o777)": "EPERM"}[do]; told != want && told != "EACCES" {
					t.Errorf("%s of %d: %s", do, uid, told)
				}
			}
		}
		b.want("EACCES", "os.listdir(%q)", p+"/users")
		b.want("EACCES", "os.mkdir(%q)", p+"/users/61049x")
		b.want("ENOENT", "os.stat(%q)", p+"/users/4294967295")
		b.want("ENOENT", "os.stat(%q)", p+"/users/0061041")
	})

	t.Run("names in bytes", func(t *testing.T) {
		b.must("os.mkdir(%q)", mine+"/c")
		var told []string
		for _, name := range []string{"web", "draft", "none"} {
			b.want("EACCES", "put(%q, 'users/%d/%s\\n')", mine+"/c/copy", first, name)
			lines := strings.Split(strings.Trim(b.do("text(%q)", m.Dir+"/last_error"), `"'\n`), `\n`)
			told = append(told, strings.Join(strings.Split(lines[len(lines)-1], `\t`)[2:8], " "))
		}
		if told[0] != told[1] || told[0] != told[2] || !strings.Contains(told[0], "EACCES") {
			t.Errorf("last_error tells them apart: %q", told)
		}
		b.want("ENOENT", "put(%q, 'draft\\n')", mine+"/c/copy") // not the other's, and not one in keys/
		b.want("ENOENT", "put(%q, 'keys/web\\n')", mine+"/c/copy")
		for _, name := range []string{"web", "mine/web", fmt.Sprintf("users/%d/web", second)} {
			// It is found, and its policy refuses.
			b.want("EACCES", "put(%q, '%s\\n')", mine+"/c/copy", name)
			if line := b.do("text(%q)", m.Dir+"/last_error"); !strings.Contains(line, "PSA_KEY_USAGE_COPY") {
				t.Errorf("%s: %s", name, line)
			}
		}
		b.must("put(%q, 'x25519\\n')", mine+"/c/generate")
		b.must("os.mkdir(%q)", mine+"/c/agree.d/x")
		b.must("put(%q, open(%q).read())", mine+"/c/agree.d/x/peer", mine+"/c/public.pem")
		for _, name := range []string{"draft", "none"} {
			b.must("put(%q, 'users/%d/%s')", mine+"/c/agree.d/x/store", first, name)
			b.want("EACCES", "text(%q)", mine+"/c/agree.d/x/secret")
		}
		b.must("os.rmdir(%q)", mine+"/c/agree.d/x")
		b.must("os.rmdir(%q)", mine+"/c")
	})

	t.Run("quota and counts", func(t *testing.T) {
		free := "[os.statvfs(%q).f_files, os.statvfs(%q).f_ffree].__repr__()"
		b.want("[3, 2]", free, m.Dir, m.Dir)
		for _, name := range []string{"1", "2"} {
			b.must("os.mkdir(%q)", mine+"/"+name)
		}
		b.want("EDQUOT", "os.mkdir(%q)", mine+"/3")
		b.want("EDQUOT", "os.mkdir(%q)", p+"/keys/3")
		a.want("[3, 1]", free, m.Dir, m.Dir)
		a.must("os.mkdir(%q)", mine+"/3")
		a.must("os.rmdir(%q)", mine+"/3")
		for _, name := range []string{"1", "2"} {
			b.must("os.rmdir(%q)", mine+"/"+name)
		}
		a.want("ENOTSUP", "os.setxattr(%q, 'user.x', b'')", mine) // there is one for each uid, so labels would have no bound
		before := b.do("os.stat(%q)", theirs)
		a.must("os.mkdir(%q)", mine+"/3")
		a.must("os.rmdir(%q)", mine+"/3")
		if after := b.do("os.stat(%q)", theirs); after != before {
			t.Errorf("the directory was %s, and is %s", before, after)
		}
	})

	t.Run("failures and trail", func(t *testing.T) {
		a.want("EINVAL", "put(%q, 'nothing\\n')", mine+"/draft/generate")
		if told := b.do("text(%q)", m.Dir+"/last_error"); strings.Contains(told, fmt.Sprint(first, "/draft")) {
			t.Errorf("last_error says %s", told)
		}
		for _, u := range []*user{a, b} {
			u.want("EACCES", "text(%q)", m.Dir+"/log")
		}
		f, err := os.Open(filepath.Join(m.Dir, "log"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		made := map[string]int{}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			var e struct {
				UID            int
				User           *int
				Key, Operation string
			}
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
				t.Fatal(err)
			}
			if e.Operation == "mkdir" && e.Key == "web" && e.User != nil {
				made[fmt.Sprint(e.UID, " in ", *e.User)]++
			}
		}
		if made[fmt.Sprint(first, " in ", first)] != 1 || made[fmt.Sprint(second, " in ", second)] != 1 || len(made) != 2 {
			t.Errorf("the trail has web made by %v", made)
		}
	})

	t.Run("aliases", func(t *testing.T) {
		b.want("EACCES", "os.symlink('x', %q)", m.Dir+"/keys/web")
		root(t, "ln", "-s", fmt.Sprintf("../providers/p/users/%d/web", first), m.Dir+"/keys/web")
		a.must("signs(%q)", m.Dir+"/keys/web/sign")
		b.want("EACCES", "signs(%q)", m.Dir+"/keys/web/sign")
		b.want("EACCES", "os.stat(%q)", m.Dir+"/keys/web")
		root(t, "ln", "-sfn", "../providers/p/mine/web", m.Dir+"/keys/web")
		for u, size := range map[*user]string{a: "91", b: "44"} { // an SPKI of P-256, of Ed25519
			u.must("signs(%q)", m.Dir+"/keys/web/sign")
			u.want(size, "os.stat(%q).st_size", m.Dir+"/keys/web/public.der")
		}
	})

	t.Run("a bind and an ACL share one", func(t *testing.T) {
		if exec.Command("unshare", "-m", "--propagation", "private", "true").Run() != nil {
			t.Skip("the root directory is no mount point, as in a bare chroot: no private mount namespace")
		}
		app := filepath.Join(parsecfstest.TempDir(t), "app")
		root(t, "mkdir", app)
		root(t, "chmod", "755", filepath.Dir(app))
		bound := newUserIn(t, second, "mount --bind "+theirs+"/web "+app)
		bound.want("EACCES", "signs(%q)", app+"/sign")
		setfacl := func(acl, path string) {
			t.Helper()
			a.must("__import__('subprocess').check_call(['setfacl', '-m', %q, %q]) or None", acl, path)
		}
		setfacl(fmt.Sprint("u:", second, ":rw"), mine+"/web/sign")
		bound.must("signs(%q)", app+"/sign")
		bound.want("EACCES", "signs(%q)", theirs+"/web/sign")
		bound.want("EINVAL", "os.truncate(%q, 5)", app+"/sign")
		told := b.do("text(%q)", m.Dir+"/last_error")
		if strings.Contains(told, "/web/sign") || !strings.Contains(told, fmt.Sprintf("users/%d/?/sign", first)) {
			t.Errorf("the name of a key that is bound: %s", told)
		}
		setfacl(fmt.Sprint("u:", second, ":x"), mine)
		b.must("signs(%q)", theirs+"/web/sign")
		b.want("EACCES", "os.listdir(%q)", theirs)
		b.want("EACCES", "signs(%q)", theirs+"/web/csr")
		b.must("hold('web', %q, os.O_RDWR)", theirs+"/web/sign")
		b.must("transact('web')")
		// What is shut again is shut at once, by whatever road.
		bound.must("hold('app', %q, os.O_RDWR)", app+"/sign")
		a.must("os.chmod(%q, 0o700)", mine)
		b.want("EACCES", "signs(%q)", theirs+"/web/sign")
		b.want("EKEYREVOKED", "transact('web')")
		bound.want("EKEYREVOKED", "transact('app')")
		bound.want("EACCES", "signs(%q)", app+"/sign")
		a.must("signs(%q)", mine+"/web/sign")
	})

	t.Run("moved", func(t *testing.T) {
		a.must("os.mkdir(%q)", mine+"/m")
		a.must("put(%q, 'ed25519\\n')", mine+"/m/generate")
		a.must("os.rename(%q, %q)", mine+"/m", p+"/keys/m")
		a.must("os.chmod(%q, 0o666)", p+"/keys/m/sign")
		a.must("hold('m', %q, os.O_RDWR)", p+"/keys/m/sign")
		b.must("signs(%q)", p+"/keys/m/sign")
		b.must("hold('m', %q, os.O_RDWR)", p+"/keys/m/sign")
		b.must("hold('way', %q, os.O_PATH)", p+"/keys/m")
		b.must("transact('m')")
		b.want("EPERM", "os.rename(%q, %q)", p+"/keys/m", mine+"/m")
		b.must("os.mkdir(%q)", mine+"/other")
		a.want("EEXIST", "os.rename(%q, %q)", p+"/keys/m", mine+"/web")
		a.must("os.rename(%q, %q)", p+"/keys/m", mine+"/hidden")
		a.must("transact('m')")
		b.want("EKEYREVOKED", "transact('m')")
		b.want("EACCES", "hold('again', 'sign', os.O_RDWR, at='way')")
		told := b.do("text(%q)", m.Dir+"/last_error")
		if strings.Contains(told, fmt.Sprint(first, "/hidden")) || !strings.Contains(told, fmt.Sprintf("users/%d/?/sign", first)) {
			t.Errorf("the name that a key has now: %s", told)
		}
		b.want("ENOENT", "os.stat(%q)", p+"/keys/m")
		b.must("os.rmdir(%q)", mine+"/other")
		// Exchanged with one in keys/, it is open to others again, and the other one is shut.
		a.must("os.rmdir(%q)", mine+"/draft")
		a.must("os.mkdir(%q)", p+"/keys/m")
		a.must("put(%q, 'ecdsa-p256-sha256\\n')", p+"/keys/m/generate")
		a.must("os.chmod(%q, 0o666)", p+"/keys/m/sign")
		b.must("hold('other', %q, os.O_RDWR)", p+"/keys/m/sign")
		b.must("transact('other')")
		b.want("EACCES", "exchange(%q, %q)", p+"/keys/m", theirs+"/hidden")
		a.must("exchange(%q, %q)", p+"/keys/m", mine+"/hidden")
		b.must("transact('m')")
		b.must("signs(%q)", p+"/keys/m/sign")
		b.want("44", "os.stat(%q).st_size", p+"/keys/m/public.der")
		b.want("EKEYREVOKED", "transact('other')")
		a.must("signs(%q)", mine+"/hidden/sign")
		a.must("os.rmdir(%q)", mine+"/hidden")
		a.must("os.rmdir(%q)", p+"/keys/m")
	})

	t.Run("each directory on the way", func(t *testing.T) {
		a.must("hold('own', %q, os.O_RDWR)", mine+"/web/sign")
		a.must("hold('dir', %q, os.O_PATH)", theirs)
		a.must("hold('key', %q, os.O_PATH)", theirs+"/web")
		for _, c := range []struct{ take, give []string }{
			{[]string{"chmod", "700", p + "/users"}, []string{"chmod", "711", p + "/users"}},
			{[]string{"chown", "0:0", theirs}, []string{"chown", fmt.Sprint(first), theirs}},
			{[]string{"chmod", "0", theirs}, []string{"chmod", "700", theirs}},
		} {
			a.must("transact('own')")
			root(t, c.take...)
			a.want("EKEYREVOKED", "transact('own')")
			a.want("EACCES", "signs(%q)", mine+"/web/sign")
			a.want("EACCES", "hold('x', 'web/sign', os.O_RDWR, at='dir')")
			a.want("EACCES", "hold('x', 'sign', os.O_RDWR, at='key')")
			root(t, c.give...)
			a.must("hold('x', 'sign', os.O_RDWR, at='key')")
			a.must("transact('x')")
			a.must("close('x')")
		}
	})

	b.must("os.rmdir(%q)", mine+"/web")
	b.want("[]", "repr(os.listdir(%q))", mine)
	a.must("signs(%q)", mine+"/web/sign")
	a.want("['web']", "repr(os.listdir(%q))", mine)
	if list := names(t, p+"/users"); !slices.Equal(list, []string{fmt.Sprint(first)}) {
		t.Errorf("root sees the users %q", list)
	}
	m.Kill()
	m.Restart()
	a.must("signs(%q)", mine+"/web/sign")
	b.want("EACCES", "signs(%q)", theirs+"/web/sign")
}

// TestKeysOfUsersWhoLeft: an admin's commands see users' own names. A user's own names go to the new owner's, and what is
// taken there stays and is told.
func TestKeysOfUsersWhoLeft(t *testing.T) {
	t.Parallel()
	m := parsecfstest.Mount(t, parsecfstest.Options{Config: namesConfig})
	p := filepath.Join(m.Dir, "providers/p")
	a, b := newUser(t, first), newUser(t, second)
	for _, name := range []string{"mine/web", "mine/api", "keys/shared"} {
		a.must("os.mkdir(%q)", p+"/"+name)
		a.must("put(%q, 'ed25519\\n')", p+"/"+name+"/generate")
	}
	b.must("os.mkdir(%q)", p+"/mine/web")
	run := func(wantCode int, args ...string) (string, string) {
		t.Helper()
		out, errs, code := parsecfstest.Run(t, append(args, "--config", m.ConfigFile, "--state-dir", m.StateDir)...)
		if code != wantCode {
			t.Errorf("%v: %d\n%s%s", args, code, out, errs)
		}
		var lines []string
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "#") {
				continue
			}
			lines = append(lines, strings.Join(strings.Split(line, "\t")[:3], " "))
		}
		return strings.Join(lines, ", "), errs
	}
	wantOut := func(got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	own := func(uid int, name string) string { return fmt.Sprintf("p users/%d/%s", uid, name) }
	out, _ := run(0, "keys", "list")
	wantOut(out, "p shared ready, "+own(first, "api")+" ready, "+own(first, "web")+" ready, "+own(second, "web")+" draft")
	a.must("hold('api', %q, os.O_RDWR)", p+"/mine/api/sign")
	a.must("hold('way', %q, os.O_PATH)", p+"/mine/api")
	out, errs := run(1, "keys", "chown", "--owner", fmt.Sprint(first), fmt.Sprint(second))
	wantOut(out, "p shared ready, "+own(second, "api")+" ready")
	if !strings.Contains(errs, fmt.Sprintf("p/users/%d/web: ", first)) || !strings.Contains(errs, "there is already a key web") {
		t.Errorf("the name that is taken: %s", errs)
	}
	b.must("signs(%q)", p+"/mine/api/sign")
	a.want("EKEYREVOKED", "transact('api')")
	for _, file := range []string{"sign", "verify", "public.pem"} {
		a.want("EACCES", "hold('x', %q, os.O_RDONLY, at='way')", file)
		a.want("ENOENT", "text(%q)", p+"/mine/api/"+file)
	}
	a.must("signs(%q)", p+"/mine/web/sign")
	out, _ = run(0, "keys", "list", "--owner", fmt.Sprint(second))
	wantOut(out, "p shared ready, "+own(second, "api")+" ready, "+own(second, "web")+" draft")
	out, _ = run(0, "keys", "destroy", "--owner", fmt.Sprint(first))
	wantOut(out, own(first, "web")+" ready")
	run(0, "keys", "forget", "p", fmt.Sprintf("users/%d/web", second))
	run(1, "keys", "forget", "p", fmt.Sprintf("users/%d/none", second))
	out, _ = run(0, "keys", "list")
	wantOut(out, "p shared ready, "+own(second, "api")+" ready")
	m.Stop()
	out, _ = run(0, "keys", "chown", "--owner", fmt.Sprint(second), fmt.Sprint(first)) // without a daemon
	wantOut(out, "p shared ready, "+own(first, "api")+" ready")
}

// TestLookingForAllUsers: who looks for the directories of many users fills nobody's memory, and keeps nobody out of their
// own.
func TestLookingForAllUsers(t *testing.T) {
	t.Parallel()
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	users := filepath.Join(m.Dir, "providers/software/users")
	b := newUser(t, second)
	told := b.do("looks(%q, 1000000, 5000)", users)
	if told != "4096 ok, 904 EACCES" {
		t.Errorf("5000 users' directories: %s", told)
	}
	a := newUser(t, first)
	a.must("os.mkdir(%q)", users+"/61041/web")
	b.must("os.mkdir(%q)", users+"/61042/web")
	a.want("['web']", "repr(os.listdir(%q))", users+"/61041")
	a.must("os.chmod(%q, 0o711)", users+"/61041")
	b.must("os.stat(%q) and None", users+"/61041/web")
}

// TestRenamedWhileItIsHandedOver: who renames a key while root gives it to another user does not take it back.
func TestRenamedWhileItIsHandedOver(t *testing.T) {
	t.Parallel()
	m := parsecfstest.Mount(t, parsecfstest.Options{Config: namesConfig})
	p := filepath.Join(m.Dir, "providers/p")
	a, b := newUser(t, first), newUser(t, second)
	for range 3 {
		a.must("os.mkdir(%q)", p+"/mine/web")
		a.must("put(%q, 'ed25519\\n')", p+"/mine/web/generate")
		var wg sync.WaitGroup
		wg.Go(func() { a.do("spins(%q, %q, 3.0)", p+"/mine/web", p+"/mine/web2") })
		_, errs, code := parsecfstest.Run(t, "keys", "chown", "--owner", fmt.Sprint(first), fmt.Sprint(second), "--config", m.ConfigFile,
			"--state-dir", m.StateDir)
		wg.Wait()
		if code != 0 {
			t.Errorf("chown: %d: %s", code, errs)
		}
		a.want("True", "os.listdir(%q) == []", p+"/mine")
		b.want("[None]", "[os.rmdir(%q + '/' + n) for n in os.listdir(%q)]", p+"/mine", p+"/mine")
	}
}

// TestTextAfterALoss: what was opened while it might be read tells nothing of what is written once it may not.
func TestTextAfterALoss(t *testing.T) {
	t.Parallel()
	m := parsecfstest.Mount(t, parsecfstest.Options{Config: namesConfig})
	p := filepath.Join(m.Dir, "providers/p")
	a, b := newUser(t, first), newUser(t, second)
	a.must("os.mkdir(%q)", p+"/keys/m")
	a.must("put(%q, 'ed25519\\n')", p+"/keys/m/generate")
	for name, file := range map[string]string{"text": "attributes", "public": "public.ssh"} {
		b.must("hold(%q, %q, os.O_RDONLY)", name, p+"/keys/m/"+file)
	}
	a.must("os.rename(%q, %q)", p+"/keys/m", p+"/mine/hidden")
	a.must("put(%q, 'units = [\"secret-unit.service\"]\\n')", p+"/mine/hidden/attributes")
	for _, name := range []string{"text", "public"} {
		if told := b.do("repr(os.pread(HELD[%q], 65536, 0))", name); strings.Contains(told, "hidden") || strings.Contains(told, "secret-unit") {
			t.Errorf("%s tells %s", name, told)
		}
	}
}
