/* oracle says what PSA Crypto's reference implementation (libmbedcrypto) answers. Each line of its input is
 *     OPERATION TYPE BITS POLICY USAGE ALGORITHM LENGTH
 * with numbers in hexadecimal: a key of the type and size, of which there is one for all lines, is given the policy and
 * the usage flags, and the operation is done with the algorithm and an input of so many zero bytes. The answer is a line
 * with the step that ended it, "create" or "use", and the psa_status_t. */
#include <psa/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST 4096

static struct material {
	unsigned type, bits;
	size_t size;
	uint8_t bytes[MOST];
} materials[64];

static void die(const char *what, psa_status_t s)
{
	fprintf(stderr, "oracle: %s: %d\n", what, (int)s);
	exit(1);
}

/* material is a key of the type and size, generated once. */
static struct material *material(unsigned type, unsigned bits)
{
	struct material *m = materials;
	for (; m->size; m++)
		if (m->type == type && m->bits == bits)
			return m;
	psa_key_attributes_t a = PSA_KEY_ATTRIBUTES_INIT;
	psa_key_id_t id;
	int public = PSA_KEY_TYPE_IS_PUBLIC_KEY(type);
	psa_set_key_type(&a, public ? PSA_KEY_TYPE_KEY_PAIR_OF_PUBLIC_KEY(type) : type);
	psa_set_key_bits(&a, bits);
	psa_set_key_usage_flags(&a, PSA_KEY_USAGE_EXPORT);
	psa_status_t s = psa_generate_key(&a, &id);
	if (s)
		die("a key to start from", s);
	s = public ? psa_export_public_key(id, m->bytes, MOST, &m->size) : psa_export_key(id, m->bytes, MOST, &m->size);
	if (s)
		die("its export", s);
	psa_destroy_key(id);
	m->type = type;
	m->bits = bits;
	return m;
}

static psa_status_t use(const char *op, psa_key_id_t id, psa_key_attributes_t *a, psa_algorithm_t alg, size_t length)
{
	static uint8_t in[MOST], out[MOST], signature[MOST];
	size_t n, sign = PSA_SIGN_OUTPUT_SIZE(psa_get_key_type(a), psa_get_key_bits(a), alg);
	psa_key_id_t copy;
	psa_status_t s;

	if (!strcmp(op, "export"))
		return psa_export_key(id, out, MOST, &n);
	if (!strcmp(op, "export_public"))
		return psa_export_public_key(id, out, MOST, &n);
	if (!strcmp(op, "copy")) {
		psa_key_attributes_t c = *a;
		psa_set_key_algorithm(&c, alg);
		s = psa_copy_key(id, &c, &copy);
		if (!s)
			psa_destroy_key(copy);
		return s;
	}
	if (!strcmp(op, "sign"))
		return psa_sign_message(id, alg, in, length, out, MOST, &n);
	if (!strcmp(op, "sign_hash"))
		return psa_sign_hash(id, alg, in, length, out, MOST, &n);
	if (!strcmp(op, "verify"))
		return psa_verify_message(id, alg, in, length, signature, sign);
	if (!strcmp(op, "verify_hash"))
		return psa_verify_hash(id, alg, in, length, signature, sign);
	if (!strcmp(op, "mac"))
		return psa_mac_compute(id, alg, in, length, out, MOST, &n);
	if (!strcmp(op, "verify_mac"))
		return psa_mac_verify(id, alg, in, length, signature, PSA_MAC_LENGTH(psa_get_key_type(a), psa_get_key_bits(a), alg));
	if (!strcmp(op, "agree")) {
		s = psa_export_public_key(id, signature, MOST, &n);
		return s ? s : psa_raw_key_agreement(alg, id, signature, n, out, MOST, &n);
	}
	if (!strcmp(op, "encrypt") && PSA_ALG_IS_AEAD(alg))
		return psa_aead_encrypt(id, alg, in, PSA_AEAD_NONCE_LENGTH(psa_get_key_type(a), alg), NULL, 0, in, length, out, MOST, &n);
	if (!strcmp(op, "decrypt") && PSA_ALG_IS_AEAD(alg))
		return psa_aead_decrypt(id, alg, in, PSA_AEAD_NONCE_LENGTH(psa_get_key_type(a), alg), NULL, 0, in, length, out, MOST, &n);
	if (!strcmp(op, "encrypt") && PSA_ALG_IS_ASYMMETRIC_ENCRYPTION(alg))
		return psa_asymmetric_encrypt(id, alg, in, length, NULL, 0, out, MOST, &n);
	if (!strcmp(op, "decrypt") && PSA_ALG_IS_ASYMMETRIC_ENCRYPTION(alg))
		return psa_asymmetric_decrypt(id, alg, in, length, NULL, 0, out, MOST, &n);
	if (!strcmp(op, "encrypt"))
		return psa_cipher_encrypt(id, alg, in, length, out, MOST, &n);
	if (!strcmp(op, "decrypt"))
		return psa_cipher_decrypt(id, alg, in, length, out, MOST, &n);
	die(op, 0);
	return 0;
}

int main(void)
{
	char op[32];
	unsigned type, bits, policy, usage, alg, length;
	psa_status_t s = psa_crypto_init();
	if (s)
		die("psa_crypto_init", s);
	while (scanf("%31s %x %x %x %x %x %x", op, &type, &bits, &policy, &usage, &alg, &length) == 7) {
		psa_key_attributes_t a = PSA_KEY_ATTRIBUTES_INIT;
		psa_key_id_t id;
		int generate = !strcmp(op, "generate");
		psa_set_key_type(&a, type);
		psa_set_key_bits(&a, bits);
		psa_set_key_algorithm(&a, policy);
		psa_set_key_usage_flags(&a, usage);
		if (generate) {
			s = psa_generate_key(&a, &id);
		} else {
			struct material *m = material(type, bits);
			s = psa_import_key(&a, m->bytes, m->size, &id);
		}
		if (s || generate) {
			printf("create %d\n", (int)s);
		} else {
			printf("use %d\n", (int)use(op, id, &a, alg, length));
		}
		if (!s || !generate)
			psa_destroy_key(id);
		fflush(stdout);
	}
	return 0;
}
