// Package nodes is the tree that parsecfs shows: every key a directory, every operation a file.
//
// One table (table.go) says what each file is: its name, mode, when it is there, the operation behind it, what goes in
// and what comes out. Directory listings, attributes, handlers, slots and the tree's own README all come from that
// table, so a new operation is a new row.
//
// # Rooms
//
// A request walks from here to transaction, gate and caller, and nothing imports against that order:
//
//   - nodes (this package) is the tree: directories, texts, texts that take input, and the files of operations as FUSE
//     sees them;
//   - nodes/transaction is the one machine behind operation files, slots and the drop box. It knows no FUSE;
//   - nodes/gate is the one judge of who may. Every way in holds an access of its: open files, slots, staged texts, the
//     drop box; and names that are given in bytes are judged there;
//   - nodes/caller tells who calls. It alone reads /proc about others, within bounds.
//
// # What the kernel does for us
//
// The mount has default_permissions, so the kernel judges every system call by the modes that Getattr gives. The handlers
// here decide what is possible, and the gate what the kernel cannot judge.
//
// # State
//
// Nodes hold names and numbers only; what a key is lies in the KIM and is asked each time. Requests in the drop box and
// slots live in the machine, bounded and with an end to their time, because the kernel may forget an inode at any moment.
package nodes
