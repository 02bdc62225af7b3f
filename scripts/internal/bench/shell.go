package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// command is a work that runs a shell's command.
func command(script string, env ...string) work {
	return func() (func() error, func(), error) {
		return func() error {
			cmd := exec.Command("sh", "-c", script)
			cmd.Env = append(os.Environ(), env...)
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", script, err, out)
			}
			return nil
		}, func() {}, nil
	}
}

const shellSpan = 800 * time.Millisecond

const (
	serverOpenSSL = "openssl, key in a file"
	serverTool    = "pkcs11-tool, key in SoftHSM"
	shellOpenSSL  = "openssl dgst -sha256 -sign key.pem -out signature message"
	shellDropBox  = "cat message > sign; cat sign > signature"
	shellOneOpen  = "{ cat message >&3; cat <&3 > signature; } 3<>sign"
	shellTool     = "pkcs11-tool --login --sign (a digest)"
	shellDigest   = "cat digest > sign_hash; cat sign_hash > signature"
)

// shell measures one signature as somebody at a shell makes it, from a message in a file to a signature in a file.
func (b *bench) shell() error {
	dir := filepath.Join(b.work, "shell")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "message"), message, 0o644); err != nil {
		return err
	}
	in := []string{"DIR=" + dir}
	prepared := func(script string) error {
		do, end, err := command(script, in...)()
		if err != nil {
			return err
		}
		defer end()
		return do()
	}
	var cells []*cell
	add := func(server, way, script string, env ...string) {
		cells = append(cells, newCell(partShell, server, way, 1, command(script, append(env, in...)...)))
	}
	add("ordinary files, no signature", "cat message > a; cat a > b", `cat $DIR/message > $DIR/a; cat $DIR/a > $DIR/b`)
	if err := prepared(`openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out $DIR/key.pem`); err != nil {
		b.results.skip("openssl", err)
	} else {
		add(serverOpenSSL, shellOpenSSL, `openssl dgst -sha256 -sign $DIR/key.pem -out $DIR/signature $DIR/message`)
	}
	const dropBoxScript = `cat $DIR/message > $SIGN; cat $SIGN > $DIR/signature`
	const oneOpenScript = `{ cat $DIR/message >&3; cat <&3 > $DIR/signature; } 3<>$SIGN`
	err := b.onEach("shell", func(server string, t *target) {
		add(server, shellDropBox, dropBoxScript, "SIGN="+t.path)
		add(server, shellOneOpen, oneOpenScript, "SIGN="+t.path)
	})
	if err != nil {
		return err
	}
	if err := b.tokenAtShell(prepared, func(server, script, way string, env ...string) { add(server, way, script, env...) }); err != nil {
		b.results.skip("pkcs11-tool", err)
	}
	return b.inTurns(otherRounds, shellSpan, cells)
}

// tokenAtShell adds a token's signature by pkcs11-tool, and by parsecfs on the same token.
func (b *bench) tokenAtShell(prepared func(string) error, add func(server, script, way string, env ...string)) error {
	if _, err := exec.LookPath("pkcs11-tool"); err != nil {
		return err
	}
	config, err := b.token()
	if err != nil {
		return err
	}
	tool := fmt.Sprintf("pkcs11-tool --module %s --token-label %s --login --pin %s ", b.library, tokenLabel, tokenPIN)
	if err := prepared(tool + "--keypairgen --key-type EC:prime256v1 --label shell --id 5e11"); err != nil {
		return err
	}
	if err := prepared(`openssl dgst -sha256 -binary -out $DIR/digest $DIR/message`); err != nil {
		return err
	}
	d, err := b.mount("token", transportDevice, config)
	if err != nil {
		return err
	}
	dir, err := d.key("token", "shell", templateP256)
	if err != nil {
		return err
	}
	add(serverTool, tool+"--sign --mechanism ECDSA --id 5e11 --input-file $DIR/digest --output-file $DIR/signature", shellTool)
	add(over(serverOurs, transportDevice)+", key in SoftHSM", `cat $DIR/digest > $SIGN; cat $SIGN > $DIR/signature`,
		shellDigest, "SIGN="+filepath.Join(dir, "sign_hash"))
	return nil
}
