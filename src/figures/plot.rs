//! Plots of lines over linear or logarithmic axes, and pictures side by side.

use image::{Rgb, RgbImage};

use super::raster::{Raster, thinned};
use super::text::{self, Across, Down, INK, blend};
use super::ticks::{Axis, Ticks};

/// Colours that people with any colour vision tell apart (Okabe & Ito 2008, "Color Universal Design"); on
/// white, their yellow comes last.
pub const PALETTE: [[u8; 3]; 8] = [
    [0, 114, 178],
    [213, 94, 0],
    [0, 158, 115],
    [204, 121, 167],
    [230, 159, 0],
    [86, 180, 233],
    [0, 0, 0],
    [240, 228, 66],
];

const FRAME: [u8; 3] = [140; 3];
const GRID: [u8; 3] = [228; 3];
const FAINT: [u8; 3] = [243; 3];
/// Sizes of labels and of the title, in pixels.
const SIZE: f32 = 12.0;
const TITLE_SIZE: f32 = 14.0;
/// Pixels around everything, and between texts.
const MARGIN: f32 = 8.0;
const SPACE: f32 = 6.0;

/// A line of a plot.
#[derive(Clone, Debug)]
pub struct Line {
    pub name: String,
    /// (x, y), joined in this order. The line is broken where one is not finite, or not above 0 on a
    /// logarithmic axis.
    pub points: Vec<(f64, f64)>,
    /// `None` is the next colour of [`PALETTE`].
    pub colour: Option<[u8; 3]>,
    /// In pixels.
    pub width: f32,
}

impl Line {
    /// A solid line, two pixels wide, in a colour of the palette.
    pub fn new(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let points = points.into_iter().collect();
        Line { name: name.into(), points, colour: None, width: 2.0 }
    }
}

/// A colour as it looks at a third of its strength on white, for what stands behind a line of that colour.
pub fn pale(colour: [u8; 3]) -> [u8; 3] {
    colour.map(|v| 255 - (255 - v) / 3)
}

/// Lines over a pair of axes, with a legend if there is more than one line.
#[derive(Clone, Debug, Default)]
pub struct Plot {
    pub title: String,
    pub x_label: &'static str,
    pub y_label: &'static str,
    pub y: Axis,
    /// Each is drawn over those before it.
    pub lines: Vec<Line>,
}

impl Plot {
    /// Lines over linear axes; an empty title takes no room.
    pub fn new(title: impl Into<String>, x_label: &'static str, lines: Vec<Line>) -> Self {
        Plot { title: title.into(), x_label, lines, ..Plot::default() }
    }

    /// With a logarithmic y axis, if `log`.
    pub fn log_y(self, log: bool) -> Self {
        Plot { y: Axis { log }, ..self }
    }

    /// The plot, `width` by `height` pixels.
    pub fn draw(&self, width: u32, height: u32) -> RgbImage {
        let mut picture = RgbImage::from_pixel(width, height, Rgb([255; 3]));
        let panel = Panel::new(self, width as f32, height as f32);
        panel.grid(&mut picture);
        let mut ink = Raster::new(panel.area);
        let colours = self.lines.iter().zip(PALETTE.into_iter().cycle());
        let colours: Vec<[u8; 3]> = colours.map(|(line, next)| line.colour.unwrap_or(next)).collect();
        for (line, &colour) in self.lines.iter().zip(&colours) {
            for run in panel.runs(line) {
                ink.run(&run, line.width);
            }
            ink.lay(&mut picture, colour);
        }
        panel.letters(self, &mut picture);
        if self.lines.len() > 1 {
            self.legend(&panel, &ink, &colours, &mut picture);
        }
        picture
    }

    /// Whether a point can be drawn.
    fn shows(&self, &(x, y): &(f64, f64)) -> bool {
        x.is_finite() && self.y.shows(y)
    }

