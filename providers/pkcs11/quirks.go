package pkcs11

import "strings"

// quirks are what a token does that it does not say, and that no test shows.
type quirks struct {
	// keepsSecrets: every key on the token is sensitive, whatever was asked; session objects show nothing of it.
	keepsSecrets bool
	// mostKeys is how many keys may be used before the module must be loaded anew; 0 is any number.
	mostKeys int
	// alone: a search beside a call that makes or destroys objects leaves half ones, which nobody can name.
	alone bool
}

func quirksOf(t tokenInfo) quirks {
	switch {
	case t.manufacturer == "Mozilla Foundation": // NSS softokn
		return quirks{keepsSecrets: true}
	case t.manufacturer == "SoftHSM project":
		// its index takes a file that is being written for another object's, and C_GenerateKeyPair fails half way
		return quirks{alone: true}
	case strings.HasPrefix(t.library, "TPM2.0 Cryptoki"):
		// tpm2-pkcs11 leaves each key that it used loaded, and tpm2-abrmd gives a client room for 27; calls that are under
		// way at once may all bring in one.
		return quirks{mostKeys: 10}
	}
	return quirks{}
}
