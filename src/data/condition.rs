//! Conditions: what a diffusion model sees of an image beside its noisy form, as further channels.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::Dataset;
use super::picture::mirror;
use crate::error::{Result, need};
use crate::models::config;
use crate::philox::{Stream, below, draw, fill_normal, uniform};
use crate::simd::vectorized;

/// What a condition is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConditionKind {
    /// There is none.
    #[default]
    None,
    /// The mean of the colours, one channel.
    Grey,
    /// Means of squares, brought back to the size of the image by a bicubic filter (Saharia et al. 2021,
    /// arXiv:2104.07636).
    LowResolution,
    /// The image with a rectangle of zeros, and a channel that is 1 there and -1 elsewhere (Saharia et al.
    /// 2022, arXiv:2111.05826, with one hole of their kinds).
    Mask,
    /// The picture that stands beside it in the data.
    Pair,
}

config! {
    /// How the condition of an image is made. It is joined to the noisy image along the channels.
    pub struct ConditionConfig {
        /// none; grey (colouring), low_resolution (enlarging), mask (filling holes), or pair: the other
        /// picture of pairs:A,B. The model's in_channels are those of image and condition together.
        pub kind: ConditionKind = ConditionKind::None,
        /// Channels of a pair's condition: 1 (grey) or 3.
        pub channels: usize = 3,
        /// Side of the square of pixels that become one of low_resolution.
        pub factor: usize = 4,
        /// Largest standard deviation of noise that training adds to conditions of low_resolution; one more
        /// channel says how much, which is none in samples.
        pub noise: f64 = 0.0,
        /// How many conditions, of 1, training replaces by zeros: without them there is no guidance.
        pub dropout: f64 = 0.0,
    }
}

impl ConditionConfig {
    /// Whether there is a condition.
    pub fn is_some(&self) -> bool {
        self.kind != ConditionKind::None
    }

    /// Channels of the condition of an image of so many channels.
    pub fn channels_of(&self, image: usize) -> usize {
        match self.kind {
            ConditionKind::None => 0,
            ConditionKind::Grey => 1,
            ConditionKind::LowResolution => image + usize::from(self.noise > 0.0),
            ConditionKind::Mask => image + 1,
            ConditionKind::Pair => self.channels,
        }
    }

    /// Channels of an image where it has `both` together with its condition; `None`: no image has.
    pub fn image_channels(&self, both: usize) -> Option<usize> {
        (1..=both).find(|&image| image + self.channels_of(image) == both)
    }

    /// Checks the values, for images of `side` pixels and so many channels.
    ///
    /// # Errors
    /// Names the key and what it may be.
    pub(crate) fn validate(&self, side: usize, channels: usize) -> Result<()> {
        let ConditionConfig { kind, factor, noise, dropout, .. } = *self;
        let message = format!("condition.channels is {}", self.channels);
        need([1, 3].contains(&self.channels), message, "it must be 1 (grey) or 3")?;
        let fits = factor > 1 && factor <= side && side.is_multiple_of(factor);
        let message = format!("condition.factor is {factor}, of images of {side} pixels");
        need(kind != ConditionKind::LowResolution || fits, message, "it must divide them, and be 2 or more")?;
        let message = format!("condition.noise is {noise}");
        need((0.0..=10.0).contains(&noise), message, "it must be from 0 to 10")?;
        need(
            noise == 0.0 || kind == ConditionKind::LowResolution,
            "condition.noise goes with condition.kind = low_resolution",
            "leave it at 0",
        )?;
        let message = format!("condition.dropout is {dropout}");
        need((0.0..1.0).contains(&dropout), message, "it must be 0 or more, and below 1")?;
        need(
            dropout == 0.0 || self.is_some(),
            "condition.dropout goes with a condition",
            "set condition.kind, or leave it at 0",
        )?;
        let coloured = kind != ConditionKind::Grey || channels == 3;
        need(coloured, "condition.kind is grey, and so are the images", "images in colour have 3 channels")
    }

    /// The condition `[H, W, ..]` of an `image` `[H, W, C]`. `partner`: the picture beside it, `[H, W, 1 or
    /// 3]`; `number`: tells its random numbers from those of others.
    pub(crate) fn of(
        &self,
        image: &[f32],
        shape: [usize; 3],
        partner: &[f32],
        seed: u64,
        number: u64,
    ) -> Vec<f32> {
        let [h, w, c] = shape;
        match self.kind {
            ConditionKind::None => Vec::new(),
            ConditionKind::Grey => recoloured(image, c, 1),
            ConditionKind::LowResolution => {
                let low = enlarged(&averages(image, shape, self.factor), shape, self.factor);
                if self.noise == 0.0 { low } else { joined([&low, &vec![0.0; h * w]], [c, 1]) }
            }
            ConditionKind::Mask => {
                let [rows, columns] = hole(shape, seed, number);
                with_holes(image, c, |pixel| rows.contains(&(pixel / w)) && columns.contains(&(pixel % w)))
            }
            ConditionKind::Pair => recoloured(partner, partner.len() / (h * w), self.channels),
        }
    }

