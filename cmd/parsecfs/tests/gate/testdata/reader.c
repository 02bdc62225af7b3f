/* root's program that reads its standard input, as su and sudo read a password there. */
#include <unistd.h>

int main(void)
{
	char password[512];
	return read(0, password, sizeof(password)) < 0;
}
