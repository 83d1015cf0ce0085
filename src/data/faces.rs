//! `faces`: cartoon portraits in colour without end, labelled by their mood and whether they wear glasses.

use super::canvas::{Canvas, Point, around, curve, ellipse, rounded_box};
use super::face_parts::{Color, Face, Hair, Hat, MOODS, Mood, classes};
use super::rng::{Generator, PictureRng};
use super::{Dataset, Options, Split};
use crate::error::{Result, need};

const SMALLEST: usize = 16;
const DARK: Color = [0.13, 0.10, 0.11];
const WHITE: Color = [0.98, 0.98, 0.97];

pub(super) struct Faces {
    size: usize,
    seed: u64,
    split: Split,
    classes: Vec<String>,
}

impl Faces {
    pub(super) fn new(options: &Options) -> Result<Self> {
        let Options { image_size: size, seed, split, .. } = *options;
        let message = format!("`faces` cannot be drawn in {size} pixels");
        need(size >= SMALLEST, message, format!("use an image size of {SMALLEST} or more"))?;
        let coloured = options.channels != Some(1);
        need(coloured, "`faces` are in colour, they have no grey version", "use 3 channels")?;
        Ok(Faces { size, seed, split, classes: classes() })
    }

    fn face(&self, index: u64) -> Face {
        Face::new(&mut PictureRng::new(self.seed, Generator::Faces, self.split, index))
    }
}

impl Dataset for Faces {
    fn len(&self) -> Option<u64> {
        None
    }

    fn shape(&self) -> [usize; 3] {
        [self.size, self.size, 3]
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn read(&self, index: u64, out: &mut [f32]) -> Result<u32> {
        assert_eq!(out.len(), self.size * self.size * 3, "read: `out` is not {:?}", self.shape());
        let face = self.face(index);
        let mut canvas = Canvas::new(out, self.size, face.background.0);
        face.paint(&mut canvas);
        canvas.finish();
        Ok(face.label())
    }

    fn describe(&self, index: u64) -> String {
        self.face(index).describe()
    }
}

/// A colour made darker (`by` below 1) or lighter.
fn shade(color: Color, by: f32) -> Color {
    color.map(|v| (v * by).min(1.0))
}

impl Face {
    /// Paints from back to front; each part is placed relative to the middle of the face.
    fn paint(&self, canvas: &mut Canvas) {
        self.body(canvas);
        self.head(canvas);
        self.hair(canvas);
        self.features(canvas);
        self.mouth(canvas);
        if self.glasses {
            self.spectacles(canvas);
        }
        self.hat(canvas);
    }

    fn at(&self, dx: f32, dy: f32) -> Point {
        [self.center[0] + dx, self.center[1] + dy]
    }

    /// Hair behind the head, neck and shoulders.
    fn body(&self, canvas: &mut Canvas) {
        let [w, h] = self.radii;
        if self.hair.0 == Hair::Long {
            let (center, radii) = (self.at(0.0, 0.09), [w + 0.055, h + 0.06]);
            canvas.rounded_box(center, radii, w, shade(self.hair_color.0, 0.8));
        }
        canvas.ellipse(self.at(0.0, h + 0.29), [0.36, 0.22], self.shirt);
        let (center, radii) = (self.at(0.0, h + 0.02), [w * 0.38, 0.10]);
        canvas.rounded_box(center, radii, 0.06, shade(self.skin, 0.85));
    }

    fn head(&self, canvas: &mut Canvas) {
        let [w, h] = self.radii;
        if self.hair.0 == Hair::Bun {
            canvas.ellipse(self.at(0.0, -h - 0.06), [0.10, 0.09], shade(self.hair_color.0, 0.85));
        }
        if self.hair.0 == Hair::Curly {
            for i in 0..9 {
                let (sin, cos) = (std::f32::consts::PI * (i as f32 / 8.0)).sin_cos();
                let curl = self.at(-cos * (w + 0.02), -sin * (h - 0.01) - 0.02);
                canvas.ellipse(curl, [0.085; 2], self.hair_color.0);
            }
        }
        for side in [-1.0, 1.0] {
            canvas.ellipse(self.at(side * w, 0.02), [0.036, 0.055], shade(self.skin, 0.9));
        }
        canvas.ellipse(self.center, self.radii, self.skin);
    }

