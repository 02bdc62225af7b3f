package kim_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/parsecfs/parsecfs/kim"
)

// plans are how the stores of a test went about their statements.
type plans struct {
	mu  sync.Mutex
	all map[string][]string
}

// planned is a store whose plans are looked at when it is closed.
type planned struct {
	kim.Store
	t     *testing.T
	plans *plans
	once  *sync.Once
}

func (p planned) Close() error {
	p.once.Do(func() {
		p.plans.mu.Lock()
		defer p.plans.mu.Unlock()
		for _, query := range kim.Prepared(p.Store) {
			if p.plans.all[query] != nil {
				continue
			}
			plan, err := kim.Plan(p.Store, query)
			if err != nil {
				p.t.Errorf("%s: %v", query, err)
			}
			p.plans.all[query] = append([]string{}, plan...)
		}
	})
	return p.Store.Close()
}

// few are the tables that do not grow with keys.
var few = []string{"providers", "data_key", "recovery_key", "anchor", "sqlite_sequence", "sqlite_master", "sqlite_schema",
	"pragma_application_id", "pragma_user_version", "CONSTANT", "spaces"}

// slow are the statements that may look at each row of a table that grows.
var slow = map[string]string{
	"SELECT uid, count(*) FROM keys GROUP BY uid":                           "the counts are not as they were stored",
	"SELECT coalesce(sum(keys), 0), count(*) FROM owners WHERE uid >= 0":    "once in a start: a row for each user with keys",
	"UPDATE aliases SET target = ":                                          "a provider gets another name, in a command of its own",
	"SELECT number FROM keys WHERE number > ? ORDER BY number LIMIT ?":      "Rekey proves each row",
	"SELECT number FROM providers WHERE number > ? ORDER BY number LIMIT ?": "Rekey proves each row",
	"SELECT number FROM aliases WHERE number > ? ORDER BY number LIMIT ?":   "Rekey proves each row",
	"SELECT number FROM users WHERE number > ? ORDER BY number LIMIT ?":     "Rekey proves each row",
	"SELECT number FROM providers WHERE number > ? AND mac IS NULL":         "a few",
}

var scan = regexp.MustCompile(`^SCAN (\S+)|TEMP B-TREE|\(rowid[<>]\?\)`)

// check holds that no statement looks at all rows of a table that grows with keys.
func (p *plans) check(t *testing.T) {
	t.Helper()
	used := map[string]bool{}
	for query, plan := range p.all {
		for _, step := range plan {
			m := scan.FindStringSubmatch(step)
			if m == nil || m[1] != "" && slices.Contains(few, m[1]) || allowed(query, used) {
				continue
			}
			t.Errorf("%q in\n%s\nwhich gets slower with each key", step, query)
		}
	}
	for s := range slow {
		if !used[s] {
			t.Errorf("%q is not slow, or there is no such statement", s)
		}
	}
}

func allowed(query string, used map[string]bool) bool {
	for s := range slow {
		if strings.HasPrefix(query, s) {
			used[s] = true
			return true
		}
	}
	return false
}

var verb = regexp.MustCompile(`^\s*(SELECT|INSERT|UPDATE|DELETE|WITH) `)

// complete adds the statements of the sources that no store of the test has prepared.
func (p *plans) complete(t *testing.T, s kim.Store) {
	t.Helper()
	files, err := filepath.Glob("sqlite*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			text, err := strconv.Unquote(lit.Value)
			if err != nil || !verb.MatchString(text) {
				return true
			}
			for query := range p.all {
				if strings.Contains(query, text) {
					return true
				}
			}
			if p.all[text], err = kim.Plan(s, text); err != nil {
				t.Errorf("%s: no test of the suite comes to %s: %v", name, text, err)
			}
			return true
		})
	}
}
