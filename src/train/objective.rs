//! Losses of recipes: the part of the training step between images and loss.

use std::cell::RefCell;
use std::rc::Rc;

use super::batch::{Batch, BatchWriter, Input, Loss};
use super::captions::Captioned;
use super::codes::Codes;
use super::continuous_bound::continuous_bound;
use super::diffusion_loss::{by_t, diffusion_loss};
use super::options::TrainOptions;
use super::resident::{Examples, Resident};
use super::step::{Recorded, record_batch};
use crate::codec::Codec;
use crate::data::ConditionKind;
use crate::device::Buffer;
use crate::diffusion::{Model, Told, seen_by_model, within};
use crate::error::Result;
use crate::models::classifier::classifier;
use crate::models::vae;
use crate::nn::{self, Params, Scope};
use crate::ops::arithmetic::{add, affine, mul};
use crate::ops::concat::split;
use crate::ops::cross_entropy::cross_entropy;
use crate::ops::dropout::dropout;
use crate::ops::gather::gather;
use crate::ops::gaussian_kl::gaussian_kl;
use crate::ops::noising::gaussian;
use crate::ops::reduce::mean;
use crate::ops::reparameterise::{Noise, reparameterise};
use crate::philox::{Stream, draw, uniform};
use crate::recipe::{Recipe, System, model_of, trained_params_of};
use crate::tape::Tensor;

/// Store of the weights of a VAE that is not trained.
const VAE: &str = "vae";
/// Store of a data set that lies on the device.
const DATA: &str = "data";
/// Names of the parts of a VAE's loss, before they are weighted.
pub(super) const RECONSTRUCTION: &str = "reconstruction";
pub(super) const KL: &str = "kl";
/// How many samples a classifier tells right, of 1.
pub(super) const ACCURACY: &str = "accuracy";

/// Weight of the divergence, which may rise.
const KL_WEIGHT: Input<f32, 1> = Input::new("kl_weight", [1]);

/// A recipe's model and loss.
pub(super) struct Objective {
    pub recipe: Recipe,
    /// The diffusion model; a VAE has none.
    pub model: Box<Model>,
    /// Parameters that are trained.
    pub params: Rc<RefCell<Params>>,
    /// The VAE that latents come from: its parameters, weights and recipe.
    vae: Option<(Rc<RefCell<Params>>, Buffer, Recipe)>,
    /// Where steps take their samples from, if they are not given them.
    pub resident: Option<Resident>,
    /// The texts of a model that sees some.
    pub captions: Option<Rc<Captioned>>,
    /// The text encoder that is not trained, but for adapters or a word: its parameters and weights.
    pub text: Option<(Rc<RefCell<Params>>, Buffer)>,
    /// The diffusion model that adapters or a word are laid over.
    pub base: Option<(Rc<RefCell<Params>>, Buffer)>,
}

impl Objective {
    /// `codec`: the VAE of latent diffusion.
    pub fn new(recipe: &Recipe, codec: Option<&Codec>) -> Objective {
        let of = |c: &Codec| (Rc::clone(c.params()), c.weights().clone(), c.recipe().clone());
        Objective {
            recipe: recipe.clone(),
            model: model_of(recipe),
            params: trained_params_of(recipe),
            vae: codec.map(of),
            resident: None,
            captions: None,
            text: None,
            base: None,
        }
    }

    /// Records a batch, with the optimiser where it is the only one of a step.
    pub fn recorded(&self) -> (TrainOptions, Recorded) {
        let options = TrainOptions::of(&self.recipe);
        let record = |scope: &Scope, batch: &Batch| self.record(scope, batch);
        let recorded = record_batch(&record, &self.params, &options, options.accumulation <= 1);
        (options, recorded)
    }

    /// A step's images; of cached latents, their moments.
    fn images(&self) -> Input<f32, 4> {
        let [h, w, c] = self.sample_shape();
        Input::new("images", [self.recipe.batch_size, h, w, c])
    }

    /// Numbers of a step's samples in the data set on the device.
    fn picks(&self) -> Input<u32, 1> {
        Input::new("samples", [self.recipe.batch_size])
    }

    fn labels(&self) -> Input<u32, 1> {
        Input::new("labels", [self.recipe.batch_size])
    }

