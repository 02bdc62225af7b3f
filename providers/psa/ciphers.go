package psa

import (
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"hash"
	"math"

	gmcipher "github.com/emmansun/gmsm/cipher"
)

// nonceRun encrypts or decrypts what it holds, all at once, under a nonce.
type nonceRun struct {
	input
	encrypt bool
	nonce   []byte
	crypt   func(ctx context.Context, nonce, in []byte) ([]byte, error)
}

// newNonceRun is a run whose crypt does what op says. overhead is how much longer a ciphertext may be than its
// plaintext. A nonce that is missing is made at random to encrypt, and StatusInsufficientData to decrypt.
func newNonceRun(op Op, length, overhead int, crypt func(nonce, in []byte) ([]byte, error)) (Run, error) {
	return newDeviceNonceRun(op, length, overhead, func(_ context.Context, nonce, in []byte) ([]byte, error) { return crypt(nonce, in) })
}

func newDeviceNonceRun(op Op, length, overhead int, crypt func(ctx context.Context, nonce, in []byte) ([]byte, error)) (Run, error) {
	r := &nonceRun{
		input:   input{held: op.held()},
		encrypt: op.Operation == Encrypt,
		nonce:   bytes.Clone(op.Inputs["nonce"]),
		crypt:   crypt,
	}
	if !r.encrypt {
		r.held.limit += int64(overhead) // so that what could be encrypted can be decrypted
	}
	if len(r.nonce) == 0 && length > 0 {
		if !r.encrypt {
			return nil, Errorf(StatusInsufficientData, "the nonce of %d bytes is missing", length)
		}
		var err error
		if r.nonce, err = newNonce(op.Algorithm, length); err != nil {
			return nil, err
		}
	}
	if len(r.nonce) != length {
		return nil, Errorf(StatusInvalidArgument, "the nonce has %d bytes; %s needs %d", len(r.nonce), op.Algorithm, length)
	}
	return r, nil
}

func newNonce(alg Algorithm, length int) ([]byte, error) {
	n := make([]byte, length)
	random := n
	if alg == XTS {
		random = n[:xtsSector]
	}
	if _, err := rand.Read(random); err != nil {
		return nil, Errorf(StatusInsufficientEntropy, "cannot make a random nonce: %w", err)
	}
	return n, nil
}

func (r *nonceRun) Finish(ctx context.Context) (Result, error) {
	defer r.Abort()
	if err := r.take(ctx); err != nil {
		return Result{}, err
	}
	out, err := r.crypt(ctx, r.nonce, r.held.b)
	if err != nil {
		return Result{}, failed(err)
	}
	if out == nil {
		out = []byte{} // an empty answer, and still one
	}
	if r.encrypt {
		return Result{Outputs: map[string][]byte{"nonce": r.nonce, "ciphertext": out}}, nil
	}
	return Result{Outputs: map[string][]byte{"plaintext": out}}, nil
}

func isCrypt(op Op) error {
	if op.Operation != Encrypt && op.Operation != Decrypt {
		return Errorf(StatusNotSupported, "%s does not work with a key for %s", op.Operation, op.Algorithm)
	}
	return nil
}

// AEADRun encrypts or decrypts with aead, whose nonce has nonceLen bytes, and holds up to op.Limit bytes.
// Inputs: "nonce" (made at random by an encryption where it is missing), "additional_data". encrypt gives "nonce" and
// "ciphertext", which ends with the tag; decrypt takes that as its main input and gives "plaintext", or
// StatusInvalidSignature. A nonce of another length is StatusInvalidArgument, none to decrypt with
// StatusInsufficientData.
func AEADRun(op Op, aead cipher.AEAD, nonceLen int) (Run, error) {
	if err := isCrypt(op); err != nil {
		return nil, err
	}
	if aead.NonceSize() != nonceLen {
		return nil, Errorf(StatusNotSupported, "%s has a nonce of %d bytes, but the cipher needs %d", op.Algorithm, nonceLen, aead.NonceSize())
	}
	additionalData := bytes.Clone(op.Inputs["additional_data"])
	return newNonceRun(op, nonceLen, aead.Overhead(), func(nonce, in []byte) ([]byte, error) {
		if most := longest(aead); op.Operation == Encrypt && len(in) > most || len(in) > most+aead.Overhead() {
			return nil, Errorf(StatusTooLarge, "the input has %d bytes; %s with such a nonce takes at most %d", len(in), op.Algorithm, most)
		}
		if op.Operation == Encrypt {
			return aead.Seal(nil, nonce, in, additionalData), nil
		}
		out, err := aead.Open(nil, nonce, in, additionalData)
		if err != nil {
			err = Errorf(StatusInvalidSignature, "the ciphertext is not authentic for this key, nonce and additional data")
		}
		return out, err
	})
}

