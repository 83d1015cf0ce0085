//! Sampling: one recorded step of the reverse process, replayed down the timesteps without reading anything
//! back.

mod denoiser;
pub mod inversion;
mod source;
mod trained;

use std::cell::RefCell;
use std::rc::Rc;

use denoiser::Network;
pub(crate) use denoiser::operations;
pub use source::Source;
pub(crate) use source::batch_of;
pub use trained::Trained;

use crate::device::{Buffer, Device};
use crate::diffusion::{Clip, Model, Precision, SamplerPlan, Scheduler};
use crate::error::{Error, Result};
use crate::latent_file::transposed;
use crate::nn::{self, Params, Scope};
use crate::ops::arithmetic::affine;
use crate::ops::concat::split;
use crate::ops::denoising::{Row, bounds, denoise, timestep_of_row};
use crate::ops::noising::gaussian;
use crate::philox::Stream;
use crate::program::{Plan, Program, Sharing, halves};
use crate::recipe::{Recipe, Rng};
use crate::state::State;
use crate::tape::{Tape, Tensor};
use crate::tensor::DType;
use crate::torch::Generator;

/// Seed, steps, solver and random numbers of sampling.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of all noise.
    pub seed: u64,
    /// Reverse steps.
    pub steps: usize,
    /// The solver, and the process that it reverses.
    pub scheduler: Scheduler,
    /// Source of the noise.
    pub rng: Rng,
}

impl Options {
    /// `steps` reverse steps of a scheduler, drawing with `seed`.
    pub fn new(scheduler: Scheduler, steps: usize, seed: u64) -> Self {
        Options { seed, steps, scheduler, rng: Rng::Denoir }
    }

    /// The recipe's own.
    ///
    /// # Errors
    /// As [`Recipe::scheduler`].
    pub fn of(recipe: &Recipe) -> Result<Self> {
        Ok(Options::new(recipe.scheduler()?, recipe.sample_steps, recipe.seed))
    }

    /// The same with other random numbers. With torch's also the tables are rounded as the reference library
    /// rounds them, so that its pictures come out.
    #[must_use]
    pub fn with_rng(mut self, rng: Rng) -> Self {
        self.rng = rng;
        self.scheduler.precision = match rng {
            Rng::Denoir => Precision::Exact,
            Rng::Torch => Precision::Reference,
        };
        self
    }
}

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
}

/// A compiled step of the reverse process for `batch` samples.
pub struct Sampler {
    noise: Program,
    step: Program,
    x: Tensor,
    state: State,
    batch: usize,
    labels: Option<DType>,
    plan: SamplerPlan,
    timesteps: Vec<f64>,
    torch: Option<TorchNoise>,
}

/// Noise of PyTorch's generator, which the host draws for all samples at once: a batch of them takes its
/// part.
struct TorchNoise {
    generator: Generator,
    /// Samples of which the generator draws.
    whole: usize,
    /// `[H, W, C]`.
    shape: [usize; 3],
    /// Element of the store where the device looks for a step's noise.
    place: usize,
}

impl TorchNoise {
    /// The next noise of `batch` samples from `first` on, `[batch, H, W, C]`; drawn as `[whole, C, H, W]`.
    fn draw(&mut self, first: usize, batch: usize) -> Vec<f32> {
        let size = self.shape.iter().product::<usize>();
        let mut all = vec![0.0; self.whole.max(first + batch) * size];
        self.generator.fill_normal(&mut all);
        transposed(&all[first * size..(first + batch) * size], self.shape, true)
    }
}

/// Tensors that a step keeps for later ones; torch's noise lies behind them.
fn slots_of(plan: &SamplerPlan, options: &Options) -> usize {
    plan.slots() + usize::from(options.rng == Rng::Torch)
}

/// Records a reverse step of `batch` samples, and gives them `[N, H, W, C]`, which it updates in place.
fn record_step(network: &Network, plan: &SamplerPlan, slots: usize, batch: usize) -> (Tape, Tensor) {
    let Network { model, params, shape: [h, w, c], labels } = *network;
    let tape = Tape::new();
    let x = tape.stored("x", 0, [batch, h, w, c]);
    let kept = tape.stored("kept", 0, [1 + slots, batch, h, w, c]);
    let state = tape.stored_u32("state", [State::WORDS]);
    let rows = tape.stored("denoising", 0, [plan.steps.len(), Row::COLUMNS]);
    let t = timestep_of_row(batch, &rows, &state);
    let classes = labels.map(|element| match element {
        DType::U32 => tape.stored_u32("labels", [batch]),
        DType::F32 => tape.stored("labels", 0, [batch]),
    });
    let out = model(&Scope::new(&tape, params), &x, &t, classes.as_ref());
    // The half of the output that says a variance is of no use to a solver that takes none.
    let (out, variance) = if out.shape().last() == 2 * c {
        let [out, variance] = split(&out, &[c, c]).try_into().unwrap_or_else(|_| unreachable!("two parts"));
        (out, plan.learns_variance().then_some(variance))
    } else {
        (out, None)
    };
    let bound = match plan.clip {
        Clip::Dynamic { ratio, most } => Some(bounds(&x, &out, &rows, &state, ratio, most as f32)),
        _ => None,
    };
    denoise(&x, &out, &rows, &state, &kept, bound.as_ref(), variance.as_ref());
    (tape, x)
}

