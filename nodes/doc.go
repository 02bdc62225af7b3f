// Package nodes is the tree that parsecfs shows: every key a directory, every operation a file.
//
// One table (table.go) says what each file is: its name, mode, when it is there, the operation behind it, what goes in
// and what comes out. Directory listings, attributes, handlers, slots and the tree's own README all come from that
// table, so a new operation is a new row.
//
// # Transactions
//
// An operation file is a private channel: what is written through one open file is the request, what is read is the
// answer. Three shapes share one machine:
//
//   - a request (request.go) collects input, runs its operation once, in a goroutine of its own, and keeps the answer;
//   - a channel (channel.go) is a request with the rules of offsets around it. An open file has one of its own, a slot
//     shares one between opens, and the drop box hands one over from a writer to a reader;
//   - a handle (channel.go) is one open file on a channel.
//
// WRITE only collects and READ runs the operation: the kernel holds the inode's lock during WRITE, sends FLUSH early
// and often, and never tells anybody what RELEASE answered.
//
// # What the kernel does for us
//
// The mount has default_permissions, so the kernel judges every access by the modes that Getattr gives. The handlers
// here decide what is possible, not who may; the exceptions (slots are their creator's alone) say so.
//
// # State
//
// Nodes hold names and numbers only; what a key is lies in the KIM and is asked each time. Requests in the drop box and
// slots live in the Tree, bounded and with an end to their time, because the kernel may forget an inode at any moment.
package nodes
