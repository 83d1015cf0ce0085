//! A folder that the reference library saved: a pipeline, or one model of it.

use std::path::{Path, PathBuf};

use super::config::{self, Config, Index, Model};
use super::load::{flat_weights, of_network};
use super::text_encoder::{TextEncoder, open_text_encoder};
use super::{CONFIG, INDEX, SCHEDULER, WEIGHTS};
use crate::checkpoint::fingerprint;
use crate::data::{ConditionConfig, ConditionKind};
use crate::diffusion::Keys;
use crate::error::{Error, Result, one_line};
use crate::models::unet::UNetConfig;
use crate::models::vae::Reconstruction;
use crate::recipe::{Backbone, Recipe, System, params_of};
use crate::tokenizer::Tokenizer;
use crate::weights::{Weights, read_text};

/// Longest configuration that is read.
pub(super) const MOST_BYTES: u64 = 1 << 20;
/// Where `train_unconditional.py` keeps the moving average of its model.
const AVERAGE: &str = "unet_ema";
/// What that average's `config.json` says of the average itself.
const OF_AVERAGE: [&str; 7] =
    ["decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"];

/// A model with its weights.
pub struct Component {
    /// The model as a recipe; the keys of training have their defaults.
    pub recipe: Recipe,
    /// Flat, in the layout of its parameters.
    pub weights: Vec<f32>,
}

/// The text encoder of a pipeline, and what turns text into its tokens.
pub struct Text {
    /// The encoder.
    pub encoder: TextEncoder,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
}

/// The contents of a folder.
pub struct Folder {
    /// The diffusion model, or the VAE where there is nothing else.
    pub model: Component,
    /// The VAE of a latent diffusion model.
    pub vae: Option<Component>,
    /// The text encoder of a model that sees texts.
    pub text: Option<Text>,
    /// Remarks for the user.
    pub remarks: Vec<String>,
}

/// True for a folder with a `model_index.json` or a `config.json`, and for a checkpoint of the library's
/// `train_unconditional.py`.
pub fn is_folder(path: &Path) -> bool {
    let has = |name: &&str| is_there(&path.join(name));
    path.is_dir() && ([INDEX, CONFIG].iter().any(has) || of_script(path).is_some())
}

/// The model's folder in a checkpoint of `train_unconditional.py`: the average of its weights, if it keeps
/// one.
fn of_script(path: &Path) -> Option<PathBuf> {
    let model = |name| Some(path.join(name)).filter(|model| is_there(&model.join(CONFIG)));
    // A pipeline that lost its index has a unet too, but no state of an optimiser.
    model(AVERAGE).or_else(|| model("unet").filter(|_| is_there(&path.join("optimizer.bin"))))
}

/// The scheduler that such a checkpoint was trained with: that of the pipeline around it, or else the
/// script's own by default.
fn around(path: &Path, remarks: &mut Vec<String>) -> Result<Sampler> {
    let folder = path.join("../scheduler");
    if is_there(&folder.join(SCHEDULER)) {
        return Ok(Sampler { keys: read_keys(&folder)?, folder });
    }
    let shown = path.display();
    remarks.push(format!(
        "{shown} does not say how it was trained, and there is no ../scheduler: taken as DDPM, epsilon, 1000 \
         timesteps, linear"
    ));
    beside(path)
}

