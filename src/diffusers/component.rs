//! The models of a pipeline as recipes, wherever their configuration and weights come from.

use std::path::{Path, PathBuf};

use super::config::{Config, Model};
use super::load::{flat_weights, held_of, of_network};
use super::text_encoder::Text;
use super::{CONFIG, WEIGHTS, wrong};
use crate::data::{ConditionConfig, ConditionKind};
use crate::diffusion::Keys;
use crate::error::{Error, Result};
use crate::models::unet::UNetConfig;
use crate::models::vae::Reconstruction;
use crate::nn::{Flat, Params};
use crate::recipe::{Backbone, Recipe, System, params_of};
use crate::weights::Weights;

/// A model with its weights.
#[derive(Clone)]
pub struct Component {
    /// The model as a recipe; the keys of training have their defaults.
    pub recipe: Recipe,
    /// In the layout of its parameters.
    pub weights: Flat,
}

/// The scheduler of a pipeline.
pub(super) struct Sampler {
    pub keys: Keys,
    /// Where its configuration lies.
    pub file: PathBuf,
}

/// A model that is about to be read.
pub(super) struct Origin<'a> {
    pub config: Config,
    /// Where the configuration lies.
    pub file: PathBuf,
    /// Name of the recipe.
    pub name: String,
    /// What the recipe says of itself.
    pub about: &'static str,
    /// Reads the weights, flat in the layout of these parameters.
    pub weights: Box<dyn Fn(&Params) -> Result<Flat> + 'a>,
}

impl Origin<'_> {
    /// A model in a folder of its own.
    pub(super) fn folder(folder: &Path, config: Config) -> Origin<'static> {
        let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let at = folder.to_owned();
        let weights = move |params: &Params| {
            let Some(weights) = Weights::find(&at, WEIGHTS)? else {
                return Err(wrong(&at, &format!("there is no {WEIGHTS}.safetensors or .bin")));
            };
            flat_weights(&weights, params, held_of(&weights, of_network), "its config.json")
        };
        Origin {
            config,
            file: folder.join(CONFIG),
            name: plain_name(&whole.file_name().map(|n| n.to_string_lossy()).unwrap_or_default()),
            about: "imported from a folder of the diffusers library",
            weights: Box::new(weights),
        }
    }

    /// The keys that all imported recipes share. `numbers`: elements of the widest activation of a sample.
    fn base(&self, channels: usize, numbers: usize) -> Recipe {
        Recipe {
            name: self.name.clone(),
            about: self.about.to_owned(),
            data: if channels == 1 { "digits" } else { "faces" }.to_owned(),
            // As many samples as a middling GPU has memory for.
            batch_size: ((1 << 24) / numbers.max(1)).clamp(1, 64),
            ..Recipe::default()
        }
    }

    /// The weights of a valid recipe's model.
    fn weights_of(&self, recipe: &Recipe) -> Result<Flat> {
        recipe.validate().map_err(|e| e.in_a_file().caused_by(format!("in {}", self.file.display())))?;
        (self.weights)(&params_of(recipe).borrow())
    }
}

fn no_size(origin: &Origin<'_>) -> Error {
    wrong(&origin.file, "it has no sample_size, so the size of its images is unknown")
}

/// A recipe's name from that of a folder or file.
pub(super) fn plain_name(name: &str) -> String {
    let plain: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect();
    match plain.trim_start_matches('.') {
        "" => "imported".to_owned(),
        plain => plain.to_owned(),
    }
}

/// A diffusion model, with the VAE of its latents and what its texts go through.
pub(super) fn diffusion(
    origin: &Origin<'_>,
    sampler: &Sampler,
    (vae, text): (Option<&Component>, Option<&Text>),
) -> Result<Component> {
    let Some(side) = origin.config.side else {
        return Err(no_size(origin));
    };
    let mut recipe = match &origin.config.model {
        Model::UNet(unet) => {
            let first = unet.block_out_channels.first().copied().unwrap_or(1);
            let numbers = side.saturating_mul(side).saturating_mul(first);
            let base = origin.base(unet.in_channels, numbers);
            // The pipeline draws one picture at a time, and memory is dear.
            let batch_size = if unet.sees_text() { base.batch_size.div_ceil(16) } else { base.batch_size };
            let condition = masked_latents(unet).map_err(|reason| wrong(&origin.file, &reason))?;
            Recipe { unet: (**unet).clone(), batch_size, condition, ..base }
        }
        Model::Dit(dit) => {
            let numbers = dit.widest([side, side]).try_into().unwrap_or(usize::MAX);
            // As the library's embedding of classes drops them; a row is there for none.
            let label_dropout = if dit.num_embeds_ada_norm > 1 { 0.1 } else { 0.0 };
            let base = origin.base(dit.in_channels, numbers);
            Recipe { model: Backbone::Dit, dit: (**dit).clone(), label_dropout, ..base }
        }
        Model::Vae(..) => {
            let reason = "it is no UNet2DModel and no DiTTransformer2DModel";
            return Err(wrong(&origin.file, reason));
        }
    };
    recipe.image_size = side;
    let taken = recipe.set_scheduler(&sampler.keys).and_then(|()| recipe.validate_process());
    taken.map_err(|e| e.within(sampler.file.display()))?;
    if let Some(text) = text {
        recipe.text = text.encoder.config.clone();
        // The pipeline's own.
        (recipe.guidance, recipe.sample_steps) = (7.5, 50.min(recipe.timesteps));
    }
    if let Some(vae) = vae {
        recipe.system = System::Ldm;
        recipe.latent_size = side;
        recipe.image_size = vae.recipe.image_size;
        recipe.scaling_factor = vae.recipe.scaling_factor;
        recipe.vae_fingerprint = vae.weights.fingerprint();
        recipe.data.clone_from(&vae.recipe.data);
    }
    let weights = origin.weights_of(&recipe)?;
    Ok(Component { recipe, weights })
}

/// What a net sees beside latents, by the channels of its input.
fn masked_latents(unet: &UNetConfig) -> std::result::Result<ConditionConfig, String> {
    let [inputs, outputs] = [unet.in_channels, unet.out_channels];
    let kind = match inputs {
        _ if !unet.sees_text() || inputs == outputs || 2 * inputs == outputs => ConditionKind::None,
        _ if inputs == 2 * outputs + 1 => ConditionKind::MaskedLatents,
        _ => {
            return Err(format!(
                "in_channels is {inputs} and out_channels {outputs}: denoir has Stable Diffusion's models of \
                 noise alone and for inpainting, not those of depth or instructions"
            ));
        }
    };
    Ok(ConditionConfig { kind, ..ConditionConfig::default() })
}

/// A VAE, of images of this side where it is known better than by its configuration.
pub(super) fn vae(origin: &Origin<'_>, side: Option<usize>) -> Result<Component> {
    let Model::Vae(vae, factor) = &origin.config.model else {
        return Err(wrong(&origin.file, "it is no VAE"));
    };
    let Some(side) = side.or(origin.config.side) else {
        return Err(no_size(origin));
    };
    let first = vae.widths.first().copied().unwrap_or(1);
    let recipe = Recipe {
        system: System::Vae,
        image_size: side,
        // Rombach et al. 2022, without the parts of its loss that are networks.
        reconstruction: Reconstruction::L1,
        kl_weight: 1e-6,
        scaling_factor: *factor,
        vae: vae.clone(),
        ..origin.base(vae.in_channels, side.saturating_mul(side).saturating_mul(first))
    };
    let weights = origin.weights_of(&recipe)?;
    Ok(Component { recipe, weights })
}
