//! `denoir import`

use std::path::PathBuf;

use super::opening::FileArgs;
use super::{any_text, note, print, thousands};
use crate::checkpoint::{self, Values};
use crate::diffusers::{self, Component};
use crate::error::{Error, Result};
use crate::recipe::{Recipe, System, params_of};
use crate::run::Run;

#[derive(clap::Args)]
pub struct Arguments {
    /// A folder of the diffusers library: a DDPM, latent or Stable Diffusion pipeline, a UNet2DModel, an
    /// AutoencoderKL or a VQModel; or one file of Stable Diffusion
    folder: PathBuf,
    /// Folder of the run
    out: PathBuf,
    /// Training data: digits, faces, shapes, mnist:DIR, cifar10:DIR or images:DIR [default: faces, or digits
    /// for one channel]
    #[arg(long, value_parser = any_text())]
    data: Option<String>,
    /// Override a key of the recipe; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    file: FileArgs,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let out = &arguments.out;
    Run::check_free(Some(out))?;
    let Some(folder) = diffusers::open_any(&arguments.folder, &arguments.file.unsaid())? else {
        return Err(Error::new(format!(
            "{} has no model_index.json and no config.json",
            arguments.folder.display()
        ))
        .hint("give a folder that save_pretrained wrote, or a .safetensors or .ckpt of Stable Diffusion"));
    };
    for remark in &folder.remarks {
        note(&format!("note: {remark}"));
    }
    let Component { recipe: found, weights } = folder.model;
    let recipe = changed(&found, arguments)?;
    let params = params_of(&recipe);
    let params = params.borrow();
    let run = Run::create(Some(out), &recipe)?;
    let _lock = run.lock()?;
    if let Some(vae) = &folder.vae {
        let of_vae = params_of(&vae.recipe);
        checkpoint::save_ema(&run.vae_path(), &of_vae.borrow(), 0, &vae.recipe, &vae.weights.f32())?;
    }
    if let Some(text) = &folder.text {
        let (encoder, tokenizer) = (&text.encoder, &text.tokenizer);
        let ends = [tokenizer.bos(), tokenizer.eos(), tokenizer.pad()];
        diffusers::write_text_encoder(&run.text_encoder_path(), encoder, ends)?;
        tokenizer.save(&run.tokenizer_path(), encoder.config.max_position_embeddings)?;
    }
    let weights = weights.into_f32();
    let rest = vec![0.0; weights.len()];
    let values = Values { sets: [weights.clone(), weights, rest.clone(), rest] };
    checkpoint::save(&run.checkpoint_path(0), &params, 0, Some(&recipe), &values)?;
    // Last: it makes the folder a run.
    run.write_recipe(&recipe)?;
    let (next, command) = match (recipe.check_trainable(), recipe.system) {
        (Ok(()), _) => ("train on with", "train --resume"),
        (Err(_), System::Vae) => ("encode with", "encode"),
        (Err(_), _) => ("sample with", "sample"),
    };
    note(&format!("{} parameters; {next}: denoir {command} {}", thousands(params.count()), out.display()));
    print(&format!("{}\n", out.display()))
}

/// The recipe with the user's changes, which may not change the model.
fn changed(found: &Recipe, arguments: &Arguments) -> Result<Recipe> {
    let mut recipe = found.clone();
    for assignment in &arguments.set {
        recipe.set(assignment)?;
    }
    if let Some(data) = &arguments.data {
        recipe.data.clone_from(data);
    }
    recipe.validate()?;
    // Dropout alone has no weights and changes no answer.
    let (mut unet, mut dit) = (recipe.unet.clone(), recipe.dit.clone());
    (unet.dropout, dit.dropout) = (found.unet.dropout, found.dit.dropout);
    let kept = |r: &Recipe| {
        let latents = (r.latent_size, r.scaling_factor, r.vae_fingerprint.clone());
        (r.model, latents, r.prediction_type, r.trains_text(), r.is_laid_over(), r.text.clone())
    };
    if (unet, dit, &recipe.vae) != (found.unet.clone(), found.dit.clone(), &found.vae)
        || kept(&recipe) != kept(found)
    {
        return Err(Error::usage("--set: the weights are those of the folder's own model").hint(
            "leave model, prediction_type, train_text_encoder, lora_rank, placeholder_token and the unet, \
             dit, text, vae and latent keys as they are, but dropout",
        ));
    }
    Ok(recipe)
}