    /// Names the lines in the corner where that hides least.
    fn legend(&self, panel: &Panel, ink: &Raster, colours: &[[u8; 3]], picture: &mut RgbImage) {
        const SAMPLE: f32 = 22.0;
        let names = self.lines.iter().map(|line| text::width(&line.name, SIZE));
        let wide = (names.fold(0.0, f32::max) + SAMPLE + 3.0 * SPACE).ceil();
        let high = (self.lines.len() as f32 * SIZE * text::LINE + SPACE).ceil();
        let [left, top, right, bottom] = panel.area.map(|v| v as f32);
        let places = [
            (right - SPACE - wide, top + SPACE),
            (left + SPACE, top + SPACE),
            (right - SPACE - wide, bottom - SPACE - high),
            (left + SPACE, bottom - SPACE - high),
        ];
        let hidden = places.map(|(x, y)| ink.within(x, y, wide, high));
        let best = (1..4).fold(0, |best, i| if hidden[i] < hidden[best] { i } else { best });
        let (x, y) = (places[best].0.max(left), places[best].1.max(top));
        let edge = [x, y, x + wide, y + high].map(|v| v as i64);
        for v in edge[1]..=edge[3] {
            for u in edge[0]..=edge[2] {
                let border = u == edge[0] || u == edge[2] || v == edge[1] || v == edge[3];
                let (colour, part) = if border { (GRID, 1.0) } else { ([255; 3], 0.85) };
                blend(picture, u, v, colour, part);
            }
        }
        for (i, (line, &colour)) in self.lines.iter().zip(colours).enumerate() {
            let middle = y + SPACE / 2.0 + (i as f32 + 0.5) * SIZE * text::LINE;
            let from = x + SPACE;
            let mut sample = Raster::new(panel.area);
            sample.run(&[(from, middle), (from + SAMPLE, middle)], line.width);
            sample.lay(picture, colour);
            let at = (from + SAMPLE + SPACE, middle);
            text::draw(picture, &line.name, SIZE, at, (Across::Left, Down::Middle), false, INK);
        }
    }
}

/// The rectangle of the lines in a picture, and its axes.
struct Panel {
    /// Left, top, right, bottom, in whole pixels; the frame is drawn on them.
    area: [i64; 4],
    x: Ticks,
    y: Ticks,
    title: Vec<String>,
}

impl Panel {
    fn new(plot: &Plot, width: f32, height: f32) -> Panel {
        let points = |axis: fn(&(f64, f64)) -> f64| {
            plot.lines.iter().flat_map(move |line| line.points.iter().filter(|p| plot.shows(p)).map(axis))
        };
        let title = text::wrap(&plot.title, TITLE_SIZE, width - 2.0 * MARGIN);
        let above = if title.is_empty() { 0.0 } else { SPACE };
        let top = MARGIN + title.len() as f32 * TITLE_SIZE * text::LINE + above;
        let named = |label: &str| if label.is_empty() { 0.0 } else { text::height(SIZE) + SPACE };
        let bottom = height - MARGIN - text::height(SIZE) - SPACE - named(plot.x_label);
        let rows = Ticks::new(&plot.y, points(|p| p.1), |labels| (labels.len() as f32) * 26.0 < bottom - top);
        let widest = rows.marks.iter().map(|(_, label)| text::width(label, SIZE)).fold(0.0, f32::max);
        let left = MARGIN + named(plot.y_label) + widest + SPACE;
        // The last label stands out on the right by half its width, which is not known yet.
        let room = |right: f32| {
            let columns = Ticks::new(&Axis::default(), points(|p| p.0), |labels| {
                let wide: f32 = labels.iter().map(|label| text::width(label, SIZE) + 16.0).sum();
                wide < right - left + 16.0
            });
            let out = columns.marks.iter().map(|(at, label)| {
                let x = left + (right - left) * *at as f32;
                x + text::width(label, SIZE) / 2.0 - (width - MARGIN)
            });
            let out = out.fold(0.0, f32::max);
            (columns, out)
        };
        let right = width - MARGIN;
        let right = right - room(right).1.ceil();
        let area = [left.ceil(), top.ceil(), right.max(left.ceil() + 1.0), bottom.max(top.ceil() + 1.0)];
        Panel { area: area.map(|v| v as i64), x: room(right).0, y: rows, title }
    }

    /// The pixel of a point whose axes go from 0 to 1.
    fn pixel(&self, x: f64, y: f64) -> (f32, f32) {
        let [left, top, right, bottom] = self.area.map(|v| v as f64);
        ((left + x * (right - left) + 0.5) as f32, (bottom - y * (bottom - top) + 0.5) as f32)
    }