    /// Makes a condition `[.., H, W]` what training sees of it: noisy, or zeros.
    fn perturb(&self, condition: &mut [f32], channels: usize, seed: u64, number: u64) {
        let (step, sample) = ((number >> 32) as u32, number as u32);
        let [drops, level, ..] = draw(seed, Stream::Condition as u32, step, sample, 1);
        if uniform(drops) < self.dropout as f32 {
            condition.fill(0.0);
        } else if self.noise > 0.0 {
            let (image, level) = (channels - 1, uniform(level));
            let mut noise = vec![0.0; condition.len() / channels * image];
            vectorized(
                #[inline(always)]
                || fill_normal(&mut noise, seed, Stream::ConditionNoise as u32, step, sample, 0),
            );
            let deviation = self.noise as f32 * level;
            for (pixel, noise) in condition.chunks_exact_mut(channels).zip(noise.chunks_exact(image)) {
                pixel.iter_mut().zip(noise).for_each(|(v, e)| *v += deviation * e);
                pixel[image] = level;
            }
        }
    }

    /// Conditions `[.., channels_of(image)]` as pictures `[.., image]`.
    pub(crate) fn shown(&self, conditions: &[f32], image: usize) -> Vec<f32> {
        let channels = self.channels_of(image);
        match self.kind {
            ConditionKind::Grey | ConditionKind::Pair => recoloured(conditions, channels, image),
            _ => conditions.chunks(channels.max(1)).flat_map(|pixel| &pixel[..image]).copied().collect(),
        }
    }

    /// Gives samples `[.., C]` the pixels that their `conditions` know.
    pub(crate) fn keep_known(&self, samples: &mut [f32], conditions: &[f32], channels: usize) {
        if self.kind == ConditionKind::Mask {
            let known = conditions.chunks_exact(channels + 1);
            for (sample, known) in samples.chunks_exact_mut(channels).zip(known) {
                if known[channels] < 0.0 {
                    sample.copy_from_slice(&known[..channels]);
                }
            }
        }
    }
}

/// Writes picture `index` of the data to `out`, `[H, W, C + condition's]`: the image, mirrored or not, and
/// beside it its condition as training sees it. `position`: of the sample in training.
pub(super) fn read_conditioned(
    data: &dyn Dataset,
    config: &ConditionConfig,
    index: u64,
    mirrored: bool,
    [seed, position]: [u64; 2],
    out: &mut [f32],
) -> Result<u32> {
    let shape = data.shape();
    let (label, mut image, mut partner) = read_both(data, index)?;
    if mirrored {
        mirror(&mut image, shape);
        let [h, w, _] = shape;
        let channels = partner.len() / (h * w);
        mirror(&mut partner, [h, w, channels]);
    }
    let mut condition = config.of(&image, shape, &partner, seed, position);
    let channels = config.channels_of(shape[2]);
    config.perturb(&mut condition, channels, seed, position);
    out.copy_from_slice(&joined([&image, &condition], [shape[2], channels]));
    Ok(label)
}

/// The label of picture `index`, the picture, and the one that stands beside it (empty: none does).
pub(crate) fn read_both(data: &dyn Dataset, index: u64) -> Result<(u32, Vec<f32>, Vec<f32>)> {
    let size = |shape: [usize; 3]| shape.iter().product::<usize>();
    let mut image = vec![0.0; size(data.shape())];
    let mut partner = vec![0.0; data.partner().map_or(0, size)];
    let label = match data.partner() {
        Some(_) => data.read_pair(index, &mut image, &mut partner)?,
        None => data.read(index, &mut image)?,
    };
    Ok((label, image, partner))
}

/// Two pictures side by side along the channels, of which they have `a` and `b`.
fn joined([a, b]: [&[f32]; 2], [ca, cb]: [usize; 2]) -> Vec<f32> {
    a.chunks_exact(ca).zip(b.chunks_exact(cb)).flat_map(|(a, b)| a.iter().chain(b)).copied().collect()
}

/// A picture of `from` channels with `to` of them, each 1 or 3: the mean of the colours, or each the grey.
fn recoloured(picture: &[f32], from: usize, to: usize) -> Vec<f32> {
    match (from, to) {
        (1, 3) => picture.iter().flat_map(|&v| [v; 3]).collect(),
        (3, 1) => picture.chunks_exact(3).map(|rgb| rgb.iter().sum::<f32>() / 3.0).collect(),
        _ => picture.to_vec(),
    }
}

