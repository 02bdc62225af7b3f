// Looks at one file in many ways, each in a process of its own that has 10 seconds:
//
//	look BEFORE OPEN PATH WAY...
//
// For each way it prints "WAY<tab>OUTCOME<tab>LENGTH\n" and LENGTH bytes, which are what the file gave. OUTCOME is an
// errno's name, a signal's, or what the way says, "ok" at least. MESSAGE and SIGNATURE, in the environment, are files with a request.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/stat.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { seconds = 10, most = 4 << 20 };

static int out; // takes the bytes
static char *said; // shared with the parent
static const char *path;

// says ends the way with an outcome.
__attribute__((noreturn, format(printf, 1, 2))) static void says(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vsnprintf(said, 4096, format, args);
	_exit(0);
}

__attribute__((noreturn)) static void fails(void)
{
	says("%s", strerrorname_np(errno));
}

static long must(long n)
{
	if (n < 0)
		fails();
	return n;
}

// give takes what the file gave; a file that never ends is an outcome of its own.
static void give(const void *b, size_t n)
{
	if (write(out, b, n) != (ssize_t)n)
		says("the helper cannot write: %m");
	if (lseek(out, 0, SEEK_CUR) > most)
		says("endless");
}

static off_t size(int fd)
{
	struct stat s;
	must(fstat(fd, &s));
	return s.st_size;
}

static char *file(const char *variable, size_t *n)
{
	const char *name = getenv(variable);
	int fd = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0)
		says("the helper cannot read its %s: %m", variable);
	*n = (size_t)size(fd);
	char *b = malloc(*n + 1);
	if (!b || read(fd, b, *n) != (ssize_t)*n)
		says("the helper cannot read its %s", variable);
	close(fd);
	return b;
}

static void put(int fd, const char *variable)
{
	size_t n, done = 0;
	char *b = file(variable, &n);
	while (done < n)
		done += (size_t)must(write(fd, b + done, n - done));
	free(b);
}

static char buffer[1 << 16] __attribute__((aligned(4096)));

// drain reads to the end, and gives nothing.
static void drain(int fd)
{
	long total = 0, n;
	while ((n = must(read(fd, buffer, sizeof buffer))) > 0)
		if ((total += n) > most)
			says("endless");
}

static void way_stat(int fd)
{
	(void)fd;
	struct stat s;
	must(fstatat(AT_FDCWD, path, &s, AT_SYMLINK_NOFOLLOW));
	says("%06o %u:%u %lld", s.st_mode, s.st_uid, s.st_gid, S_ISDIR(s.st_mode) ? 0 : (long long)s.st_size);
}

static void way_fstat(int fd)
{
	struct stat s;
	must(fstat(fd, &s));
	says("%06o %u:%u %lld", s.st_mode, s.st_uid, s.st_gid, S_ISDIR(s.st_mode) ? 0 : (long long)s.st_size);
}

static void way_statx(int fd)
{
	struct statx s;
	(void)fd;
	must(statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &s));
	says("%06o %u:%u %lld", s.stx_mode, s.stx_uid, s.stx_gid, S_ISDIR(s.stx_mode) ? 0 : (long long)s.stx_size);
}

static void way_read(int fd)
{
	long n;
	while ((n = must(read(fd, buffer, sizeof buffer))) > 0)
		give(buffer, (size_t)n);
}

// small reads, of which the first end within a page
static void way_read_small(int fd)
{
	long n;
	while ((n = must(read(fd, buffer, 1000))) > 0)
		give(buffer, (size_t)n);
}

static void way_read_twice(int fd)
{
	long n = read(fd, buffer, sizeof buffer);
	if (n >= 0)
		says("%s", n ? "bytes" : "end");
	const char *first = strerrorname_np(errno);
	n = read(fd, buffer, sizeof buffer);
	says("%s, then %s", first, n < 0 ? strerrorname_np(errno) : n ? "bytes" : "end");
}

static void way_pread(int fd)
{
	off_t at = 0;
	long n;
	while ((n = must(pread(fd, buffer, 4096, at))) > 0) {
		give(buffer, (size_t)n);
		at += n;
	}
}

