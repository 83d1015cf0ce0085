//! Samples of a model, as many as are wanted, in batches that the memory holds.

use std::cell::RefCell;
use std::rc::Rc;

use super::{Options, Sampler};
use crate::codec::Codec;
use crate::device::{Buffer, Device};
use crate::diffusion::Model;
use crate::error::{Error, Result};
use crate::models::unet::Class;
use crate::nn::Params;
use crate::recipe::Recipe;

/// Most samples that are drawn in one go; more are drawn in turns. It does not change them.
const BATCH: usize = 64;

/// What sampling needs to know of a trained model.
pub struct Source<'a> {
    pub device: &'a Device,
    pub model: &'a Model,
    pub params: &'a Rc<RefCell<Params>>,
    pub weights: &'a Buffer,
    pub recipe: &'a Recipe,
    /// What decodes the samples of latent diffusion; `None` where samples are images.
    pub codec: Option<&'a Codec>,
}

impl Source<'_> {
    /// `[H, W, C]` of the images.
    pub fn image(&self) -> [usize; 3] {
        self.codec.map_or_else(|| self.recipe.diffused(), Codec::image)
    }

    /// Images `[N, H, W, C]` of samples as the process has them: the same, or latents decoded.
    pub(crate) fn images_of(&self, samples: Vec<f32>) -> Result<Vec<f32>> {
        match self.codec {
            Some(codec) => {
                let factor = (1.0 / self.recipe.scaling_factor) as f32;
                codec.decode(&samples.into_iter().map(|v| v * factor).collect::<Vec<f32>>())
            }
            None => Ok(samples),
        }
    }

    /// What the process makes of images `[N, H, W, C]`: the same, or the means of their latents, scaled.
    pub(crate) fn samples_of(&self, images: &[f32]) -> Result<Vec<f32>> {
        match self.codec {
            Some(codec) => {
                let factor = self.recipe.scaling_factor as f32;
                Ok(codec.encode(images)?.mean.into_iter().map(|v| v * factor).collect())
            }
            None => Ok(images.to_vec()),
        }
    }

    /// A sampler for `batch` samples at a time.
    ///
    /// # Errors
    /// As [`Sampler::new`].
    pub fn sampler(&self, options: &Options, batch: usize) -> Result<Sampler> {
        let [h, w, c] = self.recipe.diffused();
        let shape = [batch, h, w, c];
        Sampler::new(self.device, self.model, self.params, self.weights, self.recipe, options, shape)
    }

    /// The label of sample `i`: all classes in turn, so that a grid shows each; `class`: that one always.
    ///
    /// # Errors
    /// When classes are any numbers, and none is given.
    pub fn labels(&self, first: usize, count: usize, class: Option<u32>) -> Result<Vec<u32>> {
        let classes = match (self.recipe.unet.class(), class) {
            (Class::Value, None) => {
                return Err(Error::usage(
                    "class_embed_type is timestep: the model takes a number as an image's class",
                )
                .hint("sample with --class N"));
            }
            (Class::Number(classes), _) => classes,
            _ => 1,
        };
        Ok((first..first + count).map(|i| class.unwrap_or((i % classes) as u32)).collect())
    }

    /// Draws `count` images `[count, H, W, C]`, calling `progress` after each reverse step of each batch.
    ///
    /// # Errors
    /// As [`Sampler::run`].
    pub fn draw(
        &self,
        options: &Options,
        count: usize,
        class: Option<u32>,
        progress: impl FnMut() -> Result<()>,
    ) -> Result<Vec<f32>> {
        self.shown(self.sample(options, count, None, class, progress)?)
    }

    /// As [`Source::draw`], but from given noise `[N, h, w, c]`, which is taken as it is.
    ///
    /// # Errors
    /// As [`Sampler::run`].
    pub fn draw_from(
        &self,
        options: &Options,
        noise: &[f32],
        class: Option<u32>,
        progress: impl FnMut() -> Result<()>,
    ) -> Result<Vec<f32>> {
        let count = noise.len() / self.recipe.diffused().iter().product::<usize>();
        self.shown(self.sample(options, count, Some(noise), class, progress)?)
    }

    fn shown(&self, samples: Vec<f32>) -> Result<Vec<f32>> {
        let images = self.images_of(samples)?;
        if images.iter().any(|v| !v.is_finite()) {
            return Err(Error::new("the model's samples are not finite numbers")
                .hint("it has diverged: train again with a lower lr, or use an older checkpoint"));
        }
        Ok(images)
    }

    /// What a walk of `count` samples ends with, from noise that it draws or from `start`.
    pub(super) fn sample(
        &self,
        options: &Options,
        count: usize,
        start: Option<&[f32]>,
        class: Option<u32>,
        mut progress: impl FnMut() -> Result<()>,
    ) -> Result<Vec<f32>> {
        let most = self.batch(count);
        let size = self.recipe.diffused().iter().product::<usize>();
        let mut samples = Vec::with_capacity(count * size);
        let mut sampler: Option<(usize, Sampler)> = None;
        for first in (0..count).step_by(most) {
            let batch = most.min(count - first);
            let ready = match sampler.take() {
                Some((size, ready)) if size == batch => ready,
                _ => self.sampler(options, batch)?,
            };
            let (_, ready) = sampler.insert((batch, ready));
            ready.set_whole(count);
            let labels = self.labels(first, batch, class)?;
            let watch = |_, _, _: &Sampler| progress();
            samples.extend(match start {
                Some(start) => {
                    let x = &start[first * size..(first + batch) * size];
                    ready.run_from(0, x, first as u32, &labels, watch)?
                }
                None => ready.run(first as u32, &labels, watch)?,
            });
        }
        Ok(samples)
    }

    /// How many samples of `count` are drawn together: what trained in the memory can be sampled in it.
    fn batch(&self, count: usize) -> usize {
        BATCH.min(self.recipe.batch_size.max(8)).min(count)
    }

    /// How many evaluations of the model `draw` makes in all.
    ///
    /// # Errors
    /// When the sampler cannot walk so.
    pub fn work(&self, options: &Options, count: usize) -> Result<u64> {
        Ok((count.div_ceil(self.batch(count)) * options.scheduler.plan(options.steps)?.steps.len()) as u64)
    }
}
