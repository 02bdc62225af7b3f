/* root's program that asks through descriptors of whoever runs it: with the setuid bit, as su and passwd have it. */
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argc != 2)
		return 2;
	execl("/usr/bin/python3", "python3", "-I", "-S", "-B", WAYS, argv[1], (char *)NULL);
	return 1;
}
