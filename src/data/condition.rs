//! Conditions: what a diffusion model sees of an image beside its noisy form, as further channels.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::picture::{mirror, to_u8};
use super::{Dataset, Partner};
use crate::error::{Error, Result, need};
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
    /// The image with a rectangle of zeros, and a channel that is 0 there and 1 where pixels are known, which
    /// the model then sees without noise, and whose error does not count (Saharia et al. 2022,
    /// arXiv:2111.05826, with one hole of their kinds).
    Mask,
    /// The picture that stands beside it in the data.
    Pair,
    /// Of latents: a mask, 1 where they are made anew, and the latents of the image with zeros there, as
    /// Stable Diffusion's models for inpainting see them. Such models are drawn from, not trained.
    MaskedLatents,
    /// The classes of its pixels, of a picture that stands beside it: a channel for each class, 1 where the
    /// pixel is of it. Grey level 255 is of none.
    Map,
}

config! {
    /// How the condition of an image is made. It is joined to the noisy image along the channels.
    pub struct ConditionConfig {
        /// none; grey (colouring), low_resolution (enlarging), mask (filling holes), pair: the other picture
        /// of pairs:A,B, or map: the classes of pixels of maps:A,B. The model's in_channels are those of
        /// image and condition together.
        pub kind: ConditionKind = ConditionKind::None,
        /// Channels of a pair's condition, 1 (grey) or 3; or the number of classes of a map.
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
            ConditionKind::Mask | ConditionKind::MaskedLatents => image + 1,
            ConditionKind::Pair | ConditionKind::Map => self.channels,
        }
    }

    /// Checks the values, for images of `side` pixels and so many channels.
    ///
    /// # Errors
    /// Names the key and what it may be.
    pub(crate) fn validate(&self, side: usize, channels: usize) -> Result<()> {
        let ConditionConfig { kind, factor, noise, dropout, .. } = *self;
        let message = format!("condition.channels is {}", self.channels);
        let is_map = kind == ConditionKind::Map;
        let hint = if is_map {
            "it must be from 2 to 255, the number of classes"
        } else {
            "it must be 1 (grey) or 3"
        };
        let known = if is_map { (2..=255).contains(&self.channels) } else { [1, 3].contains(&self.channels) };
        need(known, message, hint)?;
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
            ConditionKind::None | ConditionKind::MaskedLatents => Vec::new(),
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
            ConditionKind::Map => {
                let is_of = |v: f32, class: usize| if usize::from(to_u8(v)) == class { 1.0 } else { 0.0 };
                partner.iter().flat_map(|&v| (0..self.channels).map(move |class| is_of(v, class))).collect()
            }
        }
    }

    /// An error if a map, of the picture called `name`, has classes that the condition has no channels for.
    pub(crate) fn check_map(&self, map: &[f32], name: &str) -> Result<()> {
        const NO_CLASS: u8 = 255;
        let classes = map.iter().map(|&v| to_u8(v)).filter(|_| self.kind == ConditionKind::Map);
        match classes.filter(|&class| class != NO_CLASS).max().map(usize::from) {
            Some(class) if class >= self.channels => Err(Error::new(format!(
                "the map of {name} has class {class}, and condition.channels is {}",
                self.channels
            ))
            .hint("set it to the number of classes: grey levels are their numbers from 0 on, 255 is none")),
            _ => Ok(()),
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
            ConditionKind::Map => {
                conditions.chunks_exact(channels).flat_map(|of| class_shown(of, image)).collect()
            }
            ConditionKind::Grey | ConditionKind::Pair => recoloured(conditions, channels, image),
            _ => conditions.chunks(channels.max(1)).flat_map(|pixel| &pixel[..image]).copied().collect(),
        }
    }

    /// Gives samples `[.., C]` the pixels that their `conditions` know.
    pub(crate) fn keep_known(&self, samples: &mut [f32], conditions: &[f32], channels: usize) {
        if self.kind == ConditionKind::Mask {
            let known = conditions.chunks_exact(channels + 1);
            for (sample, known) in samples.chunks_exact_mut(channels).zip(known) {
                if known[channels] > 0.0 {
                    sample.copy_from_slice(&known[..channels]);
                }
            }
        }
    }
}

/// The colour (or grey level) of a pixel's class; white where it is of none.
fn class_shown(classes: &[f32], channels: usize) -> impl Iterator<Item = f32> {
    let class = classes.iter().position(|&v| v > 0.0);
    let level = class.map(|class| class as f32 / classes.len() as f32);
    // Hues around a circle; grey levels below white.
    (0..channels).map(move |k| match (level, channels) {
        (None, _) => 1.0,
        (Some(level), 1) => 2.0 * level - 1.0,
        (Some(level), _) => (std::f32::consts::TAU * (level + k as f32 / 3.0)).cos(),
    })
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
    let (label, mut image, mut partner) = read_both(data, config, index)?;
    if mirrored {
        mirror(&mut image, shape);
        if let Some(Partner { shape, .. }) = data.partner() {
            mirror(&mut partner, shape);
        }
    }
    let mut condition = config.of(&image, shape, &partner, seed, position);
    let channels = config.channels_of(shape[2]);
    config.perturb(&mut condition, channels, seed, position);
    out.copy_from_slice(&joined([&image, &condition], [shape[2], channels]));
    Ok(label)
}

/// The label of picture `index`, the picture, and the one that stands beside it (empty: none does).
///
/// # Errors
/// When one cannot be read, or is a map of other classes than those of the condition.
pub(crate) fn read_both(
    data: &dyn Dataset,
    config: &ConditionConfig,
    index: u64,
) -> Result<(u32, Vec<f32>, Vec<f32>)> {
    let size = |shape: [usize; 3]| shape.iter().product::<usize>();
    let mut image = vec![0.0; size(data.shape())];
    let mut partner = vec![0.0; data.partner().map_or(0, |partner| size(partner.shape))];
    let label = match data.partner() {
        Some(_) => data.read_pair(index, &mut image, &mut partner)?,
        None => data.read(index, &mut image)?,
    };
    config.check_map(&partner, &data.describe(index))?;
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
    // Of each row of `length` values that lie `step` apart: `factor` times as many.
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
pub(crate) fn hole([h, w, _]: [usize; 3], seed: u64, number: u64) -> [Range<usize>; 2] {
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
        let known = if is_hole(i) { 0.0 } else { 1.0 };
        condition.extend(pixel.iter().map(|v| v * known));
        condition.push(known);
    }
    condition
}

#[cfg(test)]
#[path = "condition_tests.rs"]
mod tests;
