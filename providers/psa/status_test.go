package psa

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
)

func TestErrors(t *testing.T) {
	device := &Error{Status: StatusHardwareFailure, Device: "TPM_RC_LOCKOUT", Hint: "wait an hour", Err: io.ErrUnexpectedEOF}
	wrapped := fmt.Errorf("sign: %w", Errorf(StatusCommunicationFailure, "no answer: %w", device))
	for _, c := range []struct {
		err          error
		text         string
		status       Status
		device, hint string
		unknown      bool
	}{
		{nil, "", StatusSuccess, "", "", false},
		{io.EOF, "EOF", StatusGenericError, "", "", false},
		{Errorf(StatusNotPermitted, "no %s", "way"), "no way (PSA_ERROR_NOT_PERMITTED)", StatusNotPermitted, "", "", false},
		{Errorf(StatusQuota, "a").WithHint("b"), "a (PARSECFS_ERROR_QUOTA)", StatusQuota, "", "b", false},
		{&Error{Status: StatusTimeout}, "operation failed (PARSECFS_ERROR_TIMEOUT)", StatusTimeout, "", "", true},
		{device, "unexpected EOF: TPM_RC_LOCKOUT (PSA_ERROR_HARDWARE_FAILURE)", StatusHardwareFailure, "TPM_RC_LOCKOUT", "wait an hour", true},
		{wrapped, "sign: no answer: unexpected EOF: TPM_RC_LOCKOUT (PSA_ERROR_HARDWARE_FAILURE) (PSA_ERROR_COMMUNICATION_FAILURE)",
			StatusCommunicationFailure, "TPM_RC_LOCKOUT", "wait an hour", true},
		{Errorf(StatusBadState, "a: %w", Errorf(StatusBadState, "b")), "a: b (PSA_ERROR_BAD_STATE)", StatusBadState, "", "", false},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), "x: context deadline exceeded", StatusTimeout, "", "", true},
		{context.Canceled, "context canceled", StatusGenericError, "", "", true},
		{Errorf(StatusProviderAbsent, "gone"), "gone (PARSECFS_ERROR_PROVIDER_ABSENT)", StatusProviderAbsent, "", "", true},
	} {
		if c.err != nil && c.err.Error() != c.text {
			t.Errorf("text %q, want %q", c.err, c.text)
		}
		if got := StatusOf(c.err); got != c.status {
			t.Errorf("%v: status %s, want %s", c.err, got, c.status)
		}
		if DeviceOf(c.err) != c.device || HintOf(c.err) != c.hint || OutcomeUnknown(c.err) != c.unknown {
			t.Errorf("%v: device %q, hint %q, unknown %t", c.err, DeviceOf(c.err), HintOf(c.err), OutcomeUnknown(c.err))
		}
	}
	if !errors.Is(wrapped, io.ErrUnexpectedEOF) {
		t.Error("the cause is lost")
	}
	if got := Status(-1).String(); got != "PSA_STATUS(-1)" {
		t.Errorf("an unknown status is %q", got)
	}
	if StatusDeprecated != -1007 {
		t.Errorf("our numbers moved: StatusDeprecated is %d", StatusDeprecated)
	}
}
