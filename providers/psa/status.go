package psa

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Status is a psa_status_t, with PSA's numbers; those below -1000 are this program's own, beyond PSA.
type Status int32

// PSA's status codes (PSA Status Code API 1.0; PSA Crypto API, "Status codes").
const (
	StatusSuccess              Status = 0
	StatusGenericError         Status = -132
	StatusNotPermitted         Status = -133
	StatusNotSupported         Status = -134
	StatusInvalidArgument      Status = -135
	StatusInvalidHandle        Status = -136
	StatusBadState             Status = -137
	StatusBufferTooSmall       Status = -138
	StatusAlreadyExists        Status = -139
	StatusDoesNotExist         Status = -140
	StatusInsufficientMemory   Status = -141
	StatusInsufficientStorage  Status = -142
	StatusInsufficientData     Status = -143
	StatusCommunicationFailure Status = -145
	StatusStorageFailure       Status = -146
	StatusHardwareFailure      Status = -147
	StatusInsufficientEntropy  Status = -148
	StatusInvalidSignature     Status = -149
	StatusInvalidPadding       Status = -150
	StatusCorruptionDetected   Status = -151
	StatusDataCorrupt          Status = -152
	StatusDataInvalid          Status = -153
)

// Our own status codes, for what PSA has no word for; the errno that each becomes stands behind it.
const (
	StatusProviderAbsent Status = -1001 - iota // ENODEV
	StatusTimeout                              // ETIMEDOUT
	StatusRevoked                              // EKEYREVOKED
	StatusQuota                                // EDQUOT
	StatusQueueFull                            // EAGAIN
	StatusTooLarge                             // EFBIG
	StatusDeprecated                           // EOPNOTSUPP
)

var statusNames = map[Status]string{
	StatusSuccess:              "PSA_SUCCESS",
	StatusGenericError:         "PSA_ERROR_GENERIC_ERROR",
	StatusNotPermitted:         "PSA_ERROR_NOT_PERMITTED",
	StatusNotSupported:         "PSA_ERROR_NOT_SUPPORTED",
	StatusInvalidArgument:      "PSA_ERROR_INVALID_ARGUMENT",
	StatusInvalidHandle:        "PSA_ERROR_INVALID_HANDLE",
	StatusBadState:             "PSA_ERROR_BAD_STATE",
	StatusBufferTooSmall:       "PSA_ERROR_BUFFER_TOO_SMALL",
	StatusAlreadyExists:        "PSA_ERROR_ALREADY_EXISTS",
	StatusDoesNotExist:         "PSA_ERROR_DOES_NOT_EXIST",
	StatusInsufficientMemory:   "PSA_ERROR_INSUFFICIENT_MEMORY",
	StatusInsufficientStorage:  "PSA_ERROR_INSUFFICIENT_STORAGE",
	StatusInsufficientData:     "PSA_ERROR_INSUFFICIENT_DATA",
	StatusCommunicationFailure: "PSA_ERROR_COMMUNICATION_FAILURE",
	StatusStorageFailure:       "PSA_ERROR_STORAGE_FAILURE",
	StatusHardwareFailure:      "PSA_ERROR_HARDWARE_FAILURE",
	StatusInsufficientEntropy:  "PSA_ERROR_INSUFFICIENT_ENTROPY",
	StatusInvalidSignature:     "PSA_ERROR_INVALID_SIGNATURE",
	StatusInvalidPadding:       "PSA_ERROR_INVALID_PADDING",
	StatusCorruptionDetected:   "PSA_ERROR_CORRUPTION_DETECTED",
	StatusDataCorrupt:          "PSA_ERROR_DATA_CORRUPT",
	StatusDataInvalid:          "PSA_ERROR_DATA_INVALID",
	StatusProviderAbsent:       "PARSECFS_ERROR_PROVIDER_ABSENT",
	StatusTimeout:              "PARSECFS_ERROR_TIMEOUT",
	StatusRevoked:              "PARSECFS_ERROR_REVOKED",
	StatusQuota:                "PARSECFS_ERROR_QUOTA",
	StatusQueueFull:            "PARSECFS_ERROR_QUEUE_FULL",
	StatusTooLarge:             "PARSECFS_ERROR_TOO_LARGE",
	StatusDeprecated:           "PARSECFS_ERROR_DEPRECATED",
}

// String is the status in PSA notation, "PSA_ERROR_NOT_PERMITTED"; ours begin with PARSECFS_ERROR_.
func (s Status) String() string {
	if n, ok := statusNames[s]; ok {
		return n
	}
	return fmt.Sprintf("PSA_STATUS(%d)", int32(s))
}

// Error is a failure with its PSA status. Device holds the device's own words, Hint what a user can do about it.
type Error struct {
	Status Status
	Device string
	Hint   string
	Err    error
}

// Errorf makes an Error; the format may wrap another with %w.
func Errorf(s Status, format string, args ...any) *Error {
	return &Error{Status: s, Err: fmt.Errorf(format, args...)}
}

// WithHint sets the hint and returns e.
func (e *Error) WithHint(hint string) *Error {
	e.Hint = hint
	return e
}

// Error is what happened, the device's words and the status; the hint is apart (HintOf).
func (e *Error) Error() string {
	text := "operation failed"
	if e.Err != nil {
		text = e.Err.Error()
	}
	if e.Device != "" {
		text += ": " + e.Device
	}
	if inner, ok := errors.AsType[*Error](e.Err); ok && inner.Status == e.Status {
		return text // it names the status already
	}
	return text + " (" + e.Status.String() + ")"
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// StatusOf is the status of the outermost Error in err: StatusSuccess for nil, StatusTimeout for a deadline of a
// context, StatusGenericError for what has no status.
func StatusOf(err error) Status {
	if err == nil {
		return StatusSuccess
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Status
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return StatusTimeout
	}
	return StatusGenericError
}

// HintOf is the first hint in err's chain, or "".
func HintOf(err error) string {
	return first(err, func(e *Error) string { return e.Hint })
}

// DeviceOf is the first of the device's words in err's chain, or "".
func DeviceOf(err error) string {
	return first(err, func(e *Error) string { return e.Device })
}

func first(err error, field func(*Error) string) string {
	for {
		e, ok := errors.AsType[*Error](err)
		if !ok {
			return ""
		}
		if s := field(e); s != "" {
			return s
		}
		err = e.Err
	}
}

// maxLine bounds what OneLine gives, in bytes.
const maxLine = 512

// OneLine keeps the words of a device or of a user from breaking the line they stand in.
func OneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > maxLine {
		s = strings.ToValidUTF8(s[:maxLine], "") + "..."
	}
	return s
}

// OutcomeUnknown says whether the operation that failed with err may yet have happened, or may yet happen, on the
// device: communication and hardware failures, an absent provider, timeouts, ended contexts.
func OutcomeUnknown(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return true
	}
	switch StatusOf(err) {
	case StatusCommunicationFailure, StatusHardwareFailure, StatusProviderAbsent, StatusTimeout:
		return true
	}
	return false
}
