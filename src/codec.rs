//! A trained VAE: images to latents and back, a batch at a time.

mod decoder;
mod half;

use std::borrow::Cow;
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use self::half::Half;
use crate::checkpoint::{self, Loaded};
use crate::device::{Buffer, Device};
use crate::diffusers::{self, Component};
use crate::error::{Error, Result};
use crate::models::{codebook, vae};
use crate::nn::{Flat, Params, Scope};
use crate::recipe::{Backbone, Recipe, System, params_of};
use crate::run::Run;

/// Images that are encoded or decoded at a time, or the batch size of training where that is less. It does
/// not change the results.
const BATCH: usize = 16;

/// The encoder's output for N images: Gaussians over their latents.
#[derive(Clone, Debug, PartialEq)]
pub struct Posterior {
    /// `[N, h, w, c]`.
    pub mean: Vec<f32>,
    /// `[N, h, w, c]`; `None` for an autoencoder.
    pub log_var: Option<Vec<f32>>,
}

impl Posterior {
    /// `exp(log_var / 2)`; 0 for an autoencoder.
    pub(crate) fn sigma(&self) -> Vec<f32> {
        match &self.log_var {
            Some(log_var) => log_var.iter().map(|v| (0.5 * v).exp()).collect(),
            None => vec![0.0; self.mean.len()],
        }
    }

    /// `mean + a * sigma * eps`.
    ///
    /// # Panics
    /// When `eps` has not the elements of the mean.
    #[track_caller]
    pub(crate) fn at(&self, a: f32, eps: &[f32]) -> Vec<f32> {
        assert_eq!(eps.len(), self.mean.len(), "posterior: noise for {} numbers", self.mean.len());
        self.mean.iter().zip(self.sigma()).zip(eps).map(|((m, s), e)| m + a * s * e).collect()
    }
}

fn no_vae(path: &Path) -> Error {
    Error::new(format!("{} holds a diffusion model, not a VAE", path.display()))
        .hint("give a run of a VAE, such as `denoir train faces-vae` makes")
}

/// A trained VAE on a device.
pub struct Codec {
    device: Device,
    recipe: Recipe,
    /// Optimiser steps of its training.
    step: u64,
    params: Rc<RefCell<Params>>,
    weights: Buffer,
    /// Hash of the weights; empty while they are trained.
    fingerprint: String,
    encoder: RefCell<Option<Half>>,
    decoder: RefCell<Option<Half>>,
}

impl Codec {
    /// The VAE of a checkpoint, with its moving average of the weights.
    pub(crate) fn load(loaded: &Loaded, device: &Device) -> Result<Codec> {
        let recipe = &loaded.recipe;
        if recipe.system != System::Vae {
            return Err(no_vae(loaded.path()));
        }
        recipe.validate().map_err(Error::in_a_file)?;
        let params = params_of(recipe);
        let codec = Codec::with(recipe, loaded.set("ema", &params.borrow())?.into(), device)?;
        Ok(Codec { step: loaded.header.step, ..codec })
    }

    /// The VAE of a folder of the diffusers library.
    ///
    /// # Errors
    /// When it does not fit into memory.
    pub fn of_component(component: Component, device: &Device) -> Result<Codec> {
        Codec::with(&component.recipe, component.weights, device)
    }

    fn with(recipe: &Recipe, values: Flat, device: &Device) -> Result<Codec> {
        let (params, fingerprint) = (params_of(recipe), values.fingerprint());
        let weights = values.upload(device, "vae", &mut params.borrow_mut())?;
        Ok(Codec { fingerprint, ..Codec::of(device, recipe, params, weights) })
    }

    /// The VAE that `path` means: a VAE's run or checkpoint, a latent diffusion run, which holds one, a
    /// folder of the diffusers library, or one file of Stable Diffusion.
    ///
    /// # Errors
    /// When there is none, it is damaged, or does not fit into memory.
    pub fn open(path: &Path, device: &Device) -> Result<Codec> {
        if diffusers::is_file(path) {
            return Codec::of_component(diffusers::open_vae(path)?, device);
        }
        if diffusers::is_folder(path) {
            let folder = diffusers::open(path)?;
            let has_vae = folder.model.recipe.system == System::Vae;
            let component = folder.vae.or_else(|| has_vae.then_some(folder.model));
            let Some(component) = component else { return Err(no_vae(path)) };
            return Codec::of_component(component, device);
        }
        if path.is_file() {
            let loaded = checkpoint::load(path)?;
            return match (loaded.recipe.system, Run::of_checkpoint(path)) {
                (System::Ldm, Some(run)) => Codec::of_ldm(&run, &loaded.recipe, device),
                _ => Codec::load(&loaded, device),
            };
        }
        let run = Run::open(path)?;
        let recipe = run.recipe()?;
        match recipe.system {
            System::Vae => Codec::load(&run.newest()?, device),
            System::Ldm => Codec::of_ldm(&run, &recipe, device),
            System::Ddpm | System::Classifier => Err(no_vae(path)),
        }
    }

