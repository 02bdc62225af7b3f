package psa

// Fields are attributes as TOML names them; what is nil is not named. Template stands for all the others
// that a template says.
type Fields struct {
	Template  *string `toml:"template"`
	Type      *string `toml:"key_type"`
	Bits      *int    `toml:"key_bits"`
	Algorithm *string `toml:"permitted_algorithm"`
	Usage     any     `toml:"usage"` // a list of flags, or as PSA writes them, joined by "|"
	PCRs      *[]int  `toml:"pcrs"`
}

// Over puts the fields over what is there: what is not named stays. A value that is none is StatusInvalidArgument.
func (x Fields) Over(a Attributes) (Attributes, error) {
	if x.Template != nil {
		t, err := ParseTemplate(*x.Template)
		if err != nil {
			return a, err
		}
		a = t
	}
	var err error
	if x.Type != nil {
		if a.Type, err = ParseKeyType(*x.Type); err != nil {
			return a, err
		}
	}
	if x.Bits != nil {
		a.Bits = *x.Bits
	}
	if x.Algorithm != nil {
		if a.Algorithm, err = ParseAlgorithm(*x.Algorithm); err != nil {
			return a, err
		}
	}
	if x.Usage != nil {
		if a.Usage, err = usageOf(x.Usage); err != nil {
			return a, err
		}
	}
	if x.PCRs != nil {
		if a.PCRs, err = NewPCRs(*x.PCRs); err != nil {
			return a, err
		}
	}
	return a, nil
}

// usageOf reads usage as a list of flags or as PSA writes them, joined by "|".
func usageOf(v any) (Usage, error) {
	switch x := v.(type) {
	case string:
		return ParseUsage(x)
	case []any:
		var u Usage
		for _, e := range x {
			s, ok := e.(string)
			if !ok {
				return 0, Errorf(StatusInvalidArgument, "usage: %v is not a string", e)
			}
			flag, err := ParseUsage(s)
			if err != nil {
				return 0, err
			}
			u |= flag
		}
		return u, nil
	}
	return 0, Errorf(StatusInvalidArgument, "usage must be a list of strings")
}