    /// `[H, W, C]` of what a step reads.
    fn sample_shape(&self) -> [usize; 3] {
        let image = |recipe: &Recipe| [recipe.image_size, recipe.image_size, recipe.vae.in_channels];
        let [h, w, c] = self.recipe.diffused();
        match &self.vae {
            Some((_, _, theirs)) if self.encodes() => image(theirs),
            Some((_, _, theirs)) => [h, w, theirs.vae.moments() * c],
            None if self.recipe.system == System::Vae => image(&self.recipe),
            None => [h, w, c + self.recipe.condition.channels_of(c)],
        }
    }

    /// A step's samples `[N, H, W, C]`: images, or moments that are cached of them.
    fn samples(&self, batch: &Batch) -> Tensor {
        let Some(Resident { buffer, count, bytes }) = &self.resident else {
            return batch.input(self.images());
        };
        batch.bind(DATA, buffer);
        let (tape, shape) = (batch.tape(), self.sample_shape());
        let values = count * shape.iter().product::<usize>();
        let data =
            if *bytes { tape.stored_u32(DATA, [values.div_ceil(4)]) } else { tape.stored(DATA, 0, [values]) };
        tape.labelled("data", || gather(&data, *count, shape, &batch.input(self.picks())))
    }

    fn encodes(&self) -> bool {
        self.recipe.system == System::Ldm && !self.recipe.caches_latents()
    }

    /// Records the loss of one batch.
    pub fn record(&self, scope: &Scope, batch: &Batch) -> Loss {
        match self.recipe.system {
            System::Ddpm => self.conditioned(scope, batch, &self.samples(batch)),
            System::Ldm => self.denoising(scope, batch, &self.latents(batch), None),
            System::Vae => self.evidence(scope, batch),
            System::Classifier => self.classification(scope, batch),
        }
    }

    /// Writes what a batch reads. `micro`: its number, and how many batches `examples` are split into.
    ///
    /// # Panics
    /// When images are given and the data set is resident, or samples of one that is not.
    pub fn write(&self, batch: &mut BatchWriter, examples: &Examples, micro: [usize; 2]) -> Result<()> {
        fn range_of<T>(all: &[T], [micro, micros]: [usize; 2]) -> &[T] {
            let size = all.len() / micros;
            &all[micro * size..][..size]
        }
        match (examples, &self.resident) {
            (Examples::Images(all), None) => batch.write(self.images(), range_of(&all.images, micro))?,
            (Examples::Picks(all), Some(_)) => batch.write(self.picks(), range_of(&all.samples, micro))?,
            _ => panic!("training on a resident data set takes samples of it, other training takes images"),
        }
        if self.has_labels() {
            let labels = self.with_dropout(range_of(examples.labels(), micro), batch);
            batch.write(self.labels(), &labels)?;
        }
        self.write_texts(batch, range_of(&examples.samples(), micro))?;
        if self.recipe.self_conditioning {
            let first = batch.first_sample();
            let sees = (first..first + self.recipe.batch_size as u32).map(|sample| {
                let stream = Stream::SelfCondition as u32;
                let [word, ..] = draw(self.recipe.seed, stream, batch.step() as u32, sample, 0);
                (word >> 31) as f32
            });
            batch.write(self.sees_itself(), &sees.collect::<Vec<f32>>())?;
        }
        if self.recipe.system == System::Vae && self.recipe.vae.variational {
            batch.write(KL_WEIGHT, &[self.kl_weight(batch.step())])?;
        }
        Ok(())
    }

    fn has_labels(&self) -> bool {
        self.recipe.system == System::Classifier || self.recipe.trained_classes().0 > 0
    }

    /// The labels, some of them replaced by that of no class (Ho & Salimans 2022, algorithm 1).
    fn with_dropout(&self, labels: &[u32], batch: &BatchWriter) -> Vec<u32> {
        let Some(null) = self.recipe.null_class() else { return labels.to_vec() };
        let (step, ratio) = (batch.step() as u32, self.recipe.label_dropout as f32);
        let is_dropped = |sample: u32| {
            let [word, ..] = draw(self.recipe.seed, Stream::Labels as u32, step, sample, 0);
            uniform(word) < ratio
        };
        let numbered = labels.iter().zip(batch.first_sample()..);
        numbered.map(|(&label, sample)| if is_dropped(sample) { null } else { label }).collect()
    }

