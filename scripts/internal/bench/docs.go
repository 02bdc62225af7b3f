package main

import (
	"cmp"
	_ "embed"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
)

//go:embed performance.md.tmpl
var page string

// chart is a picture of the page, as the plot program wants it.
type chart struct {
	File   string   `json:"file"`
	Title  string   `json:"title"`
	X      string   `json:"x"`
	Y      string   `json:"y,omitempty"`
	Labels []string `json:"labels,omitempty"`
	Series []series `json:"series"`
}

type series struct {
	Name   string       `json:"name"`
	Points [][2]float64 `json:"points"`
}

// writeDocs makes performance.md of a run's results, and prints its charts.
func writeDocs(results, dir string) error {
	r, err := readResults(results)
	if err != nil {
		return err
	}
	text, err := r.page()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "performance.md"), []byte(text), 0o644); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r.charts())
}

func (r *Results) page() (string, error) {
	t, err := template.New("performance.md").Parse(page)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	err = t.Execute(&text, r)
	return text.String(), err
}

// table is one of Markdown; numbers stand to the right.
func table(header []string, rows [][]string) string {
	var b strings.Builder
	line := func(cells []string) {
		b.WriteString("|")
		for _, cell := range cells {
			b.WriteString(" " + strings.ReplaceAll(cell, "|", `\|`) + " |")
		}
		b.WriteString("\n")
	}
	line(header)
	rule := make([]string, len(header))
	for i := range rule {
		rule[i] = "---"
		if len(rows) > 0 && strings.ContainsAny(rows[0][i][:min(1, len(rows[0][i]))], "0123456789-") {
			rule[i] = "---:"
		}
	}
	line(rule)
	for _, row := range rows {
		line(row)
	}
	return b.String()
}

// Of says what was measured, and where.
func (r *Results) Of() string {
	commit := r.Commit
	if commit == "" {
		commit = "of no commit"
	} else if r.Changed {
		commit += " with changes"
	}
	m := r.Machine
	return table([]string{"measured", "on"}, [][]string{
		{"date", r.Date.Format("2006-01-02 15:04 MST")},
		{"commit", "`" + commit + "`"},
		{"processors", fmt.Sprintf("%d of %s", m.Processors, m.CPU)},
		{"memory", fmt.Sprintf("%d MiB", m.MemoryMiB)},
		{"system", m.System + ", Linux " + m.Kernel + ", " + m.Go},
		{"load before", fmt.Sprintf("%.2f", m.Load)},
		{"the run took", fmt.Sprintf("%.0f s", r.Seconds)},
	})
}

// Has says whether a part was measured.
func (r *Results) Has(part string) bool { return slices.Contains(r.Parts, part) }

// NotMeasured lists what was skipped or failed.
func (r *Results) NotMeasured() string {
	var b strings.Builder
	for _, p := range parts {
		if p.name != partGuard && !r.Has(p.name) {
			fmt.Fprintf(&b, "- %s: %s. Not part of this run.\n", p.name, p.help)
		}
	}
	for _, s := range r.Skipped {
		fmt.Fprintf(&b, "- %s: %s.\n", s.What, s.Why)
	}
	for _, s := range r.Failed {
		fmt.Fprintf(&b, "- Failed: %s: %s.\n", s.What, s.Why)
	}
	return b.String()
}

// Part is all that was measured of one, as a table.
func (r *Results) Part(part string) string {
	var rows [][]string
	for _, q := range r.Requests {
		if q.Part == part {
			way := q.Way
			if part == partShell {
				way = "`" + way + "`"
			}
			rows = append(rows, append([]string{q.Server, way, fmt.Sprint(q.Workers)}, q.times()...))
		}
	}
	return table(append([]string{"what answers", "how it is asked", "at once"}, timeColumns...), rows)
}

// Alone is P-256 with one worker.
func (r *Results) Alone() string {
	var rows [][]string
	bare := r.find(partSignatures, serverBare, templateP256, wayInProcess, 1)
	for _, q := range r.Requests {
		if q.Part != partSignatures || q.Algorithm != templateP256 || q.Workers != 1 {
			continue
		}
		rows = append(rows, append(append([]string{q.Server, q.Way}, q.times()...), q.against(bare)))
	}
	return table(append(append([]string{"what answers", "how it is asked"}, timeColumns...), "times bare Go"), rows)
}

// timeColumns name what times gives.
var timeColumns = []string{"median, us", "99 % below, us", "99.9 % below, us", "each second"}

func (q *Request) times() []string {
	return []string{number(q.P50), number(q.P99), number(q.P999), number(q.PerSecond)}
}