/// The means of squares of `factor` pixels, `[H / factor, W / factor, C]`.
fn averages(image: &[f32], [h, w, c]: [usize; 3], factor: usize) -> Vec<f32> {
    let (small, share) = (w / factor, 1.0 / (factor * factor) as f32);
    let mut out = vec![0.0; h / factor * small * c];
    for (i, &v) in image.iter().enumerate() {
        let (y, x, k) = (i / (w * c), i / c % w, i % c);
        out[(y / factor * small + x / factor) * c + k] += share * v;
    }
    out
}

/// The four weights of the bicubic filter (Keys 1981, a = -1/2) at a distance of `x` from the second pixel.
fn cubic(x: f32) -> [f32; 4] {
    let near = |x: f32| (1.5 * x - 2.5) * x * x + 1.0;
    let far = |x: f32| ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0;
    [far(1.0 + x), near(x), near(1.0 - x), far(2.0 - x)]
}

/// `small` `[H / factor, W / factor, C]` at the size of `[H, W, C]`, by the bicubic filter with edges that go
/// on.
fn enlarged(small: &[f32], [h, w, c]: [usize; 3], factor: usize) -> Vec<f32> {
    // From `from` values at a distance of `step`, `factor` times as many, where `outer` such rows lie `apart`.
    let along = |values: &[f32], length: usize, step: usize| -> Vec<f32> {
        let taps = |i: usize| {
            let at = (i as f32 + 0.5) / factor as f32 - 0.5;
            let first = at.floor();
            (first as isize - 1, cubic(at - first))
        };
        let taps: Vec<_> = (0..length * factor).map(taps).collect();
        let mut out = Vec::with_capacity(values.len() * factor);
        for row in values.chunks_exact(length * step) {
            for (first, weights) in &taps {
                let place = |j: usize| (first + j as isize).clamp(0, length as isize - 1) as usize * step;
                let places: [usize; 4] = std::array::from_fn(place);
                out.extend((0..step).map(|k| {
                    places.iter().zip(weights).map(|(place, weight)| weight * row[place + k]).sum::<f32>()
                }));
            }
        }
        out
    };
    along(&along(small, w / factor, c), h / factor, w * c)
}

/// The rows and columns of a hole, a quarter to five eighths of either side.
fn hole([h, w, _]: [usize; 3], seed: u64, number: u64) -> [Range<usize>; 2] {
    let words = draw(seed, Stream::Condition as u32, (number >> 32) as u32, number as u32, 0);
    let extent = |side: usize, word| (side / 4).max(1) + below(word, (5 * side / 8 - side / 4).max(1));
    let (tall, wide) = (extent(h, words[0]), extent(w, words[1]));
    let (top, left) = (below(words[2], h - tall + 1), below(words[3], w - wide + 1));
    [top..top + tall, left..left + wide]
}

