package caller

import (
	"sync"
	"time"
)

// Program is what the audit trail says of a caller, as far as it can be told.
type Program struct {
	PID       uint32 // the process, of which the caller is a thread
	Exe, Unit string
}

const (
	// programsMost bounds what is remembered; beyond it everything is forgotten.
	programsMost = 4096
	// programTime is less than it takes to give out all thread ids once, so that one comes back.
	programTime = 50 * time.Millisecond
)

type programs struct {
	mu  sync.Mutex
	all map[Caller]seenProgram
}

type seenProgram struct {
	Program
	at time.Time
}

// Program is what the caller runs. It may be 50 ms old.
func (p *Procs) Program(c Caller) Program {
	if known, ok := p.programs.find(c); ok {
		return known
	}
	at := time.Now()
	s, err := p.of(c, false)
	if err != nil {
		return Program{}
	}
	one := Program{PID: s.tgid}
	if !s.execs() { // what it becomes is not there yet
		one.Exe = p.exe(c)
	}
	if unit, err := readUnit(c.TID); err == nil {
		one.Unit = unit
	}
	p.programs.keep(c, seenProgram{one, at})
	return one
}

// Knows says whether Program looks at nothing for this caller now.
func (p *Procs) Knows(c Caller) bool {
	_, known := p.programs.find(c)
	return known
}

func (p *programs) find(c Caller) (Program, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known, ok := p.all[c]
	return known.Program, ok && time.Since(known.at) < programTime
}

func (p *programs) keep(c Caller, one seenProgram) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all == nil || len(p.all) >= programsMost {
		p.all = map[Caller]seenProgram{}
	}
	p.all[c] = one
}
