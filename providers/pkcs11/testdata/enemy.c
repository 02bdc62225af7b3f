// A PKCS #11 module that is none: when it is loaded it tries what a module has no business with, and writes what came of it
// into the file ENEMY_REPORT, a line for each try.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static FILE *report;

static void tell(const char *what, long result)
{
	fprintf(report, "%s: %s\n", what, result < 0 ? strerrorname_np(errno) : "done");
}

static void try_open(const char *what, const char *path, int flags)
{
	int fd = open(path, flags);
	tell(what, fd);
	if (fd >= 0)
		close(fd);
}

static void tell_lines(void)
{
	char line[512];
	FILE *f = fopen("/proc/self/status", "r");
	while (f && fgets(line, sizeof line, f))
		if (!strncmp(line, "Cap", 3) || !strncmp(line, "NoNewPrivs", 10) || !strncmp(line, "Seccomp:", 8) ||
		    !strncmp(line, "Uid", 3) || !strncmp(line, "Gid", 3) || !strncmp(line, "Groups", 6))
			fputs(line, report);
	if (f)
		fclose(f);
}

static void tell_descriptors(void)
{
	DIR *d = opendir("/proc/self/fd");
	struct dirent *e;
	while (d && (e = readdir(d))) {
		char path[300], to[300];
		snprintf(path, sizeof path, "/proc/self/fd/%s", e->d_name);
		ssize_t n = readlink(path, to, sizeof to - 1);
		if (n <= 0)
			continue;
		to[n] = 0;
		fprintf(report, "descriptor: %s\n", to);
	}
	if (d)
		closedir(d);
}

static void spy(void)
{
	char path[64], buffer[4096];
	pid_t starter = getppid();
	struct iovec mine = {buffer, sizeof buffer}, theirs = {(void *)0x400000, sizeof buffer};
	struct rlimit none = {0, 0}, core;
	for (char **v = environ; *v; v++)
		fprintf(report, "variable: %.*s\n", (int)strcspn(*v, "="), *v);
	snprintf(path, sizeof path, "/proc/%d/mem", starter);
	try_open("read the starter's memory", path, O_RDONLY);
	try_open("write the starter's memory", path, O_RDWR);
	snprintf(path, sizeof path, "/proc/%d/environ", starter);
	try_open("read the starter's environment", path, O_RDONLY);
	snprintf(path, sizeof path, "/proc/%d/fd/0", starter);
	try_open("open what the starter has open", path, O_RDONLY);
	tell("process_vm_readv", process_vm_readv(starter, &mine, 1, &theirs, 1, 0));
	tell("ptrace", ptrace(PTRACE_SEIZE, starter, 0, 0));
	tell("kill", kill(starter, 0));
	tell("prlimit", prlimit(starter, RLIMIT_CPU, NULL, &none));
	tell("unshare", unshare(CLONE_NEWUSER));
	tell("clone", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0) > 0 ? 0 : -1);
	tell("clone3", syscall(SYS_clone3, NULL, 0));
	tell("bpf", syscall(SYS_bpf, 0, NULL, 0));
	tell("io_uring", syscall(SYS_io_uring_setup, 1, NULL));
	tell("setuid", setuid(geteuid() ? 0 : 1));
	tell("ambient", prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, 0, 0, 0));
	try_open("open the state", getenv("ENEMY_STATE"), O_RDONLY);
#ifdef __x86_64__
	long result;
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory", "r8", "r9", "r10", "r11"); // getpid of i386
	errno = result < 0 ? -(int)result : 0;
	tell("a call of i386", result);
#endif
	getrlimit(RLIMIT_CORE, &core);
	fprintf(report, "core: %ld\ndumpable: %d\n", (long)core.rlim_max, prctl(PR_GET_DUMPABLE, 0, 0, 0, 0));
	tell_lines();
	tell_descriptors();
}

__attribute__((constructor)) static void loaded(void)
{
	report = fopen(getenv("ENEMY_REPORT"), "w");
	if (!report)
		_exit(9);
	spy();
	fclose(report);
}
