package tpm

import (
	"errors"

	"github.com/google/go-tpm/tpm2"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// statuses are those of the response codes that mean something to a caller (TCG TPM 2.0, part 2, 6.6).
var statuses = []struct {
	rc     tpm2.TPMRC
	status psa.Status
	hint   string
}{
	{tpm2.TPMRCLockout, psa.StatusNotPermitted, "too many wrong tries have locked the TPM; tpm2_dictionarylockout --clear-lockout unlocks it"},
	{tpm2.TPMRCAuthFail, psa.StatusNotPermitted, ""},
	{tpm2.TPMRCBadAuth, psa.StatusNotPermitted, "owner_hierarchy_auth or endorsement_hierarchy_auth in the configuration is wrong"},
	{tpm2.TPMRCHierarchy, psa.StatusNotPermitted, "the hierarchy is disabled, or the object belongs to another hierarchy"},
	{tpm2.TPMRCIntegrity, psa.StatusProviderAbsent, "the key belongs to another TPM, or this TPM was cleared"},
	{tpm2.TPMRCObjectMemory, psa.StatusInsufficientMemory, "other programs hold the TPM's slots; use /dev/tpmrm0"},
	{tpm2.TPMRCSessionMemory, psa.StatusInsufficientMemory, "other programs hold the TPM's sessions; use /dev/tpmrm0"},
	{tpm2.TPMRCSessionHandles, psa.StatusInsufficientMemory, "other programs hold the TPM's sessions; use /dev/tpmrm0"},
	{tpm2.TPMRCMemory, psa.StatusInsufficientMemory, ""},
	{tpm2.TPMRCNVSpace, psa.StatusInsufficientStorage, "the TPM's own memory is full; list what is in it with tpm2_getcap handles-nv-index, and make room with tpm2_nvundefine"},
	{tpm2.TPMRCNVRate, psa.StatusHardwareFailure, "the TPM limits the writes to its memory; try again later"},
	{tpm2.TPMRCNVUnavailable, psa.StatusHardwareFailure, "the TPM cannot write to its memory now; try again later"},
	{tpm2.TPMRCFailure, psa.StatusHardwareFailure, "the TPM failed its self-test and does not work until it is reset"},
	{tpm2.TPMRCPCRChanged, psa.StatusNotPermitted, "the platform's state (PCRs) is not the one that the key is bound to"},
	{tpm2.TPMRCPolicyFail, psa.StatusNotPermitted, "the platform's state (PCRs) is not the one that the key is bound to"},
	{tpm2.TPMRCCommandCode, psa.StatusNotSupported, ""},
	{tpm2.TPMRCCurve, psa.StatusNotSupported, ""},
	{tpm2.TPMRCAsymmetric, psa.StatusNotSupported, ""},
	{tpm2.TPMRCHash, psa.StatusNotSupported, ""},
	{tpm2.TPMRCScheme, psa.StatusNotSupported, ""},
	{tpm2.TPMRCECCPoint, psa.StatusInvalidArgument, ""},
	{tpm2.TPMRCNoResult, psa.StatusInvalidArgument, ""},
	{tpm2.TPMRCBinding, psa.StatusInvalidArgument, ""},
	{tpm2.TPMRCKeySize, psa.StatusInvalidArgument, ""},
}

// failed gives the TPM's error its PSA status, and keeps the TPM's words.
func failed(what string, err error) error {
	if _, ok := errors.AsType[*psa.Error](err); ok || err == nil {
		return err
	}
	var rc tpm2.TPMRC
	if !errors.As(err, &rc) {
		return psa.Errorf(psa.StatusCommunicationFailure, "%s: %w", what, err)
	}
	e := psa.Errorf(psa.StatusGenericError, "%s", what)
	e.Device = rc.Error()
	for _, s := range statuses {
		if rc.Is(s.rc) {
			e.Status, e.Hint = s.status, s.hint
			break
		}
	}
	return e
}

// isRC says whether err is that response code.
func isRC(err error, want ...tpm2.TPMRC) bool {
	var rc tpm2.TPMRC
	if !errors.As(err, &rc) {
		return false
	}
	for _, w := range want {
		if rc.Is(w) {
			return true
		}
	}
	return false
}

// lost says whether the TPM has forgotten what we loaded: it was reset, or something flushed it.
func lost(err error) bool {
	return isRC(err, tpm2.TPMRCHandle, tpm2.TPMRCReferenceH0, tpm2.TPMRCReferenceH1, tpm2.TPMRCReferenceS0, tpm2.TPMRCReferenceS1,
		tpm2.TPMRCReferenceS2, tpm2.TPMRCInitialize)
}

// crowded says whether there was no room for a session. Those that the same command began before it are left behind, by
// go-tpm; the connection's end flushes them.
func crowded(err error) bool { return isRC(err, tpm2.TPMRCSessionMemory, tpm2.TPMRCSessionHandles) }
