//! Sampling: one recorded step of the reverse process, replayed down the timesteps without reading anything
//! back.

pub mod inversion;

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use crate::codec::Codec;
use crate::device::{Buffer, Device};
use crate::diffusers;
use crate::diffusion::{Clip, Model, Precision, Scheduler, Walk};
use crate::error::{Error, Result};
use crate::models::unet::Class;
use crate::models::{model_of, params_of};
use crate::nn::{self, Params, Scope};
use crate::ops::arithmetic::affine;
use crate::ops::denoising::{Row, bounds, denoise, timestep_of_row};
use crate::ops::noising::gaussian;
use crate::philox::Stream;
use crate::program::{Plan, Program, Sharing};
use crate::recipe::{Recipe, Rng, System};
use crate::run::Run;
use crate::state::State;
use crate::tape::{Tape, Tensor};
use crate::torch::Generator;

/// How to draw samples.
#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    pub steps: usize,
    pub scheduler: Scheduler,
    pub rng: Rng,
}

impl Options {
    /// The recipe's own.
    ///
    /// # Errors
    /// As [`Recipe::scheduler`].
    pub fn of(recipe: &Recipe) -> Result<Self> {
        let scheduler = recipe.scheduler()?;
        Ok(Options { seed: recipe.seed, steps: recipe.sample_steps, scheduler, rng: Rng::Denoir })
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

/// Most samples that are drawn in one go; more are drawn in turns. It does not change them.
const BATCH: usize = 64;

/// A compiled step of the reverse process for `batch` samples.
pub struct Sampler {
    noise: Program,
    step: Program,
    x: Tensor,
    size: usize,
    state: State,
    batch: usize,
    class: Class,
    walk: Walk,
    timesteps: Vec<f64>,
    given: Option<Given>,
}

/// Noise of PyTorch's generator, which the host draws for all samples at once: a batch of them takes its
/// part.
struct Given {
    generator: Generator,
    /// Samples of which the generator draws.
    whole: usize,
    /// `[H, W, C]`.
    shape: [usize; 3],
    /// Element of the store where the device looks for a step's noise.
    place: usize,
}

impl Given {
    /// The next noise of `batch` samples from `first` on, `[batch, H, W, C]`; drawn as `[whole, C, H, W]`.
    fn draw(&mut self, first: usize, batch: usize) -> Vec<f32> {
        let [h, w, c] = self.shape;
        let size = h * w * c;
        let mut all = vec![0.0; self.whole.max(first + batch) * size];
        self.generator.fill_normal(&mut all);
        let mut noise = Vec::with_capacity(batch * size);
        for sample in all[first * size..(first + batch) * size].chunks_exact(size) {
            noise.extend((0..size).map(|i| sample[i % c * h * w + i / c]));
        }
        noise
    }
}

impl Sampler {
    /// Compiles for samples of `[H, W, C]` from `weights`, the flat parameters in the layout of `params`.
    ///
    /// # Errors
    /// When the sampler cannot walk so, or the model cannot be asked so; when memory is too small, or the driver
    /// cannot build a kernel.
    pub fn new(
        device: &Device,
        model: &Model,
        params: &Rc<RefCell<Params>>,
        weights: &Buffer,
        recipe: &Recipe,
        options: &Options,
        [batch, h, w, c]: [usize; 4],
    ) -> Result<Sampler> {
        let walk = options.scheduler.walk(options.steps)?;
        let timesteps = walk.timesteps();
        recipe.unet.check_times(&timesteps)?;
        let class = recipe.unet.class();
        if let Class::Embedding(width) = class {
            return Err(Error::usage(format!(
                "class_embed_type is identity: the model takes a vector of {width} numbers as an image's class"
            ))
            .hint("samplers give it none; the library's `models::unet::unet` takes one"));
        }
        let given = options.rng == Rng::Torch;
        let slots = walk.slots() + usize::from(given);

        let tape = Tape::new();
        let x = tape.stored("x", 0, [batch, h, w, c]);
        let kept = tape.stored("kept", 0, [1 + slots, batch, h, w, c]);
        let state = tape.stored_u32("state", [State::WORDS]);
        let rows = tape.stored("denoising", 0, [walk.steps.len(), Row::COLUMNS]);
        let t = timestep_of_row(batch, &rows, &state);
        let labels = class.tensor(&tape, batch);
        let out = model(&Scope::new(&tape, params), &x, &t, labels.as_ref());
        let bound = match walk.clip {
            Clip::Dynamic { ratio, most } => Some(bounds(&x, &out, &rows, &state, ratio, most as f32)),
            _ => None,
        };
        denoise(&x, &out, &rows, &state, &kept, bound.as_ref());
        let plan = Plan::new(&tape, &[], device);
        let step = Program::compile(&plan, device, &[(nn::STORE, weights)], Sharing::Shared)?;
        step.write("denoising", &walk.table(given))?;

        let begin = Tape::new();
        let begin_state = begin.stored_u32("state", [State::WORDS]);
        let mut noise = gaussian([batch, h, w, c], Stream::Start, &begin_state);
        if walk.start != 1.0 {
            noise = affine(&noise, walk.start as f32, 0.0);
        }
        begin.place(&noise, "x", 0);
        let plan = Plan::new(&begin, &[], device);
        let stores = [("x", step.store("x")), ("state", step.store("state"))];
        let noise = Program::compile(&plan, device, &stores, Sharing::Shared)?;
        let given = given.then(|| Given {
            generator: Generator::new(options.seed),
            whole: batch,
            shape: [h, w, c],
            place: slots * batch * h * w * c,
        });
        let state = State { seed: options.seed, ..State::default() };
        Ok(Sampler { noise, step, size: batch * h * w * c, x, state, batch, class, walk, timesteps, given })
    }

    /// How many samples belong together, of which this sampler draws a part. PyTorch's generator draws the
    /// noise of all at once.
    pub fn set_whole(&mut self, whole: usize) {
        if let Some(given) = &mut self.given {
            given.whole = whole;
        }
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
        self.walk(0, first, labels, watch)
    }

    /// The noise that samples number `first` and on start from.
    ///
    /// # Errors
    /// When the driver reports an error.
    pub fn start(&mut self, first: u32) -> Result<Vec<f32>> {
        self.begin(first)?;
        self.current()
    }

    fn begin(&mut self, first: u32) -> Result<()> {
        if let Some(given) = &mut self.given {
            given.generator = Generator::new(self.state.seed);
            let start = self.walk.start as f32;
            let noise = given.draw(first as usize, self.batch);
            return self.step.write("x", &noise.into_iter().map(|v| v * start).collect::<Vec<f32>>());
        }
        self.noise.write("state", &State { first_sample: first, ..self.state }.words())?;
        self.noise.run()
    }

    /// As [`Sampler::run`], from `x` at the timestep of row `row` on; a solver that goes by earlier steps must
    /// begin with row 0.
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
        assert!(row == 0 || self.walk.slots() == 0, "run_from: row {row} of a solver with a history");
        if let Some(given) = &mut self.given {
            given.generator = Generator::new(self.state.seed);
        }
        self.step.write("x", x)?;
        self.walk(row, first, labels, watch)
    }

    fn walk(
        &mut self,
        from: usize,
        first: u32,
        labels: &[u32],
        mut watch: impl FnMut(usize, f64, &Sampler) -> Result<()>,
    ) -> Result<Vec<f32>> {
        self.set_labels(labels)?;
        for row in from..self.timesteps.len() {
            self.set_row(row, first)?;
            if let (Some(given), true) = (&mut self.given, self.walk.steps[row].draws) {
                let noise = given.draw(first as usize, self.batch);
                let kept = self.step.store("kept");
                self.step.device().write(kept, 4 * given.place, bytemuck::cast_slice(&noise))?;
            }
            self.step.run()?;
            watch(row, self.timesteps[row], self)?;
        }
        self.current()
    }

    /// Says what class each sample is of, for models with classes.
    ///
    /// # Errors
    /// When the driver reports an error.
    ///
    /// # Panics
    /// When that is not a label for each sample.
    #[track_caller]
    pub fn set_labels(&self, labels: &[u32]) -> Result<()> {
        if self.class == Class::None {
            return Ok(());
        }
        assert_eq!(labels.len(), self.batch, "a label for each sample");
        match self.class {
            Class::Value => {
                self.step.write("labels", &labels.iter().map(|&l| l as f32).collect::<Vec<f32>>())
            }
            _ => self.step.write("labels", labels),
        }
    }

    /// Says which row's reverse step [`Sampler::program`] takes next, of samples number `first` and on.
    ///
    /// # Errors
    /// When the driver reports an error.
    pub fn set_row(&mut self, row: usize, first: u32) -> Result<()> {
        let state = State { row: row as u32, first_sample: first, ..self.state };
        self.step.write("state", &state.words())
    }

    /// The launches of a reverse step.
    pub fn program(&self) -> &Program {
        &self.step
    }

    /// As [`Sampler::program`], to run them.
    pub fn program_mut(&mut self) -> &mut Program {
        &mut self.step
    }

    /// The samples as they are now, `[N, H, W, C]`.
    ///
    /// # Errors
    /// When the driver reports an error.
    pub fn current(&self) -> Result<Vec<f32>> {
        self.step.read(&self.x)
    }

    /// What the last step predicted x_0 to be, `[N, H, W, C]`.
    ///
    /// # Errors
    /// When the driver reports an error.
    pub fn predicted(&self) -> Result<Vec<f32>> {
        let mut x0 = vec![0.0_f32; self.size];
        self.step.device().read(self.step.store("kept"), 0, bytemuck::cast_slice_mut(&mut x0))?;
        Ok(x0)
    }

    /// The timesteps of the rows. Some solvers visit one twice, or stand between two.
    pub fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    /// alpha-bar of the samples that the step of row `row` begins with.
    pub fn alpha_bar(&self, row: usize) -> f64 {
        self.walk.steps[row].alpha_bar
    }
}

/// A trained diffusion model on a device, with all that sampling needs.
pub struct Trained {
    device: Device,
    recipe: Recipe,
    model: Box<Model>,
    params: Rc<RefCell<Params>>,
    weights: Buffer,
    codec: Option<Codec>,
    remarks: Vec<String>,
}

/// Says that what `path` holds is no diffusion model, if so.
fn check_diffuses(path: &Path, recipe: &Recipe) -> Result<()> {
    if recipe.system != System::Vae {
        return Ok(());
    }
    let shown = path.display();
    Err(Error::new(format!("{shown} is a VAE: it has no diffusion process to sample with")).hint(format!(
        "draw from its prior with `denoir figure grid {shown}`, or train latent diffusion on it with `denoir \
         train faces-ldm --vae {shown}`"
    )))
}

impl Trained {
    /// Opens a run, or one of its checkpoints, with the moving average of its weights; or a folder of the
    /// diffusers library.
    ///
    /// # Errors
    /// When it is damaged, is no diffusion model, lacks its VAE, or does not fit into memory.
    pub fn open(path: &Path, device: &Device) -> Result<Trained> {
        if diffusers::is_folder(path) {
            return Trained::of_folder(path, device);
        }
        let (loaded, run) = Run::checkpoint_of(path)?;
        let recipe = loaded.recipe.clone();
        check_diffuses(path, &recipe)?;
        recipe.validate().map_err(Error::in_a_file)?;
        let codec = match (recipe.system, run) {
            (System::Ldm, Some(run)) => Some(Codec::of_ldm(&run, &recipe, device)?),
            (System::Ldm, None) => {
                return Err(Error::new(format!("{} is outside its run folder", path.display()))
                    .hint("give the run: its VAE is needed too"));
            }
            _ => None,
        };
        let params = params_of(&recipe);
        let values = loaded.set("ema", &params.borrow())?;
        Trained::with(recipe, &values, codec, device)
    }

