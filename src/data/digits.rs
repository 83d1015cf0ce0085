//! `digits`: handwritten digits without end, from a simulated pen; white on black and placed as in MNIST.
//!
//! A skeleton (`digit_shapes`) has noise added point by point, drawn as a smooth curve, bent, slanted, turned
//! and stretched, brought to MNIST's size and place (20 of 28 pixels, centred by mass) and inked by its
//! distance from each pixel.

use std::f32::consts::{PI, TAU};

use super::canvas::{Point, curve, segment};
use super::digit_shapes::DIGITS;
use super::rng::{Generator, PictureRng};
use super::{Dataset, Options, Split};
use crate::error::Result;

/// Segments of the curve between two points of a skeleton.
const STEPS: usize = 4;
/// Side of the box that holds the ink, in sides of the picture, as in MNIST.
const BOX: f32 = 20.0 / 28.0;

pub(super) struct Digits {
    shape: [usize; 3],
    seed: u64,
    split: Split,
    classes: Vec<String>,
}

impl Digits {
    /// `options` have been checked: a size from 8, channels 1 (the default) or 3.
    pub(super) fn new(options: &Options) -> Self {
        Digits {
            shape: [options.image_size, options.image_size, options.channels.unwrap_or(1)],
            seed: options.seed,
            split: options.split,
            classes: (0..10).map(|d| d.to_string()).collect(),
        }
    }
}

impl Dataset for Digits {
    fn len(&self) -> Option<u64> {
        None
    }

    fn shape(&self) -> [usize; 3] {
        self.shape
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn read(&self, index: u64, out: &mut [f32]) -> Result<u32> {
        let [size, _, channels] = self.shape;
        assert_eq!(out.len(), size * size * channels, "read: `out` is not {:?}", self.shape);
        let mut rng = PictureRng::new(self.seed, Generator::Digits, self.split, index);
        let digit = rng.below(10);
        let strokes = write(&mut rng, digit, size as f32);
        if channels == 1 {
            ink(&mut rng, &strokes, size, out);
        } else {
            let mut grey = vec![0.0; size * size];
            ink(&mut rng, &strokes, size, &mut grey);
            for (pixel, v) in out.chunks_exact_mut(channels).zip(grey) {
                pixel.fill(v);
            }
        }
        Ok(digit as u32)
    }
}

/// The lines of one digit, in pixels of a picture of `size`.
fn write(rng: &mut PictureRng, digit: usize, size: f32) -> Vec<Vec<Point>> {
    let skeleton = rng.pick(DIGITS[digit]);
    let mut strokes: Vec<Vec<Point>> = skeleton
        .iter()
        .map(|points| {
            let points = jittered(rng, points);
            let mut line = Vec::with_capacity(points.len() * STEPS);
            curve(&points, STEPS, &mut line);
            line
        })
        .collect();
    let bend = Bend::new(rng);
    strokes.iter_mut().flatten().for_each(|p| *p = bend.apply(*p));
    place(rng, &mut strokes, size);
    strokes
}

/// The points of a skeleton in the unit square, with noise; the two points of a corner have the same.
fn jittered(rng: &mut PictureRng, points: &[[u8; 2]]) -> Vec<Point> {
    let mut jittered: Vec<Point> = Vec::with_capacity(points.len());
    for (i, p) in points.iter().enumerate() {
        jittered.push(match jittered.last() {
            Some(&last) if points[i - 1] == *p => last,
            _ => p.map(|v| f32::from(v) / 100.0 + rng.bell(0.014)),
        });
    }
    jittered
}

/// A hand's way of writing: a slow wave in each direction, then stretching, slanting and turning.
struct Bend {
    wave: [[f32; 3]; 2],
    matrix: [[f32; 2]; 2],
}

impl Bend {
    fn new(rng: &mut PictureRng) -> Self {
        let wave = [(); 2].map(|()| [rng.bell(0.016), rng.range(0.6, 1.2) * TAU, rng.range(0.0, TAU)]);
        let (width, slant) = (0.82 * (1.0 + rng.bell(0.08)), 0.08 + rng.bell(0.09));
        let (sin, cos) = (rng.bell(3.2) * PI / 180.0).sin_cos();
        // Turning times slanting (x moves against y, which points down) times stretching.
        let matrix = [[cos * width, -slant * cos - sin], [sin * width, cos - slant * sin]];
        Bend { wave, matrix }
    }

