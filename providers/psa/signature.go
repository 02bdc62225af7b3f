package psa

import (
	"bytes"
	"encoding/asn1"
	mathbits "math/bits"

	"golang.org/x/crypto/cryptobyte"
	cryptoasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// ECDSARawToDER turns r||s, both of the same length, into DER's ECDSA-Sig-Value (RFC 3279, 2.2.3). An odd or zero
// length is StatusInvalidSignature.
func ECDSARawToDER(raw []byte) ([]byte, error) {
	if len(raw) == 0 || len(raw)%2 != 0 || len(raw) > maxRawSignature {
		return nil, Errorf(StatusInvalidSignature, "the ECDSA signature r||s has %d bytes; allowed: twice the size of the curve", len(raw))
	}
	r, s := integer(raw[:len(raw)/2]), integer(raw[len(raw)/2:])
	der := make([]byte, 0, 3*derHeaderMost+2+len(raw))
	der = appendHeader(der, asn1.TagSequence|constructed, r.size()+s.size())
	return s.append(r.append(der)), nil
}

// maxRawSignature is longer than any curve's, and fits a header's two bytes.
const maxRawSignature = 1 << 12

// constructed is the bit of an identifier octet whose contents are values themselves.
const constructed = 0x20

// derHeaderMost is how many bytes a header of less than 64 KiB has at most.
const derHeaderMost = 4

// appendHeader appends the identifier and length of n bytes, of less than 64 KiB.
func appendHeader(der []byte, tag byte, n int) []byte {
	switch {
	case n < 0x80:
		return append(der, tag, byte(n))
	case n < 0x100:
		return append(der, tag, 0x81, byte(n))
	}
	return append(der, tag, 0x82, byte(n>>8), byte(n))
}

// integer is a number's big-endian bytes.
type integer []byte

// bytes are the fewest that an INTEGER has of it: without a sign, pad is a zero byte in front of it.
func (x integer) bytes() (least []byte, pad int) {
	for len(x) > 1 && x[0] == 0 {
		x = x[1:]
	}
	return x, int(x[0] >> 7)
}

// size is how long it is as an INTEGER with its header.
func (x integer) size() int {
	b, pad := x.bytes()
	return len(appendHeader(make([]byte, 0, derHeaderMost), asn1.TagInteger, pad+len(b))) + pad + len(b)
}

// append appends it as an INTEGER.
func (x integer) append(der []byte) []byte {
	b, pad := x.bytes()
	der = appendHeader(der, asn1.TagInteger, pad+len(b))
	return append(append(der, make([]byte, pad)...), b...)
}

// ECDSADERToRaw turns a strict DER ECDSA-Sig-Value into r||s for a curve of that many bits: minimal integers above
// zero that fit the curve, and nothing behind them; else StatusInvalidSignature.
func ECDSADERToRaw(der []byte, bits int) ([]byte, error) {
	input := cryptobyte.String(der)
	var sequence cryptobyte.String
	var numbers [2][]byte
	if !input.ReadASN1(&sequence, cryptoasn1.SEQUENCE) || !input.Empty() || !sequence.ReadASN1Integer(&numbers[0]) ||
		!sequence.ReadASN1Integer(&numbers[1]) || !sequence.Empty() {
		return nil, Errorf(StatusInvalidSignature, "the ECDSA signature is not strict DER")
	}
	n := (bits + 7) / 8
	raw := make([]byte, 2*n)
	for i, x := range numbers {
		for len(x) > 0 && x[0] == 0 {
			x = x[1:]
		}
		if len(x) == 0 || len(x)*8-mathbits.LeadingZeros8(x[0]) > bits {
			return nil, Errorf(StatusInvalidSignature, "the ECDSA signature is too large for a curve of %d bits", bits)
		}
		copy(raw[(i+1)*n-len(x):], x)
	}
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
