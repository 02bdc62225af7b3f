/*
 * A PKCS#11 module that passes every call on to the module that SABOTEUR_MODULE names, and does harm in the function
 * that the first line of the file SABOTEUR_CONTROL names, for as long as it says so:
 *
 *     C_Sign crash          SIGSEGV instead of the call
 *     C_Sign crash-after    SIGSEGV after the call: done, and nobody learns of it
 *     C_Sign hang           does not return until somebody has opened the FIFO SABOTEUR_CONTROL.fifo to write, and closed it
 *     C_Sign 0x30           returns this CK_RV instead of the call
 *     C_Sign lie            the call, and another bit at the end of what it gave; of C_Sign alone
 *
 * Built with: gcc -shared -fPIC -o saboteur.so saboteur.c
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned char byte;
typedef unsigned long word; /* CK_ULONG, CK_RV, handles, flags */

/* CK_FUNCTION_LIST of PKCS#11 2.40, section 3.6: the version, and 68 functions in a fixed order. */
struct list {
	byte version[2];
	void *call[68];
};

static struct list theirs, ours;

enum { pass, crash, crash_after, hang, give, lie };

/* asked says what to do in function, and the CK_RV to give. */
static int asked(const char *function, word *rv) {
	const char *control = getenv("SABOTEUR_CONTROL");
	char name[64], what[64], *end;
	int found;
	FILE *f;

	if (!control || !(f = fopen(control, "r")))
		return pass;
	found = fscanf(f, "%63s %63s", name, what);
	fclose(f);
	if (found != 2 || strcmp(name, function))
		return pass;
	if (!strcmp(what, "crash"))
		return crash;
	if (!strcmp(what, "crash-after"))
		return crash_after;
	if (!strcmp(what, "hang"))
		return hang;
	if (!strcmp(what, "lie"))
		return lie;
	*rv = strtoul(what, &end, 0);
	if (end == what || *end) {
		fprintf(stderr, "saboteur: %s: unknown harm %s\n", function, what);
		abort();
	}
	return give;
}

static void __attribute__((noreturn)) fall(void) {
	int *volatile nowhere = NULL;

	*nowhere = 0;
	abort();
}

static void wait_for_release(void) {
	char fifo[4096], c;
	int fd;

	snprintf(fifo, sizeof fifo, "%s.fifo", getenv("SABOTEUR_CONTROL"));
	while ((fd = open(fifo, O_RDONLY)) < 0) {
		if (errno != EINTR)
			pause();
	}
	do
		errno = 0;
	while (read(fd, &c, 1) > 0 || errno == EINTR);
	close(fd);
}

#define SABOTAGE(function, number, parameters, arguments)                                                              \
	enum { number_of_##function = number };                                                                        \
	static word function parameters {                                                                              \
		word rv = 0;                                                                                           \
		int harm = asked(#function, &rv);                                                                      \
		switch (harm) {                                                                                        \
		case crash:                                                                                            \
			fall();                                                                                        \
		case hang:                                                                                             \
			wait_for_release();                                                                            \
			break;                                                                                         \
		case give:                                                                                             \
			return rv;                                                                                     \
		}                                                                                                      \
		rv = ((word(*) parameters)theirs.call[number])arguments;                                               \
		if (harm == crash_after)                                                                               \
			fall();                                                                                        \
		return rv;                                                                                             \
	}

SABOTAGE(C_Initialize, 0, (void *args), (args))
SABOTAGE(C_GetTokenInfo, 6, (word slot, void *info), (slot, info))
SABOTAGE(C_OpenSession, 12, (word slot, word flags, void *app, void *notify, word *session),
	 (slot, flags, app, notify, session))
SABOTAGE(C_Login, 18, (word session, word user, byte *pin, word len), (session, user, pin, len))
SABOTAGE(C_CreateObject, 20, (word session, void *attributes, word count, word *object),
	 (session, attributes, count, object))
SABOTAGE(C_DestroyObject, 22, (word session, word object), (session, object))
SABOTAGE(C_FindObjectsInit, 26, (word session, void *attributes, word count), (session, attributes, count))
SABOTAGE(C_Decrypt, 34, (word session, byte *in, word len, byte *out, word *outlen), (session, in, len, out, outlen))
SABOTAGE(C_SignInit, 42, (word session, void *mechanism, word key), (session, mechanism, key))
SABOTAGE(C_Sign, 43, (word session, byte *in, word len, byte *out, word *outlen), (session, in, len, out, outlen))

static word lying_sign(word session, byte *in, word len, byte *out, word *outlen) {
	word rv, none;

	rv = C_Sign(session, in, len, out, outlen);
	if (asked("C_Sign", &none) == lie && !rv && out && *outlen)
		out[*outlen - 1] ^= 1;
	return rv;
}

SABOTAGE(C_GenerateKey, 58, (word session, void *mechanism, void *attributes, word count, word *key),
	 (session, mechanism, attributes, count, key))
SABOTAGE(C_GenerateKeyPair, 59,
	 (word session, void *mechanism, void *public, word publics, void *private, word privates, word *pub, word *priv),
	 (session, mechanism, public, publics, private, privates, pub, priv))

word C_GetFunctionList(struct list **out) {
	const char *module = getenv("SABOTEUR_MODULE");
	word (*get)(struct list **);
	struct list *real;
	void *library;
	word rv;

	if (!module || !(library = dlopen(module, RTLD_NOW)) || !(get = dlsym(library, "C_GetFunctionList"))) {
		fprintf(stderr, "saboteur: %s: %s\n", module ? module : "no SABOTEUR_MODULE", module ? dlerror() : "");
		return 5; /* CKR_GENERAL_ERROR */
	}
	if ((rv = get(&real)))
		return rv;
	theirs = ours = *real;
#define PUT(function) ours.call[number_of_##function] = function
	ours.call[3] = C_GetFunctionList;
	PUT(C_Initialize);
	PUT(C_GetTokenInfo);
	PUT(C_OpenSession);
	PUT(C_Login);
	PUT(C_CreateObject);
	PUT(C_DestroyObject);
	PUT(C_FindObjectsInit);
	PUT(C_Decrypt);
	PUT(C_SignInit);
	ours.call[number_of_C_Sign] = lying_sign;
	PUT(C_GenerateKey);
	PUT(C_GenerateKeyPair);
	*out = &ours;
	return 0;
}
