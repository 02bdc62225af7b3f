// A PKCS #11 module that is none: when it is loaded it takes the worker's place, and answers with what LIAR names.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { first_socket = 4 };

static int whole(int fd, unsigned char *b, size_t n)
{
	while (n > 0) {
		ssize_t got = read(fd, b, n);
		if (got <= 0)
			return -1;
		b += got, n -= got;
	}
	return 0;
}

// next reads a request, and gives the bytes of its number: the first in it.
static size_t next(int fd, unsigned char id[10])
{
	unsigned char head[4], *body;
	size_t n, i = 0;
	if (whole(fd, head, 4) < 0)
		_exit(0);
	n = (size_t)head[0] << 24 | head[1] << 16 | head[2] << 8 | head[3];
	body = malloc(n + 1);
	if (whole(fd, body, n) < 0)
		_exit(0);
	while (i < 9 && i < n && body[i] >= 128)
		i++;
	memcpy(id, body, i + 1);
	free(body);
	return i + 1;
}

static void say(int fd, const void *b, size_t n)
{
	if (write(fd, b, n) < 0)
		_exit(0);
}

// answer says that all went well, with nothing in it.
static void answer(int fd, const unsigned char *id, size_t n)
{
	unsigned char frame[4 + 10 + 14] = {0, 0, 0, (unsigned char)(n + 14)};
	memcpy(frame + 4, id, n);
	say(fd, frame, 4 + n + 14);
}

__attribute__((constructor)) static void loaded(void)
{
	static unsigned char much[1 << 16];
	const char *lie = getenv("LIAR");
	unsigned char id[10];
	if (!strcmp(lie, "deaf"))
		for (;;)
			pause();
	for (;;) {
		size_t n = next(first_socket, id);
		if (!strcmp(lie, "empty")) {
			answer(first_socket, id, n);
		} else if (!strcmp(lie, "other")) {
			id[0] ^= 1;
			answer(first_socket, id, n);
		} else if (!strcmp(lie, "twice")) {
			answer(first_socket, id, n);
			answer(first_socket, id, n);
		} else if (!strcmp(lie, "too long")) {
			say(first_socket, "\xff\xff\xff\xff", 4);
		} else if (!strcmp(lie, "long")) {
			for (say(first_socket, "\x00\xff\xff\xff", 4);;)
				say(first_socket, much, sizeof much);
		} else if (!strcmp(lie, "outcome")) {
			unsigned char frame[] = {0, 0, 0, 19, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 1};
			unsigned char rest[12] = {0};
			frame[4] = id[0];
			say(first_socket, frame, sizeof frame);
			say(first_socket, rest, sizeof rest);
		} else if (!strcmp(lie, "noise")) {
			for (;;)
				say(first_socket, much, sizeof much);
		} else if (!strcmp(lie, "talk")) {
			memset(much, 'a', sizeof much);
			for (size_t i = 1; i < sizeof much; i += 2)
				much[i] = '\n';
			for (;;)
				say(2, much, sizeof much);
		}
	}
}
