package gate

import "syscall"

// Refusal is an error that a rule of the tree itself gives, with the errno that says it best.
type Refusal struct {
	Errno syscall.Errno
	Why   string
	Hint  string // what the caller can do; may be empty
}

func (r *Refusal) Error() string { return r.Why }

// Refuse makes a Refusal.
func Refuse(errno syscall.Errno, why, hint string) error {
	return &Refusal{Errno: errno, Why: why, Hint: hint}
}
