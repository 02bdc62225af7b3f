package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCharts(t *testing.T) {
	dir := t.TempDir()
	in := `[{"file": "lines.svg", "title": "Lines", "x": "workers", "y": "each second",
		 "series": [{"name": "one", "points": [[1, 10], [64, 2000]]}]},
		{"file": "dots.svg", "title": "Dots", "x": "us", "labels": ["first row", "second row"],
		 "series": [{"name": "median", "points": [[100, 0], [200, 1]]}, {"name": "none"}]}]`
	if err := run([]string{dir}, strings.NewReader(in)); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"lines.svg": "each second", "dots.svg": "second row"} {
		data, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		d := xml.NewDecoder(strings.NewReader(string(data)))
		for {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s is no XML: %v", file, err)
			}
			if chars, ok := token.(xml.CharData); ok {
				text.Write(chars)
			}
		}
		if !strings.Contains(text.String(), want) {
			t.Errorf("%s does not say %q", file, want)
		}
	}
	if err := run([]string{dir}, strings.NewReader(`[{"file": "zero.svg", "series": [{"name": "zero", "points": [[0, 1]]}]}]`)); err == nil {
		t.Error("zero was drawn on a logarithmic axis")
	}
}
