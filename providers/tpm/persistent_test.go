package tpm

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/providertest"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/tpm/tpmtest"
)

// tools runs tpm2-tools on the TPM, which is nobody else's meanwhile, and flushes what they leave.
func tools(t *testing.T, chip *tpmtest.Chip, commands ...string) {
	t.Helper()
	dir := t.TempDir()
	for _, c := range commands {
		for _, args := range [][]string{strings.Fields(c), {"tpm2_flushcontext", "-t"}} {
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI="+chip.TCTI(), "TSS2_LOG=all+NONE")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %v: %s", args, err, out)
			}
		}
	}
}

// toolsParent makes what persist needs.
const toolsParent = "tpm2_createprimary -C o -G ecc -c parent"

// persist makes an object with tpm2_create and puts it under a handle.
func persist(handle, create string) []string {
	return []string{"tpm2_create -C parent -u pub -r priv " + create,
		"tpm2_load -C parent -u pub -r priv -c key", "tpm2_evictcontrol -C o -c key " + handle}
}

// at finds what lies under a handle.
func at(list []providers.Foreign, handle string) (providers.Foreign, bool) {
	i := slices.IndexFunc(list, func(f providers.Foreign) bool { return strings.HasPrefix(f.Object, "handle="+handle+",name=000b") })
	if i < 0 {
		return providers.Foreign{}, false
	}
	return list[i], true
}

// TestAdopt takes over keys that tpm2-tools made persistent, and uses, restarts and destroys them.
func TestAdopt(t *testing.T) {
	t.Parallel()
	chip := tpmtest.Start(t)
	const kept = " -a noda|fixedtpm|fixedparent|sensitivedataorigin|userwithauth|"
	const signs = kept + "sign"
	made := map[string]struct{ create, template string }{
		"0x81000001": {"-G ecc" + signs, "ecdsa-p256-sha256"},
		"0x81000002": {"-G rsa2048" + kept + "sign|decrypt", "rsa-2048-pkcs1v15-sha256"},
		"0x81000003": {"-G ecc" + kept + "decrypt", "ecdh-p256"},
		"0x81000004": {"-G rsa2048" + kept + "decrypt", "rsa-2048-oaep-sha256"},
		"0x81000005": {"-G hmac" + signs, "hmac-sha256"},
		"0x81000006": {"-G ecc384" + signs, "ecdsa-p384-sha384"},
		"0x81000007": {"-G ecc -p secret" + signs, "ecdsa-p256-sha256"},
		// no keys for us
		"0x81000011": {"-G ecc:ecdsa:null" + signs + "|restricted", ""},
		"0x81000012": {"-G ecc:null:aes128cfb" + kept + "decrypt|restricted", ""},
		"0x81000013": {"-G ecc -L policy -a fixedtpm|fixedparent|sensitivedataorigin|sign", ""},
		"0x81000014": {"-G aes", ""},
	}
	commands := []string{toolsParent, "tpm2_startauthsession -S s", "tpm2_policypcr -S s -l sha256:0 -L policy", "tpm2_flushcontext s"}
	for handle, m := range made {
		commands = append(commands, persist(handle, m.create)...)
	}
	tools(t, chip, commands...)
	open := func() *provider { return newProvider(t, chip).(*provider) }
	p := open()
	list, err := p.Foreign(t.Context())
	if err != nil || len(list) != len(made) {
		t.Fatalf("%+v, %v", list, err)
	}
	type taken struct {
		f    providers.Foreign
		blob providers.Blob
	}
	keys := map[string]taken{}
	for handle, m := range made {
		f, ok := at(list, handle)
		if !ok || f.Attributes.Type != psa.KeyTypeNone != (m.template != "") || m.template != "" && f.Attributes.Template() != m.template || f.Handle != (providers.Handle{}) {
			t.Errorf("%s (%s) is listed as %+v", handle, m.create, f)
		}
		for _, reference := range []string{"handle=" + handle, f.Object} {
			got, blob, err := p.Adopt(t.Context(), psa.Attributes{}, reference)
			switch {
			case m.template == "":
				if psa.StatusOf(err) != psa.StatusInvalidArgument {
					t.Errorf("%s: %v", m.create, err)
				}
			case strings.Contains(m.create, "-p secret"):
				if psa.StatusOf(err) != psa.StatusNotPermitted || psa.HintOf(err) == "" {
					t.Errorf("a key with an authorization: %v", err)
				}
			case err != nil || got != f || blob.Object != f.Object:
				t.Errorf("%s: %+v, %v; listed was %+v", m.create, got, err, f)
			default:
				keys[handle] = taken{f, blob}
			}
		}
	}
	ecdsa, err := psa.ParseTemplate("ecdsa-p256-any")
	if err != nil {
		t.Fatal(err)
	}
	if f, _, err := p.Adopt(t.Context(), ecdsa, "handle=0x81000001"); err != nil || f.Attributes != ecdsa {
		t.Errorf("under a policy that was asked for: %+v, %v", f, err)
	}
	for reference, want := range map[string]psa.Status{"handle=0x81000002": psa.StatusInvalidArgument, "handle=0x81000003": psa.StatusInvalidArgument,
		"handle=0x81000099": psa.StatusDoesNotExist, "handle=0x81000001,name=000b00": psa.StatusDoesNotExist, "handle=0x80000000": psa.StatusInvalidArgument,
		"handle=0x40000001": psa.StatusInvalidArgument, "id=6b": psa.StatusInvalidArgument, "": psa.StatusInvalidArgument, "handle=0x81000001,label=x": psa.StatusInvalidArgument} {
		if _, _, err := p.Adopt(t.Context(), ecdsa, reference); psa.StatusOf(err) != want {
			t.Errorf("%q: %v", reference, err)
		}
	}
	bound := ecdsa
	bound.PCRs = 1
	if _, _, err := p.Adopt(t.Context(), bound, "handle=0x81000001"); psa.StatusOf(err) != psa.StatusInvalidArgument {
		t.Errorf("bound to PCRs: %v", err)
	}
	with := func(p *provider, k taken, f func(providers.Key)) {
		t.Helper()
		key, err := p.Open(t.Context(), providers.Handle{}, k.f.Attributes, k.blob)
		if err != nil {
			t.Fatal(err)
		}
		defer key.Close()
		f(key)
	}
	check := func(p *provider) {
		t.Helper()
		for range 2 {
			for _, k := range keys {
				with(p, k, func(key providers.Key) { providertest.Use(t, key) })
			}
			providertest.Use(t, boundKey(t, p, "ecdsa-p256-sha256", 0))
		}
	}
	check(p)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	chip.Kill()
	chip.Restart()
	p = open()
	check(p)
	exporting := keys["0x81000001"]
	exporting.f.Attributes.Usage |= psa.UsageExport
	with(p, exporting, func(key providers.Key) {
		if _, err := key.Begin(t.Context(), psa.Op{Operation: psa.Export, Algorithm: exporting.f.Attributes.Algorithm}); psa.StatusOf(err) != psa.StatusNotSupported {
			t.Errorf("exporting: %v", err)
		}
	})
	// others are used by nobody, and stay
	for _, object := range []string{"handle=0x81000001", "handle=0x81000001,name=000b00", "handle=0x81000099,name=000b00"} {
		err := p.DestroyObject(t.Context(), object, nil)
		if want := object == "handle=0x81000001"; want != (psa.StatusOf(err) == psa.StatusInvalidArgument) || !want && err != nil {
			t.Errorf("destroying %s: %v", object, err)
		}
	}
	check(p)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	tools(t, chip, append([]string{"tpm2_evictcontrol -C o -c 0x81000002", "tpm2_evictcontrol -C o -c 0x81000001", toolsParent}, persist("0x81000001", "-G ecc"+signs)...)...)
	p = open()
	defer p.Close()
	replaced, absent := keys["0x81000001"], keys["0x81000002"]
	delete(keys, "0x81000001")
	delete(keys, "0x81000002")
	for what, k := range map[string]taken{"another key in its place": replaced, "nothing in its place": absent} {
		for range 2 {
			with(p, k, func(key providers.Key) {
				if _, err := done(t, nil)(key.Begin(t.Context(), psa.Op{Operation: psa.Sign, Algorithm: k.f.Attributes.Algorithm})); psa.StatusOf(err) != psa.StatusProviderAbsent {
					t.Errorf("%s: %v", what, err)
				}
			})
			if err := p.DestroyObject(t.Context(), k.f.Object, nil); err != nil {
				t.Errorf("%s: destroying: %v", what, err)
			}
		}
	}
	check(p)
	if list, err := p.Foreign(t.Context()); err != nil || len(list) != len(made)-1 {
		t.Errorf("%d are left, %v", len(list), err)
	}
	for _, k := range keys {
		for range 2 {
			if err := p.DestroyObject(t.Context(), k.f.Object, nil); err != nil {
				t.Error(err)
			}
		}
	}
	if list, err := p.Foreign(t.Context()); err != nil || len(list) != len(made)-1-len(keys) {
		t.Errorf("%d are left in the end, %v", len(list), err)
	}
}