// behind the end there is nothing, however far
static void way_pread_behind(int fd)
{
	static const off_t far[] = {0, 1, 4096, 1 << 20, 1LL << 40};
	off_t end = size(fd);
	for (size_t i = 0; i < sizeof far / sizeof *far; i++)
		give(buffer, (size_t)must(pread(fd, buffer, sizeof buffer, end + far[i])));
}

static void way_readv(int fd)
{
	static char parts[3][777];
	struct iovec v[3] = {{parts[0], 1}, {parts[1], 777}, {parts[2], 500}};
	long n;
	while ((n = must(readv(fd, v, 3))) > 0)
		for (int i = 0; i < 3 && n > 0; i++) {
			long part = n < (long)v[i].iov_len ? n : (long)v[i].iov_len;
			give(parts[i], (size_t)part);
			n -= part;
		}
}

static void way_sendfile(int fd)
{
	while (must(sendfile(out, fd, NULL, sizeof buffer)) > 0)
		give("", 0);
}

static void way_splice(int fd)
{
	int ends[2];
	must(pipe2(ends, O_CLOEXEC));
	long n;
	while ((n = must(splice(fd, NULL, ends[1], NULL, 4096, 0))) > 0) {
		must(read(ends[0], buffer, (size_t)n));
		give(buffer, (size_t)n);
	}
}

static void way_copy_file_range(int fd)
{
	int to = (int)must(open(getenv("ELSEWHERE"), O_RDWR | O_TMPFILE | O_CLOEXEC, 0600));
	while (must(copy_file_range(fd, NULL, to, NULL, sizeof buffer, 0)) > 0)
		;
	must(lseek(to, 0, SEEK_SET));
	way_read(to);
}

// mapped maps as long as the file says it is, as programs do.
static void mapped(int fd, int protection, int flags)
{
	struct stat s;
	must(fstat(fd, &s));
	off_t n = S_ISDIR(s.st_mode) ? 4096 : s.st_size;
	char *b = mmap(NULL, (size_t)n, protection, flags, fd, 0);
	if (b == MAP_FAILED)
		fails();
	char *copy = malloc((size_t)n);
	memcpy(copy, b, (size_t)n);
	give(copy, (size_t)n);
}

static void way_mmap_private(int fd) { mapped(fd, PROT_READ, MAP_PRIVATE); }
static void way_mmap_shared(int fd) { mapped(fd, PROT_READ, MAP_SHARED); }
static void way_mmap_writable(int fd) { mapped(fd, PROT_READ | PROT_WRITE, MAP_SHARED); }

// uring does one operation by io_uring, without a library.
static long uring(int op, int fd, void *b, unsigned n, uint64_t at)
{
	static int ring = -1;
	static struct io_uring_params p;
	static char *rings;
	static struct io_uring_sqe *entries;
	if (ring < 0) {
		if ((ring = (int)syscall(SYS_io_uring_setup, 1, &p)) < 0)
			says("no io_uring here: %m");
		size_t length = p.sq_off.array + p.sq_entries * sizeof(unsigned);
		if (p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe) > length)
			length = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
		rings = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
		entries = mmap(NULL, p.sq_entries * sizeof *entries, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
		if (rings == MAP_FAILED || entries == MAP_FAILED || !(p.features & IORING_FEAT_SINGLE_MMAP))
			says("io_uring cannot be mapped");
	}
	unsigned *tail = (unsigned *)(rings + p.sq_off.tail), mask = *(unsigned *)(rings + p.sq_off.ring_mask);
	unsigned i = *tail & mask;
	entries[i] = (struct io_uring_sqe){.opcode = (uint8_t)op, .fd = fd, .off = at, .addr = (uint64_t)(uintptr_t)b, .len = n};
	((unsigned *)(rings + p.sq_off.array))[i] = i;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
		says("io_uring_enter: %m");
	unsigned *head = (unsigned *)(rings + p.cq_off.head);
	if (*head == __atomic_load_n((unsigned *)(rings + p.cq_off.tail), __ATOMIC_ACQUIRE))
		says("io_uring_enter: no completion");
	struct io_uring_cqe *c = (struct io_uring_cqe *)(rings + p.cq_off.cqes) + (*head & *(unsigned *)(rings + p.cq_off.ring_mask));
	long result = c->res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	if (result < 0) {
		errno = (int)-result;
		return -1;
	}
	return result;
}

