//! Lines with smooth edges: how far each pixel of a rectangle is covered by strokes.

use image::RgbImage;

use super::text::blend;

/// How far the pixels of a panel are covered: by the line being drawn, and by any line so far.
pub struct Raster {
    left: i64,
    top: i64,
    width: usize,
    now: Vec<f32>,
    all: Vec<f32>,
}

impl Raster {
    /// Nothing is covered in the rectangle from left, top to right, bottom, these included.
    pub fn new([left, top, right, bottom]: [i64; 4]) -> Raster {
        let (width, height) = ((right - left + 1) as usize, (bottom - top + 1) as usize);
        Raster { left, top, width, now: vec![0.0; width * height], all: vec![0.0; width * height] }
    }

    /// Covers a run of joined points; a single one is a dot.
    pub fn run(&mut self, run: &[(f32, f32)], width: f32) {
        if let [dot] = run {
            return self.stroke(*dot, *dot, width * 2.0);
        }
        for pair in run.windows(2) {
            self.stroke(pair[0], pair[1], width);
        }
    }

    /// Covers the pixels within half a width of the segment from `a` to `b`, those at the edge in part.
    fn stroke(&mut self, a: (f32, f32), b: (f32, f32), width: f32) {
        let reach = width / 2.0 + 0.5;
        let height = self.now.len() / self.width;
        let span = |u: f32, v: f32, first: i64, count: usize| {
            let (low, high) = (u.min(v) - reach - first as f32, u.max(v) + reach - first as f32);
            low.floor().clamp(0.0, count as f32) as usize..high.ceil().clamp(0.0, count as f32) as usize
        };
        let (dx, dy) = (b.0 - a.0, b.1 - a.1);
        let square = dx * dx + dy * dy;
        for y in span(a.1, b.1, self.top, height) {
            for x in span(a.0, b.0, self.left, self.width) {
                let px = (self.left + x as i64) as f32 + 0.5 - a.0;
                let py = (self.top + y as i64) as f32 + 0.5 - a.1;
                let along = if square > 0.0 { ((px * dx + py * dy) / square).clamp(0.0, 1.0) } else { 0.0 };
                let distance = (px - along * dx).hypot(py - along * dy);
                let part = &mut self.now[y * self.width + x];
                *part = part.max((reach - distance).min(width).clamp(0.0, 1.0));
            }
        }
    }

    /// Lays what the present line covers on the picture.
    pub fn lay(&mut self, picture: &mut RgbImage, colour: [u8; 3]) {
        for (i, (now, all)) in self.now.iter_mut().zip(&mut self.all).enumerate() {
            if *now > 0.0 {
                let (x, y) = (self.left + (i % self.width) as i64, self.top + (i / self.width) as i64);
                blend(picture, x, y, colour, *now);
                *all = all.max(*now);
                *now = 0.0;
            }
        }
    }

    /// How many pixels of a rectangle the lines cover.
    pub fn within(&self, x: f32, y: f32, wide: f32, high: f32) -> f32 {
        let inside = |i: usize| {
            let (u, v) =
                ((self.left + (i % self.width) as i64) as f32, (self.top + (i / self.width) as i64) as f32);
            (x..x + wide).contains(&u) && (y..y + high).contains(&v)
        };
        self.all.iter().enumerate().filter(|(i, v)| **v > 0.0 && inside(*i)).map(|(_, v)| v).sum()
    }
}

/// A run of points with at most four of each run within one column of pixels: the first, the highest, the
/// lowest and the last draw the same line as all.
pub fn thinned<'a>(points: impl Iterator<Item = &'a (f32, f32)>) -> Vec<(f32, f32)> {
    let points: Vec<(f32, f32)> = points.copied().collect();
    let mut kept = Vec::new();
    for column in points.chunk_by(|a, b| a.0.floor() == b.0.floor()) {
        if column.len() <= 4 {
            kept.extend_from_slice(column);
            continue;
        }
        let last = column.len() - 1;
        let of = |better: fn(f32, f32) -> bool| {
            (0..=last).fold(0, |best, i| if better(column[i].1, column[best].1) { i } else { best })
        };
        let mut indices = [0, of(|a, b| a < b), of(|a, b| a > b), last];
        indices.sort_unstable();
        kept.extend(indices.map(|i| column[i]));
    }
    kept
}
