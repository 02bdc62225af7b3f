package psa

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strings"
	"unicode/utf8"
)

const (
	pemBegin  = "-----BEGIN "
	pemEnd    = "-----END "
	pemDashes = "-----"
	maxLabel  = 64
	bom       = "\xef\xbb\xbf"
)

// PEMBlock is a block of a text in PEM (RFC 7468). Who reads it wipes it where it may be a secret.
type PEMBlock struct {
	Label     string
	Bytes     []byte
	Encrypted bool // by a header of RFC 1421
}

// PEMScanner finds the blocks in a text in PEM that may not be whole yet. Text outside blocks is ignored. Everything that
// could hide a block is an error: crypto's pem.Decode skips damaged ones, and a chain would lose a certificate.
type PEMScanner struct {
	b     []byte
	at    int  // of a line
	ended bool // at stands behind an END line, of which white space may be left
	label string
	body  int // where the open block's first line is
}

// NewPEMScanner scans b.
func NewPEMScanner(b []byte) *PEMScanner { return &PEMScanner{b: b} }

// errNotText is what NextLabel says of bytes outside blocks that are no text.
var errNotText = errors.New("there are bytes outside of the PEM blocks that are not text")

func damagedPEM(format string, args ...any) *Error {
	return Errorf(StatusInvalidArgument, "damaged PEM: "+format, args...)
}

// NextLabel goes on to the next BEGIN line and gives its label: "" where no more is there yet. Block must follow.
func (s *PEMScanner) NextLabel() (string, error) {
	for s.at < len(s.b) {
		line, whole := lineAt(s.b, s.at)
		next := min(s.at+len(line)+1, len(s.b))
		if s.ended {
			if len(bytes.TrimSpace(line)) > 0 {
				return "", damagedPEM("there is text after an END line").WithHint("put a newline between the files that you join")
			}
			if s.at, s.ended = next, !whole; !whole {
				return "", nil
			}
			continue
		}
		text := bytes.TrimPrefix(line, []byte(bom))
		switch {
		case bytes.HasPrefix(text, []byte(pemBegin)):
			return s.beginLine(text[len(pemBegin):], whole, next)
		case !whole && len(text) > 0 && strings.HasPrefix(pemBegin, string(text)), !whole && strings.HasPrefix(bom, string(line)):
			return "", nil
		case bytes.HasPrefix(text, []byte(pemEnd)):
			return "", damagedPEM("an END line has no BEGIN line")
		case isArmour(text):
			return "", errArmour(text)
		case !isText(text):
			return "", &Error{Status: StatusInvalidArgument, Err: errNotText}
		case !whole:
			return "", nil
		}
		s.at = next
	}
	return "", nil
}

// beginLine reads what follows BEGIN. What is wrong with the line is not quoted: a key whose line breaks were lost is all in it.
func (s *PEMScanner) beginLine(rest []byte, whole bool, next int) (string, error) {
	name, after, dashes := bytes.Cut(rest, []byte(pemDashes))
	switch {
	case dashes && bytes.HasPrefix(after, []byte(pemBegin)), dashes && bytes.HasPrefix(after, []byte(pemEnd)):
		return "", damagedPEM("two lines are joined").WithHint("put a newline between the files that you join")
	case len(name) > maxLabel, dashes && len(bytes.TrimSpace(after)) != 0, whole && !dashes, !isText(name):
		return "", damagedPEM("a BEGIN line does not end after its name").
			WithHint("were the line breaks lost? quote the variable: printf '%s\\n' \"$KEY\"")
	case !whole:
		return "", nil
	case len(name) == 0:
		return "", damagedPEM("a BEGIN line has no name")
	}
	s.label, s.body = string(name), next
	return s.label, nil
}