    fn apply(&self, [x, y]: Point) -> Point {
        let [[a, f, s], [b, g, t]] = self.wave;
        let (x, y) = (x - 0.5 + a * (f * y + s).sin(), y - 0.5 + b * (g * x + t).sin());
        self.matrix.map(|row| row[0] * x + row[1] * y)
    }
}

/// Brings the lines to the size and place that MNIST gives its digits, in pixels.
fn place(rng: &mut PictureRng, strokes: &mut [Vec<Point>], size: f32) {
    let (mut low, mut high) = ([f32::INFINITY; 2], [f32::NEG_INFINITY; 2]);
    // The centre of mass of a line of even thickness: its segments' middles, weighed by their lengths.
    let (mut mass, mut moment) = (1e-6, [0.0; 2]);
    for line in strokes.iter() {
        for p in line {
            for k in 0..2 {
                low[k] = low[k].min(p[k]);
                high[k] = high[k].max(p[k]);
            }
        }
        for pair in line.windows(2) {
            let length = (pair[1][0] - pair[0][0]).hypot(pair[1][1] - pair[0][1]);
            mass += length;
            for k in 0..2 {
                moment[k] += length * (pair[0][k] + pair[1][k]) / 2.0;
            }
        }
    }
    let largest = (high[0] - low[0]).max(high[1] - low[1]);
    // The pen's width, about a tenth of the box, comes on top of the lines.
    let scale = 0.9 * BOX * size * (1.0 + rng.bell(0.03)) / largest;
    // Room for the pen at the border; a seven, whose mass lies high, would run over it otherwise.
    let margin = 3.2 / 28.0 * size;
    let shift = [0, 1].map(|k| {
        let center = (0.5 + rng.bell(0.008)) * size - scale * moment[k] / mass;
        center.min(size - margin - scale * high[k]).max(margin - scale * low[k])
    });
    for p in strokes.iter_mut().flatten() {
        *p = [p[0] * scale + shift[0], p[1] * scale + shift[1]];
    }
}

/// Draws the lines with a pen: 1 where it ran, -1 elsewhere, and a soft edge between. `out` `[size, size]`.
fn ink(rng: &mut PictureRng, strokes: &[Vec<Point>], size: usize, out: &mut [f32]) {
    let pixel = size as f32 / 28.0;
    let radius = (1.45 + rng.bell(0.22)) * pixel;
    // Pressure changes along the stroke.
    let (swing, beat, phase) = (rng.range(0.0, 0.12), rng.range(0.05, 0.2), rng.range(0.0, TAU));
    // The edge is a pixel wide at least; ink on paper, scanned, is a little softer.
    let edge = (rng.range(0.9, 1.5) * pixel).max(1.0);
    let width = |i: usize| radius * (1.0 + swing * (beat * i as f32 + phase).sin());

    // Each segment touches only the pixels around it; `out` keeps the depth below the surface of the ink.
    out.fill(f32::NEG_INFINITY);
    let segments = strokes.iter().flat_map(|line| line.windows(2));
    for (i, pair) in segments.enumerate() {
        let (a, b, r0, r1) = (pair[0], pair[1], width(i), width(i + 1));
        let reach = r0.max(r1) + edge;
        let span = |k: usize| {
            let first = (a[k].min(b[k]) - reach).max(0.0) as usize;
            (first, ((a[k].max(b[k]) + reach).max(0.0) as usize + 1).min(size))
        };
        let ((left, right), (top, bottom)) = (span(0), span(1));
        for y in top..bottom {
            for (x, v) in (left..right).zip(&mut out[y * size + left..y * size + right]) {
                let (square, along) = segment([x as f32 + 0.5, y as f32 + 0.5], a, b);
                *v = v.max(r0 + along * (r1 - r0) - square.sqrt());
            }
        }
    }
    for v in out {
        let t = (*v / edge + 0.5).clamp(0.0, 1.0);
        *v = 2.0 * t * t * (3.0 - 2.0 * t) - 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{open, tests::options};
    use super::*;

    fn read(size: usize, seed: u64, split: Split, index: u64) -> (u32, Vec<f32>) {
        let data = open("digits", &Options { seed, split, ..options(size) }).unwrap();
        let mut out = vec![f32::NAN; size * size];
        (data.read(index, &mut out).unwrap(), out)
    }

    #[test]
    fn a_picture_is_a_function_of_seed_and_index() {
        let one = read(28, 1, Split::Train, 5);
        assert_eq!(one, read(28, 1, Split::Train, 5));
        for other in
            [read(28, 2, Split::Train, 5), read(28, 1, Split::Train, 6), read(28, 1, Split::HeldOut, 5)]
        {
            assert_ne!(one.1, other.1);
        }
    }

    #[test]
    fn labels_are_balanced() {
        let data = open("digits", &options(8)).unwrap();
        let counts =
            super::super::statistics(data.as_ref(), &(0..5000).collect::<Vec<_>>()).unwrap().histogram;
        assert!(counts.len() == 10 && counts.iter().all(|n| (420..580).contains(n)), "{counts:?}");
    }

    #[test]
    fn ink_is_white_centred_and_clear_of_the_border() {
        for size in [8, 28, 61] {
            for index in 0..200 {
                let (_, pixels) = read(size, 3, Split::Train, index);
                assert!(pixels.iter().all(|v| (-1.0..=1.0).contains(v)));
                let ink: Vec<f32> = pixels.iter().map(|v| v * 0.5 + 0.5).collect();
                let share = ink.iter().sum::<f32>() / (size * size) as f32;
                assert!((0.03..0.35).contains(&share), "{index} at {size}: ink covers {share}");
                let most = ink.iter().copied().fold(0.0, f32::max);
                assert!(most > if size < 28 { 0.4 } else { 0.8 }, "{index} at {size}: {most}");
                let mass: f32 = ink.iter().sum();
                let center = ink.iter().enumerate().map(|(i, v)| (i % size) as f32 * v).sum::<f32>() / mass;
                assert!((center + 0.5 - size as f32 / 2.0).abs() < 0.07 * size as f32, "{index} at {size}");
                let edge = |v: usize| v == 0 || v == size - 1;
                let border = |i: usize| edge(i % size) || edge(i / size);
                assert!(size < 28 || ink.iter().enumerate().all(|(i, v)| !border(i) || *v < 0.2), "{index}");
            }
        }
    }

    #[test]
    fn sizes_show_the_same_digit() {
        let (small, large) = (read(16, 1, Split::Train, 9), read(64, 1, Split::Train, 9));
        assert_eq!(small.0, large.0);
        let mut error = 0.0;
        for (i, v) in small.1.iter().enumerate() {
            let (x, y) = (i % 16 * 4, i / 16 * 4);
            let block: f32 = (0..16).map(|j| large.1[(y + j / 4) * 64 + x + j % 4]).sum();
            error += (v - block / 16.0).abs();
        }
        assert!(error / 256.0 < 0.12, "{}", error / 256.0);
    }

    #[test]
    fn three_channels_are_three_times_the_same() {
        let data = open("digits", &Options { channels: Some(3), ..options(12) }).unwrap();
        let mut out = vec![f32::NAN; 12 * 12 * 3];
        data.read(4, &mut out).unwrap();
        let grey = read(12, 1, Split::Train, 4).1;
        assert!(out.chunks(3).zip(&grey).all(|(p, v)| p == [*v; 3]));
    }
}