    /// The VAE inside a latent diffusion run with this recipe.
    pub(crate) fn of_ldm(run: &Run, recipe: &Recipe, device: &Device) -> Result<Codec> {
        let path = run.vae_path();
        if recipe.is_laid_over() {
            let (base, holds) = (&recipe.base, if recipe.learns_word() { "a word" } else { "adapters" });
            return Err(Error::new(format!("the run holds {holds} alone; its VAE is that of {base}"))
                .hint(format!("give {base} instead")));
        }
        if !path.is_file() {
            let message = format!("the VAE of this run is missing: there is no {}", path.display());
            return Err(Error::new(message).hint(
                "copy vae.safetensors from where the run came from; its latents mean nothing without it",
            ));
        }
        let codec = Codec::load(&checkpoint::load(&path)?, device)?;
        codec.check_is(&recipe.vae_fingerprint, &path)?;
        codec.check_fits(recipe).map_err(Error::in_a_file)?;
        Ok(codec)
    }

    /// An error that names the keys to set, unless the recipe fits this VAE.
    pub(crate) fn check_fits(&self, recipe: &Recipe) -> Result<()> {
        let theirs = &self.recipe;
        let [side, _, channels] = self.latent();
        let wanted = if recipe.variance.is_learned() { 2 * channels } else { channels };
        if theirs.vae.kind == vae::VaeKind::Mlp {
            return Err(Error::usage("the latents of this VAE are vectors, not images")
                .hint("a U-Net needs a convolutional VAE, such as faces-vae"));
        }
        let (table, [inputs, outputs]) = (recipe.model.table(), recipe.model_channels());
        // A DiT may have as many again for a variance that its sampler does without.
        let outputs = if recipe.model == Backbone::Dit { wanted } else { outputs };
        let pairs = [
            ("image_size", recipe.image_size, theirs.image_size),
            ("latent_size", recipe.latent_size, side),
            (&format!("{table}.in_channels"), inputs, channels),
            (&format!("{table}.out_channels"), outputs, wanted),
        ];
        let wrong: Vec<_> = pairs.iter().filter(|(_, ours, needed)| ours != needed).collect();
        if let Some((key, ours, needed)) = wrong.first() {
            let set: Vec<String> =
                wrong.iter().map(|(key, _, needed)| format!("--set {key}={needed}")).collect();
            return Err(Error::usage(format!("{key} is {ours}, this VAE needs {needed}"))
                .hint(format!("give {}", set.join(" "))));
        }
        Ok(())
    }

    /// A VAE whose weights are in `weights`, perhaps still in training.
    pub(crate) fn of(
        device: &Device,
        recipe: &Recipe,
        params: Rc<RefCell<Params>>,
        weights: Buffer,
    ) -> Codec {
        Codec {
            device: device.clone(),
            recipe: recipe.clone(),
            step: 0,
            params,
            weights,
            fingerprint: String::new(),
            encoder: RefCell::default(),
            decoder: RefCell::default(),
        }
    }

    fn check_is(&self, wanted: &str, path: &Path) -> Result<()> {
        if self.fingerprint == wanted {
            return Ok(());
        }
        let message = format!("{} is not the VAE that this run was trained with", path.display());
        Err(Error::new(message)
            .hint("put the run's own vae.safetensors back")
            .caused_by(format!("its fingerprint is {}, the run has {wanted:?}", self.fingerprint)))
    }

