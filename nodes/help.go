package nodes

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// readme is the tree's own README, made from its table.
func readme() []byte {
	var b bytes.Buffer
	b.WriteString(`parsecfs: every key is a directory, every operation is a file, and the file's permissions decide who may use it.

    cd providers/default
    mkdir mine/web                               a draft, among your own names
    echo ecdsa-p256-sha256 > mine/web/generate   now it is a key
    { cat message >&3; cat <&3; } 3<>mine/web/sign > signature
    mv mine/web keys/web                         among the names that all users share
    rmdir keys/web                               destroyed

An open file is one transaction: write the request, read the answer. Programs that cannot keep a file open use a slot:
write and read sign.d/<any name>, then rm it. An operation with several inputs has directories as slots: mkdir
verify.d/x makes a file for each input and output.

Each operation that has slots also takes one ioctl that carries a request and its answer: _IOWR(0xC7, 1, size), of a struct of two
lengths (request, answer; 32 bits each) and bytes.

`)
	section(&b, "/", rootRows)
	section(&b, "providers/<name>/", providerRows)
	section(&b, "providers/<name>/keys/<key>/ and mine/<key>/  (those that its type, policy and provider allow)", keyRows)
	return b.Bytes()
}

func section(b *bytes.Buffer, title string, rows []*row) {
	fmt.Fprintln(b, title)
	w := tabwriter.NewWriter(b, 0, 8, 2, ' ', 0)
	for _, r := range rows {
		name := r.name
		if r.kind == directory {
			name += "/"
		}
		fmt.Fprintf(w, "    %s\t%s\n", name, r.help)
		if r.kind == request {
			slotHelp(w, r)
		}
	}
	_ = w.Flush() // into memory
	fmt.Fprintln(b)
}

func slotHelp(w io.Writer, r *row) {
	what := "slots: files that can be written and read in separate opens"
	if r.spec.Parted() {
		var names []string
		for _, p := range r.spec.Parts() {
			names = append(names, p.Name)
		}
		what = "slots: directories with " + strings.Join(names, ", ")
	}
	fmt.Fprintf(w, "    %s/\t%s\n", r.name+slotsSuffix, what)
}
