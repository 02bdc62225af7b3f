package fs

// Kind says what kind of failure ended a command. The command line has an exit status for each.
type Kind int

const (
	KindOther      Kind = iota
	KindUsage           // the command line
	KindConfig          // the configuration file
	KindMountpoint      // missing, not a directory, not empty, busy, or not mounted
	KindFUSE            // the kernel or fusermount3 refuses
	KindState           // the state directory: held by another process, damaged, not empty
)

// Error is a failure with what the user can do about it.
type Error struct {
	Kind Kind
	Err  error
	Hint string // a sentence, or empty
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }
