//! What a system learns: the part of the training step between its images and its loss.

use std::cell::RefCell;
use std::rc::Rc;

use super::resident::Resident;
use crate::codec::Codec;
use crate::device::Buffer;
use crate::diffusion::Model;
use crate::models::vae;
use crate::nn::{Params, Scope};
use crate::ops::arithmetic::{add, affine, mul};
use crate::ops::dropout::dropout;
use crate::ops::gather::gather;
use crate::ops::gaussian_kl::gaussian_kl;
use crate::ops::loss::mse;
use crate::ops::noising::{gaussian, noising};
use crate::ops::reparameterise::{Noise, reparameterise};
use crate::philox::Stream;
use crate::recipe::{Latents, Recipe, System, model_of, params_of, params_of_model};
use crate::state::State;
use crate::tape::{Tape, Tensor};

/// Store of a step's images; of cached latents, their moments.
pub(super) const IMAGES: &str = "images";
/// Store of a data set that lies on the device, and of the numbers of a step's samples in it.
pub(super) const DATA: &str = "data";
pub(super) const SAMPLES: &str = "samples";
/// Store of the timesteps' noise levels.
pub(super) const NOISE_LEVELS: &str = "noising";
/// Store of the divergence's weight, which may rise.
pub(super) const KL_WEIGHT: &str = "kl_weight";
/// Store of the weights of a VAE that is not trained.
pub(super) const VAE: &str = "vae";

/// The loss of a recorded batch; and of a VAE's its parts, before they are weighted. Each `[1]`.
pub(super) struct Loss {
    pub total: Tensor,
    pub reconstruction: Option<Tensor>,
    pub kl: Option<Tensor>,
}

/// What is trained, and what is needed for it.
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
}

impl Objective {
    /// `codec`: the VAE of latent diffusion.
    pub fn new(recipe: &Recipe, codec: Option<&Codec>) -> Objective {
        let of = |c: &Codec| (Rc::clone(c.params()), c.weights().clone(), c.recipe().clone());
        Objective {
            recipe: recipe.clone(),
            model: model_of(recipe),
            params: params_of(recipe),
            vae: codec.map(of),
            resident: None,
        }
    }

    /// Noise prediction by another model than the recipe's own.
    pub fn of_model(recipe: &Recipe, model: Box<Model>) -> Objective {
        assert_eq!(recipe.system, System::Ddpm, "a model of one's own predicts noise of images");
        let params = params_of_model(recipe, &*model);
        Objective { recipe: recipe.clone(), params, model, vae: None, resident: None }
    }

    /// Memory for stores that this objective reads and does not own.
    pub fn bound(&self) -> impl Iterator<Item = (&'static str, &Buffer)> {
        let vae = self.vae.as_ref().filter(|_| self.encodes()).map(|(_, weights, _)| (VAE, weights));
        vae.into_iter().chain(self.resident.as_ref().map(|data| (DATA, &data.buffer)))
    }

    /// A step's samples `[N, H, W, C]`: images, or what is cached of them.
    fn samples(&self, tape: &Tape, shape: [usize; 3]) -> Tensor {
        let (n, [h, w, c]) = (self.recipe.batch_size, shape);
        let Some(Resident { count, bytes, .. }) = self.resident else {
            return tape.stored(IMAGES, 0, [n, h, w, c]);
        };
        let values = count * h * w * c;
        let data =
            if bytes { tape.stored_u32(DATA, [values.div_ceil(4)]) } else { tape.stored(DATA, 0, [values]) };
        tape.labelled("data", || gather(&data, count, shape, &tape.stored_u32(SAMPLES, [n])))
    }

    fn encodes(&self) -> bool {
        self.recipe.system == System::Ldm && self.recipe.latents == Latents::Drawn
    }

    /// Records the loss of one batch.
    pub fn record(&self, tape: &Tape, state: &Tensor) -> Loss {
        let scope = Scope::training(tape, &self.params, state).checkpointing(self.recipe.checkpoint_blocks);
        match self.recipe.system {
            System::Ddpm => {
                let images = self.samples(tape, self.recipe.diffused());
                self.noise_prediction(tape, &scope, &images, state)
            }
            System::Ldm => {
                let latents = self.latents(tape, state);
                self.noise_prediction(tape, &scope, &latents, state)
            }
            System::Vae => self.evidence(tape, &scope, state),
        }
    }

