package files

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Ways that come to the same.
var (
	stats   = []string{"stat", "fstat", "statx", "O_PATH"}
	ends    = []string{"lseek END", "FIONREAD"} // where the kernel thinks that the file ends
	reads   = []string{"read", "read small", "pread", "pread behind", "readv", "O_DIRECT", "lseek SET"}
	urings  = []string{"io_uring read", "io_uring read -1"}
	kernels = []string{"sendfile", "splice"} // from kernel to kernel
	shared  = []string{"mmap shared", "mmap writable"}
	writes  = []string{"write", "io_uring write", "io_uring write -1", "O_APPEND"}
	dates   = []string{"utimensat 1600", "utimensat 2300"}
	copies  = []string{"tar", "rsync -a", "cp -a"}
	behind  = []string{"pread behind", "lseek SET"}
)

// Kinds that do the same.
const (
	idle     = "idle|idle, to write|long, to write|slot, empty|slot, empty, to write|part, an output, empty"
	idleRead = "idle|idle, walked over|slot, empty|part, an output, empty"
	waiting  = "waiting*|slot, written|part, an output, asked"
	answered = "answered*|long, answered|slot, answered|part, an output, answered"
	held     = "waiting|waiting, at its position|answered*|long, answered" // by a descriptor of another program
	slots    = "slot*|part*|directory of names: sign.d|directory of names: verify.d|directory of names: there"
)

// otherwise is where a kind does not do what a plain file does.
type otherwise struct {
	kinds string // names, or how they begin with a *; several with |
	ways  []string
	is    func(k kind, got outcome) bool
	why   string
}

func (o otherwise) about(k kind, way string) bool {
	return slices.Contains(o.ways, way) && slices.ContainsFunc(strings.Split(o.kinds, "|"), func(name string) bool {
		begins, found := strings.CutSuffix(name, "*")
		return k.name == name || found && strings.HasPrefix(k.name, begins)
	})
}

// says is an outcome without bytes, or one of several with |.
func says(words string) func(kind, outcome) bool {
	return func(_ kind, got outcome) bool {
		return len(got.bytes) == 0 && slices.Contains(strings.Split(words, "|"), got.says)
	}
}

// thisYear is when the test runs, unless it is New Year's Eve.
func thisYear(_ kind, got outcome) bool { return got.says == strconv.Itoa(time.Now().UTC().Year()) }

// answers is the answer to the request.
func answers(k kind, got outcome) bool { return got.is(outcome{"ok", k.answer}) }

// rightOrRefused is one of the two, from time to time.
func rightOrRefused(k kind, got outcome) bool { return answers(k, got) || says("EINVAL")(k, got) }

// refused is a text that was not understood.
func refused(k kind, got outcome) bool {
	return got.says == "EINVAL" && (len(got.bytes) == 0 || bytes.Equal(got.bytes, k.holds))
}

// bounded is a size that is not much more than what was written and what can be answered.
func bounded(k kind, got outcome) bool {
	n, err := strconv.Atoi(got.says[strings.LastIndex(got.says, " ")+1:])
	return err == nil && n > 0 && n < len(k.message)+len(k.answer)+128<<10
}

// beyond is a size that ends nothing.
func beyond(k kind, got outcome) bool {
	n, err := strconv.Atoi(got.says)
	return err == nil && n >= len(k.holds)
}

// late is the answer, or the end of it, as often as somebody asked.
func late(k kind, got outcome) bool {
	return got.says == "ok" && len(got.bytes) > 0 && bytes.HasPrefix(got.bytes, k.answer)
}

