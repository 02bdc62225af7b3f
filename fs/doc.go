// Package fs mounts the tree. It reads the configuration, opens the Key Info Manager (KIM), gets a FUSE connection from the
// kernel (by mount(2) for root, through fusermount3 for others), serves it, and ends it without losing an answer. It also
// has a control socket, through which the other subcommands reach the daemon that holds the KIM.
package fs
