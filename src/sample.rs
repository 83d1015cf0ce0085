//! Ancestral sampling: one recorded reverse step, replayed down the timesteps without reading anything
//! back.

use std::cell::RefCell;
use std::rc::Rc;

use crate::device::{Buffer, Device};
use crate::diffusion::{Model, Variance};
use crate::error::{Error, Result};
use crate::nn::{self, Params, Scope};
use crate::ops::denoising::{Row, denoise, timestep_of_row};
use crate::ops::noising::gaussian;
use crate::philox::Stream;
use crate::program::{Plan, Program, Sharing};
use crate::recipe::Recipe;
use crate::state::State;
use crate::tape::{Tape, Tensor};

/// How to draw samples.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub seed: u64,
    pub steps: usize,
    pub variance: Variance,
}

impl Options {
    /// The recipe's own.
    pub fn of(recipe: &Recipe) -> Self {
        Options { seed: recipe.seed, steps: recipe.sample_steps, variance: recipe.variance }
    }
}

/// Most samples that are drawn in one go; more are drawn in turns. It does not change them.
const BATCH: usize = 64;

/// A compiled reverse step for `batch` samples.
pub struct Sampler {
    start: Program,
    step: Program,
    x: Tensor,
    state: State,
    batch: usize,
    classes: usize,
    timesteps: Vec<usize>,
}

impl Sampler {
    /// Compiles for samples of `[H, W, C]` from `weights`, the flat parameters in the layout of `params`.
    ///
    /// # Errors
    /// When memory is too small, or the driver cannot build a kernel.
    pub fn new(
        device: &Device,
        model: &Model,
        params: &Rc<RefCell<Params>>,
        weights: &Buffer,
        recipe: &Recipe,
        options: Options,
        [batch, h, w, c]: [usize; 4],
    ) -> Result<Sampler> {
        let schedule = recipe.schedule();
        let timesteps = schedule.respaced(options.steps);
        let clip = (recipe.clip_sample > 0.0).then_some(recipe.clip_sample);
        let table = schedule.denoising_table(&timesteps, options.variance, clip);

        let tape = Tape::new();
        let x = tape.stored("x", 0, [batch, h, w, c]);
        let state = tape.stored_u32("state", [State::WORDS]);
        let rows = tape.stored("denoising", 0, [timesteps.len(), Row::COLUMNS]);
        let t = timestep_of_row(batch, &rows, &state);
        let classes = recipe.unet.num_class_embeds;
        let labels = (classes > 0).then(|| tape.stored_u32("labels", [batch]));
        let eps = model(&Scope::new(&tape, params), &x, &t, labels.as_ref());
        denoise(&x, &eps, &rows, &state, None);
        let plan = Plan::new(&tape, &[], device);
        let step = Program::compile(&plan, device, &[(nn::STORE, weights)], Sharing::Shared)?;
        step.write("denoising", &table)?;

        let begin = Tape::new();
        let begin_state = begin.stored_u32("state", [State::WORDS]);
        let noise = gaussian([batch, h, w, c], Stream::Start, &begin_state);
        begin.place(&noise, "x", 0);
        let plan = Plan::new(&begin, &[], device);
        let stores = [("x", step.store("x")), ("state", step.store("state"))];
        let start = Program::compile(&plan, device, &stores, Sharing::Shared)?;
        let state = State { seed: options.seed, ..State::default() };
        Ok(Sampler { start, step, x, state, batch, classes, timesteps })
    }

    /// Draws samples number `first` to `first + batch`, and calls `watch(row, timestep, sampler)` after
    /// each reverse step. `labels`: one for each sample, for models with classes.
    ///
    /// # Errors
    /// When the driver reports an error, or `watch` does.
    pub fn run(
        &mut self,
        first: u32,
        labels: &[u32],
        mut watch: impl FnMut(usize, usize, &Sampler) -> Result<()>,
    ) -> Result<Vec<f32>> {
        let mut state = State { first_sample: first, ..self.state };
        if self.classes > 0 {
            assert_eq!(labels.len(), self.batch, "a label for each sample");
            self.step.write("labels", labels)?;
        }
        self.start.write("state", &state.words())?;
        self.start.run()?;
        for row in 0..self.timesteps.len() {
            state.row = row as u32;
            self.step.write("state", &state.words())?;
            self.step.run()?;
            watch(row, self.timesteps[row], self)?;
        }
        self.current()
    }

    /// The samples as they are now, `[N, H, W, C]`.
    ///
    /// # Errors
    /// When the driver reports an error.
    pub fn current(&self) -> Result<Vec<f32>> {
        self.step.read(&self.x)
    }

    pub fn timesteps(&self) -> &[usize] {
        &self.timesteps
    }
}

/// What sampling needs to know of a trained model.
pub struct Source<'a> {
    pub device: &'a Device,
    pub model: &'a Model,
    pub params: &'a Rc<RefCell<Params>>,
    pub weights: &'a Buffer,
    pub recipe: &'a Recipe,
    /// `[H, W, C]`.
    pub image: [usize; 3],
}

impl Source<'_> {
    /// A sampler for `batch` samples at a time.
    ///
    /// # Errors
    /// As [`Sampler::new`].
    pub fn sampler(&self, options: Options, batch: usize) -> Result<Sampler> {
        let [h, w, c] = self.image;
        let shape = [batch, h, w, c];
        Sampler::new(self.device, self.model, self.params, self.weights, self.recipe, options, shape)
    }

    /// The label of sample `i`: all classes in turn, so that a grid shows each; `class`: that one always.
    pub fn labels(&self, first: usize, count: usize, class: Option<u32>) -> Vec<u32> {
        let classes = self.recipe.unet.num_class_embeds.max(1);
        (first..first + count).map(|i| class.unwrap_or((i % classes) as u32)).collect()
    }

    /// Draws `count` samples `[count, H, W, C]`, calling `progress` after each reverse step of each batch.
    ///
    /// # Errors
    /// As [`Sampler::run`].
    pub fn draw(
        &self,
        options: Options,
        count: usize,
        class: Option<u32>,
        mut progress: impl FnMut() -> Result<()>,
    ) -> Result<Vec<f32>> {
        let most = self.batch(count);
        let mut images = Vec::with_capacity(count * self.image.iter().product::<usize>());
        let mut sampler: Option<(usize, Sampler)> = None;
        for first in (0..count).step_by(most) {
            let batch = most.min(count - first);
            let ready = match sampler.take() {
                Some((size, ready)) if size == batch => ready,
                _ => self.sampler(options, batch)?,
            };
            let (_, ready) = sampler.insert((batch, ready));
            let labels = self.labels(first, batch, class);
            images.extend(ready.run(first as u32, &labels, |_, _, _| progress())?);
        }
        if images.iter().any(|v| !v.is_finite()) {
            return Err(Error::new("the model's samples are not finite numbers")
                .hint("it has diverged: train again with a lower lr, or use an older checkpoint"));
        }
        Ok(images)
    }

    /// How many samples of `count` are drawn together: what trained in the memory can be sampled in it.
    fn batch(&self, count: usize) -> usize {
        BATCH.min(self.recipe.batch_size.max(8)).min(count)
    }

    /// How many reverse steps `draw` makes in all.
    pub fn work(&self, options: Options, count: usize) -> u64 {
        (count.div_ceil(self.batch(count)) * self.recipe.schedule().respaced(options.steps).len()) as u64
    }
}