    /// Opens a pipeline, or a bare model, of the diffusers library.
    fn of_folder(path: &Path, device: &Device) -> Result<Trained> {
        let folder = diffusers::open(path)?;
        check_diffuses(path, &folder.model.recipe)?;
        let codec = folder.vae.as_ref().map(|vae| Codec::of_part(vae, device)).transpose()?;
        let trained = Trained::with(folder.model.recipe, &folder.model.weights, codec, device)?;
        Ok(Trained { remarks: folder.remarks, ..trained })
    }

    /// `values`: the parameters, flat.
    fn with(recipe: Recipe, values: &[f32], codec: Option<Codec>, device: &Device) -> Result<Trained> {
        let params = params_of(&recipe);
        let weights = device.alloc("parameters", values.len() * 4)?;
        device.write(&weights, 0, bytemuck::cast_slice(values))?;
        let (model, remarks) = (model_of(&recipe), Vec::new());
        Ok(Trained { device: device.clone(), model, recipe, params, weights, codec, remarks })
    }

    /// What the user should know about the folder that it was read from.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    pub fn source(&self) -> Source<'_> {
        Source {
            device: &self.device,
            model: &self.model,
            params: &self.params,
            weights: &self.weights,
            recipe: &self.recipe,
            codec: self.codec.as_ref(),
        }
    }
}

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
    ///
    /// # Errors
    /// As [`Codec::decode`].
    pub fn images_of(&self, samples: Vec<f32>) -> Result<Vec<f32>> {
        match self.codec {
            Some(codec) => {
                let factor = (1.0 / self.recipe.scaling_factor) as f32;
                codec.decode(&samples.into_iter().map(|v| v * factor).collect::<Vec<f32>>())
            }
            None => Ok(samples),
        }
    }

    /// What the process makes of images `[N, H, W, C]`: the same, or the means of their latents, scaled.
    ///
    /// # Errors
    /// As [`Codec::encode`].
    pub fn samples_of(&self, images: &[f32]) -> Result<Vec<f32>> {
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
        self.shown(self.walk(options, count, None, class, progress)?)
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
        self.shown(self.walk(options, count, Some(noise), class, progress)?)
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
    fn walk(
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
        Ok((count.div_ceil(self.batch(count)) * options.scheduler.walk(options.steps)?.steps.len()) as u64)
    }
}
