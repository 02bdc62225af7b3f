// Package rights holds the tests that no right to a file of a key gives another right.
package rights