/// True for a broken link too: the error of reading it says more than a missing file.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Reads a pipeline's folder (`model_index.json`, components in folders of their own or all at the root),
/// that of a bare model (`config.json`), or a checkpoint of `train_unconditional.py`.
///
/// # Errors
/// When a file is missing or damaged, or says something that denoir does not have.
pub fn open(path: &Path) -> Result<Folder> {
    let mut remarks = Vec::new();
    let bare = !is_there(&path.join(INDEX));
    if let Some(model) = of_script(path).filter(|_| bare && !is_there(&path.join(CONFIG))) {
        let config = read_config(&model, &mut remarks)?;
        let sampler = around(path, &mut remarks)?;
        return Ok(Folder {
            model: diffusion(&model, &config, &sampler, (None, None))?,
            vae: None,
            text: None,
            remarks,
        });
    }
    if bare {
        let config = read_config(path, &mut remarks)?;
        let model = match &config.model {
            Model::UNet(_) | Model::Dit(_) => {
                if !is_there(&path.join(SCHEDULER)) {
                    let shown = path.display();
                    remarks.push(format!(
                        "{shown} has no {SCHEDULER}: taken as DDPM, epsilon, 1000 timesteps, linear"
                    ));
                }
                diffusion(path, &config, &beside(path)?, (None, None))?
            }
            Model::Vae(..) => vae(path, &config, None)?,
        };
        return Ok(Folder { model, vae: None, text: None, remarks });
    }
    let index = path.join(INDEX);
    let Index { class: pipeline, components, labels } =
        config::index(&read_text(&index, MOST_BYTES)?).map_err(|reason| wrong(&index, &reason))?;
    let (mut unet, mut codec, mut sampler) = (None, None, None);
    let (mut encoder, mut tokenizer) = (None, None);
    for (name, class) in &components {
        let at = component_folder(path, name);
        let known = |classes: &[&str]| match classes.contains(&class.as_str()) {
            true => Ok(at.clone()),
            false => {
                let (class, classes) = (one_line(class), classes.join(", "));
                Err(wrong(&index, &format!("its {name} is a {class}: denoir has {classes}")))
            }
        };
        match name.as_str() {
            "unet" => unet = Some(known(&["UNet2DModel", "UNet2DConditionModel"])?),
            "text_encoder" => encoder = Some(known(&["CLIPTextModel"])?),
            "tokenizer" => tokenizer = Some(known(&["CLIPTokenizer", "CLIPTokenizerFast"])?),
            "safety_checker" => {
                remarks.push(format!("the safety checker of {} is not run", path.display()));
            }
            "feature_extractor" | "image_encoder" => {}
            "transformer" => unet = Some(known(&["DiTTransformer2DModel", "Transformer2DModel"])?),
            "vae" | "vqvae" => codec = Some(known(&["AutoencoderKL", "VQModel"])?),
            // Of the class that the index names, as the library reads it.
            "scheduler" => sampler = Some(Sampler { keys: read_keys(&at)?.with_class(class), folder: at }),
            _ => {
                let [name, class] = [name, class].map(|text| one_line(text));
                return Err(wrong(&index, &format!("denoir has no component like its {name}, a {class}")));
            }
        }
    }
    let Some(unet) = unet else { return Err(wrong(&index, "it has no unet and no transformer")) };
    let Some(mut sampler) = sampler else { return Err(wrong(&index, "it has no scheduler")) };
    if pipeline == "DDIMPipeline" {
        // It replaces any scheduler by a DDIMScheduler.
        sampler.keys = sampler.keys.with_class("DDIMScheduler");
    }
    let codec_of = [("LDMPipeline", "vqvae"), ("DiTPipeline", "vae")];
    if let (Some((_, name)), None) = (codec_of.iter().find(|(class, _)| *class == pipeline), &codec) {
        return Err(wrong(&index, &format!("it has no {name}, which makes images of the latents")));
    }
    let config = read_config(&unet, &mut remarks)?;
    if pipeline.starts_with("StableDiffusion") {
        sampler.keys = sampler.keys.of_text_pipeline(pipeline.contains("Inpaint"));
    }
    let text = match (&config.model, encoder, tokenizer) {
        (Model::UNet(unet), Some(encoder), Some(tokenizer)) if unet.sees_text() => {
            let (encoder, tokenizer) = (open_text_encoder(&encoder)?, Tokenizer::open(&tokenizer)?);
            let (width, wanted) = (encoder.config.hidden_size, unet.text_width());
            if width != wanted {
                let reason = format!("its text encoder is {width} wide, and its unet sees {wanted}");
                return Err(wrong(&index, &reason));
            }
            let (tokens, known) = (tokenizer.size(), encoder.config.vocab_size);
            if tokens > known {
                let reason = format!("its tokenizer has {tokens} tokens, and its text encoder {known}");
                return Err(wrong(&index, &reason));
            }
            Some(Text { encoder, tokenizer })
        }
        (Model::UNet(unet), ..) if unet.sees_text() => {
            return Err(wrong(&index, "its unet sees texts, and it has no text_encoder and tokenizer"));
        }
        _ => None,
    };
    let Some(codec) = codec else {
        return Ok(Folder {
            model: diffusion(&unet, &config, &sampler, (None, text.as_ref()))?,
            vae: None,
            text: None,
            remarks,
        });
    };
    let vae_config = read_config(&codec, &mut remarks)?;
    let Model::Vae(ours, _) = &vae_config.model else {
        return Err(wrong(&codec.join(CONFIG), "it is no VAE"));
    };
    // The images that its latents make; a VAE works at any size.
    let side = config.side.map(|latent| latent << (ours.widths.len().clamp(1, 16) - 1));
    let vae = vae(&codec, &vae_config, side)?;
    let mut model = diffusion(&unet, &config, &sampler, (Some(&vae), text.as_ref()))?;
    if model.recipe.trained_classes().0 == labels.len() {
        model.recipe.class_names = labels;
    }
    Ok(Folder { model, vae: Some(vae), text, remarks })
}

pub(super) fn wrong(path: &Path, reason: &str) -> Error {
    Error::new(format!("{}: {reason}", path.display()))
        .hint("give a folder of a DDPM or latent diffusion pipeline, or of one of its models")
}

fn no_size(folder: &Path) -> Error {
    wrong(&folder.join(CONFIG), "it has no sample_size, so the size of its images is unknown")
}

/// A component's own folder; old pipelines have everything at the root.
fn component_folder(root: &Path, name: &str) -> PathBuf {
    let own = root.join(name);
    if is_there(&own) { own } else { root.to_owned() }
}

