package psa

import (
	"context"
	"testing"
)

func TestFormattedRun(t *testing.T) {
	for _, c := range []struct {
		template, asked    string
		want               string // what the key comes out as, "" where it does not
		format, passphrase string
	}{
		{"ecdsa-p256-sha256", "pkcs8\n", "-----BEGIN PRIVATE KEY-----\na2V5\n-----END PRIVATE KEY-----\n", "pkcs8", ""},
		{"ecdsa-p256-sha256", "pkcs8-der", "key", "pkcs8-der", ""},
		{"aes-256-gcm", "raw\n", "key", "raw", ""},
		{"aes-256-gcm", "tss2\nopen sesame\n", "-----BEGIN TSS2 PRIVATE KEY-----\na2V5\n-----END TSS2 PRIVATE KEY-----\n", "tss2", "open sesame"},
		{"ecdsa-p256-sha256", "raw\n", "", "", ""},
		{"aes-256-gcm", "pkcs8\n", "", "", ""},
		{"aes-256-gcm", "raw\nopen sesame\n", "", "", ""},
		{"aes-256-gcm", "", "", "", ""},
	} {
		var format, passphrase string
		run := FormattedRun(template(t, c.template).Type, func(_ context.Context, in map[string][]byte) (Result, error) {
			format, passphrase = string(in["format"]), string(in["passphrase"])
			return Result{Outputs: map[string][]byte{"key": []byte("key")}}, nil
		})
		if _, err := run.Write([]byte(c.asked)); err != nil {
			t.Fatal(err)
		}
		result, err := run.Finish(t.Context())
		if string(result.Outputs["key"]) != c.want || format != c.format || passphrase != c.passphrase {
			t.Errorf("%s, %q: %q, format %q, passphrase %q (%v)", c.template, c.asked, result.Outputs["key"], format, passphrase, err)
		}
		if c.want == "" && StatusOf(err) != StatusInvalidArgument {
			t.Errorf("%s, %q: %v", c.template, c.asked, err)
		}
	}
}
