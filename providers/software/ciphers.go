package software

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/subtle"
	"hash"
	"sync/atomic"

	"github.com/jacobsa/crypto/cmac"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/psa/secret"
)

// ciphers holds what is computed from a symmetric key, once for each open key and algorithm. If each operation computed its
// own, it would leave a copy of the key in memory each time. They are made when needed, under the key's lock.
type ciphers struct {
	blocks []cipher.Block // of an AES key; two of one for XTS, which is two keys
	aeads  map[psa.Algorithm]cipher.AEAD
	macs   map[psa.Algorithm][]hash.Hash // that no operation has now
}

// macsKept is how many MACs a key keeps for concurrent operations.
const macsKept = 4

// aes is the cipher of one of n equal parts of the key.
func (k *key) aes(part, n int) (cipher.Block, error) {
	for i := len(k.blocks); i < n; i++ {
		size := len(k.secret) / n
		var block cipher.Block
		var err error
		secret.Do(func() { block, err = aes.NewCipher(k.secret[i*size : (i+1)*size]) })
		if err != nil {
			return nil, psa.Errorf(psa.StatusGenericError, "AES: %w", err)
		}
		k.blocks = append(k.blocks, block)
	}
	return k.blocks[part], nil
}

// half is the cipher of one half of an XTS key.
func (k *key) half(b []byte) (cipher.Block, error) {
	return k.aes(1-subtle.ConstantTimeCompare(b, k.secret[:len(k.secret)/2]), 2)
}

// aead is the cipher of an algorithm whose nonces have one length.
func (k *key) aead(alg psa.Algorithm) (cipher.AEAD, error) {
	if aead := k.aeads[alg]; aead != nil {
		return aead, nil
	}
	var aead cipher.AEAD
	var err error
	secret.Do(func() { aead, err = k.newAEAD(alg) })
	if err != nil {
		return nil, psa.Errorf(psa.StatusGenericError, "%s: %w", alg, err)
	}
	if k.aeads == nil {
		k.aeads = map[psa.Algorithm]cipher.AEAD{}
	}
	k.aeads[alg] = aead
	return aead, nil
}

func (k *key) newAEAD(alg psa.Algorithm) (cipher.AEAD, error) {
	if alg == psa.ChaCha20Poly1305 {
		return chacha20poly1305.New(k.secret)
	}
	block, err := k.aes(0, 1)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithTagSize(block, alg.TagLength())
}

func (k *key) beginMAC(op psa.Op) (psa.Run, error) {
	h, err := k.mac(op.Algorithm)
	if err != nil {
		return nil, err
	}
	r, err := psa.MACRun(op, h)
	if err != nil {
		return nil, err
	}
	return &macRun{Run: r, k: k, alg: op.Algorithm, h: h}, nil
}

// mac returns a MAC that no operation uses.
func (k *key) mac(alg psa.Algorithm) (hash.Hash, error) {
	if last := len(k.macs[alg]) - 1; last >= 0 {
		h := k.macs[alg][last]
		k.macs[alg] = k.macs[alg][:last]
		return h, nil
	}
	var h hash.Hash
	var err error
	secret.Do(func() {
		if alg.IsHMAC() {
			hash, _ := alg.CryptoHash() // the table has only hashes that are there
			h = hmac.New(hash.New, k.secret)
			_ = h.Sum(nil) // it keeps what it makes of the key at its first end
			h.Reset()
			return
		}
		// tink's CMAC, which is better kept, takes whole messages alone: this one needs no memory for a long one.
		h, err = cmac.New(k.secret)
	})
	if err != nil {
		return nil, psa.Errorf(psa.StatusGenericError, "CMAC: %w", err)
	}
	return h, nil
}

// giveBack keeps a MAC for the next operation.
func (k *key) giveBack(alg psa.Algorithm, h hash.Hash) {
	h.Reset()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed || len(k.macs[alg]) >= macsKept {
		return
	}
	if k.macs == nil {
		k.macs = map[psa.Algorithm][]hash.Hash{}
	}
	k.macs[alg] = append(k.macs[alg], h)
}

// macRun gives its MAC back once, and then never uses it: another operation may have it.
type macRun struct {
	psa.Run
	k     *key
	alg   psa.Algorithm
	h     hash.Hash
	ended atomic.Bool // by whoever came first, who gives the MAC back
}

func (r *macRun) Finish(ctx context.Context) (psa.Result, error) {
	if !r.ended.CompareAndSwap(false, true) {
		return psa.Result{}, psa.Errorf(psa.StatusBadState, "the operation has ended")
	}
	defer r.k.giveBack(r.alg, r.h)
	return r.Run.Finish(ctx)
}

func (r *macRun) Abort() {
	if r.ended.CompareAndSwap(false, true) {
		defer r.k.giveBack(r.alg, r.h)
		r.Run.Abort()
	}
}
