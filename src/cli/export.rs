//! `denoir export`

use std::path::{Path, PathBuf};

use super::{note, print};
use crate::checkpoint::{self, Loaded};
use crate::data::ConditionKind;
use crate::diffusers::inversion::{self, Embedding};
use crate::diffusers::{self, Component, Text, TextEncoder, lora};
use crate::error::{Error, Result};
use crate::recipe::{System, params_of, trained_params_of};
use crate::run::Run;
use crate::tokenizer::Tokenizer;

#[derive(clap::Args)]
pub struct Arguments {
    /// A run folder, or one of its checkpoints
    run: PathBuf,
    /// A new folder, for StableDiffusionPipeline, DDPMPipeline, LDMPipeline or AutoencoderKL to load
    folder: PathBuf,
    /// Which weights: their moving average (ema), or those of the last step (model)
    #[arg(long, default_value = "ema", value_parser = ["ema", "model"])]
    weights: String,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let folder = &arguments.folder;
    diffusers::check_free(folder)?;
    let (loaded, run) = Run::checkpoint_of(&arguments.run)?;
    if loaded.recipe.system == System::Classifier {
        let what = format!("{} is a classifier, for which diffusers has no class", arguments.run.display());
        return Err(Error::new(what).hint("export a diffusion run or a VAE"));
    }
    if loaded.recipe.is_laid_over() {
        return laid_over(arguments, &loaded);
    }
    let model = component(&loaded, &arguments.weights)?;
    let vae = match (model.recipe.system, run) {
        (System::Ldm, Some(run)) => Some(component(&checkpoint::load(&run.vae_path())?, "ema")?),
        (System::Ldm, None) => {
            return Err(Error::new(format!("{} is outside its run folder", arguments.run.display()))
                .hint("give the run: its VAE is needed too"));
        }
        _ => None,
    };
    let text = text_of(&arguments.run, &model)?;
    diffusers::write(folder, &model, vae.as_ref(), text.as_ref())?;
    if model.recipe.condition.is_some() {
        note("note: a model alone, for no pipeline gives it conditions: join them to the noisy images");
        if model.recipe.condition.kind == ConditionKind::Mask {
            note("note: it sees known pixels in the place of noisy ones");
        }
    }
    if model.recipe.self_conditioning {
        note("note: a model alone: it sees the x0 that it predicted before, behind the noisy images");
    }
    print(&format!("{}\n", folder.display()))
}

/// Adapters or a word alone, as the library's pipelines load them.
fn laid_over(arguments: &Arguments, loaded: &Loaded) -> Result<()> {
    let (recipe, params) = (&loaded.recipe, trained_params_of(&loaded.recipe));
    let values = loaded.set(&arguments.weights, &params.borrow())?;
    std::fs::create_dir_all(&arguments.folder).map_err(|e| {
        Error::new(format!("cannot make {}", arguments.folder.display())).hint("choose another").caused_by(e)
    })?;
    let base = &recipe.base;
    if recipe.learns_word() {
        let word = Embedding::of_run(recipe, &values);
        inversion::write(&arguments.folder.join("learned_embeds.safetensors"), &word)?;
        let uses = "for load_textual_inversion or denoir sample --embedding";
        note(&format!("note: the word {} of {base}, {uses}", word.token));
    } else {
        let file = arguments.folder.join("pytorch_lora_weights.safetensors");
        lora::write(&file, &lora::of_run(&params.borrow(), &values, recipe.lora_scale()))?;
        note(&format!("note: adapters of {base}, for load_lora_weights or denoir sample --lora"));
    }
    print(&format!("{}\n", arguments.folder.display()))
}

/// The text encoder and tokenizer of a model that sees texts.
fn text_of(path: &Path, model: &Component) -> Result<Option<Text>> {
    if model.recipe.text_width() == 0 {
        return Ok(None);
    }
    let (_, run) = Run::checkpoint_of(path)?;
    let Some(run) = run else {
        return Err(Error::new(format!("{} is outside its run folder", path.display()))
            .hint("give the run: its tokenizer is needed too"));
    };
    let encoder = match model.recipe.train_text_encoder {
        true => TextEncoder::among(&model.recipe, &model.weights.f32()),
        false => diffusers::open_text_encoder(&run.text_encoder_path())?,
    };
    Ok(Some(Text { encoder, tokenizer: Tokenizer::open(&run.tokenizer_path())? }))
}

fn component(loaded: &Loaded, set: &str) -> Result<Component> {
    loaded.recipe.validate().map_err(Error::in_a_file)?;
    let weights = loaded.set(set, &params_of(&loaded.recipe).borrow())?;
    let mut recipe = loaded.recipe.clone();
    // That of these weights, not of their moving average.
    recipe.set_learned_schedule(&params_of(&recipe).borrow(), &weights);
    Ok(Component { recipe, weights: weights.into() })
}