    /// Hair over the forehead: a cap a little larger than the head, without what lies below the hairline.
    fn hair(&self, canvas: &mut Canvas) {
        let [w, h] = self.radii;
        let (thick, line) = match self.hair.0 {
            Hair::Bald => return,
            Hair::Short => (0.022, self.at(0.0, 0.17)),
            Hair::Parted => (0.030, self.at(0.09, 0.15)),
            Hair::Long => (0.040, self.at(0.0, 0.15)),
            Hair::Curly => (0.030, self.at(0.0, 0.16)),
            Hair::Bun => (0.020, self.at(0.0, 0.17)),
        };
        let hole = if self.hair.0 == Hair::Parted { [w * 1.22, h + 0.02] } else { [w * 1.02, h + 0.03] };
        let (center, radii) = (self.at(0.0, -0.01), [w + thick, h + thick]);
        let (low, high) = around(center, radii);
        // Below the ears there is no cap.
        let bottom = self.center[1] + if self.hair.0 == Hair::Long { 0.20 } else { 0.0 };
        canvas.fill(low, [high[0], bottom + 0.02], self.hair_color.0, |p| {
            ellipse(p, center, radii).max(-ellipse(p, line, hole)).max(p[1] - bottom)
        });
    }

    /// Eyes, brows, nose and cheeks.
    fn features(&self, canvas: &mut Canvas) {
        let mood = MOODS[self.mood].0;
        let (wide, raise) = match mood {
            Mood::Surprised => (1.25, 0.035 * self.strength),
            Mood::Smiling => (0.95, 0.008),
            _ => (1.0, 0.0),
        };
        for side in [-1.0, 1.0] {
            let eye = self.at(side * self.eyes, -0.035);
            let r = self.eye_size;
            canvas.ellipse(eye, [r * 1.1, r * wide], WHITE);
            let pupil = [eye[0] + 0.3 * r * self.gaze, eye[1] + 0.05 * r];
            canvas.ellipse(pupil, [r * 0.66; 2], self.iris.0);
            canvas.ellipse(pupil, [r * 0.36; 2], DARK);
            // Inner ends up when frowning, as in a worried face.
            let tilt = if mood == Mood::Frowning { 0.026 * self.strength } else { -0.006 };
            let brow = eye[1] - 0.078 - raise;
            let inner = [eye[0] - side * 0.045, brow - tilt];
            let outer = [eye[0] + side * 0.05, brow + tilt];
            let middle = [eye[0], (inner[1] + outer[1]) / 2.0 - if tilt > 0.0 { 0.0 } else { 0.012 }];
            let bald = self.hair.0 == Hair::Bald;
            let (color, by) = if bald { (self.skin, 0.45) } else { (self.hair_color.0, 0.75) };
            canvas.line(&[inner, middle, outer], 0.012, shade(color, by));
            if mood == Mood::Smiling {
                let blush = [self.skin[0], self.skin[1] * 0.82, self.skin[2] * 0.82];
                canvas.ellipse(self.at(side * self.radii[0] * 0.62, 0.075), [0.042, 0.028], blush);
            }
        }
        let nose = [self.at(0.004, 0.0), self.at(0.020, 0.052), self.at(-0.010, 0.056)];
        canvas.line(&nose, 0.009, shade(self.skin, 0.74));
    }

    fn mouth(&self, canvas: &mut Canvas) {
        // Lips must stand out from the skin.
        let lips = if self.skin[0] < 0.6 { [0.86, 0.42, 0.40] } else { [0.66, 0.18, 0.20] };
        let y = self.radii[1] * 0.50;
        let arc = |canvas: &mut Canvas, half: f32, depth: f32| {
            let mut line = Vec::new();
            let ends = [-half, half].map(|x| self.at(x, y - depth / 2.0));
            curve(&[ends[0], self.at(0.0, y + depth / 2.0), ends[1]], 5, &mut line);
            canvas.line(&line, 0.017, lips);
        };
        match MOODS[self.mood].0 {
            Mood::Neutral => arc(canvas, 0.075, 0.0),
            Mood::Frowning => arc(canvas, 0.082, -0.055 * self.strength),
            Mood::Surprised => {
                canvas.ellipse(self.at(0.0, y + 0.005), [0.050, 0.066 * self.strength], lips);
                canvas.ellipse(self.at(0.0, y + 0.008), [0.032, 0.046 * self.strength], [0.25, 0.07, 0.08]);
            }
            Mood::Smiling => {
                // The lower half of an ellipse, with teeth.
                let (center, radii) = (self.at(0.0, y - 0.022), [0.098, 0.085 * self.strength]);
                let (low, high) = around(center, radii);
                canvas.fill(low, high, lips, |p| ellipse(p, center, radii).max(center[1] - p[1]));
                let inner = [radii[0] - 0.018, radii[1] - 0.026];
                canvas.fill(low, high, WHITE, |p| ellipse(p, center, inner).max(center[1] + 0.012 - p[1]));
            }
        }
    }

