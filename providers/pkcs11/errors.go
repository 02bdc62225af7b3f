package pkcs11

import (
	"fmt"
	"strings"

	p11 "github.com/miekg/pkcs11"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// statuses maps return values to statuses, where they mean something to a caller (PKCS #11 v2.40, 5.1).
var statuses = map[p11.Error]struct {
	status psa.Status
	hint   string
}{
	p11.CKR_HOST_MEMORY:   {psa.StatusInsufficientMemory, ""},
	p11.CKR_DEVICE_MEMORY: {psa.StatusInsufficientStorage, "the token is full"},
	p11.CKR_SESSION_COUNT: {psa.StatusInsufficientMemory,
		"other programs use the token's sessions; lower the setting sessions, which limits ours"},
	p11.CKR_DEVICE_ERROR:                   {psa.StatusHardwareFailure, ""},
	p11.CKR_DEVICE_REMOVED:                 {psa.StatusProviderAbsent, hintAbsent},
	p11.CKR_TOKEN_NOT_PRESENT:              {psa.StatusProviderAbsent, hintAbsent},
	p11.CKR_TOKEN_NOT_RECOGNIZED:           {psa.StatusProviderAbsent, hintAbsent},
	p11.CKR_SLOT_ID_INVALID:                {psa.StatusProviderAbsent, hintAbsent},
	p11.CKR_SESSION_HANDLE_INVALID:         {psa.StatusProviderAbsent, hintAbsent},
	p11.CKR_SESSION_CLOSED:                 {psa.StatusProviderAbsent, hintAbsent},
	p11.CKR_USER_NOT_LOGGED_IN:             {psa.StatusNotPermitted, "the token needs a PIN: set user_pin or pin_source"},
	p11.CKR_PIN_INCORRECT:                  {psa.StatusNotPermitted, hintPIN},
	p11.CKR_PIN_INVALID:                    {psa.StatusNotPermitted, hintPIN},
	p11.CKR_PIN_LEN_RANGE:                  {psa.StatusNotPermitted, hintPIN},
	p11.CKR_PIN_EXPIRED:                    {psa.StatusNotPermitted, "set a new PIN with the token's own tool"},
	p11.CKR_PIN_LOCKED:                     {psa.StatusNotPermitted, hintLocked},
	p11.CKR_USER_PIN_NOT_INITIALIZED:       {psa.StatusNotPermitted, "set the user's PIN first: pkcs11-tool --init-pin"},
	p11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN: {psa.StatusNotPermitted, ""},
	p11.CKR_TOKEN_WRITE_PROTECTED:          {psa.StatusNotPermitted, "the token is write-protected"},
	p11.CKR_SESSION_READ_ONLY:              {psa.StatusNotPermitted, "the token is write-protected"},
	p11.CKR_KEY_FUNCTION_NOT_PERMITTED:     {psa.StatusNotPermitted, "the key on the token does not permit this operation"},
	p11.CKR_ACTION_PROHIBITED:              {psa.StatusNotPermitted, ""},
	p11.CKR_KEY_UNEXTRACTABLE:              {psa.StatusNotPermitted, ""},
	p11.CKR_ATTRIBUTE_SENSITIVE:            {psa.StatusNotPermitted, "the token does not export this key"},
	p11.CKR_FUNCTION_NOT_SUPPORTED:         {psa.StatusNotSupported, ""},
	p11.CKR_MECHANISM_INVALID:              {psa.StatusNotSupported, ""},
	p11.CKR_MECHANISM_PARAM_INVALID:        {psa.StatusNotSupported, ""},
	p11.CKR_KEY_TYPE_INCONSISTENT:          {psa.StatusNotSupported, ""},
	p11.CKR_KEY_SIZE_RANGE:                 {psa.StatusNotSupported, ""},
	p11.CKR_CURVE_NOT_SUPPORTED:            {psa.StatusNotSupported, ""},
	p11.CKR_DOMAIN_PARAMS_INVALID:          {psa.StatusNotSupported, ""},
	p11.CKR_TEMPLATE_INCONSISTENT:          {psa.StatusNotSupported, ""},
	p11.CKR_TEMPLATE_INCOMPLETE:            {psa.StatusNotSupported, ""},
	p11.CKR_ATTRIBUTE_TYPE_INVALID:         {psa.StatusNotSupported, ""},
	p11.CKR_ATTRIBUTE_VALUE_INVALID:        {psa.StatusInvalidArgument, ""},
	p11.CKR_DATA_INVALID:                   {psa.StatusInvalidArgument, ""},
	p11.CKR_DATA_LEN_RANGE:                 {psa.StatusInvalidArgument, ""},
	p11.CKR_ENCRYPTED_DATA_INVALID:         {psa.StatusInvalidPadding, ""},
	p11.CKR_ENCRYPTED_DATA_LEN_RANGE:       {psa.StatusInvalidPadding, ""},
	p11.CKR_RANDOM_NO_RNG:                  {psa.StatusInsufficientEntropy, ""},
	p11.CKR_OBJECT_HANDLE_INVALID:          {psa.StatusDoesNotExist, ""},
	p11.CKR_KEY_HANDLE_INVALID:             {psa.StatusDoesNotExist, ""},
}

const (
	hintAbsent = "connect the token again; its keys are kept and work again when it is back"
	hintPIN    = "correct the PIN in user_pin or pin_source; the wrong one is not tried again"
	hintLocked = "unlock it as the token's security officer: pkcs11-tool --init-pin --login --login-type so"
)

// err is the error of a response, nil for outcomeOK.
func (a *response) err(what string) error {
	switch a.outcome {
	case outcomeOK:
		return nil
	case outcomeNotFound:
		return psa.Errorf(psa.StatusDoesNotExist, "%s: %s", what, a.what).WithHint("another program may have deleted it")
	case outcomeReplaced:
		return psa.Errorf(psa.StatusProviderAbsent, "%s: %s", what, a.what).
			WithHint("another program put it there; the right key is used again when it is back")
	case outcomeAmbiguous:
		return psa.Errorf(psa.StatusInvalidArgument, "%s: %s", what, a.what)
	case outcomeExists:
		return psa.Errorf(psa.StatusAlreadyExists, "%s: %s", what, a.what)
	case outcomeRefused, outcomeLost, outcomeGone:
	default:
		return psa.Errorf(psa.StatusGenericError, "%s: the module's process failed: %s", what, a.what)
	}
	e := psa.Errorf(psa.StatusGenericError, "%s", what)
	if s, ok := statuses[p11.Error(a.rv)]; ok {
		e.Status, e.Hint = s.status, s.hint
	}
	e.Device = a.what + ": " + name(a.rv)
	if a.outcome != outcomeRefused {
		e.Status, e.Hint = psa.StatusProviderAbsent, hintAbsent
	}
	return e
}

// name is the name of a return value, "CKR_PIN_INCORRECT", or its number.
func name(rv uint64) string {
	text := p11.Error(rv).Error() // "pkcs11: 0xA0: CKR_PIN_INCORRECT"
	if _, name, ok := strings.Cut(text, ": CKR_"); ok {
		return "CKR_" + name
	}
	return fmt.Sprintf("CKR 0x%x", rv)
}
