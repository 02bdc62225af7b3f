// Package psa is PSA Crypto's vocabulary (PSA Certified Crypto API 1.2, and the PQC extension of 1.4): key types,
// algorithms, usage flags, attributes and status codes, with PSA's own numbers, and in text both ways.
//
// It also holds what the providers share: templates and capability lines (design section 6), the scanning of key
// material (section 4), the splitting of signatures, and adapters that turn the standard library's interfaces into
// Runs (section 7). It does no cryptography of its own and knows no provider.
package psa
