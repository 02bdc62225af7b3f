"""Encrypts or decrypts its standard input with OpenSSL's EVP_CIPHER.

evp.py encrypt|decrypt CIPHER KEY NONCE ADDITIONAL_DATA TAG_BYTES PADDING; bytes in hexadecimal, the tag at the end.
"""
import ctypes
import ctypes.util
import sys

what, name, key, nonce, data, tag_bytes, padding = sys.argv[1:]
key, nonce, data, tag_bytes = bytes.fromhex(key), bytes.fromhex(nonce), bytes.fromhex(data), int(tag_bytes)
text = sys.stdin.buffer.read()
encrypt = int(what == "encrypt")
if not encrypt and tag_bytes:
    text, tag = text[:-tag_bytes], text[-tag_bytes:]

lib = ctypes.CDLL(ctypes.util.find_library("crypto"))
P = ctypes.c_void_p
lib.EVP_CIPHER_fetch.restype = lib.EVP_CIPHER_CTX_new.restype = P
lib.EVP_CIPHER_fetch.argtypes = [P, ctypes.c_char_p, P]
lib.EVP_CipherInit_ex.argtypes = [P, P, P, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int]
lib.EVP_CIPHER_CTX_ctrl.argtypes = [P, ctypes.c_int, ctypes.c_int, P]
lib.EVP_CipherUpdate.argtypes = [P, P, ctypes.POINTER(ctypes.c_int), ctypes.c_char_p, ctypes.c_int]
lib.EVP_CipherFinal_ex.argtypes = [P, P, ctypes.POINTER(ctypes.c_int)]
lib.EVP_CIPHER_CTX_set_padding.argtypes = [P, ctypes.c_int]
SET_IVLEN, GET_TAG, SET_TAG = 9, 16, 17


def must(result):
    if result <= 0:
        sys.exit("OpenSSL refuses")


cipher, ctx = lib.EVP_CIPHER_fetch(None, name.encode(), None), lib.EVP_CIPHER_CTX_new()
if not cipher:
    sys.exit("OpenSSL has no " + name)
must(lib.EVP_CipherInit_ex(ctx, cipher, None, None, None, encrypt))
n = ctypes.c_int()
if tag_bytes:
    must(lib.EVP_CIPHER_CTX_ctrl(ctx, SET_IVLEN, len(nonce), None))
    if not encrypt:
        must(lib.EVP_CIPHER_CTX_ctrl(ctx, SET_TAG, tag_bytes, ctypes.create_string_buffer(tag, tag_bytes)))
    elif name.endswith("ccm"):
        must(lib.EVP_CIPHER_CTX_ctrl(ctx, SET_TAG, tag_bytes, None))
must(lib.EVP_CipherInit_ex(ctx, None, None, key, nonce or None, encrypt))
must(lib.EVP_CIPHER_CTX_set_padding(ctx, int(padding)))
if name.endswith("ccm"):
    must(lib.EVP_CipherUpdate(ctx, None, n, None, len(text)))
if data:
    must(lib.EVP_CipherUpdate(ctx, None, n, data, len(data)))
out = ctypes.create_string_buffer(len(text) + 32)
must(lib.EVP_CipherUpdate(ctx, out, n, text, len(text)))
length = n.value
if encrypt or not name.endswith("ccm"):
    must(lib.EVP_CipherFinal_ex(ctx, ctypes.byref(out, length), n))
    length += n.value
answer = out.raw[:length]
if encrypt and tag_bytes:
    tag = ctypes.create_string_buffer(tag_bytes)
    must(lib.EVP_CIPHER_CTX_ctrl(ctx, GET_TAG, tag_bytes, tag))
    answer += tag.raw
sys.stdout.buffer.write(answer)