// Block reads the block whose label NextLabel gave; ok false: it is not whole yet.
func (s *PEMScanner) Block() (block PEMBlock, ok bool, err error) {
	block.Label = s.label
	last := []byte(pemEnd + s.label + pemDashes)
	headers, first := false, true
	var body []byte
	defer func() { Wipe(body) }()
	for at := s.body; at < len(s.b); {
		line, whole := lineAt(s.b, at)
		next := min(at+len(line)+1, len(s.b))
		switch {
		case bytes.HasPrefix(line, last):
			if headers {
				return block, false, damagedPEM("the headers of the block %s do not end", quote(s.label))
			}
			if block.Bytes, err = decodeBase64(body); err != nil {
				return block, false, s.notBase64()
			}
			s.at, s.ended, s.label = at+len(last), true, ""
			return block, true, nil
		case !whole && bytes.HasPrefix(last, line):
			return block, false, nil
		case bytes.HasPrefix(line, []byte(pemEnd)):
			return block, false, damagedPEM("the block %s ends with the END line of another block", quote(s.label))
		case bytes.HasPrefix(bytes.TrimPrefix(line, []byte(bom)), []byte(pemBegin)):
			return block, false, damagedPEM("the block %s has no END line", quote(s.label))
		case first && bytes.ContainsRune(line, ':'):
			headers = true
			fallthrough
		case headers:
			if !isText(line) || isArmour(line) {
				return block, false, s.notBase64()
			}
			block.Encrypted = block.Encrypted || bytes.HasPrefix(line, []byte("DEK-Info:")) ||
				bytes.HasPrefix(line, []byte("Proc-Type:")) && bytes.Contains(line, []byte("ENCRYPTED"))
			headers = !whole || len(bytes.TrimSpace(line)) > 0
		case first && !whole && mayBeHeader(line): // the colon may follow
			return block, false, nil
		default:
			if body == nil {
				most := len(s.b) - at
				if end := bytes.Index(s.b[at:], []byte(pemEnd)); end >= 0 {
					most = end
				}
				body = make([]byte, 0, most)
			}
			if body, ok = appendBase64(body, line); !ok {
				return block, false, s.notBase64()
			}
		}
		at, first = next, false
	}
	return block, false, nil
}

func (s *PEMScanner) notBase64() error {
	return damagedPEM("the block %s is not base64", quote(s.label))
}

// Left is how many bytes at the end belong to a block that has begun.
func (s *PEMScanner) Left() int {
	if s.ended {
		return 0
	}
	line, whole := lineAt(s.b, min(s.at, len(s.b)))
	text := bytes.TrimPrefix(line, []byte(bom))
	if s.label != "" || !whole && len(text) > 0 && strings.HasPrefix(pemBegin, string(text)) || bytes.HasPrefix(text, []byte(pemBegin)) {
		return len(s.b) - s.at
	}
	return 0
}

// ReadPEM reads the blocks of a whole text; one that is not whole is an error.
func ReadPEM(b []byte) (blocks []PEMBlock, err error) {
	defer func() {
		if err != nil {
			for _, block := range blocks {
				Wipe(block.Bytes)
			}
			blocks = nil
		}
	}()
	s := NewPEMScanner(b)
	for {
		label, err := s.NextLabel()
		if err != nil {
			return blocks, err
		}
		if label == "" {
			break
		}
		block, whole, err := s.Block()
		if err != nil {
			return blocks, err
		}
		if !whole {
			return blocks, damagedPEM("the block %s has no END line", quote(label))
		}
		blocks = append(blocks, block)
	}
	if s.Left() > 0 {
		return blocks, damagedPEM("the text ends in a BEGIN line")
	}
	return blocks, nil
}

