//! Sampling: one recorded step of the reverse process, replayed down the timesteps without reading anything
//! back.

mod begin;
mod beginning;
mod condition;
mod denoiser;
mod guide;
pub mod inversion;
mod options;
mod predictor;
mod recorded;
mod source;
mod step;
mod told;
mod torch_noise;
mod trained;

use std::cell::RefCell;
use std::rc::Rc;

pub use crate::text_model::Texts;
pub use begin::{Begin, Latents};
pub use condition::{Condition, Given};
pub(crate) use denoiser::operations;
pub use guide::ClassifierGuide;
pub use options::{Guidance, Options};
pub use predictor::Predictor;
pub(crate) use recorded::Recorded;
pub use source::Source;
pub(crate) use source::batch_of;
use step::{record_start, record_step, slots_of};
use torch_noise::TorchNoise;
pub use trained::Trained;

use crate::device::{Buffer, Device};
use crate::diffusion::{Model, SamplerPlan};
use crate::error::{Error, Result};
use crate::nn::{self, Params};
use crate::program::{Plan, Program, Sharing, halves};
use crate::recipe::Rng;
use crate::state::State;
use crate::tape::Tensor;
use crate::tensor::DType;
use crate::torch::Generator;

/// Any network that predicts from noisy samples, with the weights to sample with.
#[derive(Clone)]
pub struct Denoiser<'a> {
    /// The device that runs it.
    pub device: Device,
    /// Records the network.
    pub model: &'a Model,
    /// Layout of the weights.
    pub params: Rc<RefCell<Params>>,
    /// The parameters, flat.
    pub weights: Buffer,
    /// `[H, W, C]` of a sample.
    pub shape: [usize; 3],
    /// Element type of the labels that the model takes, one for each sample; `None`: it takes none.
    pub labels: Option<DType>,
    /// The label of no class, which guidance needs.
    pub null: Option<u32>,
    /// The model sees the x_0 that it predicted in the step before, behind its samples, within this bound; 0:
    /// unbounded.
    pub self_conditioned: Option<f64>,
    /// What the model sees beside samples.
    pub condition: Option<Condition>,
    /// The texts that samples are drawn from, of a model that sees some.
    pub texts: Option<Texts>,
    /// A picture that samples begin with.
    pub begin: Option<Begin>,
    /// A classifier that leads samples to their class.
    pub guide: Option<ClassifierGuide<'a>>,
}

/// A compiled step of the reverse process for `batch` samples.
pub struct Sampler {
    noise: Program,
    step: Program,
    /// Of rows that are not guided, where others are.
    unguided: Option<Program>,
    guidance: Guidance,
    null: Option<u32>,
    self_conditioned: Option<f64>,
    x: Tensor,
    state: State,
    batch: usize,
    /// Samples that the model sees: twice the batch where it guides.
    seen: usize,
    labels: Option<DType>,
    condition: Option<Condition>,
    texts: Option<Texts>,
    begin: Option<begin::Begin>,
    /// What is kept of a picture in every step.
    kept: Option<begin::Kept>,
    /// A classifier is told the class of each sample.
    guided: bool,
    plan: SamplerPlan,
    timesteps: Vec<f64>,
    torch: Option<TorchNoise>,
}

impl Denoiser<'_> {
    /// Samples of at most `most` that the device can bind together.
    fn batch(&self, options: &Options, most: usize) -> Result<usize> {
        if matches!(self.device, Device::Cpu(_)) || most == 0 {
            return Ok(most);
        }
        let plan = options.plan()?;
        let (_, batch) = Plan::of_batch(&self.device, halves(most), |batch| {
            let guidance = options.guidance.takes_both().then_some(&options.guidance);
            let (tape, _) = record_step(&self.network(), &plan, slots_of(&plan, options), batch, guidance);
            (Plan::new(&tape, &[], &self.device), batch)
        });
        Ok(batch)
    }
}

