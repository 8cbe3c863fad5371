package main

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// This file draws what a sweep has come to over the size of a write, as SVG: the
// processor time of the sender's side in one panel, and throughput below it,
// with one line for each mode.

const (
	curveWidth  = 8 * vg.Inch
	panelHeight = 4 * vg.Inch
	curveMargin = 12 // points
	panelGap    = 18 // points
	// headroom is the height of a panel as a multiple of the highest line's: the legend has the rest.
	headroom = 1.3
	// leastCPU is the least processor time that is drawn, in s/GB: its axis is
	// logarithmic, and the clocks may have seen nothing.
	leastCPU = 0.01
	// mostSizeLabels is how many sizes fit below the axis.
	mostSizeLabels = 8
	// mostSteps is how many steps the other axis has at most, up to the highest line.
	mostSteps = 6
)

// curves are the picture of a sweep, its panels from top to bottom.
type curves []*panel

// A panel shows one quantity.
type panel struct {
	title, unit string
	logarithmic bool // the ordinate, and then the lines fall: the legend is on the right
	lines       []line
}

// A line is one mode's part of it.
type line struct {
	mode   string
	points plotter.XYs // X is the logarithm to base 2 of a size
}

// newCurves returns the picture of rows, which are in the order of their sizes.
// A quantity that is not known of all of them has no panel; where the side's
// time is not, the process's stands for it.
func newCurves(where string, rows []row) (c curves) {
	cpu := newPanel("Processor time of the sender's side by size of write, "+where, "s/GB", rows, func(r row) *float64 { return r.SideCPU })
	if cpu == nil {
		cpu = newPanel("Processor time of the sending process by size of write, "+where, "s/GB", rows, func(r row) *float64 { return r.ProcCPU })
	}
	if cpu != nil {
		cpu.makeLogarithmic()
		c = append(c, cpu)
	}
	return append(c, newPanel("Throughput by size of write, "+where, "GB/s", rows, func(r row) *float64 { return &r.GBPerS }))
}

// makeLogarithmic makes room for small values beside large ones.
func (p *panel) makeLogarithmic() {
	p.logarithmic = true
	for _, l := range p.lines {
		for i := range l.points {
			l.points[i].Y = max(l.points[i].Y, leastCPU)
		}
	}
}

// newPanel returns the panel of a quantity, nil if it is not known of all rows.
func newPanel(title, unit string, rows []row, quantity func(row) *float64) *panel {
	p := &panel{title: title, unit: unit}
	for _, r := range rows {
		y := quantity(r)
		if y == nil {
			return nil
		}
		l := p.line(r.Mode)
		l.points = append(l.points, plotter.XY{X: math.Log2(float64(r.Size)), Y: *y})
	}
	return p
}

// line returns the line of a mode.
func (p *panel) line(mode string) *line {
	for i := range p.lines {
		if p.lines[i].mode == mode {
			return &p.lines[i]
		}
	}
	p.lines = append(p.lines, line{mode: mode})
	return &p.lines[len(p.lines)-1]
}

// A look is how a mode's line is drawn and what the legend calls it. The colours can be told apart by people who are
// blind to some, and the dashes and glyphs without any colour.
type look struct {
	name   string
	color  color.Color
	width  vg.Length
	dashes []vg.Length
	glyph  draw.GlyphDrawer
}

func lookOf(mode string) look {
	switch mode {
	case modeCopy:
		return look{"copy: plain Write", color.RGBA{R: 0x55, G: 0x55, B: 0x55, A: 0xff}, 1.5, []vg.Length{7, 4}, draw.BoxGlyph{}}
	case "naive":
		return look{"naive: MSG_ZEROCOPY loop", color.RGBA{R: 0xd5, G: 0x5e, A: 0xff}, 1.5, []vg.Length{2, 3}, draw.PyramidGlyph{}}
	case "least":
		return look{"least: the error queue read every 32 calls", color.RGBA{R: 0xe6, G: 0x9f, A: 0xff}, 1.5, []vg.Length{10, 3, 2, 3}, draw.RingGlyph{}}
	case "c":
		return look{"c: MSG_ZEROCOPY loop in C", color.RGBA{G: 0x9e, B: 0x73, A: 0xff}, 1.5, []vg.Length{5, 2}, draw.CrossGlyph{}}
	case "c-write":
		return look{"c-write: plain sends in C", color.RGBA{R: 0xcc, G: 0x79, B: 0xa7, A: 0xff}, 1.5, []vg.Length{1, 2}, draw.PlusGlyph{}}
	}
	return look{mode, color.RGBA{G: 0x72, B: 0xb2, A: 0xff}, 2.25, nil, draw.CircleGlyph{}}
}

// svg draws the picture.
func (c curves) svg() ([]byte, error) {
	var plots [][]*plot.Plot
	for _, panel := range c {
		p, err := panel.plot()
		if err != nil {
			return nil, err
		}
		plots = append(plots, []*plot.Plot{p})
	}
	return render(plots)
}

// plot lays the panel out.
func (p *panel) plot() (*plot.Plot, error) {
	out := plot.New()
	setFonts(out)
	out.Title.Text = p.title
	out.Title.Padding = 12
	out.X.Label.Text = "size of one write"
	out.X.Label.Padding = 6
	out.Y.Label.Text = p.unit
	out.Y.Label.Padding = 6
	out.Legend.Top, out.Legend.Left = true, !p.logarithmic
	out.Legend.XOffs, out.Legend.YOffs = 10, -4
	if p.logarithmic {
		out.Legend.XOffs = -10
	}
	out.Legend.ThumbnailWidth = 36
	out.Legend.Padding = 3
	out.Legend.YPosition = draw.PosCenter
	grid := plotter.NewGrid()
	grid.Horizontal.Color, grid.Vertical.Color = color.Gray{Y: 0xd4}, nil
	out.Add(grid)
	for _, l := range p.lines {
		if err := l.addTo(out); err != nil {
			return nil, fmt.Errorf("draw mode %s: %w", l.mode, err)
		}
	}
	setRanges(out)
	if p.logarithmic {
		setLogarithmic(out)
	} else {
		setLinear(out)
	}
	return out, nil
}