// TestAdoptLocksNothing: keys that the TPM guards against guessing are tried while that does no harm.
func TestAdoptLocksNothing(t *testing.T) {
	t.Parallel()
	chip := tpmtest.Start(t)
	tools(t, chip, append(append([]string{toolsParent}, persist("0x81000001", "-G ecc")...), persist("0x81000002", "-G ecc -p secret")...)...)
	p := newProvider(t, chip)
	defer p.Close()
	for range 10 {
		if _, _, err := p.(providers.Adopter).Adopt(t.Context(), psa.Attributes{}, "handle=0x81000002"); psa.StatusOf(err) != psa.StatusNotPermitted || psa.HintOf(err) == "" {
			t.Errorf("a key with an authorization: %v", err)
		}
	}
	if _, _, err := p.(providers.Adopter).Adopt(t.Context(), psa.Attributes{}, "handle=0x81000001"); psa.StatusOf(err) != psa.StatusNotPermitted || !strings.Contains(err.Error(), "wrong authorizations") {
		t.Errorf("with a try left: %v", err)
	}
	_ = p.Close()
	tools(t, chip, "tpm2_dictionarylockout --clear-lockout")
	p = newProvider(t, chip)
	defer p.Close()
	f, blob, err := p.(providers.Adopter).Adopt(t.Context(), psa.Attributes{}, "handle=0x81000001")
	if err != nil {
		t.Fatal(err)
	}
	k, err := p.Open(t.Context(), providers.Handle{}, f.Attributes, blob)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	providertest.Use(t, k)
}

func FuzzParseObject(f *testing.F) {
	for _, s := range []string{"handle=0x81000001", "handle=0x81000001,name=000b12", "handle=2164260865", "handle=,name=", "id=6b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		handle, name, err := parseObject(s)
		if err != nil {
			if psa.StatusOf(err) != psa.StatusInvalidArgument {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		if !isPersistent(int64(handle)) {
			t.Errorf("%q is %x", s, handle)
		}
		if name != nil {
			if h, n, err := parseObject(object(handle, name)); err != nil || h != handle || string(n) != string(name) {
				t.Errorf("%q came back as %x, %x, %v", s, h, n, err)
			}
		}
	})
}
