package files

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

// walks are programs that go over all that is below "$1", each with nothing to complain of.
var walks = []struct{ name, script string }{
	{"find", `find "$1" -ls >"$2/found" && find "$1" -type f -newermt 2000-01-01 -exec test -e {} \;`},
	{"ls", `ls -laR "$1" >"$2/listed"`},
	{"du", `du -a "$1" >"$2/used" && du -b --apparent-size "$1" >>"$2/used"`},
	{"tar", `tar -C "$1" -cf "$2/tar" . && mkdir "$2/untarred" && tar -C "$2/untarred" -xf "$2/tar" && show "$2/untarred"`},
	{"tar to /dev/null", `tar -cPf /dev/null "$1"`},
	{"grep -r", `grep -r 'BEGIN PUBLIC KEY' "$1" >"$2/grepped"`},
	{"cp -r", `cp -r "$1" "$2/copied" && show "$2/copied"`},
	{"cp -a", `cp -a "$1" "$2/archived" && show "$2/archived"`},
	{"rsync -a", `rsync -a "$1/" "$2/synced" && show "$2/synced" &&
		test -z "$(rsync -a --itemize-changes "$1/" "$2/synced" | grep -v last_error)"`},
	{"busybox", `busybox find "$1" >"$2/busy" && busybox du "$1" >>"$2/busy" && busybox ls -lR "$1" >>"$2/busy" &&
		busybox tar -C "$1/walked-ed" -cf "$2/busy.tar" .`},
	{"python", `python3 -c 'import os, sys
for top, dirs, files in os.walk(sys.argv[1], onerror=lambda e: sys.exit(str(e))):
    for f in files: os.stat(os.path.join(top, f))' "$1"`},
}

// show says what a copy has of the texts, and that it has no more than they are.
const show = `show() {
	cmp "$K/walked-ec/public.pem" "$1/walked-ec/public.pem" && cmp "$K/walked-ec/attributes" "$1/walked-ec/attributes" &&
	cmp "$K/walked-ec/capabilities" "$1/walked-ec/capabilities" && test ! -s "$1/walked-ec/sign" && test ! -s "$1/walked-kem/encapsulate" &&
	test ! -s "$1/walked-rsa/csr" && cmp answer "$1/walked-ed/sign.d/slot"
}
`

// TestWalks: what goes over a tree meets no error in its owner's keys, asks for no operation and leaves nothing in last_error.
func TestWalks(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	b := newBench(t)
	templates := map[string]string{"ec": "ecdsa-p256-sha256", "ed": "ed25519", "kem": "ml-kem-768", "aes": "aes-256-gcm", "mac": "hmac-sha256",
		"ecdh": "x25519", "rsa": "rsa-2048-pkcs1v15-sha256"}
	for name, template := range templates {
		b.must(owner, fmt.Sprintf("mkdir $K/walked-%s && echo %s >$K/walked-%s/generate", name, template, name))
	}
	b.must(owner, `mkdir $K/walked-draft && echo hello >$K/walked-ed/sign.d/slot && cat $K/walked-ed/sign.d/slot >answer &&
		mkdir $K/walked-ec/verify.d/unasked`)
	keys := b.at("providers/software/keys")
	for _, w := range walks {
		to := filepath.Join(b.home(owner), strings.ReplaceAll(w.name, "/", "-"))
		if out, err := b.shell(owner, show+`set -- "$K" "$TO"; mkdir "$TO"; `+w.script, "TO="+to); err != nil || out != "" {
			t.Errorf("%s: %v: %s", w.name, err, out)
		}
	}
	// Root sees all keys, and asks nobody's either.
	if out, err := b.shell(0, `tar -C "$MNT" -cf tar . && cp -a "$MNT" all && rsync -a "$P/" synced && cat "$MNT/last_error"`); err != nil ||
		out != "" {
		t.Errorf("root: %v: %s", err, out)
	}
	if said := b.must(owner, `cat $MNT/last_error`); said != "" {
		t.Errorf("the walks left behind in last_error: %s", said)
	}
	// The owner's own slot is as it was, though all have looked at it.
	b.must(owner, `cmp answer $K/walked-ed/sign.d/slot`)
	if _, err := os.Stat(keys); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d walks over %d keys", len(walks), len(templates)+1)
}
