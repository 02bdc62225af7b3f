package gate

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

// signed is the work of whoever may sign with a key.
const signed = "signs(%q)"

// TestDefaultACLs: a default ACL lets nobody in to an operation that the table keeps to its owner, when a draft is made, when
// it becomes a key and in X.d; what the owner opens later opens to whom the ACL names, as getfacl says, and to nobody else.
func TestDefaultACLs(t *testing.T) {
	t.Parallel()
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	keys := filepath.Join(m.Dir, "providers/software/keys")
	o, h, a := newUser(t, maker), newUser(t, heir), newUser(t, attacker)
	private := []string{"sign", "csr", "export", "generate", "import", "copy"}
	closed := func(key string) {
		t.Helper()
		for _, name := range private {
			path := filepath.Join(key, name)
			if _, err := os.Lstat(path); err != nil {
				continue
			}
			for _, flags := range []string{"os.O_RDWR", "os.O_RDONLY", "os.O_WRONLY"} {
				a.want("EACCES", "hold('x', %q, "+flags+")", path)
			}
			if _, err := os.Lstat(path + ".d"); err == nil {
				a.want("EACCES", "os.listdir(%q)", path+".d")
				a.want("EACCES", "hold('x', %q, os.O_RDWR | os.O_CREAT)", path+".d/x")
			}
		}
		for _, name := range []string{"attributes", "certificate"} {
			if _, err := os.Lstat(filepath.Join(key, name)); err == nil {
				a.want("EACCES", "hold('x', %q, os.O_WRONLY)", filepath.Join(key, name))
			}
		}
		a.want("EPERM", "os.chmod(%q, 0o777)", key)
	}

	// The maker's own on a draft's directory, as wide as it gets: nothing comes of it.
	wide := "u::rwx,u:61003:rwx,g::rwx,g:61003:rwx,m::rwx,o::rwx"
	mine := filepath.Join(keys, "mine")
	o.must("os.umask(0) and None or os.mkdir(%q)", mine)
	root(t, "setfacl", "-d", "-m", wide, mine)
	closed(mine)
	o.must(`put(%q, 'template = "ed25519"\nusage = "PSA_KEY_USAGE_EXPORT | PSA_KEY_USAGE_SIGN_MESSAGE"\n')`, mine+"/generate")
	closed(mine)

	// Root's on keys/: drafts and keys inherit it, within what the table allows.
	root(t, "setfacl", "-d", "-m", wide, keys)
	k := filepath.Join(keys, "k")
	o.must("os.mkdir(%q)", k)
	closed(k)
	o.must(`put(%q, 'template = "ed25519"\nusage = "PSA_KEY_USAGE_EXPORT | PSA_KEY_USAGE_SIGN_MESSAGE"\n')`, k+"/generate")
	closed(k)
	a.want("EACCES", "os.mkdir(%q)", k+"/x")
	a.want("EPERM", "os.rmdir(%q)", k)
	// chmod is the mask: it opens one operation to whom the ACL names, and no other.
	o.must("os.chmod(%q, 0o660)", k+"/sign")
	a.must(signed, k+"/sign")
	h.want("EACCES", signed, k+"/sign")
	a.must("hold('slot', %q, os.O_RDWR | os.O_CREAT)", k+"/sign.d/x")
	a.want("x", "' '.join(os.listdir(%q))", k+"/sign.d")
	private = []string{"csr", "export"}
	closed(k)
	o.must("os.chmod(%q, 0o600)", k+"/sign")
	a.want("EACCES", signed, k+"/sign")
	a.want("EKEYREVOKED", "transact('slot')")
	private = []string{"sign", "csr", "export"}
	closed(k)
	// X.d and slots have none of their own.
	for _, path := range []string{k + "/sign.d", k + "/sign"} {
		o.must("hold('dir', %q, os.O_PATH)", path)
		if told := o.do(`os.setxattr(%q, "system.posix_acl_default", bytes.fromhex("02000000 01000700ffffffff 04000700ffffffff 20000700ffffffff"))`, path); told != "EPERM" && told != "EACCES" {
			t.Errorf("a default ACL of %s: %s", path, told)
		}
	}

	// A key that was handed over by the command has nothing of its maker's, whatever ACLs it had.
	root(t, "setfacl", "-k", keys)
	root(t, "setfacl", "-d", "-m", "u::rwx,u:61001:rwx,g::-,m::rwx,o::-", keys)
	d := filepath.Join(keys, "d")
	o.must("os.mkdir(%q)", d)
	root(t, "setfacl", "-m", "u:61001:rw", d+"/import", d+"/attributes", d+"/generate")
	root(t, parsecfstest.Path(t), "keys", "chown", "--state-dir", m.StateDir, "--owner", "61001", "61002")
	h.must("put(%q, 'ed25519\\n')", d+"/generate")
	h.must("os.chmod(%q, 0o660) or os.chmod(%q, 0o755)", d+"/sign", d)
	o.want("EACCES", signed, d+"/sign")
	o.want("EACCES", signed, k+"/sign")
	h.must(signed, d+"/sign")
}
