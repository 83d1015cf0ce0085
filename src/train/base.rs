//! The model that training begins with: of a folder, to be trained on, or to be frozen beneath adapters.

use std::path::Path;
use std::rc::Rc;

use super::captions::Captioned;
use crate::codec::Codec;
use crate::device::Device;
use crate::diffusers::inversion::Embedding;
use crate::diffusers::{self, Folder, TextEncoder, Unsaid};
use crate::error::{Error, Result, need};
use crate::names::{path_of, shown};
use crate::nn::Flat;
use crate::recipe::Recipe;
use crate::run::Run;

/// A diffusion model with all that it needs, to begin with.
pub(super) struct Base {
    /// The diffusion model's parameters.
    weights: Flat,
    /// Its VAE, for images of the recipe's size.
    pub codec: Codec,
    /// Its text encoder and tokenizer.
    pub text: diffusers::Text,
}

/// The VAE of a model of texts, of which `recipe` becomes one that trains it.
///
/// # Errors
/// When the model cannot be read, is no such model, or its images cannot have the recipe's size.
pub(crate) fn codec_of_base(
    path: &Path,
    unsaid: &Unsaid,
    recipe: &mut Recipe,
    device: &Device,
) -> Result<Codec> {
    Base::open(path, unsaid, recipe, device).map(|base| base.codec)
}

/// What a trainer has beside its recipe and its VAE.
#[derive(Default)]
pub(super) struct Beside {
    /// The captions of a model that sees texts.
    pub captions: Option<Rc<Captioned>>,
    /// The text encoder that is not trained, but for adapters or a word.
    pub text: Option<TextEncoder>,
    /// Parameters of the diffusion model (and of a text encoder that is trained): initial ones, or those that
    /// adapters or a word are laid over.
    pub weights: Option<Flat>,
    /// The rows that a word begins with.
    pub word: Option<Vec<f32>>,
}

/// Gives a text encoder the word that a recipe learns, as zeros: its rows, which are trained, are added.
/// Returns the rows that it begins with.
///
/// # Errors
/// When the word that it begins with is more than a token, or the new one is a token already.
pub(super) fn add_word(recipe: &Recipe, text: &mut diffusers::Text) -> Result<Vec<f32>> {
    let first = &recipe.initializer_token;
    let pieces = text.tokenizer.encode(first);
    let &[token] = &pieces[..] else {
        let message = format!("initializer_token is {first:?}, {} tokens of this model", pieces.len());
        return Err(Error::usage(message).hint("choose a word of one token: a short, common one"));
    };
    let rows = text.row(token).repeat(recipe.num_vectors);
    let (token, width) = (recipe.placeholder_token.clone(), recipe.text.hidden_size);
    text.add_word(&Embedding { token, width, values: vec![0.0; rows.len()] })?;
    Ok(rows)
}

impl Base {
    /// Opens a model of texts, a folder or a file that leaves things `unsaid`, and makes `recipe` one that
    /// trains it.
    ///
    /// # Errors
    /// When it cannot be read, is no such model, or its images cannot have the recipe's size.
    pub fn open(path: &Path, unsaid: &Unsaid, recipe: &mut Recipe, device: &Device) -> Result<Base> {
        let folder = diffusers::open_any(path, unsaid)?;
        let Some(Folder { model, vae: Some(mut vae), text: Some(text), .. }) = folder else {
            return Err(Error::usage(format!("{} is no model of texts with a VAE", path.display())).hint(
                "give a folder of a StableDiffusionPipeline (`denoir export` makes one of a run), or one \
                 file of Stable Diffusion",
            ));
        };
        let theirs = &model.recipe;
        let unit = vae.recipe.image_size / theirs.latent_size.max(1);
        let message = format!("image_size is {}, and a latent stands for {unit} pixels", recipe.image_size);
        need(recipe.image_size.is_multiple_of(unit.max(1)), message, format!("choose a multiple of {unit}"))?;
        vae.recipe.image_size = recipe.image_size;
        recipe.based_on(theirs);
        recipe.latent_size = recipe.image_size / unit;
        recipe.base = shown(path.canonicalize().unwrap_or_else(|_| path.to_owned()).as_os_str());
        recipe.base_fingerprint = text.fingerprint_with(&model.weights);
        recipe.validate()?;
        let codec = Codec::of_component(vae, device)?;
        codec.fingerprint().clone_into(&mut recipe.vae_fingerprint);
        Ok(Base { weights: model.weights, codec, text })
    }

    /// Opens the model that a run began with, once more.
    ///
    /// # Errors
    /// As [`Base::open`], and when it is another by now.
    pub fn again(run: &Run, recipe: &Recipe, device: &Device) -> Result<Base> {
        let path = path_of(&recipe.base);
        let unsaid = Unsaid::kept(&path, run.tokenizer_path(), recipe.prediction_type);
        let base = Base::open(&path, &unsaid, &mut recipe.clone(), device)?;
        let is_same = base.text.fingerprint_with(&base.weights) == recipe.base_fingerprint;
        let message = format!("{} is not the model that this run began with", path.display());
        need(is_same, message, "put that one back")?;
        Ok(base)
    }

    /// What a trainer of the recipe begins with.
    pub fn beside(self, recipe: &Recipe) -> (Codec, diffusers::Text, Flat) {
        let mut weights = self.weights;
        if recipe.trains_text() {
            weights.widen().extend_from_slice(&self.text.encoder.weights.f32());
        }
        (self.codec, self.text, weights)
    }
}
