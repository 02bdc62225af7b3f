package pkcs11

import (
	"errors"
	"fmt"
	"unsafe"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// enterDomain enters a Landlock domain, from where other processes can be neither traced, their memory and /proc/PID/mem
// included, nor signalled; other workers have domains of their own. It takes no file away. A kernel without Landlock, or with
// an older one, leaves that to the user, to the process's dump flag and to the filter.
func enterDomain() error {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return nil
	}
	// Something must be ruled for there to be a domain: to make block devices.
	rules := unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK}
	size := unsafe.Sizeof(rules.Handled_access_fs)
	if version >= 6 {
		rules.Scoped = unix.LANDLOCK_SCOPE_SIGNAL
		size = unsafe.Offsetof(rules.Scoped) + unsafe.Sizeof(rules.Scoped)
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&rules)), size, 0)
	if errno != 0 {
		return fmt.Errorf("landlock_create_ruleset: %w", errno)
	}
	defer unix.Close(int(fd))
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return fmt.Errorf("landlock_restrict_self: %w", errno)
	}
	return nil
}

// denied are system calls that no module has a use for, and that lead to other processes, to namespaces, or deep into the
// kernel. A list of what is allowed would be right for one module and wrong for the next.
var denied = []string{
	"ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp",
	"mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr",
	"setns", "unshare", "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register",
	"keyctl", "add_key", "request_key", "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot",
	"swapon", "swapoff", "acct", "quotactl", "syslog", "vhangup", "settimeofday", "clock_settime", "adjtimex", "clock_adjtime",
	"sethostname", "setdomainname", "open_by_handle_at", "name_to_handle_at", "fanotify_init", "lookup_dcookie", "personality",
	"iopl", "ioperm", "modify_ldt",
}

// newNamespaces are clone(2)'s flags that make namespaces.
const newNamespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS |
	unix.CLONE_NEWCGROUP

// denySystemCalls has the kernel refuse them with EPERM from now on. Calls of another architecture than ours are refused too,
// since their numbers mean something else; clone3, whose flags no filter sees, is not there, and the C library uses clone.
func denySystemCalls() error {
	if !seccomp.Supported() {
		return nil
	}
	native, err := arch.GetInfo("")
	if err != nil {
		return nil // the library does not know this architecture's numbers
	}
	refuse := seccomp.ActionErrno | seccomp.Action(unix.EPERM)
	var known []string // an architecture lacks some
	for _, name := range denied {
		if _, ok := native.SyscallNames[name]; ok {
			known = append(known, name)
		}
	}
	group := seccomp.SyscallGroup{Names: known, Action: refuse}
	group.NamesWithCondtions = []seccomp.NameWithConditions{
		{Name: "clone", Conditions: seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.BitsSet, Value: newNamespaces}}},
		// Another process's limits can be set by whoever has its user.
		{Name: "prlimit64", Conditions: seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.NotEqual, Value: 0}}},
	}
	policy := seccomp.Policy{DefaultAction: seccomp.ActionAllow, Syscalls: []seccomp.SyscallGroup{group,
		{Names: []string{"clone3"}, Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS)}}}
	listed, err := policy.Assemble()
	if err != nil {
		return fmt.Errorf("the filter of system calls: %w", err)
	}
	// The library lets other architectures through, by what is the default.
	const archOffset, word = 4, 4
	program, err := bpf.Assemble(append([]bpf.Instruction{
		bpf.LoadAbsolute{Off: archOffset, Size: word},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(native.ID), SkipTrue: 1},
		bpf.RetConstant{Val: uint32(refuse)},
	}, listed...))
	if err != nil {
		return fmt.Errorf("the filter of system calls: %w", err)
	}
	filter := make([]unix.SockFilter, len(program))
	for i, p := range program {
		filter[i] = unix.SockFilter{Code: p.Op, Jt: p.Jt, Jf: p.Jf, K: p.K}
	}
	list := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&list)), 0, 0); err != nil {
		if errors.Is(err, unix.EINVAL) {
			return nil // a kernel without filters
		}
		return fmt.Errorf("PR_SET_SECCOMP: %w", err)
	}
	return nil
}
