package nodes

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/psa"
)

func FuzzValidName(f *testing.F) {
	for _, s := range []string{"", "web", ".x", "a/b", "a\nb", strings.Repeat("x", 256), "\xff", "Schlüssel"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if ValidName(name) != nil {
			return
		}
		if len(name) == 0 || len(name) > 255 || name[0] == '.' || strings.ContainsAny(name, "/\x00\n\t\x7f") {
			t.Errorf("%q is taken for a name", name)
		}
	})
}

func FuzzAttributes(f *testing.F) {
	for _, s := range []string{
		"template = \"ecdsa-p256-sha256\"\n",
		"key_type = \"PSA_KEY_TYPE_AES\"\nkey_bits = 256\npermitted_algorithm = \"PSA_ALG_GCM\"\nusage = [\"PSA_KEY_USAGE_ENCRYPT\"]\n",
		"usage = [\n", "usage = \"PSA_KEY_USAGE_EXPORT|PSA_KEY_USAGE_COPY\"\n", "colour = 1\n", "template = 1\n", "=\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		x, err := parseAttributes([]byte(text))
		if err != nil {
			return
		}
		a, err := x.over(psa.Attributes{})
		if err != nil {
			if psa.StatusOf(err) == psa.StatusGenericError {
				t.Errorf("%q: no clear error: %v", text, err)
			}
			return
		}
		if b, err := x.over(a); err != nil || a != b {
			t.Errorf("%q: applied twice gives %v, then %v (%v)", text, a, b, err)
		}
	})
}

// FuzzGenerate feeds a text in two pieces: a piece never makes another key than the whole.
func FuzzGenerate(f *testing.F) {
	f.Add("ecdsa-p256-sha256\n", 5)
	f.Add("template = \"ed25519\"\n", 3)
	f.Add("\n", 0)
	f.Add("aes-256-gcm PSA_KEY_TYPE_AES 256\n", 11)
	f.Add("# comment\n", 4)
	f.Fuzz(func(t *testing.T, text string, cut int) {
		v := &view{key: kim.Key{State: kim.Draft}}
		s := generateStage(v)
		if cut < 0 || cut > len(text) {
			return
		}
		end, apply, err := s.scan([]byte(text[:cut]), true)
		if end > cut || (end > 0 && (apply == nil || err != nil)) || end < 0 {
			t.Fatalf("%q: end %d, error %v", text[:cut], end, err)
		}
		if end, _, _ := s.scan([]byte(text), false); end > len(text) || end < 0 {
			t.Fatalf("%q: end %d", text, end)
		}
	})
}

func FuzzProcStat(f *testing.F) {
	b, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("1 (a) b) S 0 1 1 0 -1 4194560 1 1 1 1 1 1 1 1 20 0 1 0 77 1 1"))
	f.Add([]byte(")"))
	f.Fuzz(func(t *testing.T, b []byte) { parseStat(b) })
}

func TestOwnStat(t *testing.T) {
	s, ok, _ := readStat(uint32(os.Getpid()), execLooks)
	if !ok || s.parent != uint32(os.Getppid()) || s.start == 0 || s.start > now().tick {
		t.Errorf("%+v, %v", s, ok)
	}
	l := lineageOf(uint32(syscall.Gettid()))
	if self, ok := l.self(); !ok || self.pid != uint32(os.Getpid()) || !self.alive() || l.threads < 2 {
		t.Errorf("%+v", l)
	}
	if dying(uint32(syscall.Gettid())) {
		t.Error("a thread without pending signals is said to die")
	}
	if signaled, busy := killed(uint32(syscall.Gettid())); signaled || busy {
		t.Error("a living thread is said to be killed")
	}
}

