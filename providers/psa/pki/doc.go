// Package pki is what other standards make of PSA's keys: X.509's certificate requests and chains, the public keys of SSH
// and JOSE, and the fingerprints of each. It is no part of psa because no provider needs what it imports.
package pki
