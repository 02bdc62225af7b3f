/* threads FILE: a process of root's whose threads are different users, as file servers' are. For each line on stdin each of
 * them opens FILE and signs, and signs over one descriptor that all share; what came of it is a line each, then an empty one.
 * The same again with io_uring, whose requests act for a registered personality (io_uring_register(2)), at once and by a
 * worker thread. Not for one with the process's own ids and fewer capabilities: nothing tells it from the process. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum how { ALL, FSIDS, FSIDS_OVERRIDE, NO_CAPS };

/* The C library's functions would change every thread (nptl(7)); system calls change their own. */
static const struct who { const char *name; enum how how; unsigned uid, gid, group; } users[] = {
	{ "root", ALL, 0, 0, 0 },
	{ "the owner", ALL, 61001, 61001, 0 },
	{ "by name", ALL, 61003, 61003, 0 },
	{ "by group", ALL, 61005, 61005, 61004 },
	{ "by its own group", ALL, 61005, 61004, 0 },
	{ "nobody", ALL, 61005, 61005, 0 },
	{ "root as the owner", FSIDS, 61001, 61001, 0 },
	{ "root as by name", FSIDS, 61003, 61003, 0 },
	{ "root as by group", FSIDS, 61005, 61005, 61004 },
	{ "root as by its own group", FSIDS, 61005, 61004, 0 },
	{ "root as nobody", FSIDS, 61005, 61005, 0 },
	{ "root as nobody with CAP_DAC_OVERRIDE", FSIDS_OVERRIDE, 61005, 61005, 0 },
	{ "root without capabilities", NO_CAPS, 0, 0, 0 },
};
#define USERS (sizeof(users) / sizeof(users[0]))

static const char *file;
static int shared;
static char answer[65536];

static const char *said(long result) { return result < 0 ? strerrorname_np(-result) : "yes"; }

static void become(const struct who *u)
{
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct caps[2] = { 0 };

	syscall(SYS_setgroups, u->group != 0, &u->group);
	if (u->how == ALL) {
		syscall(SYS_setresgid, u->gid, u->gid, u->gid);
		syscall(SYS_setresuid, u->uid, u->uid, u->uid);
	} else if (u->how != NO_CAPS) {
		syscall(SYS_setfsgid, u->gid);
		syscall(SYS_setfsuid, u->uid);
	}
	if (u->how == FSIDS_OVERRIDE) {
		syscall(SYS_capget, &head, caps);
		caps[0].effective |= 1 << CAP_DAC_OVERRIDE;
	}
	if (u->how == FSIDS_OVERRIDE || u->how == NO_CAPS)
		syscall(SYS_capset, &head, caps);
}

static long signs(int fd)
{
	if (ftruncate(fd, 0) || pwrite(fd, "message", 7, 0) != 7 || pread(fd, answer, sizeof(answer), 0) < 0)
		return -errno;
	return 0;
}

static void *thread(void *arg)
{
	const struct who *u = arg;
	long opened;
	int fd;

	become(u);
	fd = open(file, O_RDWR);
	opened = fd < 0 ? -errno : signs(fd);
	if (fd >= 0)
		close(fd);
	printf("%s: %s %s\n", u->name, said(opened), said(signs(shared)));
	return NULL;
}

static int ring;
static struct io_uring_params setup;
static char *sq, *cq;
static struct io_uring_sqe *sqes;
static int personalities[USERS];

static int make_ring(void)
{
	ring = syscall(SYS_io_uring_setup, 1, &setup);
	if (ring < 0)
		return 0;
	sq = mmap(NULL, setup.sq_off.array + setup.sq_entries * 4, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	cq = mmap(NULL, setup.cq_off.cqes + setup.cq_entries * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE, MAP_SHARED, ring,
		  IORING_OFF_CQ_RING);
	sqes = mmap(NULL, setup.sq_entries * sizeof(*sqes), PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
	return sq != MAP_FAILED && cq != MAP_FAILED && sqes != MAP_FAILED;
}

static void *personality(void *arg)
{
	const struct who *u = arg;

	become(u);
	personalities[u - users] = syscall(SYS_io_uring_register, ring, IORING_REGISTER_PERSONALITY, NULL, 0);
	return NULL;
}

/* One request, of a ring with one place. */
static long ask(struct io_uring_sqe request)
{
	unsigned *tail = (unsigned *)(sq + setup.sq_off.tail), *head = (unsigned *)(cq + setup.cq_off.head);
	unsigned mask = *(unsigned *)(cq + setup.cq_off.ring_mask);
	long result;

	sqes[0] = request;
	((unsigned *)(sq + setup.sq_off.array))[0] = 0;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
		return -errno;
	result = ((struct io_uring_cqe *)(cq + setup.cq_off.cqes))[*head & mask].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return result;
}

/* The request is written by root, over the descriptor itself. */
static long ring_signs(int fd, int personality, int flags)
{
	if (ftruncate(fd, 0) || pwrite(fd, "message", 7, 0) != 7)
		return -errno;
	return ask((struct io_uring_sqe){ .opcode = IORING_OP_READ, .fd = fd, .addr = (unsigned long)answer, .len = sizeof(answer),
					  .personality = personality, .flags = flags });
}

static void ring_try(const struct who *u, int flags)
{
	int personality = personalities[u - users];
	long fd = ask((struct io_uring_sqe){ .opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .addr = (unsigned long)file, .open_flags = O_RDWR,
					     .personality = personality, .flags = flags });
	long opened = fd < 0 ? fd : ring_signs(fd, personality, flags);

	if (fd >= 0)
		close(fd);
	printf("%s, %s: %s %s\n", u->name, flags ? "by a worker" : "by io_uring", said(opened),
	       said(ring_signs(shared, personality, flags)));
}

static void run(void *(*f)(void *), const struct who *u)
{
	pthread_t t;

	if (!pthread_create(&t, NULL, f, (void *)u))
		pthread_join(t, NULL);
}

int main(int argc, char **argv)
{
	char line[16];
	int rings;

	if (argc != 2)
		return 2;
	file = argv[1];
	shared = open(file, O_RDWR);
	if (shared < 0)
		return 2;
	rings = make_ring();
	for (unsigned i = 0; rings && i < USERS; i++)
		run(personality, &users[i]);
	while (fgets(line, sizeof(line), stdin)) {
		for (unsigned i = 0; i < USERS; i++) {
			run(thread, &users[i]);
			if (rings && users[i].how != NO_CAPS) {
				ring_try(&users[i], 0);
				ring_try(&users[i], IOSQE_ASYNC);
			}
		}
		printf("\n");
		fflush(stdout);
	}
	return 0;
}
