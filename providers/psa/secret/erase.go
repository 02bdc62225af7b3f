//go:build goexperiment.runtimesecret

package secret

import "runtime/secret"

// Erases says whether Do erases anything.
const Erases = true

// Do runs f, and erases what it leaves on the stack and in registers; what it allocates is erased once the garbage collector
// finds that nobody refers to it, in what it returns too.
func Do(f func()) { secret.Do(f) }
