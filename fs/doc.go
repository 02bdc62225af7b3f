// Package fs mounts the tree: it reads the configuration, opens the Key Info Manager, gets a FUSE connection from the
// kernel (as root by mount(2), as an ordinary user through fusermount3), serves it until it is told to stop, and ends
// it without losing an answer. Beside the mount it keeps a control socket, through which the other subcommands ask
// the daemon that holds the KIM.
package fs