// FuzzACL: what parses is spelled as it was, agrees with its mode, and survives what is done to ACLs.
func FuzzACL(f *testing.F) {
	f.Add(minimal(0640).marshal(), uint32(0))
	f.Add(acl{{tagUserObj, 6, anyID}, {tagUser, 4, 1000}, {tagGroupObj, 0, anyID}, {tagGroup, 6, 7}, {tagMask, 6, anyID}, {tagOther, 4, anyID}}.marshal(), uint32(0640))
	f.Add([]byte{2, 0, 0, 0}, uint32(0777))
	f.Add([]byte{1, 0, 0, 0, 1, 0, 7, 0}, uint32(0))
	f.Fuzz(func(t *testing.T, b []byte, mode uint32) {
		a, err := parseACL(b)
		if err != nil || a == nil {
			return
		}
		again, err := parseACL(a.marshal())
		if err != nil || !bytes.Equal(again.marshal(), a.marshal()) {
			t.Fatalf("%v was read as %v, %v", a, again, err)
		}
		mode &= 0777
		if got, _ := a.chmod(mode).mode(); got != mode {
			t.Fatalf("chmod %o gave %o", mode, got)
		}
		inherited, bits := a.inherit(mode)
		if own, _ := a.mode(); bits&^mode != 0 || bits&^own != 0 {
			t.Fatalf("%v inherited under %o gave %o", a, mode, bits)
		}
		if inherited != nil {
			if got, more := inherited.mode(); got != bits || !more {
				t.Fatalf("mode %o and ACL %v differ", bits, inherited)
			}
		}
		nobody := identity{uid: 1, groups: []uint32{1}, overrides: func(uint32, uint32) bool { return false }}
		r := rightsOf(2, 2, mode, a)
		slots, dir := r.slots()
		if rw, wx := r.allow(nobody, 6), rightsOf(2, 2, dir, slots).allow(nobody, 3); rw != wx {
			t.Fatalf("rw %v, but wx on the slots %v: %v, %v", rw, wx, r.acl, slots)
		}
	})
}

// TestRightsThatOnlyAdd: onlyAdds never says yes where somebody loses.
func TestRightsThatOnlyAdd(t *testing.T) {
	perms := []uint16{0, 4, 6}
	var all []rights
	for _, named := range perms {
		for _, group := range perms {
			for _, entry := range perms {
				for _, other := range perms {
					a := acl{{tagUserObj, 6, anyID}, {tagUser, named, 1}, {tagGroupObj, group, anyID}, {tagGroup, entry, 11}, {tagMask, 6, anyID}, {tagOther, other, anyID}}
					all = append(all, rightsOf(0, 10, 0660, a), rightsOf(0, 10, 0660, slices.Delete(slices.Clone(a), 1, 2)),
						rightsOf(0, 10, 0660, slices.Delete(slices.Clone(a), 3, 4)), rightsOf(0, 10, 0600|uint32(group)<<3|uint32(other), nil))
				}
			}
		}
	}
	never := func(uint32, uint32) bool { return false }
	who := []identity{{1, []uint32{9}, never}, {1, []uint32{10}, never}, {1, []uint32{11}, never}, {2, []uint32{9}, never},
		{2, []uint32{10}, never}, {2, []uint32{11}, never}, {2, []uint32{10, 11}, never}, {1, []uint32{10, 11}, never}}
	added := 0
	for _, r := range all {
		for _, next := range all {
			if !r.onlyAdds(next) {
				continue
			}
			added++
			for _, w := range who {
				for _, want := range []uint16{2, 4, 6} {
					if r.allow(w, want) && !next.allow(w, want) {
						t.Fatalf("%v with groups %v loses %o from %v to %v", w.uid, w.groups, want, r.acl, next.acl)
					}
				}
			}
		}
	}
	if added < len(all) {
		t.Errorf("only %d of %d changes add", added, len(all)*len(all))
	}
}

// FuzzStatus: a thread's status is understood as a whole or not at all.
func FuzzStatus(f *testing.F) {
	f.Add("Name:\tcat\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nCapEff:\t0000000000000002\n")
	f.Add("Name:\tUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t\nCapEff:\tff\n")
	f.Fuzz(func(t *testing.T, text string) {
		who, _, err := parseStatus(text)
		if err == nil && len(who.groups) == 0 {
			t.Fatalf("%q has no group", text)
		}
	})
	who, caps, err := parseStatus("Name:\tcat\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nCapEff:\t0000000000000002\n")
	if err != nil || who.uid != 4 || !slices.Equal(who.groups, []uint32{8, 9, 10}) || caps != 2 {
		f.Fatal(who, caps, err)
	}
}

func TestPidsGoInACircle(t *testing.T) {
	const most = 32768
	for _, c := range []struct {
		pid, last uint32
		want      bool
	}{
		{101, 100, true}, {100, 100, false}, {99, 100, false}, {5000, 100, true},
		{301, 32760, true}, {32767, 32760, true}, {32760, 301, false}, {32000, 400, false},
		{40000, 100, false}, {100, 40000, false},
	} {
		if got := follows(c.pid, c.last, most); got != c.want {
			t.Errorf("pid %d after %d: %v", c.pid, c.last, got)
		}
	}
	before := now()
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	l := lineageOf(uint32(cmd.Process.Pid))
	after := now()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if len(l.chain) == 0 || !l.chain[0].bornAfter(before) || l.chain[0].bornAfter(after) {
		t.Errorf("a child born between %v and %v is %v", before, after, l.chain)
	}
}

