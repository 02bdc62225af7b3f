/* Signs in one of C's ways: sign-c HOW SIGN MESSAGE SIGNATURE; eight of them take MESSAGE.0 to MESSAGE.7. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *sign_file;
static pthread_barrier_t all;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int opened(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0644);
	if (fd < 0)
		fail(path);
	return fd;
}

static void write_all(int fd, const char *b, size_t n)
{
	while (n > 0) {
		ssize_t w = write(fd, b, n);
		if (w < 0)
			fail("write");
		b += w;
		n -= w;
	}
}

static size_t read_all(int fd, char *b, size_t size)
{
	size_t n = 0;
	ssize_t r;
	while (n < size && (r = read(fd, b + n, size - n)) != 0) {
		if (r < 0)
			fail("read");
		n += r;
	}
	return n;
}

static size_t slurp(const char *path, char *b, size_t size)
{
	int fd = opened(path, O_RDONLY);
	size_t n = read_all(fd, b, size);
	close(fd);
	return n;
}

static void spew(const char *path, const char *b, size_t n)
{
	int fd = opened(path, O_WRONLY | O_CREAT | O_TRUNC);
	write_all(fd, b, n);
	if (close(fd))
		fail(path);
}

static void descriptor(const char *message, const char *signature)
{
	char b[8192];
	int fd = opened(sign_file, O_RDWR);
	write_all(fd, b, slurp(message, b, sizeof b));
	spew(signature, b, read_all(fd, b, sizeof b));
	close(fd);
}

static void call(const char *message, const char *signature)
{
	struct { uint32_t request_len, answer_len; char bytes[8192]; } c;
	int fd = opened(sign_file, O_RDWR);
	c.request_len = slurp(message, c.bytes, sizeof c.bytes);
	if (ioctl(fd, _IOWR(0xC7, 1, c), &c))
		fail("ioctl");
	spew(signature, c.bytes, c.answer_len);
	close(fd);
}

static void files(const char *message, const char *signature)
{
	char b[8192];
	spew(sign_file, b, slurp(message, b, sizeof b));
	pthread_barrier_wait(&all);
	spew(signature, b, slurp(sign_file, b, sizeof b));
}

struct job {
	pthread_t thread;
	char message[4096], signature[4096];
	void (*work)(const char *message, const char *signature);
};

static void *start(void *p)
{
	struct job *j = p;
	j->work(j->message, j->signature);
	return NULL;
}

static void eight(const char *message, const char *signature, void (*work)(const char *, const char *))
{
	static struct job jobs[8];
	int i;
	for (i = 0; i < 8; i++) {
		snprintf(jobs[i].message, sizeof jobs[i].message, "%s.%d", message, i);
		snprintf(jobs[i].signature, sizeof jobs[i].signature, "%s.%d", signature, i);
		jobs[i].work = work;
		if (pthread_create(&jobs[i].thread, NULL, start, &jobs[i]))
			fail("thread");
	}
	for (i = 0; i < 8; i++)
		pthread_join(jobs[i].thread, NULL);
}

static void copy_by_sendfile(const char *from, const char *to)
{
	int in = opened(from, O_RDONLY), out = opened(to, O_WRONLY | O_CREAT | O_TRUNC);
	ssize_t n;
	while ((n = sendfile(out, in, NULL, 1 << 20)) > 0)
		;
	if (n < 0)
		fail("sendfile");
	close(in);
	if (close(out))
		fail(to);
}

static void copy_by_mmap(const char *from, const char *to, int flags)
{
	int in = opened(from, O_RDONLY);
	char *b = mmap(NULL, 4096, PROT_READ, flags, in, 0);
	if (b == MAP_FAILED)
		fail("mmap");
	spew(to, b, 4096);
	close(in);
}

int main(int argc, char **argv)
{
	char b[8192];
	size_t n;
	int fd;

	if (argc != 5)
		return 2;
	sign_file = argv[2];
	n = slurp(argv[3], b, sizeof b);
	if (!strcmp(argv[1], "read")) {
		descriptor(argv[3], argv[4]);
	} else if (!strcmp(argv[1], "pread")) {
		fd = opened(sign_file, O_RDWR);
		if (pwrite(fd, b, n, 0) != (ssize_t)n)
			fail("pwrite");
		ssize_t r = pread(fd, b, sizeof b, 0);
		if (r < 0)
			fail("pread");
		spew(argv[4], b, r);
	} else if (!strcmp(argv[1], "readv")) {
		fd = opened(sign_file, O_RDWR);
		struct iovec parts[2] = {{b, 5}, {b + 5, n - 5}};
		if (writev(fd, parts, 2) != (ssize_t)n)
			fail("writev");
		parts[1].iov_len = sizeof b - 5;
		ssize_t r = readv(fd, parts, 2);
		if (r < 0)
			fail("readv");
		spew(argv[4], b, r);
	} else if (!strcmp(argv[1], "files")) {
		pthread_barrier_init(&all, NULL, 1);
		files(argv[3], argv[4]);
	} else if (!strcmp(argv[1], "eight")) {
		eight(argv[3], argv[4], descriptor);
	} else if (!strcmp(argv[1], "ioctl")) {
		call(argv[3], argv[4]);
	} else if (!strcmp(argv[1], "eight-ioctls")) {
		eight(argv[3], argv[4], call);
	} else if (!strcmp(argv[1], "eight-files")) {
		pthread_barrier_init(&all, NULL, 8);
		eight(argv[3], argv[4], files);
	} else if (!strcmp(argv[1], "sendfile")) {
		copy_by_sendfile(argv[3], sign_file);
		copy_by_sendfile(sign_file, argv[4]);
	} else if (!strcmp(argv[1], "mmap") || !strcmp(argv[1], "mmap-private")) {
		spew(sign_file, b, n);
		copy_by_mmap(sign_file, argv[4], strcmp(argv[1], "mmap") ? MAP_PRIVATE : MAP_SHARED);
	} else {
		return 2;
	}
	return 0;
}
