package psa

import (
	"fmt"
	"strings"
)

// Usage is a psa_key_usage_t: flags that say what a key may be used for.
type Usage uint32

// The usage flags (PSA Crypto API 1.2, "Key usage flags").
const (
	UsageExport           Usage = 0x00000001
	UsageCopy             Usage = 0x00000002
	UsageCache            Usage = 0x00000004
	UsageEncrypt          Usage = 0x00000100
	UsageDecrypt          Usage = 0x00000200
	UsageSignMessage      Usage = 0x00000400
	UsageVerifyMessage    Usage = 0x00000800
	UsageSignHash         Usage = 0x00001000
	UsageVerifyHash       Usage = 0x00002000
	UsageDerive           Usage = 0x00004000
	UsageVerifyDerivation Usage = 0x00008000
)

const (
	usageSigning    = UsageSignMessage | UsageVerifyMessage | UsageSignHash | UsageVerifyHash
	usageCiphering  = UsageEncrypt | UsageDecrypt
	usageDerivation = UsageDerive | UsageVerifyDerivation
	// usageAnyKey flags fit every key.
	usageAnyKey = UsageExport | UsageCopy | UsageCache
	// usagePublic flags are what a public key alone can serve.
	usagePublic = usageAnyKey | UsageEncrypt | UsageVerifyMessage | UsageVerifyHash
)

var usageNames = []struct {
	flag Usage
	name string
}{
	{UsageExport, "PSA_KEY_USAGE_EXPORT"},
	{UsageCopy, "PSA_KEY_USAGE_COPY"},
	{UsageCache, "PSA_KEY_USAGE_CACHE"},
	{UsageEncrypt, "PSA_KEY_USAGE_ENCRYPT"},
	{UsageDecrypt, "PSA_KEY_USAGE_DECRYPT"},
	{UsageSignMessage, "PSA_KEY_USAGE_SIGN_MESSAGE"},
	{UsageVerifyMessage, "PSA_KEY_USAGE_VERIFY_MESSAGE"},
	{UsageSignHash, "PSA_KEY_USAGE_SIGN_HASH"},
	{UsageVerifyHash, "PSA_KEY_USAGE_VERIFY_HASH"},
	{UsageDerive, "PSA_KEY_USAGE_DERIVE"},
	{UsageVerifyDerivation, "PSA_KEY_USAGE_VERIFY_DERIVATION"},
}

// Names are the flags in PSA notation, in the order of their bits; bits that PSA 1.2 has no name for come last, as
// one hexadecimal number.
func (u Usage) Names() []string {
	var names []string
	for _, n := range usageNames {
		if u&n.flag != 0 {
			names = append(names, n.name)
			u &^= n.flag
		}
	}
	if u != 0 {
		names = append(names, fmt.Sprintf("0x%08x", uint32(u)))
	}
	return names
}

// String joins Names with "|"; no flags are "0".
func (u Usage) String() string {
	if u == 0 {
		return "0"
	}
	return strings.Join(u.Names(), "|")
}

// Extend adds the flags that others imply: SIGN_HASH implies SIGN_MESSAGE, VERIFY_HASH implies VERIFY_MESSAGE
// (PSA 1.2, psa_key_usage_t).
func (u Usage) Extend() Usage {
	if u&UsageSignHash != 0 {
		u |= UsageSignMessage
	}
	if u&UsageVerifyHash != 0 {
		u |= UsageVerifyMessage
	}
	return u
}

// ParseUsage reads flags in PSA notation, one or several joined with "|", or "0" for none. Spaces around a flag are
// ignored. Errors are StatusInvalidArgument.
func ParseUsage(s string) (Usage, error) {
	if strings.TrimSpace(s) == "0" {
		return 0, nil
	}
	var u Usage
next:
	for word := range strings.SplitSeq(s, "|") {
		word = strings.TrimSpace(word)
		for _, n := range usageNames {
			if n.name == word {
				u |= n.flag
				continue next
			}
		}
		var all []string
		for _, n := range usageNames {
			all = append(all, n.name)
		}
		return 0, Errorf(StatusInvalidArgument, "unknown usage flag %s; allowed: %s", quote(word), strings.Join(all, ", "))
	}
	return u, nil
}