// longest is how many bytes aead can encrypt at once: CCM has the fewer the longer its nonce is.
func longest(aead cipher.AEAD) int {
	if a, ok := aead.(interface{ MaxLength() int }); ok {
		return a.MaxLength()
	}
	return math.MaxInt - aead.Overhead()
}

// NewCCM is CCM (NIST SP 800-38C) over a block cipher of 16 bytes.
func NewCCM(block cipher.Block, nonceLen, tagLen int) (cipher.AEAD, error) {
	aead, err := gmcipher.NewCCMWithNonceAndTagSize(block, nonceLen, tagLen)
	if err != nil {
		return nil, Errorf(StatusInvalidArgument, "%w", err)
	}
	return aead, nil
}

// CipherRun encrypts or decrypts with an unauthenticated mode of a block cipher of 16 bytes: CTR, CFB, OFB, CBC with
// and without PKCS #7 padding, ECB. Inputs and outputs are AEADRun's without additional data; "nonce" is the IV, which
// ECB has not. A length that the mode cannot take is StatusInvalidArgument, padding that is none StatusInvalidPadding.
func CipherRun(op Op, block cipher.Block) (Run, error) {
	if err := isCrypt(op); err != nil {
		return nil, err
	}
	if block.BlockSize() != cipherBlock {
		return nil, Errorf(StatusNotSupported, "%s does not work with a block of %d bytes", op.Algorithm, block.BlockSize())
	}
	encrypt := op.Operation == Encrypt
	stream := func(of func(iv []byte) cipher.Stream) func(iv, in []byte) ([]byte, error) {
		return func(iv, in []byte) ([]byte, error) {
			out := make([]byte, len(in))
			of(iv).XORKeyStream(out, in)
			return out, nil
		}
	}
	var crypt func(iv, in []byte) ([]byte, error)
	switch op.Algorithm {
	case CTR:
		crypt = stream(func(iv []byte) cipher.Stream { return cipher.NewCTR(block, iv) })
	case CFB:
		crypt = stream(func(iv []byte) cipher.Stream {
			if encrypt {
				return cipher.NewCFBEncrypter(block, iv) //lint:ignore SA1019 a policy asked for PSA_ALG_CFB by its name
			}
			return cipher.NewCFBDecrypter(block, iv) //lint:ignore SA1019 a policy asked for PSA_ALG_CFB by its name
		})
	case OFB:
		crypt = stream(func(iv []byte) cipher.Stream {
			return cipher.NewOFB(block, iv) //lint:ignore SA1019 a policy asked for PSA_ALG_OFB by its name
		})
	case CBCNoPadding, CBCPKCS7, ECBNoPadding:
		crypt = func(iv, in []byte) ([]byte, error) { return blocks(op.Algorithm, encrypt, block, iv, in) }
	default:
		return nil, Errorf(StatusNotSupported, "%s is not a supported mode of a block cipher", op.Algorithm)
	}
	return newNonceRun(op, op.Algorithm.NonceLength(), cipherBlock, crypt)
}

// cipherBlock is the block of AES, ARIA and Camellia.
const cipherBlock = 16

// pad appends PKCS #7's padding, to a copy of in that has room for it.
func pad(in []byte) []byte {
	n := cipherBlock - len(in)%cipherBlock
	out := make([]byte, len(in), len(in)+n)
	copy(out, in)
	return append(out, bytes.Repeat([]byte{byte(n)}, n)...)
}

