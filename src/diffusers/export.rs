//! A run as a folder that the reference library loads.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::{self, Model};
use super::text_encoder::write_text_encoder;
use super::{CONFIG, Component, INDEX, SCHEDULER, Text, WEIGHTS, make, write_text};
use crate::checkpoint::save_plain;
use crate::diffusion::{Betas, LIBRARY_VERSION, Prediction, pretty};
use crate::error::{Error, Result};
use crate::models::vae::VaeKind;
use crate::recipe::{Backbone, Recipe, System, params_of};

/// An error unless the folder is new or empty, so that no file is lost.
pub(crate) fn check_free(folder: &Path) -> Result<()> {
    let shown = folder.display();
    if folder.symlink_metadata().is_err() {
        return Ok(());
    }
    let mut entries = fs::read_dir(folder)
        .map_err(|e| Error::new(format!("{shown} is no folder")).hint("choose another").caused_by(e))?;
    match entries.next() {
        Some(_) => Err(Error::new(format!("{shown} is not empty")).hint("name a new folder")),
        None => Ok(()),
    }
}

/// Writes a diffusion model as a pipeline: `DDPMPipeline`, `DDIMPipeline` with that scheduler, or with its
/// VAE `LDMPipeline`, for a DiT `DiTPipeline`. A VAE is a bare model, and so is a DiT of pixels, or a model
/// that sees conditions, with its scheduler's configuration beside it: no pipeline has one. With a VAE and a
/// text encoder it is a `StableDiffusionPipeline`.
pub(crate) fn write(
    folder: &Path,
    model: &Component,
    vae: Option<&Component>,
    text: Option<&Text>,
) -> Result<()> {
    let recipe = &model.recipe;
    let no_such = |reason: String| {
        Error::new(format!("{} cannot be exported: {reason}", recipe.name)).hint(
            "an AutoencoderKL, and latent diffusion on one, can be: `denoir train digits-kl`, or with \
             colours `denoir train faces-vae --set vae.kind=kl --set vae.widths=[16,32,64]`",
        )
    };
    if recipe.system == System::Vae {
        let text = config_of(model, 0.0).map_err(no_such)?;
        return write_model(folder, model, &text);
    }
    if recipe.prediction_type == Prediction::Mean {
        let message =
            format!("{} cannot be exported: the library knows no prediction_type = mean", recipe.name);
        return Err(Error::new(message).hint("train a model of epsilon, sample or v_prediction to export it"));
    }
    let listed = || Betas::Given(recipe.schedule_without_rescaling().betas);
    // The library takes the betas of a schedule that it does not know as a list.
    let known = Recipe { beta_schedule: listed(), ..recipe.clone() };
    let keys = if recipe.beta_schedule.is_of_library() { recipe } else { &known }.scheduler_keys();
    let keys = keys.complete()?;
    let config = config_of(model, 0.0).map_err(no_such)?;
    let is_dit = recipe.model == Backbone::Dit;
    if is_dit && vae.is_none() || recipe.condition.is_some() || recipe.self_conditioning {
        write_model(folder, model, &config)?;
        return write_text(&folder.join(SCHEDULER), &keys.text());
    }
    if text.is_some() && vae.is_none() {
        return Err(no_such("a pipeline of texts has a VAE, and it diffuses pixels".into()));
    }
    let [network, codec] = match (is_dit, text) {
        (true, _) => ["transformer", "vae"],
        (false, Some(_)) => ["unet", "vae"],
        (false, None) => ["unet", "vqvae"],
    };
    let mut texts = vec![(network, model, config)];
    if let Some(vae) = vae {
        if (is_dit || text.is_some()) && vae.recipe.vae.kind == VaeKind::Vq {
            return Err(no_such(
                "its pipeline decodes with an AutoencoderKL, and its VAE is a VQModel".into(),
            ));
        }
        texts.push((codec, vae, config_of(vae, recipe.scaling_factor).map_err(no_such)?));
    }
    let mut components = Map::new();
    for (name, component, text) in &texts {
        write_model(&folder.join(name), component, text)?;
        components.insert((*name).to_owned(), json!(["diffusers", class_of(component)]));
    }
    if let Some(Text { encoder, tokenizer }) = text {
        let ends = [tokenizer.bos(), tokenizer.eos(), tokenizer.pad()];
        write_text_encoder(&folder.join("text_encoder"), encoder, ends)?;
        tokenizer.save(&folder.join("tokenizer"), encoder.config.max_position_embeddings)?;
        components.insert("text_encoder".to_owned(), json!(["transformers", "CLIPTextModel"]));
        components.insert("tokenizer".to_owned(), json!(["transformers", "CLIPTokenizer"]));
        for absent in ["safety_checker", "feature_extractor", "image_encoder"] {
            components.insert(absent.to_owned(), json!([null, null]));
        }
        components.insert("requires_safety_checker".to_owned(), false.into());
    }
    make(&folder.join("scheduler"))?;
    write_text(&folder.join("scheduler").join(SCHEDULER), &keys.text())?;
    let scheduler = keys.class().unwrap_or_default();
    components.insert("scheduler".to_owned(), json!(["diffusers", scheduler]));
    let class = match (vae, scheduler) {
        (Some(_), _) if is_dit => "DiTPipeline",
        (Some(_), _) if text.is_some() => "StableDiffusionPipeline",
        (Some(_), _) => "LDMPipeline",
        (None, "DDIMScheduler") => "DDIMPipeline",
        (None, _) => "DDPMPipeline",
    };
    if is_dit && !recipe.class_names.is_empty() {
        let names = recipe.class_names.iter().enumerate();
        let names: Map<_, Value> =
            names.map(|(number, name)| (number.to_string(), name.as_str().into())).collect();
        components.insert("id2label".to_owned(), names.into());
    }
    components.insert("_class_name".to_owned(), class.into());
    components.insert("_diffusers_version".to_owned(), LIBRARY_VERSION.into());
    // Last: it makes the folder a pipeline.
    write_text(&folder.join(INDEX), &pretty(&Value::Object(components)))
}

