package pkcs11test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// A module reads its environment, and may crash or hang: it is loaded by another process, which is this test binary.
const userOf = "PKCS11TEST_USER_OF"

func TestMain(m *testing.M) {
	if token := os.Getenv(userOf); token != "" {
		if err := serve(token); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// user is a program that has a module loaded and is logged in.
type user struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	log strings.Builder
}

func use(t *testing.T, k *Token) *user {
	t.Helper()
	token, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	u := &user{t: t, cmd: exec.Command(os.Args[0])}
	u.cmd.Env = append(append(os.Environ(), k.Env...), userOf+"="+string(token))
	u.cmd.Stderr = &u.log
	if u.in, err = u.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := u.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	u.out = bufio.NewReader(out)
	if err := u.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = u.cmd.Process.Kill() // it may have ended
		_ = u.cmd.Wait()
	})
	return u
}

// ask gives the answer to a command, which is "error: " and its CK_RV where it failed.
func (u *user) ask(command string) string {
	u.t.Helper()
	answer, err := u.tryAsk(command)
	if err != nil {
		u.t.Fatalf("%s: %v\n%s", command, err, &u.log)
	}
	return answer
}

func (u *user) tryAsk(command string) (string, error) {
	if _, err := fmt.Fprintln(u.in, command); err != nil {
		return "", err
	}
	answer, err := u.out.ReadString('\n')
	return strings.TrimSpace(answer), err
}

func (u *user) want(command, answer string) {
	u.t.Helper()
	if got := u.ask(command); got != answer {
		u.t.Errorf("%s: %q, want %q", command, got, answer)
	}
}

// wantSignature checks a new signature of the key that was generated, whose point is hexadecimal.
func (u *user) wantSignature(point string) {
	u.t.Helper()
	digest := sha256.Sum256([]byte("a message"))
	answer := u.ask("sign " + hex.EncodeToString(digest[:]))
	signature, err := hex.DecodeString(answer)
	if err != nil || len(signature) != 64 {
		u.t.Fatalf("sign: %s", answer)
	}
	raw, err := hex.DecodeString(point)
	if err != nil {
		u.t.Fatalf("generate: %s", point)
	}
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), raw)
	if err != nil {
		u.t.Fatal(err)
	}
	r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	if !ecdsa.Verify(public, digest[:], r, s) {
		u.t.Error("the signature does not verify")
	}
}

// session is the other side of user.
type session struct {
	Token
	ctx       *pkcs11.Ctx
	slot      uint
	handle    pkcs11.SessionHandle
	pub, priv pkcs11.ObjectHandle
}

var keyID = []byte("\x00sixteen bytes.\x00")

func serve(token string) error {
	var s session
	if err := json.Unmarshal([]byte(token), &s.Token); err != nil {
		return err
	}
	if s.ctx = pkcs11.New(s.Library); s.ctx == nil {
		return errors.New("cannot load " + s.Library)
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		answer, err := s.answer(in.Text())
		if err != nil {
			answer = err.Error() // of the shape "pkcs11: 0xA0: CKR_PIN_INCORRECT"
			if _, name, ok := strings.Cut(answer, ": CKR_"); ok {
				answer = "CKR_" + name
			}
			answer = "error: " + answer
		}
		fmt.Println(answer)
	}
	return in.Err()
}

func (s *session) answer(command string) (string, error) {
	command, argument, _ := strings.Cut(command, " ")
	switch command {
	case "open":
		return "ok", s.open(argument)
	case "close":
		return "ok", s.ctx.Finalize()
	case "token":
		info, err := s.ctx.GetTokenInfo(s.slot)
		return info.Label + " " + info.SerialNumber, err
	case "slots":
		slots, err := s.ctx.GetSlotList(true)
		found := "without"
		if slices.Contains(slots, s.slot) {
			found = "with"
		}
		return found, err
	case "find":
		if err := s.ctx.FindObjectsInit(s.handle, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_ID, keyID)}); err != nil {
			return "", err
		}
		found, _, err := s.ctx.FindObjects(s.handle, 9)
		if err == nil {
			err = s.ctx.FindObjectsFinal(s.handle)
		}
		return fmt.Sprint(len(found)), err
	case "generate":
		return s.generate()
	case "sign":
		digest, err := hex.DecodeString(argument)
		if err == nil {
			err = s.ctx.SignInit(s.handle, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_ECDSA, nil)}, s.priv)
		}
		if err != nil {
			return "", err
		}
		signature, err := s.ctx.Sign(s.handle, digest)
		return hex.EncodeToString(signature), err
	default:
		panic("no command " + command)
	}
}