// against is the median of the rounds' ratios of medians: what was measured at about the same time is compared.
func (q *Request) against(other *Request) string {
	if v := q.ratio(other); v != 0 {
		return fmt.Sprintf("%.2f", v)
	}
	return "-"
}

func (q *Request) ratio(other *Request) float64 {
	list := q.ratios(other)
	if len(list) == 0 {
		return 0
	}
	return median(list)
}

func (q *Request) ratios(other *Request) (list []float64) {
	if q == nil || other == nil {
		return nil
	}
	for i := range min(len(q.Rounds), len(other.Rounds)) {
		list = append(list, q.Rounds[i].P50/other.Rounds[i].P50)
	}
	return list
}

// Ratios are those of parsecfs to bare Go and to the minimal handler, with each round's.
func (r *Results) Ratios() string {
	var rows [][]string
	bare := r.find(partSignatures, serverBare, templateP256, wayInProcess, 1)
	for _, transport := range []string{transportDevice, transportUring} {
		for _, way := range []string{wayFresh, wayKept, wayIoctl} {
			ours := r.find(partSignatures, over(serverOurs, transport), templateP256, way, 1)
			if ours == nil {
				continue
			}
			least := r.find(partSignatures, over(serverFloor, transport), templateP256, way, 1)
			rows = append(rows, []string{over(serverOurs, transport), way,
				ours.against(bare), each(ours.ratios(bare)), ours.against(least), each(ours.ratios(least))})
		}
	}
	return table([]string{"", "how it is asked", "times bare Go", "in each round", "times the minimal handler", "in each round"}, rows)
}

func each(list []float64) string {
	var b []string
	for _, v := range list {
		b = append(b, fmt.Sprintf("%.2f", v))
	}
	if len(b) == 0 {
		return "-"
	}
	return strings.Join(b, " ")
}

// ByWorkers are the rates of P-256 by how many ask at once, and the cores of cryptography that 16 keep busy.
func (r *Results) ByWorkers() string {
	header := []string{"what answers", "how it is asked"}
	for _, n := range manyWorkers {
		header = append(header, fmt.Sprintf("%d at once", n))
	}
	header = append(header, "cores of cryptography, 16 at once", "99 % below, us, 16 at once")
	var rows [][]string
	for _, q := range r.Requests {
		if q.Part != partSignatures || q.Algorithm != templateP256 || q.Workers != 1 || q.Way == wayDropBox {
			continue
		}
		row := []string{q.Server, q.Way}
		for _, n := range manyWorkers {
			row = append(row, number(r.like(&q, n).PerSecond))
		}
		sixteen := r.like(&q, 16)
		rows = append(rows, append(row, number(sixteen.Cores), number(sixteen.P99)))
	}
	return table(header, rows)
}

// like is the same request with another number of workers; nothing where that was not measured.
func (r *Results) like(q *Request, workers int) Request {
	if other := r.find(q.Part, q.Server, q.Algorithm, q.Way, workers); other != nil {
		return *other
	}
	return Request{}
}

// Algorithms are the medians and rates of the algorithms that are measured.
func (r *Results) Algorithms() string {
	var rows [][]string
	for i := range algorithms {
		a := &algorithms[i]
		for _, q := range r.Requests {
			if q.Part != partSignatures || q.Algorithm != a.template || q.Workers != 1 {
				continue
			}
			bare := r.find(partSignatures, serverBare, a.template, wayInProcess, 1)
			rows = append(rows, []string{a.name, q.Server, q.Way, number(q.P50), q.against(bare), number(r.like(&q, 16).PerSecond)})
		}
	}
	return table([]string{"", "what answers", "how it is asked", "median, us", "times bare Go", "each second, 16 at once"}, rows)
}

// LongMessages are the streams.
func (r *Results) LongMessages() string {
	var rows [][]string
	for _, s := range r.Streams {
		resident := "-"
		if s.ResidentMiB > 0 {
			resident = fmt.Sprintf("%.0f MiB", s.ResidentMiB)
		}
		together := float64(s.Bytes>>20) * float64(s.AtOnce) / s.Seconds
		rows = append(rows, []string{s.Server, fmt.Sprintf("%d of %d MiB", s.AtOnce, s.Bytes>>20),
			fmt.Sprintf("%.2f s", s.Seconds), each(s.Rounds), fmt.Sprintf("%.0f MiB/s", together), resident})
	}
	return table([]string{"", "messages at once", "all took", "each round, s", "together", "most that is resident in the daemon"}, rows)
}

