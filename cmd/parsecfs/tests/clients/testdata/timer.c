/* Signs with stdio while an SA_RESTART timer interrupts it each millisecond: timer SIGN MESSAGE SIGNATURE. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>

static void tick(int signal) { (void)signal; }

static int fail(const char *what)
{
	perror(what);
	return 1;
}

int main(int argc, char **argv)
{
	char message[1024], signature[8192];
	size_t n, m;
	FILE *f;
	struct sigaction action;
	struct itimerval timer = {{0, 1000}, {0, 1000}};

	if (argc != 4 || !(f = fopen(argv[2], "rb")))
		return fail("message");
	m = fread(message, 1, sizeof message, f);
	fclose(f);
	memset(&action, 0, sizeof action);
	action.sa_handler = tick;
	action.sa_flags = SA_RESTART;
	if (sigaction(SIGALRM, &action, NULL) || setitimer(ITIMER_REAL, &timer, NULL))
		return fail("timer");
	if (!(f = fopen(argv[1], "r+b")))
		return fail("open");
	if (fwrite(message, 1, m, f) != m || fflush(f))
		return fail("write");
	/* ISO C wants a seek between writing and reading one stream. */
	if (fseek(f, 0, SEEK_CUR))
		return fail("seek");
	n = fread(signature, 1, sizeof signature, f);
	if (ferror(f) || n == 0)
		return fail("read");
	fclose(f);
	if (!(f = fopen(argv[3], "wb")) || fwrite(signature, 1, n, f) != n || fclose(f))
		return fail("signature");
	return 0;
}