// open logs in with pin, or the token's own.
func (s *session) open(pin string) error {
	var options []pkcs11.InitializeOption
	if s.InitArgs != "" {
		args := []byte(s.InitArgs + "\x00")
		var pinner runtime.Pinner
		pinner.Pin(&args[0])
		defer pinner.Unpin()
		options = append(options, pkcs11.InitializeWithReserved(unsafe.Pointer(&args[0])))
	}
	if err := s.ctx.Initialize(options...); err != nil {
		return err
	}
	slots, err := s.ctx.GetSlotList(true)
	if err != nil {
		return err
	}
	found := false
	for _, slot := range slots {
		if info, err := s.ctx.GetTokenInfo(slot); err == nil && info.Label == s.Label && info.SerialNumber == s.Serial {
			s.slot, found = slot, true
		}
	}
	if !found {
		return pkcs11.Error(pkcs11.CKR_TOKEN_NOT_PRESENT)
	}
	if s.handle, err = s.ctx.OpenSession(s.slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION); err != nil {
		return err
	}
	if pin == "" {
		pin = s.PIN
	}
	return s.ctx.Login(s.handle, pkcs11.CKU_USER, pin)
}

func (s *session) generate() (string, error) {
	curve, err := asn1.Marshal(asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7})
	if err != nil {
		return "", err
	}
	s.pub, s.priv, err = s.ctx.GenerateKeyPair(s.handle, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_EC_KEY_PAIR_GEN, nil)},
		[]*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
			pkcs11.NewAttribute(pkcs11.CKA_ID, keyID),
			pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, curve),
			pkcs11.NewAttribute(pkcs11.CKA_VERIFY, true),
		},
		[]*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
			pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true),
			pkcs11.NewAttribute(pkcs11.CKA_ID, keyID),
			pkcs11.NewAttribute(pkcs11.CKA_SIGN, true),
		})
	if err != nil {
		return "", err
	}
	attributes, err := s.ctx.GetAttributeValue(s.handle, s.pub, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_EC_POINT, nil)})
	if err != nil {
		return "", err
	}
	var point []byte
	if _, err := asn1.Unmarshal(attributes[0].Value, &point); err != nil {
		return "", err
	}
	return hex.EncodeToString(point), nil
}

func TestEachTokenSigns(t *testing.T) {
	for name, token := range map[string]func(*testing.T) *Token{
		"SoftHSM": func(t *testing.T) *Token { return SoftHSM(t, "one")[0] },
		"NSS":     NSS,
		"TPM2":    TPM2,
	} {
		t.Run(name, func(t *testing.T) {
			k := token(t)
			if objects := k.Objects(); len(objects) != 0 {
				t.Errorf("a new token has %q", objects)
			}
			u := use(t, k)
			u.want("open wrong", "error: CKR_PIN_INCORRECT")
			u.want("close", "ok")
			u.want("open", "ok")
			point := u.ask("generate")
			u.wantSignature(point)
			u.want("find", "2")
			if objects := k.Objects(); len(objects) == 0 {
				t.Error("other programs see no key")
			}
			u.want("close", "ok")

			// It stays, for another process.
			u = use(t, k)
			u.want("open", "ok")
			u.want("find", "2")
		})
	}
}

func TestTokensOfOneModule(t *testing.T) {
	tokens := SoftHSM(t, "one", "two")
	if tokens[0].Serial == tokens[1].Serial {
		t.Fatal("both have the serial number " + tokens[0].Serial)
	}
	u := use(t, tokens[1])
	u.want("open", "ok")
	u.wantSignature(u.ask("generate"))
	if one, two := tokens[0].Objects(), tokens[1].Objects(); len(one) != 0 || len(two) != 2 {
		t.Errorf("one has %q, two %q", one, two)
	}
	other := use(t, SoftHSM(t, "two")[0])
	other.want("open", "ok")
	other.want("find", "0")
}