static const uint64_t here = (uint64_t)-1; // the file's own position

static void way_uring_read(int fd)
{
	uint64_t at = (uint64_t)must(lseek(fd, 0, SEEK_CUR));
	long n;
	while ((n = must(uring(IORING_OP_READ, fd, buffer, sizeof buffer, at))) > 0) {
		give(buffer, (size_t)n);
		at += (uint64_t)n;
	}
}

static void way_uring_read_here(int fd)
{
	off_t at = must(lseek(fd, 0, SEEK_CUR));
	long n;
	while ((n = must(uring(IORING_OP_READ, fd, buffer, sizeof buffer, here))) > 0) {
		off_t now = must(lseek(fd, 0, SEEK_CUR));
		if (now == at)
			says("stays where it is");
		at = now;
		give(buffer, (size_t)n);
	}
}

// ask writes the request in one of several ways, and may give what is read from 0.
static void ask(int fd, int op, uint64_t at, bool reads)
{
	size_t n, done = 0;
	char *b = file("MESSAGE", &n);
	while (done < n) {
		long wrote = must(op ? uring(op, fd, b + done, (unsigned)(n - done), at) : write(fd, b + done, n - done));
		done += (size_t)wrote;
		if (at != here)
			at += (uint64_t)wrote;
	}
	must(lseek(fd, 0, SEEK_SET));
	if (!reads)
		return;
	op ? way_uring_read(fd) : way_read(fd);
	must(close(fd));
}

static void way_uring_parts(int fd)
{
	ask(fd, 0, 0, false);
	uint64_t at = 0;
	long n;
	while ((n = must(uring(IORING_OP_READ, fd, buffer, 10, at))) > 0) {
		give(buffer, (size_t)n);
		at += (uint64_t)n;
	}
}

// as busybox's cat and Python's shutil do
static void way_kernel_or_read(int fd)
{
	ask(fd, 0, 0, false);
	long n;
	while ((n = sendfile(out, fd, NULL, sizeof buffer)) > 0)
		;
	if (n < 0)
		way_read(fd);
}

static void way_write(int fd) { ask(fd, 0, 0, true); }
static void way_uring_write(int fd) { ask(fd, IORING_OP_WRITE, 0, true); }
static void way_uring_write_here(int fd) { ask(fd, IORING_OP_WRITE, here, true); }

// by O_PATH nothing is read, and through /proc/self/fd everything
static void way_path(int fd)
{
	fd = (int)must(open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC));
	struct stat s;
	must(fstat(fd, &s));
	if (read(fd, buffer, 1) != -1 || errno != EBADF)
		says("O_PATH reads: %m");
	says("%06o %lld", s.st_mode, S_ISDIR(s.st_mode) ? 0 : (long long)s.st_size);
}

static void seek(int fd, int whence, off_t at)
{
	off_t n = must(lseek(fd, at, whence));
	says("%lld", (long long)n);
}

static void way_seek_set(int fd)
{
	must(lseek(fd, 1 << 20, SEEK_SET)); // further than any of them goes
	must(lseek(fd, 1LL << 40, SEEK_SET));
	way_read(fd);
}

static void way_seek_end(int fd) { seek(fd, SEEK_END, 0); }
static void way_seek_data(int fd) { seek(fd, SEEK_DATA, 0); }
static void way_seek_hole(int fd) { seek(fd, SEEK_HOLE, 0); }

