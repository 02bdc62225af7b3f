//go:build wycheproof

package vectors

// Keeps the vectors' module in go.mod; TestWycheproof reads its folder, because importing it embeds 100 MiB.
import _ "github.com/c2sp/wycheproof"
