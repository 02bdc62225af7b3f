/* attack FILE TARGET SECONDS ANCESTORS CHILDREN THREADS: each of the ancestors stays in execve(2), where it closes FILE, whose
 * FLUSH nobody answers; the threads of its children open TARGET again and again. They begin at the end of stdin. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *target;
static time_t end;

static time_t now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec;
}

static void *hammer(void *unused)
{
	while (now() < end) {
		int fd = open(target, O_RDONLY);
		if (fd >= 0)
			close(fd);
		else
			usleep(1000);
	}
	return unused;
}

static int child(int seconds, int count)
{
	char byte;
	pthread_t threads[count];

	if (read(0, &byte, 1))
		return 2;
	end = now() + seconds;
	for (int t = 0; t < count; t++)
		if (pthread_create(&threads[t], NULL, hammer, NULL))
			return 2;
	for (int t = 0; t < count; t++)
		pthread_join(threads[t], NULL);
	return 0;
}

static int ancestor(char **argv)
{
	for (int i = 0; i < atoi(argv[5]); i++) {
		pid_t pid = fork();
		if (pid < 0)
			return 2;
		if (!pid)
			_exit(child(atoi(argv[3]), atoi(argv[6])));
	}
	if (open(argv[1], O_RDONLY | O_CLOEXEC) < 0)
		return 2;
	execl("/bin/true", "true", (char *)NULL);
	return 2;
}

int main(int argc, char **argv)
{
	int status, failed = 0;

	if (argc != 7)
		return 2;
	target = argv[2];
	for (int i = 0; i < atoi(argv[4]); i++) {
		pid_t pid = fork();
		if (pid < 0)
			return 2;
		if (!pid)
			_exit(ancestor(argv));
	}
	while (wait(&status) > 0)
		failed |= status;
	return !!failed;
}
