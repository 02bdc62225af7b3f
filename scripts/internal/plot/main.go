// Plot draws charts as SVG: plot DIR < CHARTS, where CHARTS is a JSON list of charts. It is a module of its own, so that what it
// draws with is no dependency of parsecfs.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image/color"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// chart has lines over a number, or, with labels, a row of dots for each of them. Axes of numbers are logarithmic.
type chart struct {
	File   string   `json:"file"`
	Title  string   `json:"title"`
	X      string   `json:"x"`
	Y      string   `json:"y"`
	Labels []string `json:"labels"`
	Series []series `json:"series"`
}

// series are the points of one colour. A row of dots takes its y from the label that has this index.
type series struct {
	Name   string       `json:"name"`
	Points [][2]float64 `json:"points"`
}

func main() {
	plot.DefaultFont.Variant = "Sans"
	plotter.DefaultFont.Variant = "Sans"
	if err := run(os.Args[1:], os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "plot:", err)
		os.Exit(1)
	}
}

func run(args []string, in io.Reader) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: plot DIR < CHARTS")
	}
	var charts []chart
	if err := json.NewDecoder(in).Decode(&charts); err != nil {
		return err
	}
	for _, c := range charts {
		if err := c.draw(args[0]); err != nil {
			return fmt.Errorf("%s: %w", c.File, err)
		}
	}
	return nil
}

// palette can be told apart by those who see no red or no green (Okabe and Ito).
var palette = []color.Color{
	color.RGBA{0, 114, 178, 255}, color.RGBA{213, 94, 0, 255}, color.RGBA{0, 158, 115, 255}, color.RGBA{204, 121, 167, 255},
	color.RGBA{86, 180, 233, 255}, color.RGBA{230, 159, 0, 255}, color.RGBA{0, 0, 0, 255},
}

var shapes = []draw.GlyphDrawer{
	draw.CircleGlyph{}, draw.RingGlyph{}, draw.PyramidGlyph{}, draw.SquareGlyph{}, draw.TriangleGlyph{}, draw.BoxGlyph{}, draw.CrossGlyph{},
}

const (
	width     = 8 * vg.Inch
	height    = 4.5 * vg.Inch
	rowHeight = 0.3 * vg.Inch
)

// narrow is how far an axis reaches where each of its ticks has a label.
const narrow = 30

// ticks of a logarithmic axis are 1, 2 and 5 of each power of ten.
type ticks struct{}

func (ticks) Ticks(low, high float64) (list []plot.Tick) {
	for power := math.Pow10(int(math.Floor(math.Log10(low)))); power <= high; power *= 10 {
		for _, digit := range []float64{1, 2, 5} {
			if v := digit * power; v >= low*0.999 && v <= high*1.001 {
				tick := plot.Tick{Value: v}
				if digit == 1 || high/low < narrow {
					tick.Label = strconv.FormatFloat(v, 'f', -1, 64)
				}
				list = append(list, tick)
			}
		}
	}
	return list
}

func (c *chart) draw(dir string) error {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = c.Title, c.X, c.Y
	p.BackgroundColor = color.White // readable on a dark page too
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, ticks{}
	p.Add(plotter.NewGrid())
	p.Legend.Top = true
	high := height
	if len(c.Labels) == 0 {
		p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, ticks{}
		p.Legend.Left = true
	} else {
		p.NominalY(c.Labels...)
		high = 1.5*vg.Inch + rowHeight*vg.Length(len(c.Labels))
	}
	named := 0
	for i, s := range c.Series {
		points := make(plotter.XYs, 0, len(s.Points))
		for _, xy := range s.Points {
			if xy[0] <= 0 || len(c.Labels) == 0 && xy[1] <= 0 {
				return fmt.Errorf("%s: a logarithmic axis has no %v", s.Name, xy)
			}
			points = append(points, plotter.XY{X: xy[0], Y: xy[1]})
		}
		if len(points) == 0 {
			continue
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return err
		}
		line.Color, dots.Color = palette[i%len(palette)], palette[i%len(palette)]
		dots.Shape, dots.Radius = shapes[i%len(shapes)], vg.Points(4)
		p.Add(dots)
		named++
		if len(c.Labels) != 0 {
			p.Legend.Add(s.Name, dots)
			continue
		}
		p.Add(line)
		p.Legend.Add(s.Name, line, dots)
	}
	// Room for the names above all points.
	if len(c.Labels) != 0 {
		p.Y.Min, p.Y.Max = -0.5, float64(len(c.Labels))+0.8
		p.X.Max *= 1.2
	} else if named > 0 {
		p.Y.Max *= math.Pow(p.Y.Max/p.Y.Min, 0.09*float64(named))
	}
	return save(p, high, filepath.Join(dir, c.File))
}

// save names fonts with the same widths for who has not the one that was measured.
func save(p *plot.Plot, high vg.Length, file string) error {
	w, err := p.WriterTo(width, high, "svg")
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if _, err := w.WriteTo(&b); err != nil {
		return err
	}
	text := strings.ReplaceAll(b.String(), "font-family:Liberation Sans", "font-family:'Liberation Sans',Arial,Helvetica,sans-serif")
	return os.WriteFile(file, []byte(text), 0o644)
}
