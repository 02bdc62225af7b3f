package psa

import (
	"bytes"
	"encoding/asn1"
	"math/big"
)

type ecdsaSignature struct{ R, S *big.Int }

// ECDSARawToDER turns r||s, both of the same length, into DER's ECDSA-Sig-Value (RFC 3279, 2.2.3). An odd or zero
// length is StatusInvalidSignature.
func ECDSARawToDER(raw []byte) ([]byte, error) {
	if len(raw) == 0 || len(raw)%2 != 0 {
		return nil, Errorf(StatusInvalidSignature, "the ECDSA signature r||s has %d bytes; allowed: twice the size of the curve", len(raw))
	}
	n := len(raw) / 2
	der, err := asn1.Marshal(ecdsaSignature{new(big.Int).SetBytes(raw[:n]), new(big.Int).SetBytes(raw[n:])})
	if err != nil {
		return nil, Errorf(StatusInvalidSignature, "wrong ECDSA signature r||s: %w", err)
	}
	return der, nil
}

// ECDSADERToRaw turns a strict DER ECDSA-Sig-Value into r||s for a curve of that many bits: minimal integers above
// zero that fit the curve, and nothing behind them; else StatusInvalidSignature.
func ECDSADERToRaw(der []byte, bits int) ([]byte, error) {
	var sig ecdsaSignature
	rest, err := asn1.Unmarshal(der, &sig)
	if err != nil {
		return nil, Errorf(StatusInvalidSignature, "wrong ECDSA signature in DER: %w", err)
	}
	// encoding/asn1 lets a SEQUENCE have more elements; what it writes itself has not.
	if again, err := asn1.Marshal(sig); err != nil || len(rest) != 0 || !bytes.Equal(again, der) {
		return nil, Errorf(StatusInvalidSignature, "the ECDSA signature is not strict DER")
	}
	if sig.R.Sign() <= 0 || sig.S.Sign() <= 0 || sig.R.BitLen() > bits || sig.S.BitLen() > bits {
		return nil, Errorf(StatusInvalidSignature, "the ECDSA signature is too large for a curve of %d bits", bits)
	}
	n := (bits + 7) / 8
	raw := make([]byte, 2*n)
	sig.R.FillBytes(raw[:n])
	sig.S.FillBytes(raw[n:])
	return raw, nil
}

// DERSignature brings a signature of PSA's (ECDSA: r||s) into the form of OpenSSL and X.509.
func (a Attributes) DERSignature(b []byte) ([]byte, error) {
	if !a.Algorithm.IsECDSA() {
		return b, nil
	}
	return ECDSARawToDER(b)
}

// CutSignature finds the signature that b begins with, of ECDSA in DER or as r||s: it has n bytes, and value is itself in
// PSA's encoding. alone: it is all of b. With more, b is too short to say; err is for the end of the input.
func CutSignature(a Attributes, b []byte, alone bool) (n int, value []byte, more bool, err error) {
	if alone && !a.Algorithm.IsECDSA() {
		return len(b), b, false, nil
	}
	n, value, ok, more := splitSignature(b, a)
	if alone && (!ok || more || n != len(b)) {
		return 0, nil, false, Errorf(StatusInvalidSignature, "this is not a signature of this kind of key")
	}
	if !ok || more {
		return 0, nil, more, errNoSignature
	}
	return n, value, false, nil
}

var errNoSignature = Errorf(StatusInvalidSignature, "the input does not begin with a signature of this kind of key").WithHint("write the signature first, then the message")

// CutRawSignature is CutSignature of one in PSA's encoding.
func CutRawSignature(a Attributes, b []byte, alone bool) (n int, value []byte, more bool, err error) {
	return cutFixed(a.SignatureLength(), b, alone, errNoSignature)
}

// CutMAC finds the MAC that b begins with, as CutSignature a signature.
func CutMAC(a Attributes, b []byte, alone bool) (n int, value []byte, more bool, err error) {
	n = a.SignatureLength()
	return cutFixed(n, b, alone, Errorf(StatusInvalidSignature, "the input is shorter than a MAC of %d bytes", n).
		WithHint("write the MAC first, then the message"))
}

// CutNonce finds the nonce that b begins with, as CutSignature a signature.
func CutNonce(a Attributes, b []byte, alone bool) (n int, value []byte, more bool, err error) {
	n = a.Algorithm.NonceLength()
	return cutFixed(n, b, alone, Errorf(StatusInvalidArgument, "the input is shorter than a nonce of %d bytes", n).
		WithHint("write nonce || ciphertext || tag"))
}

// cutFixed cuts off n bytes. What stands alone is for the provider to judge.
func cutFixed(n int, b []byte, alone bool, short error) (int, []byte, bool, error) {
	switch {
	case alone:
		return len(b), b, false, nil
	case len(b) < n:
		return 0, nil, true, short
	}
	return n, b[:n], false, nil
}

// splitSignature finds the signature at the beginning of what was written to a verify file: signature, then message
// or digest. For ECDSA it is the strict DER, or else 2*n bytes r||s; for the others the key's fixed size.
// With ok the signature has n bytes, and raw is a copy of it in PSA's encoding. With more it takes more bytes to
// say; at the end of the input that means that it does not split.
func splitSignature(prefix []byte, a Attributes) (n int, raw []byte, ok bool, more bool) {
	size := a.SignatureLength()
	if size == 0 || !a.Algorithm.IsSign() {
		return 0, nil, false, false
	}
	if a.Algorithm.IsECDSA() {
		n, more = ecdsaLength(prefix, a.Bits)
		if more {
			return 0, nil, false, true
		}
		if n > 0 {
			if raw, err := ECDSADERToRaw(prefix[:n], a.Bits); err == nil {
				return n, raw, true, false
			}
		}
	}
	if len(prefix) < size {
		return 0, nil, false, true
	}
	return size, bytes.Clone(prefix[:size]), true, false
}

// ecdsaLength is the length of the DER signature that b begins with, 0 if it cannot be one, so that r||s that looks
// like DER for a few bytes is told apart as soon as it can be. more: b is too short to say, or for the signature.
func ecdsaLength(b []byte, bits int) (n int, more bool) {
	most := bits/8 + 1 // an integer of so many bits with the zero byte before a leading one
	head, size, ok, more := derHeader(b, 4+2*(2+most))
	if more {
		return 0, true
	}
	if !ok {
		return 0, false
	}
	at := head
	for range 2 {
		if len(b) <= at+1 {
			return 0, len(b) <= at || b[at] == asn1.TagInteger
		}
		length := int(b[at+1])
		if b[at] != asn1.TagInteger || length == 0 || length > most {
			return 0, false
		}
		if at += 2 + length; at > head+size {
			return 0, false
		}
	}
	if at != head+size {
		return 0, false
	}
	return at, len(b) < at
}
