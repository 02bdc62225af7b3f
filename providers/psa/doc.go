// Package psa is PSA Crypto's vocabulary (PSA Certified Crypto API 1.2, and the PQC extension of 1.4): key types,
// algorithms, usage flags, attributes and status codes, with PSA's own numbers, and in text both ways.
//
// It also holds what the providers share: templates and capability lines, and what can be asked of them; the scanning of
// key material; the reading of public keys; the splitting of signatures; and adapters that turn the standard library's
// interfaces into Runs. It does no cryptography of its own and knows no provider.
package psa