    /// Ho et al. 2020, equation 14: the squared error of the predicted noise.
    fn noise_prediction(&self, tape: &Tape, scope: &Scope, x0: &Tensor, state: &Tensor) -> Loss {
        let recipe = &self.recipe;
        let table = tape.stored(NOISE_LEVELS, 0, [recipe.timesteps, 2]);
        let labels = recipe.unet.class().tensor(tape, recipe.batch_size);
        let (x_t, eps, t) = tape.labelled("noising", || noising(x0, &table, state));
        let predicted = (self.model)(scope, &x_t, &t, labels.as_ref());
        let total = tape.labelled("loss", || mse(&predicted, &eps, None));
        Loss { total, reconstruction: None, kl: None }
    }

    /// Scaled latents of the batch, drawn from their Gaussians (Rombach et al. 2022, section 3.1 and
    /// appendix G).
    fn latents(&self, tape: &Tape, state: &Tensor) -> Tensor {
        let Some((params, _, theirs)) = &self.vae else {
            unreachable!("latent diffusion is trained with a VAE");
        };
        let [h, w, c] = self.recipe.diffused();
        let (mean, log_var) = if self.encodes() {
            let side = theirs.image_size;
            let images = self.samples(tape, [side, side, theirs.vae.in_channels]);
            vae::encode(&theirs.vae, &Scope::frozen(tape, params, VAE), &images)
        } else {
            let moments = self.samples(tape, [h, w, theirs.vae.moments() * c]);
            tape.labelled("latents", || vae::mean_and_log_var(&theirs.vae, &moments))
        };
        tape.labelled("latents", || {
            let z = match &log_var {
                Some(log_var) => reparameterise(&mean, log_var, Noise::Drawn(state)),
                None => mean,
            };
            affine(&z, self.recipe.scaling_factor as f32, 0.0)
        })
    }

    /// The negative evidence lower bound (Kingma & Welling 2014, equation 7), the divergence weighted as
    /// in the beta-VAE (Higgins et al. 2017); without a Gaussian, the reconstruction alone.
    fn evidence(&self, tape: &Tape, scope: &Scope, state: &Tensor) -> Loss {
        let recipe = &self.recipe;
        let (config, side) = (&recipe.vae, recipe.image_size);
        let image = [side, side, config.in_channels];
        let images = self.samples(tape, image);
        let seen = tape.labelled("corruption", || self.corrupted(&images, state));
        let (mean, log_var) = vae::encode(config, scope, &seen);
        let z = match &log_var {
            Some(log_var) => tape.labelled("latents", || reparameterise(&mean, log_var, Noise::Drawn(state))),
            None => mean.clone(),
        };
        let raw = vae::decode(config, scope, &z, image);
        tape.labelled("loss", || {
            let reconstruction = vae::loss(config, &raw, &images, recipe.reconstruction);
            let Some(log_var) = &log_var else {
                return Loss {
                    total: reconstruction.clone(),
                    reconstruction: Some(reconstruction),
                    kl: None,
                };
            };
            let kl = gaussian_kl(&mean, log_var);
            let weighted = mul(&kl, &tape.stored(KL_WEIGHT, 0, [1]));
            let total = add(&reconstruction, &weighted);
            Loss { total, reconstruction: Some(reconstruction), kl: Some(kl) }
        })
    }

    /// What a denoising autoencoder sees of its images (Vincent et al. 2008).
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
    pub fn kl_weight(&self, step: u64) -> f32 {
        let recipe = &self.recipe;
        let risen = match recipe.kl_warmup {
            0 => 1.0,
            warmup => ((step + 1) as f64 / warmup as f64).min(1.0),
        };
        (recipe.kl_weight * risen) as f32
    }

    /// The state's place on a recording.
    pub fn state(tape: &Tape) -> Tensor {
        tape.stored_u32("state", [State::WORDS])
    }
}
