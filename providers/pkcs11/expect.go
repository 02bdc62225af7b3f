package pkcs11

import (
	"net"
	"time"
)

// A module decides what its worker answers, and may lie. So an answer is checked against its request before it is used: the
// rest of the provider relies on the counts, and the program's memory on the sizes.

// expectation limits what an answer to a request may contain.
type expectation struct {
	method  method
	bytes   int // of the frame
	data    int // of data
	types   int // attributes of each object
	objects int // exactly; -1: any number
}

const (
	// manyBytes is more than any answer has besides data: an RSA key of 16 384 bits with its private part, a list of
	// mechanisms, names of tokens.
	manyBytes = 256 << 10
	// manyData is more than any signature has, and more than any mode of encryption adds.
	manyData = 64 << 10
)

func (r *request) expects() expectation {
	e := expectation{method: r.method, bytes: manyBytes}
	switch r.method {
	case methodSign, methodEncrypt, methodDecrypt, methodDerive:
		e.data = len(r.data) + manyData
		e.bytes += e.data
	case methodRandom:
		e.data = int(min(r.length, maxFrame/2))
		e.bytes += e.data
	case methodRead:
		e.types, e.objects = len(r.types), 1
	case methodList:
		e.types, e.objects = len(r.types), -1
		e.bytes = maxFrame
	case methodGenerate:
		if len(r.templates[1]) > 0 { // a pair
			e.types, e.objects = len(r.types), 1
		}
	}
	e.bytes = min(e.bytes, maxFrame)
	return e
}

// met says whether this can be the answer.
func (e expectation) met(a *response) bool {
	if a.outcome > outcomeBad || len(a.data) > e.data || len(a.mechanisms) > 0 && e.method != methodMechanisms {
		return false
	}
	if len(a.what) > manyData || a.token.tooLong() {
		return false
	}
	if a.outcome != outcomeOK {
		return true
	}
	if e.objects >= 0 && len(a.objects) != e.objects {
		return false
	}
	for _, o := range a.objects {
		if len(o) != e.types {
			return false
		}
	}
	return true
}

// tooLong is far beyond the fields of CK_TOKEN_INFO and CK_INFO, and what markers a token may have.
func (t *tokenInfo) tooLong() bool {
	const longest = 4 << 10
	return max(len(t.label), len(t.serial), len(t.manufacturer), len(t.library), len(t.marker)) > longest
}

// mostBytes is how long the longest answer may be that running calls wait for.
func (p *process) mostBytes() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	most := 0
	for _, c := range p.calls {
		most = max(most, c.expects.bytes)
	}
	return most
}

// stallTime is how long a worker may leave a request unread: it reads while the module computes.
const stallTime = 30 * time.Second

// patientWriter limits the time of each write.
type patientWriter struct {
	conn net.Conn
	time time.Duration
}

func (w patientWriter) Write(b []byte) (int, error) {
	if err := w.conn.SetWriteDeadline(time.Now().Add(w.time)); err != nil {
		return 0, err
	}
	return w.conn.Write(b)
}