// exceptions are where files of the tree are not plain files. The first that speaks of a kind and a way decides.
var exceptions = []otherwise{
	{"directory*|somebody else's: draft", []string{"lseek END"}, says("0"),
		"a directory's end is where its size is, as on ext4: tmpfs alone refuses to go there"},
	{"directory*|somebody else's: draft", []string{"lseek DATA", "lseek HOLE"}, says("ENXIO"), "the same"},
	{slots, dates, thisYear, "a slot is as old as it is: it has no times worth keeping"},
	{"*", []string{"utimensat 1600"}, says("1677"), "times are kept in nanoseconds in 64 bits: as elsewhere the nearest one is taken"},
	{"*", []string{"utimensat 2300"}, says("2262"), "the same"},
	{"part, an input, to read", descriptors, says("EACCES"), "what was written there cannot be read, though walks find it empty"},
	{"*", []string{"fallocate"}, says("EOPNOTSUPP"),
		"there is no disk to reserve, as on NFS 4.0; glibc's posix_fallocate then writes instead"},

	{idle, reads, says("ENODATA"), "nothing was written: an error, and not an empty answer"},
	{idleRead, urings, says("ENODATA"), "the same"},
	{idle, []string{"read twice"}, says("ENODATA, then end"), "the same, and who reads on comes to an end"},
	{idleRead + "|" + waiting + "|" + answered, kernels, says("EINVAL"),
		"an answer is its reader's, and the page cache is everybody's: programs fall back to read(2)"},
	{idleRead + "|" + waiting + "|" + answered, ends, beyond,
		"while somebody may read an answer the kernel believes in a size beyond it, or it would end reads by io_uring and copies itself"},
	{waiting, append([]string{"lseek HOLE"}, stats...), bounded,
		"nobody knows how long an answer will be; with 0 copies would end without it"},
	{waiting + "|" + answered, []string{"mmap private"}, says("SIGBUS"),
		"an answer is in no page, and the kernel asks nobody before it maps one privately; with an idle file it is EINVAL"},
	{waiting + "|" + answered + "|staged to write*", shared, says("ENODEV"), "there is no page to share, as on file systems that cannot map"},
	{waiting + "|" + answered + "|staged to write*", []string{"io_uring read -1"}, says("stays where it is"),
		"without a page cache the kernel does not move a file's own position after an asynchronous read; with offsets it reads rightly"},
	{"waiting, at its position|answered, at its position", []string{"pread"}, answers, "at 0 an answer begins anew"},
	{waiting + "|slot, answered|part, an output, answered", behind, late,
		"a descriptor's first READ is where the answer begins for it, since programs use one position for request and answer"},
	{waiting + "|" + held, []string{"tar"}, says("exit 1"),
		"tar believes the size: it says that the file shrank. A slot that was answered is copied rightly"},
	{waiting + "|" + held, []string{"rsync -a"}, says("exit 23"),
		"rsync believes it too"},
	{held, []string{"cp -a"}, says("ok"),
		"the answer is another descriptor's: who walks by has asked nothing, and finds nothing"},

	{"idle, to write|slot, empty, to write|answered|answered, at its position", []string{"ioctl"}, says("an answer"),
		"request and answer in one call; where the last answer was read to its end the next request may come"},
	{"long, to write|long, answered", []string{"ioctl"}, says("EINVAL"), "the same, and the message is no ciphertext"},
	{"waiting|waiting, at its position", []string{"ioctl"}, says("EBUSY"), "the same, and another request is under way"},
	{"idle*|waiting*|slot*", []string{"ioctl"}, says("EBADF"), "the same, and the file is open for reading alone"},

	{"long, to write", []string{"io_uring write", "io_uring write -1"}, rightOrRefused,
		"more than 64 KiB at once comes in pieces, in any order, and the position may stay: a hole is refused, and no wrong bytes given"},
	{"idle, to write|slot, empty, to write|long, to write", writes, answers, "what is read is the answer to what was written"},
	{"staged to write*", writes, refused, "it takes what it can understand, and gives what is stored"},
	{"staged to write*", kernels, says("EINVAL"), "who may write reads without the page cache, since what is staged is their own"},
	{"staged to write*", []string{"mmap private"}, says("SIGBUS"), "the same; who opens it to read it can map it"},
}

// descriptors are the ways that need one.
var descriptors = slices.DeleteFunc(slices.Clone(ways), func(way string) bool {
	return slices.Contains(slices.Concat(dates, copies, []string{"stat", "statx", "O_PATH", "chmod", "chown", "readlink"}), way)
})