// unpad takes PKCS #7's padding off, or wipes what has none.
func unpad(out []byte) ([]byte, error) {
	if len(out) == 0 {
		return nil, Errorf(StatusInvalidArgument, "the ciphertext is empty; with %s it has at least one block", CBCPKCS7)
	}
	n := int(out[len(out)-1])
	if n == 0 || n > cipherBlock || !bytes.Equal(out[len(out)-n:], bytes.Repeat([]byte{byte(n)}, n)) {
		Wipe(out)
		return nil, Errorf(StatusInvalidPadding, "the padding is wrong: the key or the IV is another one, or the ciphertext was changed")
	}
	return out[:len(out)-n], nil
}

// wholeBlocks says whether in is what CBC, padded already, or ECB takes.
func wholeBlocks(alg Algorithm, in []byte) error {
	if len(in)%cipherBlock != 0 {
		return Errorf(StatusInvalidArgument, "the input has %d bytes; %s needs a multiple of %d", len(in), alg, cipherBlock)
	}
	return nil
}

// blocks runs CBC or ECB over whole blocks.
func blocks(alg Algorithm, encrypt bool, block cipher.Block, iv, in []byte) ([]byte, error) {
	out := bytes.Clone(in)
	if alg == CBCPKCS7 && encrypt {
		out = pad(in)
	}
	if err := wholeBlocks(alg, out); err != nil {
		return nil, err
	}
	switch {
	case alg == ECBNoPadding:
		for at := 0; at < len(out); at += cipherBlock {
			if encrypt {
				block.Encrypt(out[at:], out[at:])
			} else {
				block.Decrypt(out[at:], out[at:])
			}
		}
	case encrypt:
		cipher.NewCBCEncrypter(block, iv).CryptBlocks(out, out)
	default:
		cipher.NewCBCDecrypter(block, iv).CryptBlocks(out, out)
	}
	if alg == CBCPKCS7 && !encrypt {
		return unpad(out)
	}
	return out, nil
}

// DeviceCipherRun is CipherRun or AEADRun with a device that has the key and does what op says to the whole input, at most
// op's limit. CBC's padding is ours: the device gets whole blocks, and only such. overhead is how much longer an AEAD's
// ciphertext is than its plaintext; a shorter one is StatusInvalidSignature.
func DeviceCipherRun(op Op, overhead int, crypt func(ctx context.Context, nonce, in []byte) ([]byte, error)) (Run, error) {
	if err := isCrypt(op); err != nil {
		return nil, err
	}
	alg, encrypt := op.Algorithm, op.Operation == Encrypt
	switch {
	case alg.IsAEAD():
		return newDeviceNonceRun(op, alg.NonceLength(), overhead, func(ctx context.Context, nonce, in []byte) ([]byte, error) {
			if !encrypt && len(in) < overhead {
				return nil, Errorf(StatusInvalidSignature, "the ciphertext has %d bytes, but the tag alone has %d", len(in), overhead)
			}
			return crypt(ctx, nonce, in)
		})
	case alg == CBCPKCS7, alg == CBCNoPadding, alg == ECBNoPadding:
		return newDeviceNonceRun(op, alg.NonceLength(), cipherBlock, func(ctx context.Context, nonce, in []byte) ([]byte, error) {
			if alg == CBCPKCS7 && encrypt {
				in = pad(in)
				defer Wipe(in)
			}
			err := wholeBlocks(alg, in)
			if err != nil {
				return nil, err
			}
			out := []byte{}
			if len(in) > 0 {
				out, err = crypt(ctx, nonce, in)
			}
			if err == nil && alg == CBCPKCS7 && !encrypt {
				return unpad(out)
			}
			return out, err
		})
	}
	return newDeviceNonceRun(op, alg.NonceLength(), cipherBlock, func(ctx context.Context, nonce, in []byte) ([]byte, error) {
		if len(in) == 0 {
			return []byte{}, nil
		}
		return crypt(ctx, nonce, in)
	})
}

// xtsSector is how many bytes of XTS's tweak are the sector's number, little endian; the rest must be zero.
const xtsSector = 8