/// The condition of an image some of whose pixels are not known.
pub(crate) fn with_holes(image: &[f32], channels: usize, is_hole: impl Fn(usize) -> bool) -> Vec<f32> {
    let mut condition = Vec::with_capacity(image.len() / channels * (channels + 1));
    for (i, pixel) in image.chunks_exact(channels).enumerate() {
        let [factor, mask] = if is_hole(i) { [0.0, 1.0] } else { [1.0, -1.0] };
        condition.extend(pixel.iter().map(|v| v * factor));
        condition.push(mask);
    }
    condition
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: [usize; 3] = [8, 12, 3];

    fn image() -> Vec<f32> {
        (0..8 * 12 * 3).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect()
    }

    fn config(kind: ConditionKind) -> ConditionConfig {
        ConditionConfig { kind, factor: 4, ..ConditionConfig::default() }
    }

    fn of(kind: ConditionKind, number: u64) -> Vec<f32> {
        config(kind).of(&image(), SHAPE, &[], 5, number)
    }

    #[test]
    fn low_resolution_is_the_bicubic_enlargement_of_means() {
        let ([h, w, c], image) = (SHAPE, image());
        // Plain sums over the whole plane, by the kernel of a distance.
        let kernel = |d: f64| match d.abs() {
            d if d < 1.0 => 1.5 * d.powi(3) - 2.5 * d * d + 1.0,
            d if d < 2.0 => -0.5 * d.powi(3) + 2.5 * d * d - 4.0 * d + 2.0,
            _ => 0.0,
        };
        let mean = |y: i64, x: i64, k: usize| -> f64 {
            let at = |p: i64, most: usize| p.clamp(0, most as i64 / 4 - 1) as usize * 4;
            let (y, x) = (at(y, h), at(x, w));
            let all = (0..16).map(|i| f64::from(image[((y + i / 4) * w + x + i % 4) * c + k]));
            all.sum::<f64>() / 16.0
        };
        let got = of(ConditionKind::LowResolution, 0);
        assert_eq!(got.len(), image.len());
        for (i, got) in got.iter().enumerate() {
            let place = |p: usize| (p as f64 + 0.5) / 4.0 - 0.5;
            let (y, x) = (place(i / (w * c)), place(i / c % w));
            let far = || -3_i64..7;
            let terms = far().flat_map(|r| far().map(move |q| (r, q)));
            let wanted: f64 =
                terms.map(|(r, q)| kernel(y - r as f64) * kernel(x - q as f64) * mean(r, q, i % c)).sum();
            assert!((f64::from(*got) - wanted).abs() < 1e-6, "element {i}: {got}, not {wanted}");
        }
    }

    #[test]
    fn grey_is_the_mean_and_holes_hide_what_they_say() {
        let image = image();
        let grey = of(ConditionKind::Grey, 0);
        assert!(
            grey.iter().zip(image.chunks(3)).all(|(g, rgb)| (3.0 * g - rgb.iter().sum::<f32>()).abs() < 1e-6)
        );
        let holes: Vec<Vec<f32>> = (0..200).map(|number| of(ConditionKind::Mask, number)).collect();
        assert_eq!(holes[7], of(ConditionKind::Mask, 7));
        for with_hole in &holes {
            for (seen, rgb) in with_hole.chunks(4).zip(image.chunks(3)) {
                let wanted = if seen[3] == 1.0 { vec![0.0; 3] } else { rgb.to_vec() };
                assert!(seen[..3] == wanted && seen[3].abs() == 1.0, "{seen:?} of {rgb:?}");
            }
        }
        let is_hole = |with_hole: &Vec<f32>, i: usize| with_hole[4 * i + 3] == 1.0;
        let sizes: Vec<usize> = holes.iter().map(|h| (0..96).filter(|&i| is_hole(h, i)).count()).collect();
        let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
        assert!((6..12).contains(least) && (20..=28).contains(most), "{least} to {most} of 96 pixels");
        assert!((0..96).all(|i| holes.iter().any(|h| is_hole(h, i))), "every pixel may be hidden");
        // A sample's known pixels are those of the image, to the bit.
        let mut sample = vec![9.0; image.len()];
        config(ConditionKind::Mask).keep_known(&mut sample, &holes[0], 3);
        for (i, (sample, rgb)) in sample.chunks(3).zip(image.chunks(3)).enumerate() {
            assert_eq!(sample, if is_hole(&holes[0], i) { &[9.0; 3] } else { rgb });
        }
    }

    #[test]
    fn training_drops_and_blurs_as_often_as_it_says() {
        let kind = ConditionKind::LowResolution;
        let config = ConditionConfig { noise: 0.4, dropout: 0.25, ..config(kind) };
        let clean = config.of(&image(), SHAPE, &[], 5, 0);
        assert!(clean.len() == 8 * 12 * 4 && clean.chunks(4).all(|pixel| pixel[3] == 0.0));
        let (mut dropped, mut levels, mut worst) = (0, 0.0, 0.0_f64);
        for number in 0..2000 {
            let mut seen = clean.clone();
            config.perturb(&mut seen, 4, 5, number);
            if seen.iter().all(|&v| v == 0.0) {
                dropped += 1;
                continue;
            }
            let level = f64::from(seen[3]);
            levels += level;
            let errors = seen
                .chunks(4)
                .zip(clean.chunks(4))
                .flat_map(|(a, b)| [a[0] - b[0], a[1] - b[1], a[2] - b[2]]);
            let deviation = (errors.map(|e| f64::from(e).powi(2)).sum::<f64>() / 288.0).sqrt();
            worst = worst.max((deviation / (0.4 * level) - 1.0).abs());
        }
        // Five deviations of each: 19 of 2,000 draws, 0.0075 of a mean of 1,500, 0.042 of 288 numbers.
        assert!((404..=596).contains(&dropped), "{dropped} of 2000");
        let mean = levels / f64::from(2000 - dropped);
        assert!((mean - 0.5).abs() < 0.04 && worst < 0.21, "{mean}, {worst}");
    }

    #[test]
    fn channels_of_image_and_condition_are_told_apart() {
        use ConditionKind::{Grey, LowResolution, Mask, Pair};
        for (kind, noise, both, image) in [
            (ConditionKind::None, 0.0, 3, Some(3)),
            (Grey, 0.0, 4, Some(3)),
            (LowResolution, 0.0, 6, Some(3)),
            (LowResolution, 0.1, 7, Some(3)),
            (LowResolution, 0.0, 7, None),
            (Mask, 0.0, 3, Some(1)),
            (Pair, 0.0, 4, Some(1)),
            (Pair, 0.0, 3, None),
        ] {
            let config = ConditionConfig { noise, ..config(kind) };
            assert_eq!(config.image_channels(both), image, "{kind:?} {both}");
        }
    }
}