static int compare(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static char *names[1 << 14];

static size_t list(int fd, size_t from)
{
	size_t count = from;
	long n;
	while ((n = must(syscall(SYS_getdents64, fd, buffer, sizeof buffer))) > 0)
		for (long i = 0; i < n;) {
			struct dirent64 *d = (struct dirent64 *)(buffer + i);
			i += d->d_reclen;
			if (strcmp(d->d_name, ".") && strcmp(d->d_name, ".."))
				names[count++] = strdup(d->d_name);
		}
	qsort(names + from, count - from, sizeof *names, compare);
	return count;
}

static void way_getdents_twice(int fd)
{
	size_t once = list(fd, 0);
	must(lseek(fd, 0, SEEK_SET));
	size_t twice = list(fd, once) - once;
	if (once != twice)
		says("%zu names, then %zu", once, twice);
	for (size_t i = 0; i < once; i++) {
		if (strcmp(names[i], names[once + i]))
			says("%s, then %s", names[i], names[once + i]);
		give(names[i], strlen(names[i]));
		give("\n", 1);
	}
}

// from each position the same name follows, whatever was read in between
static void way_seekdir(int fd)
{
	static long at[1 << 13];
	DIR *d = fdopendir(fd);
	if (!d)
		fails();
	size_t n = 0;
	for (struct dirent *e;; n++) {
		at[n] = telldir(d);
		errno = 0;
		if (!(e = readdir(d)))
			break;
		names[n] = strdup(e->d_name);
	}
	if (errno)
		fails();
	for (size_t i = n; i-- > 0;) {
		if (n > 100 && i % (n / 50) > 1) // a look at each side of each of 50 places
			continue;
		seekdir(d, at[i]);
		struct dirent *e = readdir(d);
		if (!e || strcmp(e->d_name, names[i]))
			says("%s where %s was", e ? e->d_name : "nothing", names[i]);
	}
	seekdir(d, at[n]);
	if (n && readdir(d))
		says("a name behind the end");
}

static void way_fsync(int fd) { must(fsync(fd)); }
static void way_fdatasync(int fd) { must(fdatasync(fd)); }
static void way_fallocate(int fd) { must(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 100)); }

static void way_flock(int fd)
{
	must(flock(fd, LOCK_EX | LOCK_NB));
	must(flock(fd, LOCK_UN));
}

static void way_lockf(int fd)
{
	struct flock l = {.l_type = F_RDLCK, .l_whence = SEEK_SET};
	must(fcntl(fd, F_OFD_SETLK, &l));
}

static void date(time_t t)
{
	struct timespec times[2] = {{t, 0}, {t, 0}};
	struct stat s;
	must(utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW));
	must(fstatat(AT_FDCWD, path, &s, AT_SYMLINK_NOFOLLOW));
	struct tm *year = gmtime(&s.st_mtim.tv_sec);
	says("%d", year->tm_year + 1900);
}

static void way_date_1600(int fd) { (void)fd, date(-11676096000); }
static void way_date_2300(int fd) { (void)fd, date(10413792000); }

static void way_chmod(int fd)
{
	(void)fd;
	struct stat s;
	must(fstatat(AT_FDCWD, path, &s, AT_SYMLINK_NOFOLLOW));
	must(fchmodat(AT_FDCWD, path, s.st_mode & 07777, S_ISLNK(s.st_mode) ? AT_SYMLINK_NOFOLLOW : 0));
}

static void way_chown(int fd)
{
	(void)fd;
	struct stat s;
	must(fstatat(AT_FDCWD, path, &s, AT_SYMLINK_NOFOLLOW));
	must(lchown(path, s.st_uid, s.st_gid));
}

static void way_poll(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN | POLLOUT};
	must(poll(&p, 1, 1000));
	says("%x", p.revents);
}

static void way_fionread(int fd)
{
	int n = 0;
	must(ioctl(fd, FIONREAD, &n));
	says("%d", n);
}

// way_call is the ioctl of docs/ioctl.md, with a message.
static void way_call(int fd)
{
	struct { unsigned request_len, answer_len; char bytes[1000]; } c = {.request_len = 9, .bytes = "a message"};
	must(ioctl(fd, _IOWR(0xC7, 1, c), &c));
	says("%s", c.answer_len > 0 ? "an answer" : "nothing");
}

static void way_tty(int fd)
{
	says("%s", isatty(fd) ? "a terminal" : "no terminal");
}

static void way_readlink(int fd)
{
	(void)fd;
	give(buffer, (size_t)must(readlink(path, buffer, sizeof buffer)));
}

// program runs a shell's command, whose exit status is the outcome. The descriptor is held meanwhile.
static void program(const char *command)
{
	pid_t pid = fork();
	if (pid == 0) {
		dup2(out, 1);
		setenv("LOOKED", path, 1);
		execl("/bin/sh", "sh", "-c", command, NULL);
		_exit(127);
	}
	int status = 0;
	must(waitpid(pid, &status, 0));
	if (WIFSIGNALED(status))
		says("%s", sigabbrev_np(WTERMSIG(status)));
	if (WEXITSTATUS(status))
		says("exit %d", WEXITSTATUS(status));
}

