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

// This file draws throughput over size of write, one line for each mode, as SVG.

const (
	curveWidth  = 8 * vg.Inch
	curveHeight = 5 * vg.Inch
	curveMargin = 12 // points
	// headroom is the height of the picture as a multiple of the highest line's: the legend has the rest.
	headroom = 1.3
	// mostSizeLabels is how many sizes fit below the axis.
	mostSizeLabels = 8
	// mostRateSteps is how many steps the other axis has at most, up to the highest line.
	mostRateSteps = 6
)

// A curve is the picture of a sweep.
type curve struct {
	title string
	lines []line
}

// A line is one mode's part of it.
type line struct {
	mode   string
	points plotter.XYs // X is the logarithm to base 2 of a size, Y is GB/s
}

// newCurve returns the picture of rows, which are in the order of their sizes.
func newCurve(title string, rows []row) *curve {
	c := &curve{title: title}
	for _, r := range rows {
		l := c.line(r.Mode)
		l.points = append(l.points, plotter.XY{X: math.Log2(float64(r.Size)), Y: r.GBPerS})
	}
	return c
}

// line returns the line of a mode.
func (c *curve) line(mode string) *line {
	for i := range c.lines {
		if c.lines[i].mode == mode {
			return &c.lines[i]
		}
	}
	c.lines = append(c.lines, line{mode: mode})
	return &c.lines[len(c.lines)-1]
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
	case "copy":
		return look{"copy: plain Write", color.RGBA{R: 0x55, G: 0x55, B: 0x55, A: 0xff}, 1.5, []vg.Length{7, 4}, draw.BoxGlyph{}}
	case "naive":
		return look{"naive: MSG_ZEROCOPY loop", color.RGBA{R: 0xd5, G: 0x5e, A: 0xff}, 1.5, []vg.Length{2, 3}, draw.PyramidGlyph{}}
	}
	return look{mode, color.RGBA{G: 0x72, B: 0xb2, A: 0xff}, 2.25, nil, draw.CircleGlyph{}}
}

// svg draws the picture.
func (c *curve) svg() ([]byte, error) {
	p := plot.New()
	setFonts(p)
	p.Title.Text = c.title
	p.Title.Padding = 12
	p.X.Label.Text = "size of one write"
	p.X.Label.Padding = 6
	p.Y.Label.Text = "GB/s"
	p.Y.Label.Padding = 6
	p.Legend.Top, p.Legend.Left = true, true
	p.Legend.XOffs, p.Legend.YOffs = 10, -4
	p.Legend.ThumbnailWidth = 36
	p.Legend.Padding = 3
	p.Legend.YPosition = draw.PosCenter
	grid := plotter.NewGrid()
	grid.Horizontal.Color, grid.Vertical.Color = color.Gray{Y: 0xd4}, nil
	p.Add(grid)
	for _, l := range c.lines {
		if err := l.addTo(p); err != nil {
			return nil, fmt.Errorf("draw mode %s: %w", l.mode, err)
		}
	}
	c.setRanges(p)
	return render(p)
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

// setRanges lets the axes cover all lines: Y from 0, X from one power of two to another.
func (c *curve) setRanges(p *plot.Plot) {
	p.X.Min, p.X.Max = math.Floor(p.X.Min), math.Ceil(p.X.Max)
	if p.X.Min == p.X.Max {
		p.X.Min--
		p.X.Max++
	}
	p.X.Tick.Marker = plot.TickerFunc(sizeTicks)
	p.Y.Tick.Marker = rateTicks(p.Y.Max)
	p.Y.Min, p.Y.Max = 0, p.Y.Max*headroom
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

// rateTicks labels steps of 1, 2 or 5 times a power of ten, from 0 to the highest point, and none beside the legend.
func rateTicks(highest float64) plot.ConstantTicks {
	magnitude := int(math.Floor(math.Log10(highest)))
	var step float64
	var digits int // behind the point
	for _, try := range []struct {
		factor float64
		digits int
	}{{0.2, 1}, {0.5, 1}, {1, 0}, {2, 0}} {
		step, digits = try.factor*math.Pow10(magnitude), max(try.digits-magnitude, 0)
		if highest/step <= mostRateSteps {
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

// render returns a plot as SVG.
func render(p *plot.Plot) ([]byte, error) {
	canvas := vgsvg.New(curveWidth, curveHeight)
	area := draw.New(canvas)
	area.SetColor(color.White)
	area.Fill(area.Path())
	p.Draw(draw.Crop(area, curveMargin, -curveMargin, curveMargin, -curveMargin))
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return nil, err
	}
	return bytes.ReplaceAll(b.Bytes(), []byte("font-family:Liberation Sans;"), []byte(fontFamily)), nil
}

// fontFamily adds fonts of the same widths, for systems that lack the one that the texts were laid out with.
const fontFamily = "font-family:'Liberation Sans',Arial,Helvetica,sans-serif;"
