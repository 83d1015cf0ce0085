//! A judge of pictures of `shapes`: finds the shapes in the pixels and compares them with a caption.
//!
//! It shares the meaning of the words with the data set, and nothing that draws.

#[cfg(test)]
mod tests;

use crate::data::shapes::{BACKGROUND, Caption, Color, Kind, Relation, Size, Thing};

/// What is less than this share of the picture is no shape; the smallest that is drawn covers 0.026.
const LEAST: f64 = 0.012;
/// Side that parts small shapes from large ones, in sides of the picture.
const LARGE: f64 = 0.315;
/// A shape is of no kind if the best one differs from it by more than this share of its area.
const UNLIKE: f64 = 0.25;
/// Width in pixels of the edges of the kinds that shapes are compared with: between that of a shape as it is
/// drawn, 1, and of one that an autoencoder has made soft.
const SOFT: f64 = 1.5;

/// A shape in a picture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// The nearest of the colours that captions name.
    pub color: Color,
    /// `None`: unlike all kinds.
    pub kind: Option<Kind>,
    /// By the side of the square around it.
    pub size: Size,
    /// Its centre of mass, x to the right and y down, in sides of the picture.
    pub center: [f64; 2],
}

/// What is true of a picture and its caption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// There are shapes of the colours that the caption names, and no other shape.
    pub colours: bool,
    /// The colours are right, and the first shape lies where the caption says: farther to the left (or up)
    /// than it is higher or lower (or left or right). One shape lies right everywhere.
    pub arrangement: bool,
    /// The colours are right, and each shape is of its kind.
    pub kinds: bool,
    /// The colours are right, and each shape has the size that the caption gives it, if any.
    pub sizes: bool,
}

/// Judges a picture `[height, width, 3]`, row-major in [-1, 1].
///
/// # Panics
/// If the picture has another length.
#[track_caller]
pub fn judge_shapes(picture: &[f32], sides: [usize; 2], caption: &Caption) -> Verdict {
    Verdict::new(&find_shapes(picture, sides), caption)
}

impl Verdict {
    /// Compares the shapes of a picture, all of them and in any order, with a caption.
    pub fn new(found: &[Found], caption: &Caption) -> Self {
        match found {
            [only] => compare(&[only], caption),
            // Of two shapes of one colour, the caption's first is the one that fits better.
            [a, b] => [[a, b], [b, a]]
                .map(|found| compare(&found, caption))
                .into_iter()
                .max_by_key(|v| (v.colours, v.kinds, v.arrangement, v.sizes))
                .unwrap_or_default(),
            _ => Verdict::default(),
        }
    }

    /// Whether all of it is true.
    pub fn all(self) -> bool {
        self.colours && self.arrangement && self.kinds && self.sizes
    }
}

/// Compares the shapes of a caption with those found for them.
fn compare(found: &[&Found], caption: &Caption) -> Verdict {
    let things: Vec<Thing> = caption.things().collect();
    let all = |fits: fn(&Thing, &Found) -> bool| things.iter().zip(found).all(|(t, f)| fits(t, f));
    if things.len() != found.len() || !all(|thing, found| thing.color == found.color) {
        return Verdict::default();
    }
    let arrangement = caption.second.is_none_or(|(relation, _)| {
        let [x, y] = [0, 1].map(|k| found[1].center[k] - found[0].center[k]);
        match relation {
            Relation::LeftOf => x > y.abs(),
            Relation::Above => y > x.abs(),
        }
    });
    Verdict {
        colours: true,
        arrangement,
        kinds: all(|thing, found| found.kind == Some(thing.kind)),
        sizes: all(|thing, found| thing.size.is_none_or(|size| size == found.size)),
    }
}

/// The shapes of a picture `[height, width, 3]`, row-major in [-1, 1]: areas of one colour, large enough to
/// be meant.
///
/// # Panics
/// If the picture has another length.
#[track_caller]
pub fn find_shapes(picture: &[f32], [height, width]: [usize; 2]) -> Vec<Found> {
    assert_eq!(picture.len(), height * width * 3, "a picture is not [{height}, {width}, 3]");
    let pixels: Vec<[f32; 3]> = (picture.chunks_exact(3))
        .map(|p| [0, 1, 2].map(|k| p[k].clamp(-1.0, 1.0) * 0.5 + 0.5 - BACKGROUND[k]))
        .collect();
    let colors: Vec<Option<Color>> = pixels.iter().map(color_of).collect();
    let mut areas = vec![0; pixels.len()];
    let mut shapes = Vec::new();
    for start in 0..pixels.len() {
        let Some(color) = colors[start].filter(|_| areas[start] == 0) else { continue };
        // The area of this colour around the pixel.
        let number = shapes.len() + 1;
        let mut area = vec![start];
        areas[start] = number;
        let mut next = 0;
        while let Some(&at) = area.get(next) {
            next += 1;
            let (x, y) = (at % width, at / width);
            let neighbours = [
                (x > 0).then(|| at - 1),
                (x + 1 < width).then_some(at + 1),
                (y > 0).then(|| at - width),
                (y + 1 < height).then_some(at + width),
            ];
            for at in neighbours.into_iter().flatten() {
                if areas[at] == 0 && colors[at] == Some(color) {
                    areas[at] = number;
                    area.push(at);
                }
            }
        }
        shapes.push((color, area));
    }
    let big = |area: &Vec<usize>| area.len() as f64 >= LEAST * pixels.len() as f64;
    (shapes.iter().filter(|(_, area)| big(area)))
        .map(|(color, area)| measure(&pixels, &areas, *color, area, [height, width]))
        .collect()
}

