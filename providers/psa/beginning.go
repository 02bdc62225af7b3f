package psa

import (
	"slices"
	"strings"
	"sync"
)

// TemplateBegins says whether s may be the beginning of a template.
func TemplateBegins(s string) bool {
	if name, tag, ok := strings.Cut(s, "-tag"); ok {
		return strings.Trim(tag, "0123456789") == "" && slices.Contains(anyTemplates(), sameSize(name))
	}
	return slices.ContainsFunc(anyTemplates(), func(t string) bool { return strings.HasPrefix(t+"-tag", sameSize(s)) })
}

// sameSize puts a size for each other one in an RSA key's template.
func sameSize(s string) string {
	rest, ok := strings.CutPrefix(s, "rsa-")
	if scheme := strings.TrimLeft(rest, "0123456789"); ok && scheme != rest {
		return "rsa-2048" + scheme
	}
	return s
}

// anyTemplates are all templates that have no shortened tag, of RSA those of one size.
var anyTemplates = sync.OnceValue(func() (all []string) {
	var names []string
	for _, h := range hashes {
		if h.short != "" {
			names = append(names, h.short)
		}
	}
	each := func(prefix string, more ...string) {
		for _, h := range slices.Concat(names, more) {
			all = append(all, prefix+"-"+h)
		}
	}
	agreed := func(curve string) {
		all = append(all, curve)
		for kdf := range derivations {
			each(curve + "-" + kdf)
		}
	}
	for _, p := range plainTemplates {
		all = append(all, p.name)
	}
	each("rsa-2048-pkcs1v15", anyName, "crypt")
	each("rsa-2048-pss", anyName)
	each("rsa-2048-oaep")
	each("hmac")
	for kdf := range derivations {
		each(kdf)
	}
	for _, c := range curves {
		if !c.family.weierstrass() {
			continue
		}
		each("ecdsa-"+c.name, anyName)
		each("deterministic-ecdsa-"+c.name, anyName)
		agreed("ecdh-" + c.name)
	}
	agreed("x25519")
	agreed("x448")
	for _, m := range aesModes {
		for _, bits := range []string{"128", "192", "256"} {
			all = append(all, "aes-"+bits+"-"+m.name)
		}
	}
	return all
})