impl Sampler {
    /// Compiles a reverse step of the denoiser for `batch` samples.
    ///
    /// # Errors
    /// When the scheduler does not allow so many steps, the model has no label of no class to guide by,
    /// memory is too small, or the driver cannot build a kernel.
    pub fn new(denoiser: &Denoiser, options: &Options, batch: usize) -> Result<Sampler> {
        let Denoiser { device, weights, shape: [h, w, c], labels, .. } = denoiser;
        let (h, w, c, labels) = (*h, *w, *c, *labels);
        let plan = options.plan()?;
        let torch = options.rng == Rng::Torch;
        if torch && plan.learns_variance() {
            return Err(Error::usage("torch's random numbers, and a variance that the model learned")
                .hint("draw with --rng denoir, or with a sampler without noise such as ddim"));
        }
        let slots = slots_of(&plan, options);
        let (guidance, null) = (options.guidance, denoiser.null);
        let guided = denoiser.guide.is_some();
        guidance.check(denoiser)?;
        let condition = denoiser.condition.clone();
        // What a model that fills holes of latents sees is known when samples begin.
        let fills = denoiser.begin.as_ref().is_some_and(|begin| begin.masked.is_some());
        if let Some(condition) = condition.as_ref().filter(|_| !fills) {
            condition.check_given()?;
        }
        let guides = guidance.takes_both() && plan.steps.iter().any(|step| guidance.holds(step));
        let network = denoiser.network();
        let (tape, x) = record_step(&network, &plan, slots, batch, guides.then_some(&guidance));
        let guide = denoiser.guide.as_ref();
        let own =
            || [(nn::STORE, weights)].into_iter().chain(guide.map(|guide| (guide::STORE, &guide.weights)));
        let stores: Vec<_> = own().collect();
        let step = Program::compile(&Plan::new(&tape, &[], device), device, &stores, Sharing::Shared)?;
        step.write("denoising", &plan.table(torch))?;
        let unguided = if guides && !plan.steps.iter().all(|step| guidance.holds(step)) {
            let (tape, _) = record_step(&network, &plan, slots, batch, None);
            let more =
                [labels.map(|_| "labels"), condition.as_ref().map(|_| "condition"), guide.map(|_| "classes")];
            let more = more.into_iter().chain([denoiser.texts.as_ref().map(|_| "text")]);
            let shared = ["x", "kept", "state", "denoising"].into_iter().chain(more.flatten());
            let stores: Vec<_> = own().chain(shared.map(|name| (name, step.store(name)))).collect();
            Some(Program::compile(&Plan::new(&tape, &[], device), device, &stores, Sharing::Shared)?)
        } else {
            None
        };

        let begin = record_start([h, w, c], batch, (plan.start != 1.0).then_some(plan.start as f32));
        let stores = [("x", step.store("x")), ("state", step.store("state"))];
        let noise = Program::compile(&Plan::new(&begin, &[], device), device, &stores, Sharing::Shared)?;
        let torch = torch.then(|| TorchNoise {
            generator: Generator::new(options.seed),
            whole: batch,
            shape: [h, w, c],
            place: slots * batch * h * w * c,
        });
        let state = State { seed: options.seed, ..State::default() };
        let (timesteps, seen) = (plan.timesteps(), if guides { 2 * batch } else { batch });
        Ok(Sampler {
            noise,
            step,
            unguided,
            guidance,
            null,
            self_conditioned: denoiser.self_conditioned,
            x,
            state,
            batch,
            seen,
            labels,
            condition,
            texts: denoiser.texts.clone(),
            begin: denoiser.begin.clone(),
            kept: None,
            guided,
            timesteps,
            plan,
            torch,
        })
    }

    /// Draws samples number `first` to `first + batch`, and calls `watch(row, timestep, sampler)` after
    /// each step. `labels`: one for each sample, for models with classes.
    ///
    /// # Errors
    /// When the driver reports an error, or `watch` does.
    pub fn run(
        &mut self,
        first: u32,
        labels: &[u32],
        watch: impl FnMut(usize, f64, &Sampler) -> Result<()>,
    ) -> Result<Vec<f32>> {
        self.begin(first)?;
        self.run_steps(0, first, labels, watch)
    }