    /// [`Objective::denoising`] of images that have their conditions beside them, if there are any.
    fn conditioned(&self, scope: &Scope, batch: &Batch, samples: &Tensor) -> Loss {
        let [_, _, c] = self.recipe.diffused();
        let condition = self.recipe.condition.channels_of(c);
        if condition == 0 {
            return self.denoising(scope, batch, samples, None);
        }
        let parts = batch.tape().labelled("condition", || split(samples, &[c, condition]));
        self.denoising(scope, batch, &parts[0], Some(&parts[1]))
    }

    fn denoising(&self, scope: &Scope, batch: &Batch, x0: &Tensor, condition: Option<&Tensor>) -> Loss {
        let labels = self.has_labels().then(|| batch.input(self.labels()));
        let has_holes = self.recipe.condition.kind == ConditionKind::Mask;
        let text = self.text(scope, batch);
        let adapted = self.adapted(scope, batch);
        let network = adapted.as_ref().unwrap_or(scope);
        let beside = Told { labels: labels.as_ref(), text: text.as_ref() };
        let model = |x_t: &Tensor, t: &Tensor| {
            let told = condition.map(|condition| (condition, has_holes));
            let with = |own: Option<&Tensor>| seen_by_model(x_t, own, told);
            let own = self.recipe.self_conditioning.then(|| {
                batch.tape().labelled("self-conditioning", || {
                    let frozen = Scope::frozen(batch.tape(), &self.params, nn::STORE);
                    let nothing = with(Some(&affine(x_t, 0.0, 0.0)));
                    self.estimate(batch, x_t, t, &(self.model)(&frozen, &nothing, t, beside))
                })
            });
            (self.model)(network, &with(own.as_ref()), t, beside)
        };
        if self.recipe.learns_schedule() {
            let parameters = self.recipe.learned_schedule.ask(scope);
            return continuous_bound(&self.recipe, &parameters, batch, x0, &model);
        }
        let history = self.recipe.loss_history(scope);
        let holes = condition.filter(|_| has_holes);
        diffusion_loss(&self.recipe, batch, x0, [history.as_ref(), holes], &model)
    }

    /// The x_0 `[N, H, W, C]` that the model's output `out` says, within its bound, for the samples that are
    /// to see it, and zeros for the others.
    fn estimate(&self, batch: &Batch, x_t: &Tensor, t: &Tensor, out: &Tensor) -> Tensor {
        let (recipe, levels, c) = (&self.recipe, self.recipe.schedule().levels(), x_t.shape().last());
        let predicted =
            if out.shape().last() == c { out.clone() } else { split(out, &[c, c]).swap_remove(0) };
        let factor = |name, i: usize| {
            let each = levels.iter().map(|at| recipe.prediction_type.clean(at)[i]);
            by_t(batch, name, each, t).reshape([recipe.batch_size, 1, 1, 1])
        };
        let x0 = add(&mul(x_t, &factor("clean_of_x", 0)), &mul(&predicted, &factor("clean_of_output", 1)));
        let x0 = within(&x0, recipe.clip_sample);
        mul(&x0, &batch.input(self.sees_itself()).reshape([recipe.batch_size, 1, 1, 1]))
    }

    /// 1 for samples that see what the model predicts of them, 0 for others.
    fn sees_itself(&self) -> Input<f32, 1> {
        Input::new("sees_itself", [self.recipe.batch_size])
    }

    /// Cross entropy of the classes of images, which are noisy where the classifier is to guide samples.
    fn classification(&self, scope: &Scope, batch: &Batch) -> Loss {
        let (recipe, x0) = (&self.recipe, self.samples(batch));
        let (x, t) = if recipe.classifier.noisy {
            let (x_t, _, t) = batch.noised(&x0, &recipe.schedule());
            (x_t, t)
        } else {
            let n = recipe.batch_size;
            (x0, batch.constant("t", [n], vec![0.0; n]))
        };
        let [_, logits] = classifier(&recipe.classifier, &recipe.unet, scope, &x, &t);
        batch.tape().labelled("loss", || {
            let [losses, right] = cross_entropy(&logits, &batch.input(self.labels()));
            let part = 1.0 / recipe.timesteps as f32;
            let times = affine(&t, part, 0.5 * part);
            Loss::from(mean(&losses)).with(ACCURACY, &mean(&right)).with_samples(&right, &times)
        })
    }

