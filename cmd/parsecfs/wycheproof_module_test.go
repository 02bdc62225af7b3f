//go:build wycheproof

package main

// Keeps the vectors' module in go.mod; TestWycheproof reads its folder, because importing it embeds 100 MiB.
import _ "github.com/c2sp/wycheproof"