fn read_config(folder: &Path, remarks: &mut Vec<String>) -> Result<Config> {
    let path = folder.join(CONFIG);
    let mut config = config::model(&read_text(&path, MOST_BYTES)?).map_err(|reason| wrong(&path, &reason))?;
    if folder.ends_with(AVERAGE) {
        config.unknown.retain(|key| !OF_AVERAGE.contains(&key.as_str()));
    }
    if !config.unknown.is_empty() {
        let keys = one_line(&config.unknown.join(", "));
        remarks.push(format!("{} has keys that mean nothing here: {keys}", path.display()));
    }
    Ok(config)
}

/// The scheduler of a pipeline.
struct Sampler {
    keys: Keys,
    /// Where its configuration lies.
    folder: PathBuf,
}

/// The scheduler beside a bare model; without one, the library's own for training.
fn beside(folder: &Path) -> Result<Sampler> {
    let there = is_there(&folder.join(SCHEDULER));
    let keys = if there { read_keys(folder)? } else { Keys::default().with_class("DDPMScheduler") };
    Ok(Sampler { keys, folder: folder.to_owned() })
}

fn read_keys(folder: &Path) -> Result<Keys> {
    let path = folder.join(SCHEDULER);
    Keys::parse(&read_text(&path, MOST_BYTES)?).map_err(|e| e.within(path.display()))
}

/// A recipe's name from that of the folder.
fn name_of(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let name = whole.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let plain: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect();
    match plain.trim_start_matches('.') {
        "" => "imported".to_owned(),
        plain => plain.to_owned(),
    }
}

/// The keys that all imported recipes share. `numbers`: elements of the widest activation of a sample.
fn base(folder: &Path, channels: usize, numbers: usize) -> Recipe {
    Recipe {
        name: name_of(folder),
        about: "imported from a folder of the diffusers library".to_owned(),
        data: if channels == 1 { "digits" } else { "faces" }.to_owned(),
        // As many samples as a middling GPU has memory for.
        batch_size: ((1 << 24) / numbers.max(1)).clamp(1, 64),
        ..Recipe::default()
    }
}

/// The weights of a valid recipe's model.
fn weights_of(folder: &Path, recipe: &Recipe) -> Result<Vec<f32>> {
    recipe
        .validate()
        .map_err(|e| e.in_a_file().caused_by(format!("in {}", folder.join(CONFIG).display())))?;
    let Some(weights) = Weights::find(folder, WEIGHTS)? else {
        return Err(wrong(folder, &format!("there is no {WEIGHTS}.safetensors or .bin")));
    };
    flat_weights(&weights, &params_of(recipe).borrow(), of_network)
}

fn diffusion(
    folder: &Path,
    config: &Config,
    sampler: &Sampler,
    (vae, text): (Option<&Component>, Option<&Text>),
) -> Result<Component> {
    let Some(side) = config.side else {
        return Err(no_size(folder));
    };
    let mut recipe = match &config.model {
        Model::UNet(unet) => {
            let first = unet.block_out_channels.first().copied().unwrap_or(1);
            let numbers = side.saturating_mul(side).saturating_mul(first);
            let base = base(folder, unet.in_channels, numbers);
            // The pipeline draws one picture at a time, and memory is dear.
            let batch_size = if unet.sees_text() { base.batch_size.div_ceil(16) } else { base.batch_size };
            let condition = masked_latents(unet).map_err(|reason| wrong(&folder.join(CONFIG), &reason))?;
            Recipe { unet: (**unet).clone(), batch_size, condition, ..base }
        }
        Model::Dit(dit) => {
            let numbers = dit.widest([side, side]).try_into().unwrap_or(usize::MAX);
            // As the library's embedding of classes drops them; a row is there for none.
            let label_dropout = if dit.num_embeds_ada_norm > 1 { 0.1 } else { 0.0 };
            let base = base(folder, dit.in_channels, numbers);
            Recipe { model: Backbone::Dit, dit: (**dit).clone(), label_dropout, ..base }
        }
        Model::Vae(..) => {
            let reason = "it is no UNet2DModel and no DiTTransformer2DModel";
            return Err(wrong(&folder.join(CONFIG), reason));
        }
    };
    recipe.image_size = side;
    let taken = recipe.set_scheduler(&sampler.keys).and_then(|()| recipe.validate_process());
    taken.map_err(|e| e.within(sampler.folder.join(SCHEDULER).display()))?;
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
        recipe.vae_fingerprint = fingerprint(&vae.weights);
        recipe.data.clone_from(&vae.recipe.data);
    }
    let weights = weights_of(folder, &recipe)?;
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

fn vae(folder: &Path, config: &Config, side: Option<usize>) -> Result<Component> {
    let Model::Vae(vae, factor) = &config.model else {
        return Err(wrong(&folder.join(CONFIG), "it is no VAE"));
    };
    let Some(side) = side.or(config.side) else {
        return Err(no_size(folder));
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
        ..base(folder, vae.in_channels, side.saturating_mul(side).saturating_mul(first))
    };
    let weights = weights_of(folder, &recipe)?;
    Ok(Component { recipe, weights })
}