func TestRemoveAndReturn(t *testing.T) {
	k := SoftHSM(t, "one", "two")[0]
	u := use(t, k)
	u.want("open", "ok")
	u.wantSignature(u.ask("generate"))

	k.Remove()
	u.want("token", "error: CKR_GENERAL_ERROR")
	u.want("sign 00", "error: CKR_OBJECT_HANDLE_INVALID")
	u.want("find", "0")
	u.want("slots", "with")
	u.want("generate", "error: CKR_GENERAL_ERROR")
	k.Return()
	u.want("token", "error: CKR_GENERAL_ERROR")
	u.want("close", "ok")
	u.want("open", "ok")
	u.want("find", "2")

	k.Remove()
	k.Return()
	u.want("token", "one "+k.Serial)
	u.want("find", "2")

	k.Remove()
	u.want("close", "ok")
	u.want("open", "error: CKR_TOKEN_NOT_PRESENT")
	u.want("slots", "without")
	k.Return()
	u.want("slots", "without")
	u.want("close", "ok")
	u.want("open", "ok")
	u.want("find", "2")
}

func TestReinitialise(t *testing.T) {
	k := SoftHSM(t, "one")[0]
	u := use(t, k)
	u.want("open", "ok")
	u.ask("generate")
	k.Reinitialise()
	u.want("token", "one "+k.Serial)
	u.want("sign 00", "error: CKR_OBJECT_HANDLE_INVALID")
	u.want("find", "0")
	u.wantSignature(u.ask("generate"))
	u.want("close", "ok")
	u.want("open", "ok")
	u.want("find", "2")
}

func TestOtherProgramsObjects(t *testing.T) {
	k := SoftHSM(t, "one")[0]
	k.Generate("EC:prime256v1", "a1", "theirs")
	private, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	k.Import(file, "a2", "imported")

	before := k.Objects()
	if all := strings.Join(before, ""); len(before) != 4 || !strings.Contains(all, "theirs") || !strings.Contains(all, "imported") {
		t.Fatalf("objects: %q", before)
	}
	u := use(t, k)
	u.want("open", "ok")
	u.want("find", "0")
	u.ask("generate")
	after := k.Objects()
	for _, object := range before {
		if !slices.Contains(after, object) {
			t.Errorf("gone or changed: %s", object)
		}
	}
	if len(after) != 6 {
		t.Errorf("%d objects, want 6", len(after))
	}
}

func TestHarm(t *testing.T) {
	k := SoftHSM(t, "one")[0]
	s := k.Sabotaged()
	u := use(t, &s.Token)
	u.want("open", "ok")
	point := u.ask("generate")
	u.wantSignature(point)

	s.Harm("C_Sign 0x30")
	u.want("sign 00", "error: CKR_DEVICE_ERROR")
	s.Harm("C_Login 0xa4")
	u.want("close", "ok")
	u.want("open", "error: CKR_PIN_LOCKED")
	s.Harm("")
	u.want("close", "ok")
	u.want("open", "ok")

	crashes := func(harm, command string) {
		t.Helper()
		u := use(t, &s.Token)
		u.want("open", "ok")
		u.ask("generate")
		s.Harm(harm)
		defer s.Harm("")
		if answer, err := u.tryAsk(command); err == nil {
			t.Fatalf("%s: %s", harm, answer)
		}
		err := u.cmd.Wait()
		if err == nil || !strings.Contains(u.log.String(), "SIGSEGV") {
			t.Errorf("%s: the process ended with %v:\n%s", harm, err, &u.log)
		}
	}
	crashes("C_Sign crash", "sign 00")
	before := len(k.Objects())
	crashes("C_GenerateKeyPair crash-after", "generate")
	if after := len(k.Objects()); after != before+4 {
		t.Errorf("%d objects, want %d: a key pair before the crash, and one that was made in the call", after, before+4)
	}
}

func TestHang(t *testing.T) {
	s := SoftHSM(t, "one")[0].Sabotaged()
	u := use(t, &s.Token)
	u.want("open", "ok")
	point := u.ask("generate")
	s.Harm("C_SignInit hang")
	answered := make(chan string)
	go func() {
		answer, err := u.tryAsk("sign " + strings.Repeat("00", sha256.Size))
		answered <- fmt.Sprint(len(answer), err)
	}()
	release := s.Hanging()
	select {
	case answer := <-answered:
		t.Fatalf("the call came back before it was let go: %s", answer)
	default:
	}
	s.Harm("")
	release()
	if answer := <-answered; answer != fmt.Sprint(128, nil) {
		t.Errorf("the answer of the call that was let go: %s", answer)
	}
	u.wantSignature(point)
}
