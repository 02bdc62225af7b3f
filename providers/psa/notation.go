package psa

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// expr is PSA notation as it is written: NAME, NAME(expr, ...), or a decimal number, which stands in name.
type expr struct {
	name string
	args []expr
	call bool // there were parentheses
}

// maxNotation bounds the text and so the depth of what is parsed; the longest real one has 90 bytes.
const maxNotation = 256

func parseNotation(s string) (expr, error) {
	if len(s) > maxNotation {
		return expr{}, fmt.Errorf("it is longer than %d bytes", maxNotation)
	}
	p := notation{rest: s}
	e, err := p.expr()
	if err != nil {
		return expr{}, err
	}
	if p.space(); p.rest != "" {
		return expr{}, fmt.Errorf("unexpected %s after its end", quote(p.rest))
	}
	return e, nil
}

type notation struct{ rest string }

func (p *notation) space() { p.rest = strings.TrimLeft(p.rest, " \t") }

func (p *notation) expr() (expr, error) {
	p.space()
	n := 0
	for n < len(p.rest) && nameByte(p.rest[n]) {
		n++
	}
	if n == 0 {
		return expr{}, errors.New("a name in PSA notation is missing")
	}
	e := expr{name: p.rest[:n]}
	p.rest = p.rest[n:]
	p.space()
	if !strings.HasPrefix(p.rest, "(") {
		return e, nil
	}
	e.call = true
	for {
		p.rest = p.rest[1:] // the parenthesis or comma before
		arg, err := p.expr()
		if err != nil {
			return expr{}, err
		}
		e.args = append(e.args, arg)
		p.space()
		if strings.HasPrefix(p.rest, ")") {
			p.rest = p.rest[1:]
			return e, nil
		}
		if !strings.HasPrefix(p.rest, ",") {
			return expr{}, fmt.Errorf("a closing parenthesis of %s is missing", e.name)
		}
	}
}

func nameByte(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}

// number is the value of an argument that is a decimal number from 1 to most.
func (e expr) number(most int) (int, error) {
	n, err := strconv.Atoi(e.name)
	if err != nil || e.call || n < 1 || n > most || e.name[0] == '0' {
		return 0, fmt.Errorf("%s must be a number from 1 to %d", quote(e.name), most)
	}
	return n, nil
}

// quote quotes what was read for an error, shortened; what is no text could be a key in the wrong file, and is not
// repeated.
func quote(s string) string {
	for i := range len(s) {
		if s[i] < ' ' && s[i] != '\t' || s[i] > '~' {
			return fmt.Sprintf("(%d bytes that are not plain text)", len(s))
		}
	}
	if len(s) > 100 {
		s = s[:97] + "..."
	}
	return strconv.Quote(s)
}