// PublicDER is the SubjectPublicKeyInfo in b, in PEM or in DER already. PEM holds one key, a public one.
func PublicDER(b []byte) ([]byte, error) {
	if !bytes.Contains(b, []byte(pemDashes+"BEGIN")) {
		return b, nil
	}
	blocks, err := ReadPEM(b)
	if err != nil {
		return nil, err
	}
	var der []byte
	for _, block := range blocks {
		switch isKey := strings.Contains(block.Label, "KEY"); {
		case isKey && block.Label != "PUBLIC KEY":
			err = Errorf(StatusInvalidArgument, "it is a PEM block %s, not a public key", quote(block.Label)).
				WithHint("extract the public key: openssl pkey -pubout, or openssl rsa -RSAPublicKey_in -pubout")
		case isKey && der != nil:
			err = Errorf(StatusInvalidArgument, "a second key follows the first")
		case isKey:
			der = block.Bytes
			continue
		}
		Wipe(block.Bytes)
	}
	if err == nil && der == nil {
		err = Errorf(StatusInvalidArgument, "the PEM blocks contain no public key").
			WithHint("extract the public key of a certificate: openssl x509 -pubkey -noout -in FILE")
	}
	if err != nil {
		return nil, err
	}
	return der, nil
}

// lineAt is the line that starts at i, without its newline, and whether the newline is there.
func lineAt(b []byte, i int) ([]byte, bool) {
	line, _, whole := bytes.Cut(b[i:], []byte("\n"))
	return line, whole
}

// mayBeHeader says whether a line that is not whole may yet turn out to be a header of RFC 1421.
func mayBeHeader(line []byte) bool {
	return !bytes.ContainsFunc(line, func(r rune) bool {
		return r != '-' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	})
}

// isArmour says whether a line wants to be a BEGIN or END line and is none: indented, quoted, or with other dashes.
func isArmour(line []byte) bool {
	rest := bytes.TrimLeft(line, " \t>")
	words := bytes.TrimLeft(rest, "-–— ")
	if !bytes.HasPrefix(words, []byte("BEGIN ")) && !bytes.HasPrefix(words, []byte("END ")) {
		return false
	}
	dashes := rest[:len(rest)-len(words)]
	return bytes.Count(dashes, []byte("-")) >= 4 || bytes.ContainsAny(dashes, "–—")
}

func errArmour(line []byte) error {
	if bytes.Contains(line, []byte("SSH2")) {
		return errSSH2()
	}
	return damagedPEM("a BEGIN or END line does not start with five dashes").
		WithHint("if the text was indented or quoted, undo that: sed 's/^[ >]*//'")
}

// isText says whether b could be text around PEM, in UTF-8 or Latin-1; its last character may be cut short.
func isText(b []byte) bool {
	latin := true
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && n == 1 {
			if !utf8.FullRune(b[i:]) {
				return true
			}
			return latin && !bytes.ContainsFunc(b[i:], isControl) && isLatin1(b[i:])
		}
		if isControl(r) {
			return false
		}
		latin = latin && isLatin1(b[i:i+n])
		i += n
	}
	return true
}

func isControl(r rune) bool {
	return r < ' ' && !strings.ContainsRune("\t\n\v\f\r", r) || r == 0x7f
}

// isLatin1 says whether no byte is one of Latin-1's control characters.
func isLatin1(b []byte) bool {
	for _, c := range b {
		if c >= 0x80 && c < 0xa0 {
			return false
		}
	}
	return true
}

// appendBase64 appends a line without its white space; ok false: it is not base64.
func appendBase64(to, line []byte) (out []byte, ok bool) {
	for _, c := range line {
		switch {
		case c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '+', c == '/', c == '=':
			to = append(to, c)
		case c != ' ' && c != '\t' && c != '\r':
			return to, false
		}
	}
	return to, true
}

// decodeBase64 decodes what has no white space any more.
func decodeBase64(b []byte) ([]byte, error) {
	out := make([]byte, base64.StdEncoding.DecodedLen(len(b)))
	n, err := base64.StdEncoding.Decode(out, b)
	if err == nil && n == 0 {
		err = errors.New("empty")
	}
	if err != nil {
		Wipe(out)
		return nil, err
	}
	return out[:n], nil
}