// XTSRun encrypts or decrypts one data unit with XTS (IEEE 1619) over the cipher that newCipher makes of each half of
// key. "nonce" is the tweak, a sector's number of 64 bits, little endian, in 16 bytes. Less than a block is
// StatusInvalidArgument.
func XTSRun(op Op, newCipher func([]byte) (cipher.Block, error), key []byte) (Run, error) {
	if err := isCrypt(op); err != nil {
		return nil, err
	}
	xts, err := gmcipher.NewXTS(newCipher, key)
	if err != nil {
		return nil, Errorf(StatusInvalidArgument, "XTS: %w", err)
	}
	return newNonceRun(op, XTS.NonceLength(), 0, func(tweak, in []byte) ([]byte, error) {
		if len(in) < cipherBlock || len(in) >= 1<<24 {
			return nil, Errorf(StatusInvalidArgument, "the input has %d bytes; %s takes %d to %d", len(in), XTS, cipherBlock, 1<<24-1)
		}
		var sector uint64
		for i, b := range tweak {
			if i >= xtsSector && b != 0 {
				return nil, Errorf(StatusNotSupported, "the tweak is larger than 64 bits").
					WithHint("the tweak is the number of the sector, little endian")
			}
			if i < xtsSector {
				sector |= uint64(b) << (8 * i)
			}
		}
		out := make([]byte, len(in))
		if op.Operation == Encrypt {
			xts.Encrypt(out, in, sector)
		} else {
			xts.Decrypt(out, in, sector)
		}
		return out, nil
	})
}

type macRun struct {
	input
	length int
	want   []byte                                                            // to verify; nil computes
	device func(ctx context.Context, message []byte) (mac []byte, err error) // of a held message; nil: the hash has it
}

// DeviceMACRun is MACRun with a device that takes the whole message, at most op's limit, and makes a MAC of size bytes.
func DeviceMACRun(op Op, size int, mac func(ctx context.Context, message []byte) ([]byte, error)) (Run, error) {
	return newMACRun(op, size, &macRun{input: input{held: op.held()}, device: mac})
}

// MACRun computes or verifies a MAC with h, which has the key, cut to the algorithm's length. mac gives "mac";
// verify_mac takes it as an input and gives nothing, or StatusInvalidSignature.
func MACRun(op Op, h hash.Hash) (Run, error) {
	return newMACRun(op, h.Size(), &macRun{input: input{h: h}})
}

func newMACRun(op Op, size int, r *macRun) (Run, error) {
	r.length = op.Algorithm.MACLength()
	switch {
	case r.length <= 0 || r.length > size:
		return nil, Errorf(StatusNotSupported, "%s needs a MAC of %d bytes, but the key makes %d", op.Algorithm, r.length, size)
	case op.Operation == Mac:
		return r, nil
	case op.Operation != VerifyMac:
		return nil, Errorf(StatusNotSupported, "%s does not work with a key for %s", op.Operation, op.Algorithm)
	}
	if r.want = bytes.Clone(op.Inputs["mac"]); len(r.want) == 0 {
		return nil, Errorf(StatusInsufficientData, "the MAC is missing")
	}
	return r, nil
}

func (r *macRun) Finish(ctx context.Context) (Result, error) {
	defer r.Abort()
	if err := r.take(ctx); err != nil {
		return Result{}, err
	}
	var mac []byte
	if r.device == nil {
		mac = r.h.Sum(nil)
	} else {
		var err error
		if mac, err = r.device(ctx, r.held.b); err != nil {
			return Result{}, failed(err)
		}
		if len(mac) < r.length {
			return Result{}, Errorf(StatusHardwareFailure, "the device returned a MAC of only %d bytes", len(mac))
		}
	}
	mac = mac[:r.length]
	if r.want == nil {
		return Result{Outputs: map[string][]byte{"mac": mac}}, nil
	}
	if !hmac.Equal(mac, r.want) {
		return Result{}, Errorf(StatusInvalidSignature, "the MAC is not valid for this key and message")
	}
	return Result{}, nil
}