fn class_of(component: &Component) -> &'static str {
    match (component.recipe.system, component.recipe.vae.kind) {
        (System::Vae, VaeKind::Vq) => "VQModel",
        (System::Vae, _) => "AutoencoderKL",
        _ if component.recipe.model == Backbone::Dit => "DiTTransformer2DModel",
        _ if component.recipe.text_width() > 0 => "UNet2DConditionModel",
        _ => "UNet2DModel",
    }
}

/// `config.json` of a component. `factor`: of its latents, where something is trained on them.
fn config_of(component: &Component, factor: f64) -> std::result::Result<String, String> {
    let recipe = &component.recipe;
    if recipe.system != System::Vae {
        let model = match recipe.model {
            Backbone::Conv => {
                return Err("its network is one of denoir's own, which diffusers has not".to_owned());
            }
            Backbone::Unet if !recipe.unet.fourier_features.is_empty() => {
                return Err("its network sees unet.fourier_features, which diffusers has not".to_owned());
            }
            Backbone::Unet => Model::UNet(Box::new(recipe.unet.clone())),
            Backbone::Dit => Model::Dit(Box::new(recipe.dit.clone())),
        };
        return config::text_of(&model, recipe.diffused()[0]);
    }
    let known = [factor, recipe.scaling_factor, 1.0];
    let factor = known.into_iter().find(|&f| f > 0.0).unwrap_or(1.0);
    config::text_of(&Model::Vae(recipe.vae.clone(), factor), recipe.image_size)
}

fn write_model(folder: &Path, component: &Component, config: &str) -> Result<()> {
    make(folder)?;
    let weights = folder.join(format!("{WEIGHTS}.safetensors"));
    // Parameters of a text encoder have a folder of their own, and a schedule that was learned is a list of
    // betas there: both come after the model's.
    let plain = component.recipe.of_denoiser();
    save_plain(&weights, &params_of(&plain).borrow(), &component.weights.f32())?;
    write_text(&folder.join(CONFIG), config)
}