    /// The noise that samples number `first` and on start from.
    pub(crate) fn start(&mut self, first: u32) -> Result<Vec<f32>> {
        self.begin(first)?;
        self.current()
    }

    /// As [`Sampler::run`], from `x` at the timestep of row `row` on; a solver that goes by earlier steps
    /// must begin with row 0.
    ///
    /// # Errors
    /// As [`Sampler::run`].
    ///
    /// # Panics
    /// When the solver would miss what earlier steps leave it.
    #[track_caller]
    pub fn run_from(
        &mut self,
        row: usize,
        x: &[f32],
        first: u32,
        labels: &[u32],
        watch: impl FnMut(usize, f64, &Sampler) -> Result<()>,
    ) -> Result<Vec<f32>> {
        assert!(row == 0 || self.plan.slots() == 0, "run_from: row {row} of a solver with a history");
        if let Some(torch) = &mut self.torch {
            torch.generator = Generator::new(self.state.seed);
        }
        self.step.write("x", x)?;
        self.run_steps(row, first, labels, watch)
    }

    fn run_steps(
        &mut self,
        from: usize,
        first: u32,
        labels: &[u32],
        mut watch: impl FnMut(usize, f64, &Sampler) -> Result<()>,
    ) -> Result<Vec<f32>> {
        self.set_labels(labels)?;
        self.set_condition(first as usize)?;
        self.set_texts(first as usize)?;
        if self.self_conditioned.is_some() {
            // Before the first step nothing was predicted.
            let nothing = vec![0.0_f32; self.x.elements()];
            self.step.device().write(self.step.store("kept"), 0, bytemuck::cast_slice(&nothing))?;
        }
        for row in from..self.timesteps.len() {
            self.set_row(row, first)?;
            if let (Some(torch), true) = (&mut self.torch, self.plan.steps[row].draws) {
                let noise = torch.draw(first as usize, self.batch);
                let kept = self.step.store("kept");
                self.step.device().write(kept, 4 * torch.place, bytemuck::cast_slice(&noise))?;
            }
            match &mut self.unguided {
                Some(unguided) if !self.guidance.holds(&self.plan.steps[row]) => unguided.run()?,
                _ => self.step.run()?,
            }
            self.keep(row)?;
            watch(row, self.timesteps[row], self)?;
        }
        self.current()
    }

    /// Sets the row of the reverse step that [`Sampler::program`] takes next, for samples from `first` on.
    pub(crate) fn set_row(&mut self, row: usize, first: u32) -> Result<()> {
        let state = State { row: row as u32, first_sample: first, ..self.state };
        self.step.write("state", &state.words())
    }

    /// The launches of a reverse step.
    pub(crate) fn program(&self) -> &Program {
        &self.step
    }

    pub(crate) fn program_mut(&mut self) -> &mut Program {
        &mut self.step
    }

    /// The samples as they are now, `[N, H, W, C]`.
    ///
    /// # Errors
    /// When the driver reports an error.
    pub fn current(&self) -> Result<Vec<f32>> {
        self.step.read(&self.x)
    }

    /// The x_0 that the last step predicted, `[N, H, W, C]`.
    ///
    /// # Errors
    /// When the driver reports an error.
    pub fn predicted(&self) -> Result<Vec<f32>> {
        let mut x0 = vec![0.0_f32; self.x.elements()];
        self.step.device().read(self.step.store("kept"), 0, bytemuck::cast_slice_mut(&mut x0))?;
        Ok(x0)
    }

    /// The timesteps of the rows. Some solvers visit one twice, or stand between two.
    pub fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    /// alpha-bar of the samples that the step of row `row` begins with.
    pub(crate) fn alpha_bar(&self, row: usize) -> f64 {
        self.plan.steps[row].alpha_bar
    }
}

#[cfg(test)]
mod condition_tests;
#[cfg(test)]
mod tests;