func TestUnitOf(t *testing.T) {
	for cgroup, want := range map[string]string{
		"0::/system.slice/nginx.service\n":                                           "nginx.service",
		"0::/system.slice/system-getty.slice/getty@tty1.service\n":                   "getty@tty1.service",
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service\n": "user@1000.service",
		"0::/user.slice/user-1000.slice/session-3.scope\n":                           "session-3.scope",
		"0::/\n":                     "",
		"0::/../nginx.service\n":     "",
		"0::/docker/abc/x.service\n": "",
		"12:cpu:/x\n1:name=systemd:/system.slice/cron.service\n": "cron.service",
		"": "",
	} {
		if got := unitOf(cgroup); got != want {
			t.Errorf("%q is unit %q, want %q", cgroup, got, want)
		}
	}
}

func FuzzUnitOf(f *testing.F) {
	f.Add("0::/system.slice/nginx.service\n")
	f.Add("1:name=systemd:/user.slice/a.slice/b.scope\n0::/\n")
	f.Fuzz(func(t *testing.T, cgroup string) {
		if unit := unitOf(cgroup); strings.ContainsAny(unit, "/") || unit != "" && !strings.Contains(cgroup, unit) {
			t.Fatalf("%q is unit %q", cgroup, unit)
		}
	})
}

func TestUnits(t *testing.T) {
	for name, valid := range map[string]bool{
		"nginx.service": true, "worker@.service": true, "worker@7.service": true, "session-1.scope": true, `a\x2db:c_d.service`: true,
		"nginx": false, ".service": false, "a.slice": false, "a b.service": false, "a/b.service": false, "ä.service": false, "": false,
		strings.Repeat("a", 248) + ".service": false, strings.Repeat("a", 247) + ".service": true,
	} {
		if err := ValidUnit(name); (err == nil) != valid {
			t.Errorf("%q: %v", name, err)
		}
	}
	units := []string{"nginx.service", "worker@.service"}
	for unit, want := range map[string]bool{"nginx.service": true, "worker@7.service": true, "worker@.service": true,
		"worker@7.scope": false, "worker.service": false, "xworker@7.service": false, "nginx@.service": false, "nginx.service@": false, "@": false} {
		if got := lists(units, unit); got != want {
			t.Errorf("%q: %v", unit, got)
		}
	}
	if _, err := callersUnit(0); err == nil {
		t.Error("a process that cannot be seen has a unit")
	}
}

func FuzzValidUnit(f *testing.F) {
	f.Add("worker@7.service")
	f.Add("a b.scope")
	f.Fuzz(func(t *testing.T, name string) {
		if ValidUnit(name) == nil && (!slices.Equal(strings.Fields(name), []string{name}) || len(name) > unitMost) {
			t.Fatalf("%q", name)
		}
	})
}

func FuzzParseChain(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{}, &x509.Certificate{}, &key.PublicKey, key)
	if err != nil {
		f.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		f.Fatal(err)
	}
	whole := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	f.Add(whole)
	f.Add(append([]byte("text\n"), append(whole, whole...)...))
	f.Add(whole[:100])
	f.Fuzz(func(t *testing.T, b []byte) {
		end, chain, err := parseChain(b, spki)
		if err != nil || end == 0 {
			return
		}
		if end > len(b) {
			t.Fatalf("%d of %d bytes", end, len(b))
		}
		block, _ := pem.Decode(chain)
		if c, err := x509.ParseCertificate(block.Bytes); err != nil || !bytes.Equal(c.RawSubjectPublicKeyInfo, spki) {
			t.Fatalf("%q begins with no certificate of the key: %v", chain, err)
		}
	})
}

func FuzzParseQuestion(f *testing.F) {
	f.Add("generate ecdsa-p256-sha256")
	f.Add("use PSA_KEY_TYPE_AES 256 PSA_ALG_GCM PSA_KEY_USAGE_ENCRYPT|PSA_KEY_USAGE_DECRYPT")
	f.Add("hash sha256")
	f.Fuzz(func(t *testing.T, line string) {
		if strings.TrimSpace(line) == "" {
			return
		}
		q, err := parseQuestion(line)
		if err != nil {
			return
		}
		if err := q.answer(nil); err == nil {
			t.Fatalf("%q: a provider without capabilities can do it", line)
		}
	})
}

