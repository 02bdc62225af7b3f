/* Signs from many threads until its input ends, and says a dot for each signature: crowd SIGN THREADS */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static atomic_int stopped;
static const char *sign_file;

static void *work(void *unused)
{
	char b[1024];
	int fd = open(sign_file, O_RDWR | O_CLOEXEC);
	(void)unused;
	while (!stopped) {
		if (fd < 0 || write(fd, "message", 7) != 7 || read(fd, b, sizeof b) <= 0 || write(1, ".", 1) != 1) {
			perror("crowd");
			exit(1);
		}
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[512];
	char b[1];
	int i, n = argc == 3 ? atoi(argv[2]) : 0;

	sign_file = argv[1];
	for (i = 0; i < n; i++)
		if (pthread_create(&threads[i], NULL, work, NULL))
			return 1;
	while (read(0, b, 1) > 0)
		;
	stopped = 1;
	for (i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	return 0;
}
