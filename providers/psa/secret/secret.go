// Package secret keeps the bytes of keys out of the memory that outlives them, as far as Go lets it: Do erases what a
// computation leaves on the stack, in registers and on the heap, where the program was built with GOEXPERIMENT=runtimesecret
// (Go 1.26, linux on amd64 and arm64), and New gives memory outside the heap, which is neither swapped out nor in a core dump,
// and which Free wipes.
package secret
