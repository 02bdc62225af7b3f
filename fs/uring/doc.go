// Package uring answers a FUSE connection's requests over io_uring (Linux 6.14), by go-fuse's protocol server and without cgo.
//
// # How it works
//
// The kernel has a queue of requests for each processor that there can be (fs/fuse/dev_uring.c). A request goes into the queue of the
// processor that its caller runs on, and from there into an entry: memory of ours that we have registered (FUSE_IO_URING_CMD_REGISTER).
// That completes a command in our io_uring. We write the answer into the entry's memory, and one more command gives it to the kernel
// and the entry with it (COMMIT_AND_FETCH). So a request and an answer are one system call, io_uring_enter(2), on the processor that
// the caller waits on.
//
// Each queue has a thread of its own, pinned to its processor, with a ring that it alone uses, and up to 512 entries of 64 KiB: memory
// that is taken page by page when a request first needs it, and none of it locked. Over all processors there are 16384 entries at
// most, 1 GiB if each was full once; the kernel uses the entry that became free last, so that few ever are.
//
// The thread answers a request itself where the file system promises that it waits for nothing (Prompter): that is the fast path, and
// the reason for all this. Users take turns there, since all that was asked lies in front of it. Every other request goes to a goroutine. That goroutine does not commit its answer, since the kernel has
// whoever commits an entry work for it from then on: it puts the entry on a list, and wakes the thread through an eventfd that the
// ring reads.
//
// INTERRUPT and FORGET come by /dev/fuse as ever, and notifications go by it. An interrupt may come before its request, and is kept
// until then (early). A signal that comes while the kernel hands a request over is told to nobody (fuse_uring_prepare_send looks for
// none): whoever waits for long must look for it.
//
// Once a server has accepted io_uring at INIT, the kernel lets everybody wait until each queue has an entry, for ever if need be. So
// all that can fail for a reason of the system is done before the mount (Prepare), nothing is answered before all entries are
// registered (Serve), and where one is not the connection is closed, which frees whoever waits.
//
// # Why it cannot deadlock
//
// Each processor has one thread. If that thread waited for something that needs an answer of ours on the same processor, nobody
// would give it. It waits in two places. One is io_uring_enter(2), which any request or answer ends. The other is a handler that
// promised to wait for nothing; package nodes promises it for opens for reading and writing where nobody must be judged, for WRITEs
// to keys that are open, which only collect, for READLINK, for READs of an answer that is there or quick to compute, and for RELEASE.
// They take mutexes, whose holders wait for none of what follows, and may write a notification or read a row.
//
// All else waits in goroutines, of which each holds an entry. Requests that may wait (places) never take a queue's last eighth, so
// that LOOKUP, GETATTR, RELEASE and the like find an entry whatever waits; and one user never takes the last half of what may be
// taken, so that the next one finds a place. A FLUSH may wait too, for what takes effect when a file is closed; somebody may wait for
// it as well, so half of the reserve is for FLUSHes, with the same rule. Who finds no place gets EAGAIN: to wait would take an entry
// too. What handlers wait for,
// and who needs an answer of ours meanwhile:
//
//   - A look at a process in the middle of execve(2) (nodes/caller). It sleeps in the kernel until the execve ends, which may wait for
//     our answer to FLUSH of a close-on-exec descriptor. The look has a thread of its own and ends its request's wait after 5 s at most;
//     the FLUSH has an entry and a goroutine, or is refused.
//   - A look at a process whose memory map is locked while a page of our mount is read into it. The same: the page's READ is answered
//     by a goroutine, or by the queue's thread, and no thread of a queue ever looks.
//   - A request in the drop box that is not complete: completed by a FLUSH, which finds an entry unless as many of its user's FLUSHes
//     wait, or ended by its time.
//   - A provider, its queue, the disk: devices, files and processes that are not on the mount, which fs.Run makes sure of for what is
//     configured. operation_timeout ends the wait.
//   - Another request's lock, a change of permissions: its holder has an entry already.
//   - A notification (InodeNotify with a negative offset, InodeNotifyStoreCache). The kernel's part takes neither an inode's lock nor a
//     page that anybody reads: see package nodes. It is written by whatever goroutine has it; the kernel answers in the same call.
//   - The end: umount(2) waits until every entry is back in the kernel. What is with a handler is torn down by the kernel at once,
//     and what it has assigned but not put into our memory waits for the thread, which is not in the umount. Drain has ended the
//     operations before; our own umount is called by no handler.
//   - Death: the kernel cancels what the threads have submitted when they exit. No thread of a queue sleeps uninterruptibly for
//     somebody who waits for us.
//
// A processor that is off has a queue and a thread too, unpinned, as has one that we may not use. When it comes on, its requests find
// them.
package uring