    /// The unbroken parts of a line, in pixels.
    fn runs(&self, line: &Line) -> Vec<Vec<(f32, f32)>> {
        let places = line.points.iter().map(|&(x, y)| Some((self.x.place(x)?, self.y.place(y)?)));
        let places: Vec<Option<(f32, f32)>> = places.map(|p| p.map(|(x, y)| self.pixel(x, y))).collect();
        let runs = places.split(Option::is_none).map(|run| thinned(run.iter().flatten()));
        runs.filter(|run| !run.is_empty()).collect()
    }

    /// The lines of the grid and the frame.
    fn grid(&self, picture: &mut RgbImage) {
        let [left, top, right, bottom] = self.area;
        let mut upright = |at: f64, colour| {
            let x = self.pixel(at, 0.0).0 as i64;
            (top..=bottom).for_each(|y| blend(picture, x, y, colour, 1.0));
        };
        self.x.minor.iter().for_each(|&at| upright(at, FAINT));
        self.x.marks.iter().for_each(|&(at, _)| upright(at, GRID));
        let mut level = |at: f64, colour| {
            let y = self.pixel(0.0, at).1 as i64;
            (left..=right).for_each(|x| blend(picture, x, y, colour, 1.0));
        };
        self.y.minor.iter().for_each(|&at| level(at, FAINT));
        self.y.marks.iter().for_each(|&(at, _)| level(at, GRID));
        [0.0, 1.0].into_iter().for_each(|at| level(at, FRAME));
        for y in top..=bottom {
            [left, right].into_iter().for_each(|x| blend(picture, x, y, FRAME, 1.0));
        }
    }

    /// Title, names of the axes, and labels of the ticks.
    fn letters(&self, plot: &Plot, picture: &mut RgbImage) {
        let [left, top, right, bottom] = self.area.map(|v| v as f32);
        let (across, down) = ((left + right) / 2.0, (top + bottom) / 2.0);
        for (i, line) in self.title.iter().enumerate() {
            // Over the lines, but rather off centre than over the edge.
            let half = text::width(line, TITLE_SIZE) / 2.0;
            let x = across.min(picture.width() as f32 - MARGIN - half).max(MARGIN + half);
            let y = MARGIN + i as f32 * TITLE_SIZE * text::LINE;
            text::draw(picture, line, TITLE_SIZE, (x, y), (Across::Centre, Down::Top), false, INK);
        }
        for (at, label) in &self.x.marks {
            let at = (self.pixel(*at, 0.0).0, bottom + SPACE);
            text::draw(picture, label, SIZE, at, (Across::Centre, Down::Top), false, INK);
        }
        for (at, label) in &self.y.marks {
            let at = (left - SPACE, self.pixel(0.0, *at).1);
            text::draw(picture, label, SIZE, at, (Across::Right, Down::Middle), false, INK);
        }
        let at = (across, picture.height() as f32 - MARGIN);
        text::draw(picture, plot.x_label, SIZE, at, (Across::Centre, Down::Bottom), false, INK);
        text::draw(picture, plot.y_label, SIZE, (MARGIN, down), (Across::Centre, Down::Top), true, INK);
    }
}

/// Pictures side by side on white, their tops in line, `gap` pixels apart.
pub fn beside(pictures: &[RgbImage], gap: u32) -> RgbImage {
    let height = pictures.iter().map(RgbImage::height).max().unwrap_or(0);
    let gaps = gap * pictures.len().saturating_sub(1) as u32;
    let width = pictures.iter().map(RgbImage::width).sum::<u32>() + gaps;
    let mut joined = RgbImage::from_pixel(width, height, Rgb([255; 3]));
    let mut x = 0;
    for picture in pictures {
        image::imageops::replace(&mut joined, picture, i64::from(x), 0);
        x += picture.width() + gap;
    }
    joined
}

/// Pictures on white, one below the other from the left, `gap` pixels apart.
pub fn below(pictures: &[RgbImage], gap: u32) -> RgbImage {
    let turned: Vec<RgbImage> = pictures.iter().map(transposed).collect();
    transposed(&beside(&turned, gap))
}

fn transposed(picture: &RgbImage) -> RgbImage {
    RgbImage::from_fn(picture.height(), picture.width(), |x, y| *picture.get_pixel(y, x))
}

#[cfg(test)]
#[path = "plot_tests.rs"]
mod tests;
