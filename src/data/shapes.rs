//! `shapes`: coloured shapes without end, one or two of them, each picture with a caption that is true of it.
//!
//! "a small red circle left of a blue square": the smallest task of text-to-image in which words name
//! colours, kinds, sizes and places. [`crate::quality`] has a judge that tells from pixels whether a caption
//! is true.

mod caption;
mod merges;
#[cfg(test)]
mod tests;

use super::canvas::{Canvas, Point, around, ellipse, rounded_box};
use super::rng::{Generator, PictureRng};
use super::{Captions, Dataset, Options, Split};
use crate::error::{Result, need};

pub use caption::{BACKGROUND, Caption, Color, Kind, Relation, Size, Thing};
pub use merges::merges;

const SMALLEST: usize = 16;
/// Least distance of a shape from the border of the picture, and from the other shape. The picture is 1 wide.
const BORDER: f32 = 0.04;
const GAP: f32 = 0.07;
/// How far shapes side by side may differ in height, as a share of their distance; and so for one above the
/// other.
const ASKEW: f32 = 0.5;

/// The data set. Its training part never shows a pair that [is held out](Caption::is_held_out); every second
/// picture of the held-out part, from the first on, shows one.
#[derive(Clone)]
pub struct Shapes {
    size: usize,
    seed: u64,
    split: Split,
}

impl Shapes {
    /// Pictures of `options.image_size`, which is checked as all options are when a data set is opened.
    ///
    /// # Errors
    /// The size is below 16, or a picture in grey is asked for.
    pub fn new(options: &Options) -> Result<Self> {
        let Options { image_size: size, seed, split, .. } = *options;
        let message = format!("`shapes` cannot be drawn in {size} pixels");
        need(size >= SMALLEST, message, format!("use an image size of {SMALLEST} or more"))?;
        let coloured = options.channels != Some(1);
        need(coloured, "`shapes` are in colour, they have no grey version", "use 3 channels")?;
        Ok(Shapes { size, seed, split })
    }

    /// What picture `index` shows.
    pub fn caption(&self, index: u64) -> Caption {
        self.start(index).0
    }

    /// The caption of a picture, and the random numbers that draw it.
    fn start(&self, index: u64) -> (Caption, PictureRng) {
        let mut rng = PictureRng::new(self.seed, Generator::Shapes, self.split, index);
        let pair_is_held_out = self.split == Split::HeldOut && index.is_multiple_of(2);
        let caption = match pair_is_held_out {
            true => Caption::random_pair(&mut rng, true),
            false => Caption::random(&mut rng),
        };
        (caption, rng)
    }
}

/// Captions to test a model with: those of the first `count` pictures of the held-out part, half of them (the
/// first, the third, ...) of pairs that are in no training picture.
pub fn prompts(count: usize, seed: u64) -> Vec<String> {
    let shapes = Shapes { size: SMALLEST, seed, split: Split::HeldOut };
    (0..count as u64).map(|index| shapes.caption(index).to_string()).collect()
}

/// Draws a picture that `caption` is true of, `[size, size, 3]` in [-1, 1], another one for each `seed`.
///
/// # Panics
/// If `out` is not `[size, size, 3]`.
pub fn draw(caption: &Caption, seed: u64, size: usize, out: &mut [f32]) {
    paint(caption, &mut PictureRng::new(seed, Generator::ShapesAsked, Split::Train, 0), size, out);
}

impl Dataset for Shapes {
    fn len(&self) -> Option<u64> {
        None
    }

    fn shape(&self) -> [usize; 3] {
        [self.size, self.size, 3]
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn read(&self, index: u64, out: &mut [f32]) -> Result<u32> {
        let (caption, mut rng) = self.start(index);
        paint(&caption, &mut rng, self.size, out);
        Ok(0)
    }

    fn captions(&self) -> Result<Option<Captions>> {
        let shapes = self.clone();
        Ok(Some(Captions::made(move |index| vec![shapes.caption(index).to_string()])))
    }

    fn describe(&self, index: u64) -> String {
        self.caption(index).to_string()
    }
}

fn paint(caption: &Caption, rng: &mut PictureRng, size: usize, out: &mut [f32]) {
    let radius = |rng: &mut PictureRng, thing: &Thing| {
        let [low, high] = match thing.size.unwrap_or_else(|| rng.pick(&[Size::Small, Size::Large])) {
            Size::Small => [0.115, 0.13],
            Size::Large => [0.185, 0.21],
        };
        rng.range(low, high)
    };
    let mut canvas = Canvas::new(out, size, BACKGROUND);
    let r = radius(rng, &caption.first);
    match &caption.second {
        None => {
            let center = [0, 1].map(|_| rng.range(BORDER + r, 1.0 - BORDER - r));
            fill(&mut canvas, &caption.first, center, r);
        }
        Some((relation, second)) => {
            let radii = [r, radius(rng, second)];
            let (a, b) = place(rng, radii);
            let turn = |[along, across]: Point| match relation {
                Relation::LeftOf => [along, across],
                Relation::Above => [across, along],
            };
            fill(&mut canvas, &caption.first, turn(a.0), a.1);
            fill(&mut canvas, second, turn(b.0), b.1);
        }
    }
    canvas.finish();
}

type Placed = (Point, f32);

/// Centres for two shapes of these radii, the first before the second along the first axis.
fn place(rng: &mut PictureRng, [r, s]: [f32; 2]) -> (Placed, Placed) {
    let room = 1.0 - 2.0 * BORDER - r - s;
    let distance = rng.range(r + s + GAP, room);
    let along = rng.range(BORDER + r, BORDER + r + room - distance);
    let across = rng.range(BORDER + r, 1.0 - BORDER - r);
    let low = (BORDER + s).max(across - ASKEW * distance);
    let high = (1.0 - BORDER - s).min(across + ASKEW * distance);
    (([along, across], r), ([along + distance, rng.range(low, high)], s))
}

/// Paints a shape; `r` is half the side of the square around it.
fn fill(canvas: &mut Canvas, thing: &Thing, center: Point, r: f32) {
    let (low, high) = around(center, [r; 2]);
    let square = |p: Point, radii: Point| rounded_box(p, center, radii, 0.0);
    canvas.fill(low, high, thing.color.rgb(), |p| match thing.kind {
        Kind::Circle => ellipse(p, center, [r; 2]),
        Kind::Square => square(p, [r; 2]),
        Kind::Triangle => {
            // Its sides go from the middle of the square's upper edge to its lower corners: 2 across, 1 down.
            let (x, y) = ((p[0] - center[0]).abs(), p[1] - center[1]);
            ((2.0 * x - y - r) / 5.0_f32.sqrt()).max(y - r)
        }
        Kind::Cross => square(p, [r, r / 3.0]).min(square(p, [r / 3.0, r])),
    });
}