    /// Scaled latents of the batch, drawn from their Gaussians (Rombach et al. 2022, section 3.1 and
    /// appendix G).
    fn latents(&self, batch: &Batch) -> Tensor {
        let Some((params, weights, theirs)) = &self.vae else {
            unreachable!("latent diffusion is trained with a VAE");
        };
        let (tape, samples) = (batch.tape(), self.samples(batch));
        let (mean, log_var) = if self.encodes() {
            batch.bind(VAE, weights);
            vae::encode(&theirs.vae, &Scope::frozen(tape, params, VAE), &samples)
        } else {
            tape.labelled("latents", || vae::mean_and_log_var(&theirs.vae, &samples))
        };
        let factor = self.recipe.scaling_factor as f32;
        tape.labelled("latents", || affine(&drawn(&mean, log_var.as_ref(), batch.state()), factor, 0.0))
    }

    /// The negative evidence lower bound (Kingma & Welling 2014, equation 7), the divergence weighted as
    /// in the beta-VAE (Higgins et al. 2017); without a Gaussian, the reconstruction alone.
    fn evidence(&self, scope: &Scope, batch: &Batch) -> Loss {
        let (recipe, config, tape, state) = (&self.recipe, &self.recipe.vae, batch.tape(), batch.state());
        let images = self.samples(batch);
        let seen = tape.labelled("corruption", || self.corrupted(&images, state));
        let (mean, log_var) = vae::encode(config, scope, &seen);
        let values = self.sample_shape().iter().product();
        let codes = recipe.has_codebook().then(|| Codes::new(recipe, scope, batch, &mean, values));
        let z = match &codes {
            Some(codes) => codes.latents.clone(),
            None => tape.labelled("latents", || drawn(&mean, log_var.as_ref(), state)),
        };
        let raw = vae::decode(config, scope, &z, self.sample_shape());
        tape.labelled("loss", || {
            let reconstruction = vae::loss(config, &raw, &images, recipe.reconstruction);
            if let Some(codes) = &codes {
                return codes.loss(&reconstruction).with(RECONSTRUCTION, &reconstruction);
            }
            let Some(log_var) = &log_var else {
                return Loss::from(reconstruction.clone()).with(RECONSTRUCTION, &reconstruction);
            };
            let kl = gaussian_kl(&mean, log_var);
            let weighted = mul(&kl, &batch.input(KL_WEIGHT));
            let total = add(&reconstruction, &weighted);
            Loss::from(total).with(RECONSTRUCTION, &reconstruction).with(KL, &kl)
        })
    }

    /// Images with noise and masked pixels, which a denoising autoencoder sees (Vincent et al. 2008).
    fn corrupted(&self, images: &Tensor, state: &Tensor) -> Tensor {
        let (noise, mask) = (self.recipe.corrupt_noise as f32, self.recipe.corrupt_mask as f32);
        let mut seen = images.clone();
        if noise > 0.0 {
            let eps = gaussian(images.shape().clone(), Stream::Corrupt, state);
            seen = add(&seen, &affine(&eps, noise, 0.0));
        }
        if mask > 0.0 {
            // Dropout makes up for what it takes away; a mask does not.
            seen = affine(&dropout(&seen, mask, state), 1.0 - mask, 0.0);
        }
        seen
    }

    /// Weight of the divergence in the step after `step` steps: a line up from 0.
    fn kl_weight(&self, step: u64) -> f32 {
        let risen = (step + 1) as f64 / self.recipe.kl_warmup as f64;
        (self.recipe.kl_weight * risen.min(1.0)) as f32
    }
}

/// Latents drawn from their Gaussians; without a variance, the means.
fn drawn(mean: &Tensor, log_var: Option<&Tensor>, state: &Tensor) -> Tensor {
    log_var.map_or_else(|| mean.clone(), |log_var| reparameterise(mean, log_var, Noise::Drawn(state)))
}