impl Denoiser<'_> {
    /// Samples of at most `most` that the device can bind together.
    fn batch(&self, options: &Options, most: usize) -> Result<usize> {
        if matches!(self.device, Device::Cpu(_)) || most == 0 {
            return Ok(most);
        }
        let plan = options.scheduler.plan(options.steps)?;
        let (_, batch) = Plan::of_batch(&self.device, halves(most), |batch| {
            let (tape, _) = record_step(&self.network(), &plan, slots_of(&plan, options), batch);
            (Plan::new(&tape, &[], &self.device), batch)
        });
        Ok(batch)
    }
}

impl Sampler {
    /// Compiles a reverse step of the denoiser for `batch` samples.
    ///
    /// # Errors
    /// When the scheduler does not allow so many steps, memory is too small, or the driver cannot build a
    /// kernel.
    pub fn new(denoiser: &Denoiser, options: &Options, batch: usize) -> Result<Sampler> {
        let Denoiser { device, weights, shape: [h, w, c], labels, .. } = denoiser;
        let (h, w, c, labels) = (*h, *w, *c, *labels);
        let plan = options.scheduler.plan(options.steps)?;
        let torch = options.rng == Rng::Torch;
        if torch && plan.learns_variance() {
            return Err(Error::usage("torch's random numbers, and a variance that the model learned")
                .hint("draw with --rng denoir, or with a sampler without noise such as ddim"));
        }
        let slots = slots_of(&plan, options);
        let (tape, x) = record_step(&denoiser.network(), &plan, slots, batch);
        let stores = [(nn::STORE, weights)];
        let step = Program::compile(&Plan::new(&tape, &[], device), device, &stores, Sharing::Shared)?;
        step.write("denoising", &plan.table(torch))?;

        let begin = Tape::new();
        let begin_state = begin.stored_u32("state", [State::WORDS]);
        let mut noise = gaussian([batch, h, w, c], Stream::Start, &begin_state);
        if plan.start != 1.0 {
            noise = affine(&noise, plan.start as f32, 0.0);
        }
        begin.place(&noise, "x", 0);
        let stores = [("x", step.store("x")), ("state", step.store("state"))];
        let noise = Program::compile(&Plan::new(&begin, &[], device), device, &stores, Sharing::Shared)?;
        let torch = torch.then(|| TorchNoise {
            generator: Generator::new(options.seed),
            whole: batch,
            shape: [h, w, c],
            place: slots * batch * h * w * c,
        });
        let state = State { seed: options.seed, ..State::default() };
        Ok(Sampler { noise, step, x, state, batch, labels, timesteps: plan.timesteps(), plan, torch })
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

    fn begin(&mut self, first: u32) -> Result<()> {
        if let Some(torch) = &mut self.torch {
            torch.generator = Generator::new(self.state.seed);
            let start = self.plan.start as f32;
            let noise = torch.draw(first as usize, self.batch);
            return self.step.write("x", &noise.into_iter().map(|v| v * start).collect::<Vec<f32>>());
        }
        self.noise.write("state", &State { first_sample: first, ..self.state }.words())?;
        self.noise.run()
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
        for row in from..self.timesteps.len() {
            self.set_row(row, first)?;
            if let (Some(torch), true) = (&mut self.torch, self.plan.steps[row].draws) {
                let noise = torch.draw(first as usize, self.batch);
                let kept = self.step.store("kept");
                self.step.device().write(kept, 4 * torch.place, bytemuck::cast_slice(&noise))?;
            }
            self.step.run()?;
            watch(row, self.timesteps[row], self)?;
        }
        self.current()
    }

    /// Sets the class of each sample, for models with classes.
    pub(crate) fn set_labels(&self, labels: &[u32]) -> Result<()> {
        let Some(element) = self.labels else { return Ok(()) };
        assert_eq!(labels.len(), self.batch, "a label for each sample");
        match element {
            DType::F32 => self.step.write("labels", &labels.iter().map(|&l| l as f32).collect::<Vec<f32>>()),
            DType::U32 => self.step.write("labels", labels),
        }
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