// Numbers are the other figures of a part: a row for each name, and a column for each thing that has it.
func (r *Results) Numbers(part string) string {
	header := []string{""}
	var rows [][]string
	for _, f := range r.Figures {
		if f.Part != part {
			continue
		}
		column := slices.Index(header[1:], f.Of) + 1
		if column == 0 {
			column = len(header)
			header = append(header, f.Of)
		}
		row := slices.IndexFunc(rows, func(cells []string) bool { return cells[0] == f.Name })
		if row < 0 {
			row = len(rows)
			rows = append(rows, []string{f.Name})
		}
		for len(rows[row]) <= column {
			rows[row] = append(rows[row], "-")
		}
		rows[row][column] = strings.TrimSpace(number(f.Value) + " " + f.Unit)
	}
	for i := range rows {
		for len(rows[i]) < len(header) {
			rows[i] = append(rows[i], "-")
		}
	}
	return table(header, rows)
}

// comparison is of parsecfs with something else that people use for the same.
type comparison struct {
	instead, how string
	theirs, ours float64
	times        float64 // as long that parsecfs takes
	unit         string
}

// comparisons are what the page says about who is faster. Nothing is left out because of its outcome.
func (r *Results) comparisons() (list []comparison) {
	in := func(part, server, way string, workers int) *Request {
		return r.find(part, server, templateP256, way, workers)
	}
	add := func(instead string, theirs *Request, how string, ours *Request) {
		if ours != nil && theirs != nil {
			list = append(list, comparison{instead, how, theirs.P50, ours.P50, ours.ratio(theirs), " us"})
		}
	}
	rate := func(instead string, theirs *Request, how string, ours *Request) {
		if ours != nil && theirs != nil {
			list = append(list, comparison{instead, how, theirs.PerSecond, ours.PerSecond, theirs.PerSecond / ours.PerSecond, " each second"})
		}
	}
	for _, transport := range []string{transportDevice, transportUring} {
		ours, floor := over(serverOurs, transport), over(serverFloor, transport)
		on := " (" + strings.TrimPrefix(ours, serverOurs+", ") + ")"
		fresh, kept := "a fresh open"+on, "an open file kept"+on
		freshOne, keptOne := in(partSignatures, ours, wayFresh, 1), in(partSignatures, ours, wayKept, 1)
		const library = "a library in the process (bare Go)"
		bare := in(partSignatures, serverBare, wayInProcess, 1)
		add(library, bare, kept, keptOne)
		add(library, bare, fresh, freshOne)
		add(library, bare, "an ioctl on an open file kept"+on, in(partSignatures, ours, wayIoctl, 1))
		rate(library+", 16 at once", in(partSignatures, serverBare, wayInProcess, 16),
			"open files kept"+on, in(partSignatures, ours, wayKept, 16))
		add("a minimal service on a socket, connection kept", in(partSignatures, serverSocket, wayConnected, 1), kept, keptOne)
		add("a minimal service on a socket, connected anew", in(partSignatures, serverSocket, wayConnect, 1), fresh, freshOne)
		add("the minimal handler", in(partSignatures, floor, wayFresh, 1), fresh, freshOne)
		add("the minimal handler", in(partSignatures, floor, wayKept, 1), kept, keptOne)
		add("go-tpm alone", in(partTPM, serverGoTPM, oneKey+wayInProcess, 1), "the same TPM (swtpm), "+kept, in(partTPM, ours, oneKey+wayKept, 1))
		add("a PKCS #11 module alone (SoftHSM)", in(partPKCS11, serverModule, wayInProcess, 1),
			"the same token, "+kept, in(partPKCS11, ours, wayKept, 1))
		add("`openssl dgst -sign` with the key in a file", in(partShell, serverOpenSSL, shellOpenSSL, 1),
			"`cat` at a shell"+on, in(partShell, ours, shellOneOpen, 1))
		for _, p := range []string{serverParsec, serverParsecZero} {
			add(p, in(partParsec, p, wayConnect, 1), fresh, in(partParsec, ours, wayFresh, 1))
			rate(p+", 32 clients", in(partParsec, p, wayConnect, parsecClients), "fresh opens"+on, in(partParsec, ours, wayFresh, parsecClients))
		}
		for _, s := range r.Streams {
			for _, t := range r.Streams {
				if s.Server == ours && t.Server == serverOpenSSLStream && s.AtOnce == t.AtOnce {
					how := fmt.Sprintf("%d of %d MiB through `sign`%s", s.AtOnce, s.Bytes>>20, on)
					list = append(list, comparison{"`" + t.Server + "`", how, t.Seconds, s.Seconds, s.Seconds / t.Seconds, " s"})
				}
			}
		}
	}
	add("`pkcs11-tool --sign`", in(partShell, serverTool, shellTool, 1),
		"`cat` at a shell, the same token", in(partShell, over(serverOurs, transportDevice)+", key in SoftHSM", shellDigest, 1))
	return list
}