    fn spectacles(&self, canvas: &mut Canvas) {
        let r = 0.074;
        let frame = 0.011_f32.max(0.45 / canvas.size() as f32);
        for side in [-1.0, 1.0] {
            let (center, radii) = (self.at(side * self.eyes, -0.033), [r + 0.004, r - 0.006]);
            let corner = if self.round_glasses { r - 0.008 } else { 0.02 };
            let (low, high) = around(center, [r + 0.03; 2]);
            canvas.fill(low, high, DARK, |p| rounded_box(p, center, radii, corner).abs() - frame);
            let hinge = self.at(side * (self.eyes + r), -0.045);
            canvas.line(&[hinge, self.at(side * self.radii[0], -0.05)], 0.009, DARK);
        }
        let gap = (self.eyes - r).max(0.0);
        canvas.line(&[self.at(-gap, -0.045), self.at(gap, -0.045)], 0.011, DARK);
    }

    fn hat(&self, canvas: &mut Canvas) {
        let [w, h] = self.radii;
        let brim = self.center[1] - h * 0.56;
        // Radii of the top; how far the brim stands out, and half its thickness.
        let (radii, out, thick) = match self.hat.0 {
            Hat::None => return,
            Hat::Beanie => ([w + 0.035, h * 0.62 + 0.03], 0.005, 0.036),
            Hat::Brim => ([w * 0.86, h * 0.66 + 0.03], 0.10, 0.024),
        };
        let center = [self.center[0], brim];
        let (low, high) = around(center, radii);
        canvas.fill(low, high, self.hat_color, |p| ellipse(p, center, radii).max(p[1] - brim));
        let ends = [[self.center[0] - w - out, brim], [self.center[0] + w + out, brim]];
        canvas.line(&ends, thick, shade(self.hat_color, 0.75));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{open, statistics, tests::options};
    use super::*;

    fn read(size: usize, seed: u64, split: Split, index: u64) -> (u32, Vec<f32>) {
        let data = open("faces", &Options { seed, split, ..options(size) }).unwrap();
        let mut out = vec![f32::NAN; size * size * 3];
        (data.read(index, &mut out).unwrap(), out)
    }

    #[test]
    fn a_picture_is_a_function_of_seed_and_index() {
        let one = read(32, 1, Split::Train, 5);
        assert_eq!(one, read(32, 1, Split::Train, 5));
        assert!(one.1.iter().all(|v| (-1.0..=1.0).contains(v)));
        for other in
            [read(32, 2, Split::Train, 5), read(32, 1, Split::Train, 6), read(32, 1, Split::HeldOut, 5)]
        {
            assert_ne!(one.1, other.1);
        }
    }

    #[test]
    fn labels_are_balanced_and_named_as_described() {
        let data = open("faces", &options(16)).unwrap();
        let counts = statistics(data.as_ref(), &(0..4000).collect::<Vec<_>>()).unwrap().histogram;
        assert!(counts.len() == 8 && counts.iter().all(|n| (410..590).contains(n)), "{counts:?}");
        let mut out = vec![0.0; 16 * 16 * 3];
        for index in 0..50 {
            let name = &data.classes()[data.read(index, &mut out).unwrap() as usize];
            let words = data.describe(index);
            assert_eq!(name.contains("glasses"), words.contains("glasses"), "{name}: {words}");
            assert!(words.starts_with(name.split(',').next().unwrap()), "{name}: {words}");
        }
    }

    #[test]
    fn glasses_and_moods_change_pixels_where_they_sit() {
        let mut face = Face::new(&mut PictureRng::new(1, Generator::Faces, Split::Train, 3));
        let paint = |face: &Face| {
            let mut out = vec![0.0; 64 * 64 * 3];
            face.paint(&mut Canvas::new(&mut out, 64, face.background.0));
            out
        };
        let rows = |a: &[f32], b: &[f32]| -> Vec<usize> {
            (0..64).filter(|y| a[y * 192..(y + 1) * 192] != b[y * 192..(y + 1) * 192]).collect()
        };
        (face.mood, face.glasses, face.hat) = (1, false, (Hat::None, ""));
        let plain = paint(&face);
        face.glasses = true;
        let with_glasses = rows(&plain, &paint(&face));
        assert!(
            with_glasses.len() > 6 && with_glasses.iter().all(|y| (20..40).contains(y)),
            "{with_glasses:?}"
        );
        (face.mood, face.glasses) = (2, false);
        let frown = rows(&plain, &paint(&face));
        assert!(frown.iter().any(|y| *y > 38) && frown.iter().any(|y| *y < 30), "mouth and brows: {frown:?}");
    }
}