/// How much of a pixel, less the background, a colour covers; what is left over is squared.
fn cover(pixel: &[f32; 3], color: Color) -> (f32, f32) {
    let rgb = color.rgb();
    let full = [0, 1, 2].map(|k| rgb[k] - BACKGROUND[k]);
    let dot = |a: &[f32; 3], b: &[f32; 3]| a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
    let cover = dot(pixel, &full) / dot(&full, &full);
    let rest = [0, 1, 2].map(|k| pixel[k] - cover * full[k]);
    (cover, dot(&rest, &rest))
}

/// The colour that covers most of a pixel: an edge lies on the line from the background to its colour, so
/// that of a white shape is not taken for a red or a blue one.
fn color_of(pixel: &[f32; 3]) -> Option<Color> {
    let colors = Color::ALL.map(|color| (color, cover(pixel, color)));
    let (color, (cover, _)) = colors.into_iter().min_by(|a, b| a.1.1.total_cmp(&b.1.1))?;
    (cover >= 0.5).then_some(color)
}

/// Measures an area by how much its colour covers each pixel of it and around it.
fn measure(
    pixels: &[[f32; 3]],
    areas: &[usize],
    color: Color,
    area: &[usize],
    [height, width]: [usize; 2],
) -> Found {
    // Also of the pixels around it that are of no area: edges are soft.
    let mut covers = vec![0.0; pixels.len()];
    for &at in area {
        let (x, y) = (at % width, at / width);
        for y in y.saturating_sub(1)..(y + 2).min(height) {
            for i in y * width + x.saturating_sub(1)..y * width + (x + 2).min(width) {
                if areas[i] == 0 || areas[i] == areas[at] {
                    covers[i] = f64::from(cover(&pixels[i], color).0);
                }
            }
        }
    }
    let at = |i: usize| [(i % width) as f64 + 0.5, (i / width) as f64 + 0.5];
    let mass: f64 = covers.iter().sum();
    let center = [0, 1].map(|k| covers.iter().enumerate().map(|(i, c)| at(i)[k] * c).sum::<f64>() / mass);
    let (kind, side, unlike) = [Kind::Circle, Kind::Square, Kind::Triangle, Kind::Cross]
        .map(|kind| {
            let side = (mass / share(kind)).sqrt();
            let differs = |(i, c): (usize, &f64)| (c - ideal(kind, side, center, at(i))).powi(2);
            (kind, side, covers.iter().enumerate().map(differs).sum::<f64>() / mass)
        })
        .into_iter()
        .min_by(|a, b| a.2.total_cmp(&b.2))
        .expect("there are four kinds");
    Found {
        color,
        kind: (unlike <= UNLIKE).then_some(kind),
        size: if side / height.max(width) as f64 >= LARGE { Size::Large } else { Size::Small },
        center: [center[0] / width as f64, center[1] / height as f64],
    }
}

/// The share of the square around a kind that it fills.
fn share(kind: Kind) -> f64 {
    match kind {
        Kind::Circle => std::f64::consts::FRAC_PI_4,
        Kind::Square => 1.0,
        Kind::Triangle => 0.5,
        Kind::Cross => 5.0 / 9.0,
    }
}

/// How much of `SOFT` pixels around `at` a perfect shape covers, whose centre of mass is `center`.
fn ideal(kind: Kind, side: f64, center: [f64; 2], at: [f64; 2]) -> f64 {
    const STEPS: usize = 4;
    let away = (at[0] - center[0]).abs().max((at[1] - center[1]).abs());
    if away > 0.67 * side + SOFT {
        return 0.0;
    }
    let inside = |i: usize| {
        let step = |i: usize| ((i as f64 + 0.5) / STEPS as f64 - 0.5) * SOFT;
        // In halves of the side.
        let x = ((at[0] + step(i % STEPS) - center[0]) * 2.0 / side).abs();
        let y = (at[1] + step(i / STEPS) - center[1]) * 2.0 / side;
        match kind {
            Kind::Circle => x * x + y * y <= 1.0,
            Kind::Square => x.max(y.abs()) <= 1.0,
            // The centre of mass is a third of the height above the base.
            Kind::Triangle => y <= 2.0 / 3.0 && 2.0 * x <= y + 4.0 / 3.0,
            Kind::Cross => x.max(y.abs()) <= 1.0 && x.min(y.abs()) <= 1.0 / 3.0,
        }
    };
    (0..STEPS * STEPS).filter(|&i| inside(i)).count() as f64 / (STEPS * STEPS) as f64
}