func FuzzParseCSR(f *testing.F) {
	f.Add("CN=web,O=Example\nDNS:example.org\nIP:::1")
	f.Add("1.2.3.4=#0c0177+OU=x\nURI:a:b\nemail:a@b")
	f.Add("\nDNS:example.org")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parseCSR(text)
		if err != nil {
			if psa.StatusOf(err) != psa.StatusInvalidArgument {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		var name pkix.RDNSequence
		if rest, err := asn1.Unmarshal(r.RawSubject, &name); err != nil || len(rest) > 0 {
			t.Fatalf("%q: a subject that cannot be read: %v", text, err)
		}
		if len(name)+len(r.DNSNames)+len(r.IPAddresses)+len(r.URIs)+len(r.EmailAddresses) == 0 {
			t.Fatalf("%q names nobody", text)
		}
	})
}

func TestEveryStatusHasAnErrno(t *testing.T) {
	for status, errno := range errnos {
		if errno == 0 || errno == syscall.ENOSYS {
			t.Errorf("%v is %v", status, errno)
		}
	}
	if got := errnoOf(psa.Errorf(psa.StatusTimeout, "x")); got != syscall.ETIMEDOUT {
		t.Errorf("a timeout is %v", got)
	}
}

func TestTableIsSound(t *testing.T) {
	for scope, rows := range map[string][]*row{"root": rootRows, "provider": append(slices.Clone(providerRows), hashRows...), "key": keyRows} {
		numbers, names := map[uint64]string{}, map[string]bool{}
		for _, r := range rows {
			if numbers[r.number] != "" || names[r.name] || r.number == 0 || r.number >= slotsNumber {
				t.Errorf("%s: %s has number %d of %q", scope, r.name, r.number, numbers[r.number])
			}
			numbers[r.number], names[r.name] = r.name, true
			if r.help == "" {
				t.Errorf("%s: %s has no help", scope, r.name)
			}
			if r.kind == transaction && (r.op == "" || len(r.outputs) == 0) {
				t.Errorf("%s: %s is no whole transaction", scope, r.name)
			}
		}
	}
	help := string(readme())
	for _, r := range keyRows {
		if !strings.Contains(help, r.name) {
			t.Errorf("README does not tell of %s", r.name)
		}
	}
}

func TestScanReference(t *testing.T) {
	for _, c := range []struct {
		in        string
		alone     bool
		reference string // "" is none
		more      bool
	}{
		{"id=0a1B\n", true, "id=0a1B", false},
		{"id=0a1b", true, "id=0a1b", false},
		{"id=0a1b", false, "", true}, // the next write may go on
		{"id=\n", true, "", false},
		{"id=", true, "", true},
		{"object=web server\nrest", false, "object=web server", false},
		{"object=schlüssel", true, "object=schlüssel", false},
		{"handle=0x81000001\n", true, "handle=0x81000001", false},
		{"handle=0x81000001,name=000b\n", true, "handle=0x81000001,name=000b", false},
		{"handle=0x81000001,000b\n", true, "", false},
		{"handle=0", false, "", true},
		{"obj", false, "", true},
		{"id=0a;object=web\n", true, "id=0a;object=web", false},
		{"id=0a;obj", false, "", true},
		{"id=0a;obj\n", true, "", false},
		{"pkcs11:token=t;object=web?pin-source=file:/x\n", true, "pkcs11:token=t;object=web?pin-source=file:/x", false},
		{"pkcs11", false, "", true},
		{"", true, "", false},
		{"id=0g\n", true, "", false},
		{"handle=81000001\n", true, "", false},
		{"object=a\x00b\n", true, "", false},
		{"object=\xff\n", true, "", false},
		{"ids", true, "", false},
		{"-----BEGIN PRIVATE KEY-----\n", true, "", false},
		{"object=" + strings.Repeat("x", referenceMost), true, "", false},
	} {
		end, reference, more := scanReference([]byte(c.in), c.alone)
		if reference != c.reference || more != c.more || (end > 0) != (reference != "") {
			t.Errorf("%q, alone %t: %d, %q, %t; want %q, %t", c.in, c.alone, end, reference, more, c.reference, c.more)
		}
	}
}

func FuzzScanReference(f *testing.F) {
	for _, s := range []string{"id=0a\n", "object=x", "handle=0x81000001\n", "handle=0", "i"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		end, reference, more := scanReference(b, true)
		if end > 0 && (more || end > len(b) || !strings.HasPrefix(string(b), reference) || strings.Contains(reference, "\n")) || end == 0 && reference != "" {
			t.Errorf("%q: %d, %q, %t", b, end, reference, more)
		}
		// in two writes it is the same line, or none yet
		if e, r, _ := scanReference(b, false); e > 0 && r != reference {
			t.Errorf("%q: %q, but %q where it may go on", b, reference, r)
		}
	})
}
