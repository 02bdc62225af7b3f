package pkcs11

import (
	"io"
	"sync"
)

// sender writes frames to a socket: one write for all that are ready while the one before goes out.
type sender struct {
	to     io.Writer
	broken func(error) // called once, when a write failed

	mu      sync.Mutex
	ready   buffer
	out     buffer // goes out now
	writing bool
	err     error
}

// send writes a message, or leaves it to whoever writes now.
func (s *sender) send(fields func(*codec)) error {
	s.mu.Lock()
	if s.err != nil {
		defer s.mu.Unlock()
		return s.err
	}
	if err := s.ready.frame(fields); err != nil {
		s.mu.Unlock()
		return err
	}
	if s.writing {
		s.mu.Unlock()
		return nil
	}
	s.writing = true
	for len(s.ready.b) > 0 && s.err == nil {
		s.ready, s.out = s.out, s.ready
		s.mu.Unlock()
		_, err := s.to.Write(s.out.b)
		s.out.wipe()
		s.mu.Lock()
		if err != nil {
			s.err = err
			s.ready.wipe()
			s.broken(err)
		}
	}
	s.writing = false
	s.mu.Unlock()
	return nil
}
