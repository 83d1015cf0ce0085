//! Samples of a denoiser, in batches.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use super::step::{Network, record_step, slots_of};
use super::{Condition, Denoiser, Options, Sampler};
use crate::checkpoint;
use crate::device::{Buffer, Device};
use crate::diffusion::Model;
use crate::error::{Error, Result};
use crate::models::unet::Class;
use crate::nn::{self, Params, Scope};
use crate::program::Plan;
use crate::recipe::{Recipe, model_of, params_of};
use crate::tape::Tape;
use crate::tensor::DType;

/// Numbers of the samples that are drawn together. How many are does not change them.
const NUMBERS: usize = 1 << 16;

/// The first samples that a sampler starts from, and the class of each.
pub(super) struct Start<'a> {
    pub count: usize,
    /// Noise `[count, H, W, C]`; `None`: the sampler draws it.
    pub noise: Option<&'a [f32]>,
    /// Labels of so many samples from a number on.
    pub labels: &'a dyn Fn(usize, usize) -> Result<Vec<u32>>,
}

/// An error if samples are not finite, because the model has diverged.
pub(super) fn check_finite(samples: Vec<f32>) -> Result<Vec<f32>> {
    if samples.iter().all(|v| v.is_finite()) {
        return Ok(samples);
    }
    Err(Error::new("the model's samples are not finite numbers")
        .hint("it has diverged: train again with a lower lr, or use an older checkpoint"))
}

/// Element type of the labels of a recipe's model.
pub(super) fn labels_of(recipe: &Recipe) -> Option<DType> {
    match recipe.class() {
        Class::Number(_) => Some(DType::U32),
        Class::Value => Some(DType::F32),
        Class::None | Class::Embedding(_) => None,
    }
}

/// Tokens of a text of a recipe's model, and numbers of each.
fn texts_of(recipe: &Recipe) -> Option<[usize; 2]> {
    let width = recipe.text_width();
    (width > 0).then_some([recipe.text.max_position_embeddings, width])
}

/// Operations of a reverse step of `batch` samples of a recipe's model. Nothing is allocated on the device.
pub(crate) fn operations(recipe: &Recipe, options: &Options, batch: usize, device: &Device) -> Result<u64> {
    let (model, params) = (model_of(recipe), params_of(recipe));
    let (shape, labels) = (recipe.diffused(), labels_of(recipe));
    let condition = Condition::of(recipe);
    let (condition, self_conditioned) =
        (condition.as_ref(), recipe.self_conditioning.then_some(recipe.clip_sample));
    let (model, params) = (&*model, &params);
    let text = texts_of(recipe);
    let network = Network { model, params, shape, labels, self_conditioned, condition, text, guide: None };
    let plan = options.plan()?;
    let guidance = options.guidance.takes_both().then_some(&options.guidance);
    let (tape, _) = record_step(&network, &plan, slots_of(&plan, options), batch, guidance);
    Ok(Plan::new(&tape, &[], device).cost().flops)
}

impl<'a> Denoiser<'a> {
    /// A network that sees noisy samples `[N, H, W, C]` alone.
    pub fn new(
        device: Device,
        model: &'a Model,
        params: Rc<RefCell<Params>>,
        weights: Buffer,
        shape: [usize; 3],
    ) -> Self {
        Denoiser {
            device,
            model,
            params,
            weights,
            shape,
            labels: None,
            null: None,
            self_conditioned: None,
            condition: None,
            texts: None,
            begin: None,
            guide: None,
        }
    }

    pub(super) fn network(&self) -> Network<'_> {
        let Denoiser { model, params, condition, guide, .. } = self;
        let (model, shape, labels, self_conditioned) =
            (*model, self.shape, self.labels, self.self_conditioned);
        let (condition, guide) = (condition.as_ref(), guide.as_ref());
        let text = self.texts.as_ref().map(|texts| texts.shape);
        Network { model, params, shape, labels, self_conditioned, condition, text, guide }
    }

    /// The model with the moving average of a checkpoint that [`Trainer::save`](crate::train::Trainer::save)
    /// wrote. `shape`: `[H, W, C]` of a sample.
    ///
    /// # Errors
    /// When the file is missing, damaged, or of a model with other parameters.
    pub fn open(path: &Path, device: &Device, model: &'a Model, shape: [usize; 3]) -> Result<Self> {
        let (params, tape, [h, w, c]) = (Rc::default(), Tape::new(), shape);
        let (x, t) = (tape.stored("x", 0, [1, h, w, c]), tape.stored("t", 0, [1]));
        model(&Scope::new(&tape, &params), &x, &t, None.into());
        let ema = checkpoint::read(path)?.set("ema", &params.borrow())?;
        let weights = device.alloc(nn::STORE, ema.len() * 4)?;
        device.write(&weights, 0, bytemuck::cast_slice(&ema))?;
        Ok(Denoiser::new(device.clone(), model, params, weights, shape))
    }

    /// Draws `count` samples `[count, H, W, C]` of a model without labels.
    ///
    /// # Errors
    /// As [`Sampler::new`] and [`Sampler::run`]; and when a sample is not finite.
    ///
    /// # Panics
    /// When the model takes labels: [`Sampler::run`] takes them.
    #[track_caller]
    pub fn draw(&self, options: &Options, count: usize) -> Result<Vec<f32>> {
        assert!(self.labels.is_none(), "draw: the model takes labels; use a sampler");
        let most = NUMBERS.div_ceil(self.shape.iter().product::<usize>()).min(count);
        let start = Start { count, noise: None, labels: &|_, _| Ok(Vec::new()) };
        check_finite(self.sample(options, most, start, |_, _| Ok(()))?)
    }

    /// Draws samples, at most `most` together, calling `watch(row, sampler)` after each reverse step of each
    /// batch.
    pub(super) fn sample(
        &self,
        options: &Options,
        most: usize,
        Start { count, noise, labels }: Start,
        mut watch: impl FnMut(usize, &Sampler) -> Result<()>,
    ) -> Result<Vec<f32>> {
        let most = self.batch(options, most)?;
        let size = self.shape.iter().product::<usize>();
        let mut samples = Vec::with_capacity(count * size);
        let mut sampler: Option<Sampler> = None;
        for first in (0..count).step_by(most.max(1)) {
            let batch = most.min(count - first);
            let ready = match sampler.take() {
                Some(ready) if ready.batch == batch => ready,
                _ => Sampler::new(self, options, batch)?,
            };
            let ready = sampler.insert(ready);
            if let Some(torch) = &mut ready.torch {
                torch.whole = count;
            }
            let labels = labels(first, batch)?;
            let watch = |row, _, sampler: &Sampler| watch(row, sampler);
            samples.extend(match noise {
                Some(noise) => {
                    let x = &noise[first * size..(first + batch) * size];
                    ready.run_from(0, x, first as u32, &labels, watch)?
                }
                None => ready.run(first as u32, &labels, watch)?,
            });
        }
        Ok(samples)
    }
}
