package fs

import (
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// path leads to a value in a TOML document: keys, and indices behind a byte that no sane key begins with.
type path []string

func (p path) key(k string) path  { return append(p[:len(p):len(p)], k) }
func (p path) index(i int) path   { return p.key(fmt.Sprintf("\x01%d", i)) }
func (p path) id() string         { return strings.Join(p, "\x00") }
func (p path) isIndex(i int) bool { return strings.HasPrefix(p[i], "\x01") }

// String is the path as people write it. It has no indices, since messages name the line.
func (p path) String() string {
	var s []string
	for i, part := range p {
		if !p.isIndex(i) {
			s = append(s, part)
		}
	}
	return strings.Join(s, ".")
}

// lines maps each key of a document to its line.
type lines map[string]int

// of is the line of the nearest known ancestor, 0 for the document.
func (l lines) of(p path) int {
	for ; len(p) > 0; p = p[:len(p)-1] {
		if n, ok := l[p.id()]; ok {
			return n
		}
	}
	return 0
}

// indexLines finds the lines of a document that toml.Unmarshal has accepted. The checks need a map, and decoding into a
// map loses the lines.
func indexLines(data []byte) lines {
	l := lines{}
	arrays := map[string]int{} // how many tables each [[array]] has so far
	var p unstable.Parser
	p.Reset(data)
	var table path
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = nil
			for k := e.Key(); k.Next(); {
				table = table.key(string(k.Node().Data))
				last := k.IsLast()
				if e.Kind == unstable.ArrayTable && last {
					l.set(table, lineOf(&p, k.Node()))
					table = table.index(arrays[table.id()])
					arrays[table[:len(table)-1].id()]++
				} else if n := arrays[table.id()]; n > 0 {
					// [a.b] below [[a]] belongs to the latest element of a.
					table = table.index(n - 1)
				}
				l.set(table, lineOf(&p, k.Node()))
			}
		case unstable.KeyValue:
			l.keyValue(&p, table, e)
		}
	}
	return l
}

// set keeps the first line, where the value begins.
func (l lines) set(p path, line int) {
	if _, ok := l[p.id()]; !ok {
		l[p.id()] = line
	}
}

func (l lines) keyValue(p *unstable.Parser, at path, n *unstable.Node) {
	for k := n.Key(); k.Next(); {
		at = at.key(string(k.Node().Data))
		l.set(at, lineOf(p, k.Node()))
	}
	l.value(p, at, n.Value())
}

func (l lines) value(p *unstable.Parser, at path, n *unstable.Node) {
	i := 0
	for c := n.Children(); c.Next(); i++ {
		switch n.Kind {
		case unstable.InlineTable:
			l.keyValue(p, at, c.Node())
		case unstable.Array:
			l.value(p, at.index(i), c.Node())
		}
	}
}

func lineOf(p *unstable.Parser, n *unstable.Node) int {
	return p.Shape(n.Raw).Start.Line
}
