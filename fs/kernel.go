package fs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// maxTransfer bounds one READ or WRITE, in bytes. A READ that waits for a slow device holds a buffer of the size that
// its client asked for, and cat asks for as much as it may. Transactions count on no less for a piece of a long write.
const maxTransfer = 64 << 10

// connection is a FUSE connection that the kernel has mounted.
type connection struct {
	fd            int // of /dev/fuse, close-on-exec
	othersAllowed bool
}

// connect mounts on a clear mountpoint: directly as root, otherwise through fusermount3. With needOthers it fails if other
// users could not use the mount.
func connect(dir string, needOthers bool) (connection, error) {
	options := []string{"default_permissions", "max_read=" + strconv.Itoa(maxTransfer)}
	if os.Geteuid() == 0 {
		at, err := openMountpoint(dir)
		if err != nil {
			return connection{}, err
		}
		defer at.Close()
		fd, err := mountDirect(at, append(options, "allow_other"))
		return connection{fd, true}, err
	}
	others := userAllowOther("/etc/fuse.conf")
	if needOthers && !others {
		return connection{}, &Error{KindFUSE, errors.New("allow_other is refused: /etc/fuse.conf does not permit it to ordinary users"),
			"ask root to add the line user_allow_other to that file, or mount as root, or leave the option out, so that only you can use the mount"}
	}
	options = append(options, "nosuid", "nodev", "noexec", "fsname=parsecfs", "subtype=parsecfs")
	if others {
		options = append(options, "allow_other")
	}
	fd, err := mountFusermount(dir, options)
	return connection{fd, others}, err
}

// mountDirect opens /dev/fuse close-on-exec, which go-fuse does not do. A child that inherited it would keep the mount of a
// dead daemon alive, and could answer its requests.
func mountDirect(at *os.File, options []string) (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		hint := "modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN"
		if errors.Is(err, unix.ENOENT) {
			return -1, &Error{KindFUSE, errors.New("/dev/fuse is missing: this kernel, or this container, has no FUSE"), hint}
		}
		return -1, &Error{KindFUSE, fmt.Errorf("/dev/fuse: %w", err), hint}
	}
	data := append([]string{fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d", fd, unix.S_IFDIR, os.Geteuid(), os.Getegid())}, options...)
	dir, place := at.Name(), "/proc/self/fd/"+strconv.Itoa(int(at.Fd()))
	err = unix.Mount("parsecfs", place, mountType, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, strings.Join(data, ","))
	if err == nil {
		if err = landed(dir, place); err == nil {
			return fd, nil
		}
	}
	unix.Close(fd)
	hint := ""
	switch {
	case errors.Is(err, unix.EPERM):
		hint = "mounting needs CAP_SYS_ADMIN; in a container: --device /dev/fuse --cap-add SYS_ADMIN"
	case errors.Is(err, unix.ENODEV):
		hint = "load the kernel module: modprobe fuse"
	}
	return -1, &Error{KindFUSE, fmt.Errorf("mounting on %s: %w", dir, err), hint}
}

// fusermount finds the helper that mounts for ordinary users.
func fusermount() (string, error) {
	for _, name := range []string{"fusermount3", "fusermount"} {
		for _, dir := range []string{"/usr/bin", "/bin", "/usr/local/bin", "/run/wrappers/bin"} {
			path := filepath.Join(dir, name)
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
				return path, nil
			}
		}
	}
	return "", &Error{KindFUSE, errors.New("fusermount3 is missing, which ordinary users need to mount"),
		"install fuse3 (apt install fuse3), or mount as root"}
}

// mountFusermount speaks fusermount3's protocol: fusermount3 mounts, and sends the open /dev/fuse through the socket that
// _FUSE_COMMFD names.
func mountFusermount(dir string, options []string) (int, error) {
	bin, err := fusermount()
	if err != nil {
		return -1, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socketpair", err)
	}
	local, remote := os.NewFile(uintptr(pair[0]), "fusermount"), os.NewFile(uintptr(pair[1]), "fusermount")
	defer local.Close()
	cmd := exec.Command(bin, "-o", strings.Join(options, ","), "--", dir)
	cmd.Dir = "/"
	cmd.Env = []string{"_FUSE_COMMFD=3", "PATH=/usr/bin:/bin"}
	cmd.ExtraFiles = []*os.File{remote}
	var said bytes.Buffer
	cmd.Stderr = &said
	err = cmd.Run()
	remote.Close()
	if err != nil {
		text := strings.TrimSpace(said.String())
		hint := ""
		switch {
		case strings.Contains(text, "/dev/fuse: Permission denied"):
			hint = "run chmod 0666 /dev/fuse as root (udev does the same), or mount as root"
		case strings.Contains(text, "/dev/fuse"):
			hint = "modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN"
		case strings.Contains(text, "no write access") || strings.Contains(text, "not owner"):
			hint = "an ordinary user can mount only on a directory of their own"
		case strings.Contains(text, "too many FUSE"):
			hint = "raise mount_max in /etc/fuse.conf"
		}
		if text == "" {
			text = filepath.Base(bin) + ": " + err.Error()
		}
		return -1, &Error{KindFUSE, fmt.Errorf("mounting on %s: %s", dir, text), hint}
	}
	fd, err := receiveFD(pair[0])
	if err != nil {
		return -1, &Error{Kind: KindFUSE, Err: fmt.Errorf("%s did not pass the FUSE connection on: %w", filepath.Base(bin), err)}
	}
	return fd, nil
}

// receiveFD takes one descriptor from a socket, unix(7) SCM_RIGHTS.
func receiveFD(socket int) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("recvmsg", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return -1, err
	}
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil && len(fds) == 1 {
			return fds[0], nil
		}
	}
	return -1, errors.New("its message holds no descriptor")
}

// userAllowOther says whether fuse.conf lets ordinary users mount for others.
func userAllowOther(file string) bool {
	conf, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(conf)) {
		if strings.TrimSpace(line) == "user_allow_other" {
			return true
		}
	}
	return false
}

// requestTimeout is the kernel's limit for one FUSE request, 0 for none. A request that takes longer aborts the whole
// connection (fs.fuse.default_request_timeout and max_request_timeout, in seconds, Linux 6.16).
func requestTimeout() time.Duration {
	var least time.Duration
	for _, name := range []string{"default_request_timeout", "max_request_timeout"} {
		text, err := os.ReadFile("/proc/sys/fs/fuse/" + name)
		if err != nil {
			continue
		}
		seconds, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 16)
		if d := time.Duration(seconds) * time.Second; err == nil && d > 0 && (least == 0 || d < least) {
			least = d
		}
	}
	return least
}

// harden keeps secrets in memory out of core dumps and away from other processes of the same user.
func harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl(PR_SET_DUMPABLE)", err)
	}
	return os.NewSyscallError("setrlimit(RLIMIT_CORE)", unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}))
}
