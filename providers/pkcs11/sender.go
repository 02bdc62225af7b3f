package pkcs11

import (
	"io"
	"sync"
)

// sender writes frames to a socket. While one write is running it collects frames, and then writes them together.
type sender struct {
	to     io.Writer
	broken func(error) // called once, when a write failed

	mu      sync.Mutex
	ready   buffer
	frames  int    // in ready
	out     buffer // goes out now
	writing bool
	err     error
}

// add adds a message for the next flush, and says how many wait for it.
func (s *sender) add(fields func(*codec)) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	if err := s.ready.frame(fields); err != nil {
		return s.frames, err
	}
	s.frames++
	return s.frames, nil
}

// flush writes the waiting frames, or leaves them to the write that is running.
func (s *sender) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writing {
		return
	}
	s.writing = true
	for len(s.ready.b) > 0 && s.err == nil {
		s.ready, s.out, s.frames = s.out, s.ready, 0
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
}
