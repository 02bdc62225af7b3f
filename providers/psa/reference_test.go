package psa

import (
	"strings"
	"testing"
)

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
		{"object=" + strings.Repeat("x", maxReference), true, "", false},
	} {
		end, reference, more := ScanReference([]byte(c.in), c.alone, Attributes{})
		if reference != c.reference || more != c.more || (end > 0) != (reference != "") {
			t.Errorf("%q, alone %t: %d, %q, %t; want %q, %t", c.in, c.alone, end, reference, more, c.reference, c.more)
		}
	}
}

// TestScanReferenceOfRawKey: bytes that begin as a reference and are as long as the draft's key wait for nothing more.
func TestScanReferenceOfRawKey(t *testing.T) {
	draft := template(t, "aes-128-gcm")
	if end, _, more := ScanReference([]byte("id=0123456789abc"), false, draft); end != 0 || more {
		t.Errorf("16 bytes of an AES key: %d, more %t", end, more)
	}
	if end, _, more := ScanReference([]byte("id=0123456789ab"), false, draft); end != 0 || !more {
		t.Errorf("15 bytes: %d, more %t", end, more)
	}
}

func FuzzScanReference(f *testing.F) {
	for _, s := range []string{"id=0a\n", "object=x", "handle=0x81000001\n", "handle=0", "i"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		end, reference, more := ScanReference(b, true, Attributes{})
		if end > 0 && (more || end > len(b) || !strings.HasPrefix(string(b), reference) || strings.Contains(reference, "\n")) || end == 0 && reference != "" {
			t.Errorf("%q: %d, %q, %t", b, end, reference, more)
		}
		// in two writes it is the same line, or none yet
		if e, r, _ := ScanReference(b, false, Attributes{}); e > 0 && r != reference {
			t.Errorf("%q: %q, but %q where it may go on", b, reference, r)
		}
	})
}
