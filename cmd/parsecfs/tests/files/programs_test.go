package files

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

// TestPrograms: programs that map files, send them from kernel to kernel or read them by io_uring find what is in them.
func TestPrograms(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	for _, program := range []string{"nginx", "rsync", "ag", "git", "node", "busybox"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v: scripts/test installs it", err)
		}
	}
	b := newBench(t)
	b.must(owner, `mkdir $K/web && echo ed25519 >$K/web/generate`)
	for _, c := range []struct{ name, script string }{
		{"git hash-object", `for f in $P/capabilities $P/capabilities.json $K/web/public.pem $P/info $K/web/attributes $MNT/README; do
			test "$(git hash-object "$f")" = "$(cat "$f" | git hash-object --stdin)" || exit 1; done`},
		{"git diff of the same", `cat $P/capabilities >same && git diff --no-index --exit-code same $P/capabilities`},
		{"git diff of another", `sed 's/ed25519/changed/' $P/capabilities >other
			git diff --no-index other $P/capabilities >diff; test $? = 1 && grep -q '^+ed25519' diff && grep -q '^-changed' diff`},
		{"git add", `git init -q repository && cd repository && cp -r $K/web . && git add . &&
			git status --porcelain | grep -q 'A  web/public.pem'`},
		{"ag", `test "$(ag --nocolor --nonumbers ed25519 $P/capabilities)" = "$(grep ed25519 $P/capabilities)" &&
			test "$(ag -l 'BEGIN PUBLIC KEY' $P)" = $K/web/public.pem && test -n "$(ag -l ready $P)"`},
		{"rsync of a provider", `rsync -a --exclude=/users $P/ synced || exit 1
			for f in info status capabilities capabilities.json keys/web/public.pem keys/web/attributes; do
				cmp $P/$f synced/$f || exit 1
			done
			test ! -s synced/keys/web/sign`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if out, err := b.shell(owner, c.script); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	t.Run("nginx", b.nginx)
	t.Run("node", b.node)
}

// nginx: a web server with sendfile serves what the texts say, whole and in ranges.
func (b *bench) nginx(t *testing.T) {
	dir := filepath.Join(b.home(owner), "nginx")
	b.must(owner, "mkdir nginx nginx/logs")
	socket := filepath.Join(dir, "socket")
	conf := fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/logs/debug debug;
events { }
http {
	access_log off; sendfile on; tcp_nopush on; default_type text/plain;
	client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
	server { listen unix:%[2]s; root %[3]s; }
}
`, dir, socket, b.m.Dir)
	if err := os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd := exec.Command("nginx", "-p", dir, "-e", filepath.Join(dir, "logs/first"), "-c", filepath.Join(dir, "conf"))
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: owner, Gid: owner}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
	}()
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, socket, ended) },
	}}
	defer client.CloseIdleConnections()
	get := func(path, span string) ([]byte, int, error) {
		r, err := http.NewRequest(http.MethodGet, "http://nginx/"+path, nil)
		if err != nil {
			return nil, 0, err
		}
		if span != "" {
			r.Header.Set("Range", "bytes="+span)
		}
		answer, err := client.Do(r)
		if err != nil {
			return nil, 0, err
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		return body, answer.StatusCode, err
	}
	const p = "providers/software/"
	for _, path := range []string{p + "keys/web/public.pem", p + "capabilities", p + "capabilities.json", "README"} {
		want, err := os.ReadFile(b.at(path))
		if err != nil {
			t.Fatal(err)
		}
		body, code, err := get(path, "")
		if err != nil || code != http.StatusOK || !bytes.Equal(body, want) {
			t.Fatalf("%s: %v, %d, %d bytes where %d are: %s", path, err, code, len(body), len(want), said.String())
		}
		if body, code, err = get(path, "10-19"); err != nil || code != http.StatusPartialContent || !bytes.Equal(body, want[10:20]) {
			t.Errorf("%s: %v, %d, %q where %q is", path, err, code, body, want[10:20])
		}
	}
	// A transaction is nothing to be served: nothing is asked, and nothing is there.
	if body, code, err := get(p+"keys/web/sign", ""); err != nil || len(body) > 0 && code == http.StatusOK {
		t.Errorf("sign: %v, %d, %q", err, code, body)
	}
	debug, err := os.ReadFile(filepath.Join(dir, "logs/debug"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(debug), "sendfile: ") {
		t.Error("nginx did not use sendfile(2)")
	}
}

// dial waits until there is a listener.
func dial(ctx context.Context, socket string, ended <-chan struct{}) (net.Conn, error) {
	for {
		c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err == nil {
			return c, nil
		}
		select {
		case <-ended:
			return nil, err
		case <-ctx.Done():
			return nil, err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// node: Node with io_uring signs rightly, many at once, and reads texts as they are.
func (b *bench) node(t *testing.T) {
	const script = `
const fs = require('fs/promises'), crypto = require('crypto'), path = process.argv[1];
async function sign(message) {
	const f = await fs.open(path + '/sign', 'r+');
	try {
		await f.write(message, 0, message.length, 0);
		const parts = [];
		for (let at = 0, b = Buffer.alloc(50); ;) {
			const { bytesRead } = await f.read(b, 0, b.length, at);
			if (bytesRead === 0) return Buffer.concat(parts);
			parts.push(Buffer.from(b.subarray(0, bytesRead)));
			at += bytesRead;
		}
	} finally {
		await f.close();
	}
}
async function main() {
	const pem = await fs.readFile(path + '/public.pem');
	if (!(await fs.readdir('/proc/self/fd')).length) throw new Error('no descriptors');
	const links = await Promise.all((await fs.readdir('/proc/self/fd')).map(n => fs.readlink('/proc/self/fd/' + n).catch(() => '')));
	if (!links.some(l => l.includes('io_uring'))) throw new Error('this node does not use io_uring');
	let right = 0;
	for (let round = 0; round < 10; round++)
		await Promise.all(Array.from({ length: 8 }, async (_, i) => {
			const message = Buffer.from('message ' + round + ' ' + i);
			const signature = await sign(message);
			if (signature.length !== 64 || !crypto.verify(null, message, pem, signature))
				throw new Error('WRONG ANSWER: ' + signature.length + ' bytes');
			right++;
		}));
	for (const text of ['/../../capabilities', '/../../info', '/attributes', '/last_error', '/../../../../version']) {
		const want = require('child_process').execFileSync('cat', [path + text]), got = await fs.readFile(path + text);
		if (!want.equals(got)) throw new Error(text + ': ' + got.length + ' bytes where ' + want.length + ' are');
	}
	console.log(right + ' right');
}
main().catch(e => { console.error(e); process.exit(1); });
`
	out, err := b.shell(owner, `exec node -e "$SCRIPT" "$K/web"`, "SCRIPT="+script, "UV_USE_IO_URING=1")
	if err != nil || out != "80 right\n" {
		t.Errorf("%v: %s", err, out)
	}
}
