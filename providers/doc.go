// Package providers is the contract between the Key Info Manager and the back ends that hold keys, and the registry of
// those that a program is built with.
//
// A back end is a Type, which its package exports and the program's main package names in a Registry. Its New makes a
// Provider of a part of the configuration. A Provider makes, opens and destroys keys by a Handle that the Key Info Manager
// chose; a Key begins operations, each a psa.Run that is written to and finished. All arguments and results are plain data,
// so that a provider can run in a process of its own. What a back end can do beyond this it says by implementing further
// interfaces: Random, Hasher, Copier, Attester, Adopter and others.
//
// The Key Info Manager keeps names, owners and policies, calls a provider no more often at once than its Limits say, and
// sees to it that keys come and go together with their rows. So a provider keeps no list of its keys, judges no caller, and
// knows no other provider. Errors are psa.Errors; whose outcome is unknown is said by their status.
//
// Package providertest tests any provider against this contract.
package providers