#define SCRATCH "set -e; d=$(mktemp -d \"$ELSEWHERE/look.XXXXXX\"); trap 'rm -rf \"$d\"' EXIT; "
#define SHOW "if [ -L \"$d/x\" ]; then readlink \"$d/x\"; elif [ -f \"$d/x\" ]; then cat \"$d/x\"; fi"

static void way_tar(int fd)
{
	(void)fd;
	program(SCRATCH "tar --no-recursion -C \"${LOOKED%/*}\" -cf \"$d/a\" \"${LOOKED##*/}\" 2>/dev/null; "
			"cd \"$d\"; tar -xf a --transform 's/.*/x/' --no-same-permissions 2>/dev/null; " SHOW);
}

static void way_rsync(int fd)
{
	(void)fd;
	program(SCRATCH "rsync -a --no-recursive --dirs \"$LOOKED\" \"$d/x\" 2>/dev/null; " SHOW);
}

static void way_cp(int fd)
{
	(void)fd;
	program(SCRATCH "if [ -d \"$LOOKED\" ] && [ ! -L \"$LOOKED\" ]; then exit 0; fi; cp -a \"$LOOKED\" \"$d/x\" 2>/dev/null; " SHOW);
}

static const struct way {
	const char *name;
	void (*look)(int fd);
	int flags; // beside those of OPEN
	bool opens; // it looks through a descriptor
} ways[] = {
	{"stat", way_stat, 0, false},
	{"fstat", way_fstat, 0, true},
	{"statx", way_statx, 0, false},
	{"read", way_read, 0, true},
	{"read small", way_read_small, 0, true},
	{"read twice", way_read_twice, 0, true},
	{"pread", way_pread, 0, true},
	{"pread behind", way_pread_behind, 0, true},
	{"readv", way_readv, 0, true},
	{"sendfile", way_sendfile, 0, true},
	{"splice", way_splice, 0, true},
	{"copy_file_range", way_copy_file_range, 0, true},
	{"mmap private", way_mmap_private, 0, true},
	{"mmap shared", way_mmap_shared, 0, true},
	{"mmap writable", way_mmap_writable, 0, true},
	{"io_uring read", way_uring_read, 0, true},
	{"io_uring read -1", way_uring_read_here, 0, true},
	{"write", way_write, 0, true},
	{"io_uring write", way_uring_write, 0, true},
	{"io_uring write -1", way_uring_write_here, 0, true},
	{"io_uring write, read in parts", way_uring_parts, 0, true},
	{"write, then sendfile or read", way_kernel_or_read, 0, true},
	{"O_APPEND", way_write, O_APPEND, true},
	{"O_DIRECT", way_read, O_DIRECT, true},
	{"O_PATH", way_path, 0, false},
	{"lseek SET", way_seek_set, 0, true},
	{"lseek END", way_seek_end, 0, true},
	{"lseek DATA", way_seek_data, 0, true},
	{"lseek HOLE", way_seek_hole, 0, true},
	{"getdents twice", way_getdents_twice, 0, true},
	{"seekdir", way_seekdir, 0, true},
	{"fsync", way_fsync, 0, true},
	{"fdatasync", way_fdatasync, 0, true},
	{"fallocate", way_fallocate, 0, true},
	{"flock", way_flock, 0, true},
	{"fcntl lock", way_lockf, 0, true},
	{"utimensat 1600", way_date_1600, 0, false},
	{"utimensat 2300", way_date_2300, 0, false},
	{"chmod", way_chmod, 0, false},
	{"chown", way_chown, 0, false},
	{"poll", way_poll, 0, true},
	{"FIONREAD", way_fionread, 0, true},
	{"isatty", way_tty, 0, true},
	{"ioctl", way_call, 0, true},
	{"readlink", way_readlink, 0, false},
	{"tar", way_tar, 0, false},
	{"rsync -a", way_rsync, 0, false},
	{"cp -a", way_cp, 0, false},
};

static void put_at(const char *name, const char *variable)
{
	int fd = (int)must(open(name, O_WRONLY | O_CLOEXEC));
	put(fd, variable);
	must(close(fd));
}