// addTo adds the line to a plot and its legend.
func (l line) addTo(p *plot.Plot) error {
	drawn, glyphs, err := plotter.NewLinePoints(l.points)
	if err != nil {
		return err
	}
	look := lookOf(l.mode)
	drawn.LineStyle = draw.LineStyle{Color: look.color, Width: look.width, Dashes: look.dashes}
	glyphs.GlyphStyle = draw.GlyphStyle{Color: look.color, Radius: 3, Shape: look.glyph}
	p.Add(drawn, glyphs)
	p.Legend.Add(look.name, drawn, glyphs)
	return nil
}

// setRanges lets the abscissa cover all lines, from one power of two to another.
func setRanges(p *plot.Plot) {
	p.X.Min, p.X.Max = math.Floor(p.X.Min), math.Ceil(p.X.Max)
	if p.X.Min == p.X.Max {
		p.X.Min--
		p.X.Max++
	}
	p.X.Tick.Marker = plot.TickerFunc(sizeTicks)
}

// setLinear lets the ordinate cover all lines, from 0.
func setLinear(p *plot.Plot) {
	p.Y.Tick.Marker = stepTicks(p.Y.Max)
	p.Y.Min, p.Y.Max = 0, p.Y.Max*headroom
}

// setLogarithmic lets the ordinate cover all lines, and makes it logarithmic.
func setLogarithmic(p *plot.Plot) {
	p.Y.Scale = plot.LogScale{}
	p.Y.Min, p.Y.Max = p.Y.Min/headroom, p.Y.Max*headroom
	p.Y.Tick.Marker = decadeTicks(p.Y.Min, p.Y.Max)
}

// decadeTicks labels 1, 2 and 5 times each power of ten between two values.
func decadeTicks(least, most float64) (ticks plot.ConstantTicks) {
	for magnitude := int(math.Floor(math.Log10(least))); math.Pow10(magnitude) <= most; magnitude++ {
		for _, factor := range []float64{1, 2, 5} {
			if value := factor * math.Pow10(magnitude); value >= least && value <= most {
				ticks = append(ticks, plot.Tick{Value: value, Label: strconv.FormatFloat(value, 'f', max(-magnitude, 0), 64)})
			}
		}
	}
	return ticks
}

// sizeTicks marks each power of two, and labels as many as fit, evenly.
func sizeTicks(least, most float64) (ticks []plot.Tick) {
	every := 1
	for int(most-least)/every >= mostSizeLabels {
		every *= 2
	}
	for n := int(math.Ceil(least)); n <= int(most); n++ {
		tick := plot.Tick{Value: float64(n)}
		if n%every == 0 {
			tick.Label = size(1 << n).String()
		}
		ticks = append(ticks, tick)
	}
	return ticks
}

// stepTicks labels steps of 1, 2 or 5 times a power of ten, from 0 to the highest point, and none beside the legend.
func stepTicks(highest float64) plot.ConstantTicks {
	magnitude := int(math.Floor(math.Log10(highest)))
	var step float64
	var digits int // behind the point
	for _, try := range []struct {
		factor float64
		digits int
	}{{0.2, 1}, {0.5, 1}, {1, 0}, {2, 0}} {
		step, digits = try.factor*math.Pow10(magnitude), max(try.digits-magnitude, 0)
		if highest/step <= mostSteps {
			break
		}
	}
	var ticks plot.ConstantTicks
	for i := 0; float64(i)*step <= highest; i++ {
		value := float64(i) * step
		ticks = append(ticks, plot.Tick{Value: value, Label: strconv.FormatFloat(value, 'f', digits, 64)})
	}
	return ticks
}

// setFonts makes all text one without serifs.
func setFonts(p *plot.Plot) {
	for style, points := range map[*text.Style]font.Length{
		&p.Title.TextStyle:   15,
		&p.X.Label.TextStyle: 13,
		&p.Y.Label.TextStyle: 13,
		&p.X.Tick.Label:      12,
		&p.Y.Tick.Label:      12,
		&p.Legend.TextStyle:  12,
	} {
		style.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: points}
	}
}

// render returns plots as SVG, below one another, their axes aligned.
func render(plots [][]*plot.Plot) ([]byte, error) {
	canvas := vgsvg.New(curveWidth, panelHeight*vg.Length(len(plots)))
	area := draw.New(canvas)
	area.SetColor(color.White)
	area.Fill(area.Path())
	tiles := draw.Tiles{
		Rows: len(plots), Cols: 1, PadY: panelGap,
		PadTop: curveMargin, PadBottom: curveMargin, PadLeft: curveMargin, PadRight: curveMargin,
	}
	for i, row := range plot.Align(plots, tiles, area) {
		plots[i][0].Draw(row[0])
	}
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return nil, err
	}
	return bytes.ReplaceAll(b.Bytes(), []byte("font-family:Liberation Sans;"), []byte(fontFamily)), nil
}

// fontFamily adds fonts of the same widths, for systems that lack the one that the texts were laid out with.
const fontFamily = "font-family:'Liberation Sans',Arial,Helvetica,sans-serif;"