    /// Writes the VAE as a checkpoint of its moving average.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let params = self.params.borrow();
        let values = Flat::download(&self.device, &self.weights, &params, 0..params.elements())?;
        checkpoint::save_ema(path, &params, self.step, &self.recipe, &values.f32())
    }

    pub(crate) fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn params(&self) -> &Rc<RefCell<Params>> {
        &self.params
    }

    pub(crate) fn weights(&self) -> &Buffer {
        &self.weights
    }

    /// Frees the memory of the compiled encoder and decoder; the next use compiles them again.
    pub(crate) fn free_programs(&self) {
        (*self.encoder.borrow_mut(), *self.decoder.borrow_mut()) = (None, None);
    }

    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// `[H, W, C]` of the images.
    pub(crate) fn image(&self) -> [usize; 3] {
        let side = self.recipe.image_size;
        [side, side, self.recipe.vae.in_channels]
    }

    /// `[H, W, C]` of the images of latents `[h, w]` high and wide.
    pub(crate) fn image_of(&self, [h, w]: [usize; 2]) -> [usize; 3] {
        let ([own_h, own_w, _], [height, width, c]) = (self.latent(), self.image());
        [h * height / own_h, w * width / own_w, c]
    }

    /// `[h, w, c]` of the latents; `[1, 1, c]` for vectors.
    pub fn latent(&self) -> [usize; 3] {
        self.recipe.vae.latent_shape(self.recipe.image_size)
    }

    /// Encodes images `[N, H, W, C]` in [-1, 1].
    ///
    /// # Errors
    /// When memory is too small, or the driver reports an error.
    ///
    /// # Panics
    /// When `images` is not a whole number of images.
    pub fn encode(&self, images: &[f32]) -> Result<Posterior> {
        let [h, w, _] = self.latent();
        self.encode_sized(images, [h, w])
    }

    /// As [`Codec::encode`], of images whose latents are `[h, w]` high and wide.
    ///
    /// # Errors
    /// As [`Codec::encode`].
    ///
    /// # Panics
    /// As [`Codec::encode`].
    pub fn encode_sized(&self, images: &[f32], size: [usize; 2]) -> Result<Posterior> {
        let config = &self.recipe.vae;
        let moments = self.moments_sized(images, size)?;
        if !config.variational {
            return Ok(Posterior { mean: moments, log_var: None });
        }
        let (mut mean, mut log_var) = (Vec::new(), Vec::new());
        for pair in moments.chunks_exact(2 * config.latent) {
            mean.extend_from_slice(&pair[..config.latent]);
            log_var.extend_from_slice(&pair[config.latent..]);
        }
        Ok(Posterior { mean, log_var: Some(log_var) })
    }

    /// As [`Codec::encode`], means and log-variances side by side: `[N, h, w, 2 c]`, or `[N, h, w, c]` for
    /// an autoencoder.
    pub(crate) fn moments(&self, images: &[f32]) -> Result<Vec<f32>> {
        let [h, w, _] = self.latent();
        self.moments_sized(images, [h, w])
    }

    fn moments_sized(&self, images: &[f32], size: [usize; 2]) -> Result<Vec<f32>> {
        let [h, w, c] = self.image_of(size);
        self.in_batches(&self.encoder, images, (size, h * w * c), |tape, samples| {
            let x = tape.stored("in", 0, [samples, h, w, c]);
            vae::encode_moments(&self.recipe.vae, &Scope::new(tape, &self.params), &x)
        })
    }

    /// Decodes latents `[N, h, w, c]`, not scaled, to images `[N, H, W, C]` in [-1, 1]. A VQModel rounds
    /// them to its codebook first.
    ///
    /// # Errors
    /// As [`Codec::encode`].
    pub fn decode(&self, latents: &[f32]) -> Result<Vec<f32>> {
        let [h, w, _] = self.latent();
        self.decode_sized(latents, [h, w])
    }

    /// As [`Codec::decode`], of latents that are `[h, w]` high and wide.
    ///
    /// # Errors
    /// As [`Codec::encode`].
    pub fn decode_sized(&self, latents: &[f32], [h, w]: [usize; 2]) -> Result<Vec<f32>> {
        let c = self.latent()[2];
        let latents = match self.codebook()? {
            Some(codes) => Cow::Owned(codebook::quantised(latents, &codes, c)),
            None => Cow::Borrowed(latents),
        };
        self.in_batches(&self.decoder, &latents, ([h, w], h * w * c), |tape, samples| {
            self.record_decoder(tape, samples, [h, w])
        })
    }

    /// The codebook of a VQModel, `[codes, c]`.
    pub(crate) fn codebook(&self) -> Result<Option<Vec<f32>>> {
        if self.recipe.vae.kind != vae::VaeKind::Vq {
            return Ok(None);
        }
        let params = self.params.borrow();
        let Some(spec) = params.find(codebook::CODEBOOK) else { unreachable!("a VQModel has a codebook") };
        let range = spec.first..spec.first + spec.shape.elements();
        Ok(Some(Flat::download(&self.device, &self.weights, &params, range)?.into_f32()))
    }
}
