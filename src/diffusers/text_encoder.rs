//! The text encoder of a pipeline, a folder of its own that the transformers library saved: read and written.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use super::config::{text_model, text_of_text_model};
use super::inversion::Embedding;
use super::load::{flat_weights, held_of, of_text_model};
use super::{CONFIG, MOST_BYTES, make, write_text, wrong};
use crate::checkpoint::save_plain;
use crate::error::Result;
use crate::models::clip::{TextConfig, clip_text};
use crate::models::unet::UNetConfig;
use crate::nn::{Flat, Params, Scope};
use crate::recipe::{Recipe, TEXT_MODULE, params_of};
use crate::tape::Tape;
use crate::tokenizer::Tokenizer;
use crate::weights::{Weights, read_text};

/// The library's names of the weights, without the ending: today's, and the one of pickles.
const WEIGHTS: [&str; 2] = ["model", "pytorch_model"];

/// A text model with its weights.
#[derive(Clone)]
pub struct TextEncoder {
    /// Its options, which are valid.
    pub config: TextConfig,
    /// In the layout of [`text_params`].
    pub weights: Flat,
}

/// The text encoder of a pipeline, and what turns text into its tokens.
pub struct Text {
    /// The encoder.
    pub encoder: TextEncoder,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
}

impl Text {
    /// The two for this U-Net, or why they are not.
    pub(super) fn of(
        unet: &UNetConfig,
        encoder: TextEncoder,
        tokenizer: Tokenizer,
    ) -> std::result::Result<Text, String> {
        let (width, wanted) = (encoder.config.hidden_size, unet.text_width());
        if width != wanted {
            return Err(format!("its text encoder is {width} wide, and its unet sees {wanted}"));
        }
        let (tokens, known) = (tokenizer.size(), encoder.config.vocab_size);
        if tokens > known {
            return Err(format!("its tokenizer has {tokens} tokens, and its text encoder {known}"));
        }
        Ok(Text { encoder, tokenizer })
    }

    /// Adds the word of a textual inversion: tokens, and their rows in the encoder's table.
    ///
    /// # Errors
    /// When the word is a token already, or there are too many.
    ///
    /// # Panics
    /// When the rows are not as wide as the encoder.
    #[track_caller]
    pub fn add_word(&mut self, word: &Embedding) -> Result<()> {
        let width = self.encoder.config.hidden_size;
        assert_eq!(word.width, width, "rows of another width");
        let first = self.tokenizer.add_word(&word.tokens())? as usize;
        let old = text_params(&self.encoder.config);
        let config = &mut self.encoder.config;
        config.vocab_size = config.vocab_size.max(self.tokenizer.size());
        config.validate()?;
        let new = text_params(config);
        let new = new.borrow();
        let mut weights = vec![0.0; new.elements()];
        for spec in old.borrow().specs() {
            let Some(at) = new.find(&spec.name).map(|spec| spec.first) else { continue };
            // The table is longer now; all else is as it was.
            let own = self.encoder.weights.part(spec.first..spec.first + spec.shape.elements());
            weights[at..at + own.len()].copy_from_slice(&own);
        }
        put_rows(&new, &mut weights, first * width, &word.values);
        self.encoder.weights = weights.into();
        Ok(())
    }

    /// The row of a token.
    ///
    /// # Panics
    /// When there is no such token.
    #[track_caller]
    pub(crate) fn row(&self, token: u32) -> Vec<f32> {
        let (params, width) = (text_params(&self.encoder.config), self.encoder.config.hidden_size);
        let first = table_of(&params.borrow()).unwrap_or_else(|| unreachable!("a text model has a table"));
        let first = first + token as usize * width;
        self.encoder.weights.part(first..first + width).into_owned()
    }
}

/// First element of the table of tokens among parameters of a text model.
fn table_of(params: &Params) -> Option<usize> {
    params.find(&format!("{TEXT_MODULE}.embeddings.token_embedding.weight")).map(|table| table.first)
}

/// Puts rows into the table of tokens, if it is among the parameters `flat`, from its element `at` on.
pub(crate) fn put_rows(params: &Params, flat: &mut [f32], at: usize, rows: &[f32]) {
    if let Some(first) = table_of(params) {
        flat[first + at..][..rows.len()].copy_from_slice(rows);
    }
}

/// The parameters of a text model, under their names in files: all in a module `text_model`.
///
/// # Panics
/// When the configuration is not valid.
pub fn text_params(config: &TextConfig) -> Rc<RefCell<Params>> {
    let (tape, params) = (Tape::new(), Rc::default());
    clip_text(config, &Scope::new(&tape, &params).sub(TEXT_MODULE), &tape.stored_u32("ids", [1, 1]), 0);
    params
}

impl Text {
    /// Tells a text encoder and the weights of a diffusion model from others.
    pub(crate) fn fingerprint_with(&self, weights: &Flat) -> String {
        format!("{}-{}", weights.fingerprint(), self.encoder.weights.fingerprint())
    }
}

impl TextEncoder {
    /// That of a recipe, among the parameters `values` that it is trained with.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn among(recipe: &Recipe, values: &[f32]) -> TextEncoder {
        assert!(recipe.trains_text(), "the text encoder is not among the parameters");
        let first = params_of(&recipe.of_denoiser()).borrow().elements();
        let count = text_params(&recipe.text).borrow().elements();
        TextEncoder { config: recipe.text.clone(), weights: values[first..first + count].to_vec().into() }
    }
}

/// Reads the folder of a text encoder: `config.json`, and `model.safetensors` or what older versions wrote.
///
/// # Errors
/// When a file is missing or damaged, or says something that denoir does not have.
pub fn open_text_encoder(folder: &Path) -> Result<TextEncoder> {
    let path = folder.join(CONFIG);
    let config = text_model(&read_text(&path, MOST_BYTES)?).map_err(|reason| wrong(&path, &reason))?;
    config.validate().map_err(|e| e.in_a_file().caused_by(format!("in {}", path.display())))?;
    for stem in WEIGHTS {
        if let Some(weights) = Weights::find(folder, stem)? {
            let held = held_of(&weights, of_text_model);
            let weights = flat_weights(&weights, &text_params(&config).borrow(), held, "its config.json")?;
            return Ok(TextEncoder { config, weights });
        }
    }
    Err(wrong(folder, &format!("there is no {}.safetensors and no {}.bin", WEIGHTS[0], WEIGHTS[1])))
}

/// Writes the folder of a text encoder, for every version of the library. `ends`: the numbers of the tokens
/// that begin, end and pad a text.
///
/// # Errors
/// When the folder or a file cannot be written.
pub fn write_text_encoder(folder: &Path, encoder: &TextEncoder, ends: [u32; 3]) -> Result<()> {
    make(folder)?;
    let weights = folder.join(format!("{}.safetensors", WEIGHTS[0]));
    save_plain(&weights, &text_params(&encoder.config).borrow(), &encoder.weights.f32())?;
    write_text(&folder.join(CONFIG), &text_of_text_model(&encoder.config, ends))
}
