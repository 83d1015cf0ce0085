//! A folder that the reference library saved: a pipeline, or one model of it.

use std::path::{Path, PathBuf};

use super::component::{Component, Origin, Sampler, diffusion, vae};
use super::config::{self, Index, Model};
use super::text_encoder::{Text, open_text_encoder};
use super::{CONFIG, INDEX, MOST_BYTES, SCHEDULER, wrong};
use crate::diffusion::Keys;
use crate::error::{Error, Result, one_line};
use crate::tokenizer::Tokenizer;
use crate::weights::read_text;

/// Where `train_unconditional.py` keeps the moving average of its model.
const AVERAGE: &str = "unet_ema";
/// What that average's `config.json` says of the average itself.
const OF_AVERAGE: [&str; 7] =
    ["decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"];

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
        return Ok(Sampler { keys: read_keys(&folder)?, file: folder.join(SCHEDULER) });
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
        let origin = read_config(&model, &mut remarks)?;
        let sampler = around(path, &mut remarks)?;
        return Ok(Folder {
            model: diffusion(&origin, &sampler, (None, None))?,
            vae: None,
            text: None,
            remarks,
        });
    }
    if bare {
        let origin = read_config(path, &mut remarks)?;
        let model = match &origin.config.model {
            Model::UNet(_) | Model::Dit(_) => {
                if !is_there(&path.join(SCHEDULER)) {
                    let shown = path.display();
                    remarks.push(format!(
                        "{shown} has no {SCHEDULER}: taken as DDPM, epsilon, 1000 timesteps, linear"
                    ));
                }
                diffusion(&origin, &beside(path)?, (None, None))?
            }
            Model::Vae(..) => vae(&origin, None)?,
        };
        return Ok(Folder { model, vae: None, text: None, remarks });
    }
    let index = path.join(INDEX);
    let Index { class: pipeline, components, labels } =
        config::index(&read_text(&index, MOST_BYTES)?).map_err(|reason| wrong(&index, &reason))?;
    let (mut unet, mut codec, mut sampler) = (None, None, None);
    let (mut encoder, mut tokenizer) = (None, None);
    for (name, class) in &components {
        let at = component_folder(path, name)?;
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
            "scheduler" => {
                sampler = Some(Sampler { keys: read_keys(&at)?.with_class(class), file: at.join(SCHEDULER) })
            }
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
    let codec_of = [("LDMPipeline", "vqvae"), ("DiTPipeline", "vae"), ("StableDiffusion", "vae")];
    if let (Some((_, name)), None) = (codec_of.iter().find(|(class, _)| pipeline.starts_with(class)), &codec)
    {
        return Err(wrong(&index, &format!("it has no {name}, which makes images of the latents")));
    }
    let origin = read_config(&unet, &mut remarks)?;
    if pipeline.starts_with("StableDiffusion") {
        sampler.keys = sampler.keys.of_text_pipeline(pipeline.contains("Inpaint"));
    }
    let text = match (&origin.config.model, encoder, tokenizer) {
        (Model::UNet(unet), Some(encoder), Some(tokenizer)) if unet.sees_text() => {
            let (encoder, tokenizer) = (open_text_encoder(&encoder)?, Tokenizer::open(&tokenizer)?);
            Some(Text::of(unet, encoder, tokenizer).map_err(|reason| wrong(&index, &reason))?)
        }
        (Model::UNet(unet), ..) if unet.sees_text() => {
            return Err(wrong(&index, "its unet sees texts, and it has no text_encoder and tokenizer"));
        }
        (_, None, None) => None,
        _ => {
            return Err(wrong(
                &index,
                "its text_encoder and tokenizer are of no use: its unet sees no texts",
            ));
        }
    };
    let codec = codec.map(|codec| read_config(&codec, &mut remarks)).transpose()?;
    let mut folder = Folder::of(&origin, codec.as_ref(), &sampler, text, remarks)?;
    if folder.vae.is_some() && folder.model.recipe.trained_classes().0 == labels.len() {
        folder.model.recipe.class_names = labels;
    }
    Ok(folder)
}

impl Folder {
    /// A diffusion model with what belongs to it.
    pub(super) fn of(
        model: &Origin<'_>,
        codec: Option<&Origin<'_>>,
        sampler: &Sampler,
        text: Option<Text>,
        remarks: Vec<String>,
    ) -> Result<Folder> {
        let latent_vae = |codec: &Origin<'_>| {
            let Model::Vae(ours, _) = &codec.config.model else {
                return Err(wrong(&codec.file, "it is no VAE"));
            };
            // The images that its latents make; a VAE works at any size.
            let halvings = ours.widths.len().clamp(1, 16) - 1;
            vae(codec, model.config.side.map(|latent| latent << halvings))
        };
        let vae = codec.map(latent_vae).transpose()?;
        let model = diffusion(model, sampler, (vae.as_ref(), text.as_ref()))?;
        Ok(Folder { model, vae, text, remarks })
    }
}

/// A component's own folder; old pipelines have everything at the root.
fn component_folder(root: &Path, name: &str) -> Result<PathBuf> {
    let own = root.join(name);
    if is_there(&own) {
        return Ok(own);
    }
    let files: &[&str] = match name {
        "unet" | "transformer" | "vae" | "vqvae" | "text_encoder" => &[CONFIG],
        "tokenizer" => &["tokenizer.json", "vocab.json"],
        "scheduler" => &[SCHEDULER],
        _ => return Ok(root.to_owned()),
    };
    if files.iter().any(|file| is_there(&root.join(file))) {
        return Ok(root.to_owned());
    }
    let index = root.join(INDEX);
    let message = format!("{} names {name}, and there is no folder {name}", index.display());
    Err(Error::new(message).hint("get the folder again from where it came from, whole"))
}

fn read_config(folder: &Path, remarks: &mut Vec<String>) -> Result<Origin<'static>> {
    let path = folder.join(CONFIG);
    let mut config = config::model(&read_text(&path, MOST_BYTES)?).map_err(|reason| wrong(&path, &reason))?;
    if folder.ends_with(AVERAGE) {
        config.unknown.retain(|key| !OF_AVERAGE.contains(&key.as_str()));
    }
    if !config.unknown.is_empty() {
        let keys = one_line(&config.unknown.join(", "));
        remarks.push(format!("{} has keys that mean nothing here: {keys}", path.display()));
    }
    Ok(Origin::folder(folder, config))
}

/// The scheduler beside a bare model; without one, the library's own for training.
fn beside(folder: &Path) -> Result<Sampler> {
    let there = is_there(&folder.join(SCHEDULER));
    let keys = if there { read_keys(folder)? } else { Keys::default().with_class("DDPMScheduler") };
    Ok(Sampler { keys, file: folder.join(SCHEDULER) })
}

fn read_keys(folder: &Path) -> Result<Keys> {
    let path = folder.join(SCHEDULER);
    Keys::parse(&read_text(&path, MOST_BYTES)?).map_err(|e| e.within(path.display()))
}