static char slot[4096]; // for the parent to remove

// prepare makes a slot and leaves it as the way is to find it; path is then the file in it that is looked at.
static void prepare(const char *before)
{
	static char part[8192];
	if (!strcmp(before, "-"))
		return;
	if (!strcmp(before, "deposit")) {
		put_at(path, "MESSAGE");
		return;
	}
	path = slot;
	if (!strncmp(before, "slot", 4)) {
		close((int)must(open(slot, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600)));
		if (strcmp(before, "slot"))
			put_at(path, "MESSAGE");
	} else {
		must(mkdir(slot, 0700));
		path = part;
		for (int i = 0; i < 2 && strcmp(before, "parts"); i++) {
			snprintf(part, sizeof part, "%s/%s", slot, i ? "message" : "signature");
			put_at(part, i ? "MESSAGE" : "SIGNATURE");
		}
		snprintf(part, sizeof part, "%s/%s", slot, getenv("PART"));
	}
	if (strstr(before, "answered")) {
		int fd = (int)must(open(path, O_RDONLY | O_CLOEXEC));
		drain(fd);
		close(fd);
	}
}

static void look(const char *before, const char *how, const struct way *w)
{
	setpgid(0, 0);
	alarm(seconds);
	prepare(before);
	int fd = -1, flags = O_RDWR;
	if (!strcmp(how, "read"))
		flags = O_RDONLY;
	else if (!strcmp(how, "walk"))
		flags = O_RDONLY | O_NOFOLLOW;
	else if (!strcmp(how, "write"))
		flags = O_WRONLY;
	if (w->opens || flags == O_RDWR)
		fd = (int)must(open(path, flags | w->flags | O_CLOEXEC));
	bool asks = !strncmp(how, "ask", 3), waits = !strncmp(how, "wait", 4), behind = strstr(how, "here");
	size_t n = 0;
	if (asks || waits)
		put(fd, "MESSAGE");
	if (behind)
		free(file("MESSAGE", &n));
	if (asks || waits || behind)
		must(lseek(fd, (off_t)n, SEEK_SET));
	if (asks) {
		drain(fd);
		must(lseek(fd, (off_t)n, SEEK_SET));
	}
	w->look(fd);
	says("ok");
}

static void clear(const char *before)
{
	if (!strcmp(before, "-"))
		return;
	if (!strcmp(before, "deposit")) { // which nobody may have taken
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		while (read(fd, buffer, sizeof buffer) > 0)
			;
		close(fd);
		return;
	}
	if ((strncmp(before, "slot", 4) ? rmdir(slot) : unlink(slot)) < 0 && errno != ENOENT)
		fprintf(stderr, "look: %s: %m\n", slot);
}

int main(int argc, char **argv)
{
	if (argc < 5)
		return 2;
	out = memfd_create("look", MFD_CLOEXEC);
	said = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (out < 0 || said == MAP_FAILED)
		return 1;
	for (int i = 4; i < argc; i++) {
		const struct way *w = ways, *end = ways + sizeof ways / sizeof *ways;
		while (w < end && strcmp(w->name, argv[i]))
			w++;
		if (w == end)
			return 2;
		path = argv[3];
		snprintf(slot, sizeof slot, "%s/look-%d", path, (int)getpid());
		*said = 0;
		if (ftruncate(out, 0) < 0 || lseek(out, 0, SEEK_SET) < 0)
			return 1;
		pid_t pid = fork();
		if (pid < 0)
			return 1;
		if (pid == 0)
			look(argv[1], argv[2], w);
		int status = 0;
		if (waitpid(pid, &status, 0) < 0)
			return 1;
		kill(-pid, SIGKILL); // what it started
		if (WIFSIGNALED(status))
			snprintf(said, 4096, WTERMSIG(status) == SIGALRM ? "hangs" : "SIG%s", sigabbrev_np(WTERMSIG(status)));
		clear(argv[1]);
		off_t length = lseek(out, 0, SEEK_END);
		printf("%s\t%s\t%lld\n", w->name, said, (long long)length);
		fflush(stdout);
		for (off_t at = 0; at < length;)
			if (sendfile(STDOUT_FILENO, out, &at, (size_t)(length - at)) <= 0)
				return 1;
	}
}
