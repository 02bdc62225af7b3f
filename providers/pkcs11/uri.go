package pkcs11

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// The supported attributes of a URI (RFC 7512, 2.3). Attributes that begin with x- are ignored.
var (
	uriPath  = []string{"token", "manufacturer", "serial", "model", "object", "type", "id", "slot-id"}
	uriQuery = []string{"pin-source", "pin-value", "module-path"}
)

const (
	uriScheme = "pkcs11:"
	maxURI    = 4 << 10
)

// parseURI reads a PKCS #11 URI: the values of its attributes, percent-decoded.
func parseURI(s string) (map[string]string, error) {
	if len(s) > maxURI {
		return nil, fmt.Errorf("the URI has %d bytes; allowed: up to %d", len(s), maxURI)
	}
	rest, ok := strings.CutPrefix(s, uriScheme)
	if !ok {
		return nil, fmt.Errorf("a PKCS #11 URI begins with %s", uriScheme)
	}
	path, query, _ := strings.Cut(rest, "?")
	values := map[string]string{}
	for _, part := range []struct {
		text, separator string
		known           []string
	}{{path, ";", uriPath}, {query, "&", uriQuery}} {
		if part.text == "" {
			continue
		}
		for pair := range strings.SplitSeq(part.text, part.separator) {
			name, value, ok := strings.Cut(pair, "=")
			if !ok || name == "" {
				return nil, fmt.Errorf("%q is not name=value", pair)
			}
			if strings.HasPrefix(name, "x-") {
				continue
			}
			if !slices.Contains(part.known, name) {
				return nil, fmt.Errorf("unknown attribute %q; allowed: %s", name, strings.Join(part.known, ", "))
			}
			if _, twice := values[name]; twice {
				return nil, fmt.Errorf("attribute %s is given twice", name)
			}
			decoded, err := url.PathUnescape(value)
			if err != nil {
				return nil, fmt.Errorf("attribute %s: wrong percent-encoding", name)
			}
			values[name] = decoded
		}
	}
	return values, nil
}
