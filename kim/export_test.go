package kim

import (
	"fmt"
	"maps"
	"strings"
)

// Prepared are the statements that a store has prepared so far, those that read and those that write.
func Prepared(s Store) []string {
	of := s.(*sqliteStore)
	all := map[string]bool{}
	of.reads.Range(func(query, _ any) bool {
		all[query.(string)] = true
		return true
	})
	err := of.enterAndSubmit(background, &writing{alone: func() error {
		for query := range of.statements {
			all[query] = true
		}
		return nil
	}})
	if err != nil {
		panic(err)
	}
	var list []string
	for query := range maps.Keys(all) {
		list = append(list, query)
	}
	return list
}

// Plan is how SQLite goes about a statement, a line a step.
func Plan(s Store, query string) (plan []string, err error) {
	args := make([]any, strings.Count(query, "?"))
	for strings.Contains(query, "?1") && !strings.Contains(query, fmt.Sprint("?", len(args))) {
		args = args[1:] // some are there twice
	}
	rows, err := s.(*sqliteStore).readDB.QueryContext(background, "EXPLAIN QUERY PLAN "+query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id, parent, unused int
		var step string
		if err := rows.Scan(&id, &parent, &unused, &step); err != nil {
			return nil, err
		}
		plan = append(plan, step)
	}
	return plan, rows.Err()
}
