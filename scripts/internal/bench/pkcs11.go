package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/miekg/pkcs11"
)

// bareToken signs with a PKCS #11 module alone: sessions that are kept, and one key on the token, as parsecfs's is, whose
// handle is known.
type bareToken struct {
	module      *pkcs11.Ctx
	slot        uint
	login       pkcs11.SessionHandle
	public, key pkcs11.ObjectHandle
}

func openBareToken(library, label, pin string) (*bareToken, error) {
	b := &bareToken{module: pkcs11.New(library)}
	if b.module == nil {
		return nil, fmt.Errorf("%s cannot be loaded", library)
	}
	if err := b.module.Initialize(); err != nil {
		return nil, err
	}
	slots, err := b.module.GetSlotList(true)
	if err != nil {
		return nil, err
	}
	for _, slot := range slots {
		info, err := b.module.GetTokenInfo(slot)
		if err != nil || strings.TrimRight(info.Label, " ") != label {
			continue
		}
		b.slot = slot
		if b.login, err = b.module.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION); err != nil {
			return nil, err
		}
		if err := b.module.Login(b.login, pkcs11.CKU_USER, pin); err != nil {
			return nil, err
		}
		p256 := []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}
		b.public, b.key, err = b.module.GenerateKeyPair(b.login, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil)},
			[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, p256), pkcs11.NewAttribute(pkcs11.CKA_VERIFY, true)},
			[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true), pkcs11.NewAttribute(pkcs11.CKA_SIGN, true), pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true)})
		return b, err
	}
	return nil, fmt.Errorf("no token %q", label)
}

func (b *bareToken) close() error {
	return errors.Join(b.module.DestroyObject(b.login, b.key), b.module.DestroyObject(b.login, b.public), b.module.CloseAllSessions(b.slot), b.module.Finalize())
}

// worker has a session of its own.
func (b *bareToken) worker() (func() error, func(), error) {
	session, err := b.module.OpenSession(b.slot, pkcs11.CKF_SERIAL_SESSION)
	mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)}
	return func() error {
		sum := sha256.Sum256(message)
		if err := b.module.SignInit(session, mechanism, b.key); err != nil {
			return err
		}
		_, err := b.module.Sign(session, sum[:])
		return err
	}, func() { _ = b.module.CloseSession(session) }, err
}

const serverModule = "C_Sign of the module alone"

// tokenPIN and tokenLabel are those of this run's token.
const tokenLabel, tokenPIN = "bench", "12345678"

// token makes one, and returns what a configuration says about it.
func (b *bench) token() (string, error) {
	if b.library == "" {
		return "", errors.New("SoftHSM is not installed")
	}
	conf := filepath.Join(b.work, "softhsm2.conf")
	provider := fmt.Sprintf(`
[[key_manager]]
name = "sqlite"
manager_type = "SQLite"
[[provider]]
name = "token"
provider_type = "Pkcs11"
library_path = %q
token_label = %q
user_pin = %q
environment = { SOFTHSM2_CONF = %q }
`, b.library, tokenLabel, tokenPIN, conf)
	if _, err := os.Stat(conf); err == nil {
		return provider, nil
	}
	tokens := filepath.Join(b.work, "tokens")
	err := errors.Join(os.Mkdir(tokens, 0o700), os.Setenv("SOFTHSM2_CONF", conf),
		os.WriteFile(conf, fmt.Appendf(nil, "directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", tokens), 0o600))
	if err != nil {
		return "", err
	}
	init := exec.Command("softhsm2-util", "--init-token", "--free", "--label", tokenLabel, "--pin", tokenPIN, "--so-pin", tokenPIN)
	out, err := init.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("softhsm2-util: %w: %s", err, out)
	}
	return provider, nil
}

// pkcs11 measures a key in a token through the mount against the module alone, on the same token. What the module, a handler
// that does nothing, and the round trip take together is the least that any file system takes with the module in another
// process.
func (b *bench) pkcs11() error {
	config, err := b.token()
	if err != nil {
		b.results.skip(partPKCS11, err)
		return nil
	}
	token, err := openBareToken(b.library, tokenLabel, tokenPIN)
	if err != nil {
		return err
	}
	ways := []way{
		{name: wayInProcess, server: serverModule, by: token.worker},
		{name: "round trip to another process that does nothing", server: "pair of sockets", by: roundTrip},
	}
	for _, transport := range []string{transportDevice, transportUring} {
		floor, err := b.floor(transport)
		if err != nil {
			if err := b.without(over(serverFloor, transport), transport, err); err != nil {
				return err
			}
			continue
		}
		empty := &target{filepath.Join(floor.dir, "empty"), message, answered}
		server := over(serverFloor, transport) + " that does nothing"
		ways = append(ways, way{name: wayFresh, server: server, by: empty.fresh}, way{name: wayKept, server: server, by: empty.kept})
		d, err := b.mount("token", transport, config)
		if err != nil {
			if err := b.without(over(serverOurs, transport), transport, err); err != nil {
				return err
			}
			continue
		}
		dir, err := d.key("token", "bench-"+transport, templateP256)
		if err != nil {
			return err
		}
		t := signs(filepath.Join(dir, "sign"))
		server = over(serverOurs, transport)
		ways = append(ways, way{name: wayFresh, server: server, by: t.fresh}, way{name: wayKept, server: server, by: t.kept})
	}
	var cells []*cell
	for _, workers := range []int{1, 16} {
		for _, w := range ways {
			cells = append(cells, newCell(partPKCS11, w.server, w.name, workers, w.by))
		}
	}
	return errors.Join(b.inTurns(mainRounds, otherSpan, cells), token.close())
}
