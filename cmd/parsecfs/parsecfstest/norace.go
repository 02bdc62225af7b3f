//go:build !race

package parsecfstest

// raceFlags build the command as its tests were built.
var raceFlags []string