// alike is how far from each other two may be that the page calls equally fast.
const alike = 1.1

// Slower and Faster are the comparisons that parsecfs loses and wins, and Alike the others.
func (r *Results) Slower() string {
	return r.compared(func(times float64) bool { return times > alike })
}

func (r *Results) Faster() string {
	return r.compared(func(times float64) bool { return times < 1/alike })
}

func (r *Results) Alike() string {
	return r.compared(func(times float64) bool { return times >= 1/alike && times <= alike })
}

func (r *Results) compared(match func(float64) bool) string {
	var list []comparison
	for _, c := range r.comparisons() {
		if match(c.times) {
			list = append(list, c)
		}
	}
	far := func(c comparison) float64 { return math.Abs(math.Log(c.times)) }
	slices.SortStableFunc(list, func(a, b comparison) int { return cmp.Compare(far(b), far(a)) })
	var rows [][]string
	for _, c := range list {
		times := number(c.times) + " times as long"
		if c.times < 1/alike {
			times = number(1/c.times) + " times as fast"
		} else if c.times <= alike {
			times = "as long"
		}
		rows = append(rows, []string{times, c.instead, number(c.theirs) + c.unit, c.how, number(c.ours) + c.unit})
	}
	if len(rows) == 0 {
		return "Nothing in this run.\n"
	}
	return table([]string{"parsecfs takes", "compared with", "which takes", "parsecfs, by", "takes"}, rows)
}

// charts are the pictures that the page shows.
func (r *Results) charts() []chart {
	dots := func(file, title, part string, label func(*Request) string) chart {
		c := chart{File: file, Title: title, X: "microseconds", Series: []series{{Name: "median"}, {Name: "99 % below"}}}
		for _, q := range slices.Backward(r.Requests) { // the first one stands at the top
			if q.Part != part || q.Algorithm != templateP256 || q.Workers != 1 {
				continue
			}
			at := float64(len(c.Labels))
			c.Labels = append(c.Labels, label(&q))
			c.Series[0].Points = append(c.Series[0].Points, [2]float64{q.P50, at})
			c.Series[1].Points = append(c.Series[1].Points, [2]float64{q.P99, at})
		}
		return c
	}
	lines := func(file, title string, ways []string, of func(Request) float64, y string) chart {
		c := chart{File: file, Title: title, X: "at once", Y: y}
		for _, q := range r.Requests {
			if q.Part != partSignatures || q.Algorithm != templateP256 || q.Way != wayInProcess && !slices.Contains(ways, q.Way) {
				continue
			}
			i := slices.IndexFunc(c.Series, func(s series) bool { return s.Name == q.Server })
			if i < 0 {
				i = len(c.Series)
				c.Series = append(c.Series, series{Name: q.Server})
			}
			c.Series[i].Points = append(c.Series[i].Points, [2]float64{float64(q.Workers), of(q)})
		}
		return c
	}
	fresh := []string{wayFresh, wayConnect}
	perSecond := func(q Request) float64 { return q.PerSecond }
	late := func(q Request) float64 { return q.P99 }
	whole := func(q *Request) string { return q.Server + ": " + q.Way }
	short := func(q *Request) string {
		way, _, _ := strings.Cut(q.Way, ":")
		return q.Server + ": " + way
	}
	var list []chart
	if r.Has(partSignatures) {
		list = append(list,
			dots("alone.svg", "A P-256 signature, one client", partSignatures, short),
			lines("fresh.svg", "P-256 signatures a second, a fresh open for each", fresh, perSecond, "signatures a second"),
			lines("kept.svg", "P-256 signatures a second, descriptors kept", []string{wayKept, wayConnected}, perSecond, "signatures a second"),
			lines("late.svg", "99 % of P-256 signatures stay below, a fresh open for each", fresh, late, "microseconds"))
	}
	if r.Has(partParsec) {
		list = append(list, dots("parsec.svg", "A P-256 signature of a hash, one client", partParsec, short))
	}
	if r.Has(partShell) {
		list = append(list, dots("shell.svg", "One P-256 signature at a shell", partShell, whole))
	}
	list = slices.DeleteFunc(list, func(c chart) bool {
		return !slices.ContainsFunc(c.Series, func(s series) bool { return len(s.Points) > 0 })
	})
	return list
}

// Chart shows a picture where it was drawn.
func (r *Results) Chart(file, text string) string {
	if !slices.ContainsFunc(r.charts(), func(c chart) bool { return c.File == file }) {
		return ""
	}
	return fmt.Sprintf("![%s](performance/%s)\n", text, file)
}
