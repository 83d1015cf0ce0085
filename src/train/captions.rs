//! The texts of training: the captions of images, as tokens.

use std::sync::Arc;

use super::batch::Input;
use super::latents::images_of;
use crate::data::{Captions, Dataset, is_of_class, shapes};
use crate::error::{Error, Result};
use crate::names::path_of;
use crate::philox::{Stream, below, draw, uniform};
use crate::recipe::Recipe;
use crate::tokenizer::Tokenizer;

/// The tokenizer that a recipe names.
///
/// # Errors
/// When its folder cannot be read.
pub(super) fn tokenizer_of(recipe: &Recipe) -> Result<Tokenizer> {
    match recipe.tokenizer.as_str() {
        "bytes" => Ok(Tokenizer::of_merges(&[])),
        "shapes" => {
            let merges = shapes::merges();
            let merges: Vec<(&str, &str)> = merges.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
            Ok(Tokenizer::of_merges(&merges))
        }
        folder => Tokenizer::open(&path_of(folder)),
    }
}

/// Weights of a step's samples, of which some are pictures of a class.
pub(super) fn sample_weights(recipe: &Recipe) -> Input<f32, 2> {
    Input::new("sample_weights", [recipe.batch_size, 1])
}

/// The captions of a data set and what turns them into tokens.
pub(crate) struct Captioned {
    pub tokenizer: Tokenizer,
    captions: Captions,
    /// What they are of.
    data: Arc<dyn Dataset>,
    /// Images that there are captions of; samples of greater numbers are the same mirrored.
    images: u64,
    seed: u64,
    /// How many captions, of 1, become the empty one.
    dropout: f32,
    /// Tokens of a text.
    length: usize,
}

impl Captioned {
    /// Of the data that a recipe trains on.
    ///
    /// # Errors
    /// When it has no captions, or the text encoder has not all of the tokenizer's tokens.
    pub(super) fn new(recipe: &Recipe, tokenizer: Tokenizer, data: Arc<dyn Dataset>) -> Result<Captioned> {
        let Some(captions) = data.captions()? else {
            return Err(Error::usage("the model learns from captions, and the data has none").hint(
                "write metadata.jsonl (lines {\"file_name\": \"a.png\", \"text\": \"...\"}), or a text file \
                 beside each picture",
            ));
        };
        let (tokens, known) = (tokenizer.size(), recipe.text.vocab_size);
        if tokens > known {
            return Err(Error::usage(format!(
                "text.vocab_size is {known}, and the tokenizer has {tokens} tokens"
            ))
            .hint(format!("give --set text.vocab_size={tokens}")));
        }
        let images =
            if recipe.caches_latents() { images_of(&*data, recipe) } else { data.len().unwrap_or(u64::MAX) };
        let (seed, dropout) = (recipe.seed, recipe.caption_dropout as f32);
        let length = recipe.text.max_position_embeddings;
        Ok(Captioned { tokenizer, captions, data, images, seed, dropout, length })
    }

    /// Tokens `[N, length]` of these samples, the first of which is number `first` of its step: one caption
    /// of each image, or the empty one.
    pub(super) fn tokens(&self, samples: &[u64], step: u32, first: u32) -> Vec<u32> {
        let of = |(&sample, number): (&u64, u32)| {
            let captions = self.captions.of(self.data.shown(sample % self.images));
            let [drops, which, ..] = draw(self.seed, Stream::Captions as u32, step, number, 0);
            let caption = match uniform(drops) < self.dropout {
                true => "",
                false => &captions[below(which, captions.len())],
            };
            self.tokenizer.prompt(caption, self.length).ids
        };
        samples.iter().zip(first..).flat_map(of).collect()
    }

    /// Which row of the word that a recipe learns, the last of the tokenizer's, each of these tokens is; of
    /// other tokens a number past its rows.
    pub(super) fn places(&self, recipe: &Recipe, tokens: &[u32]) -> Vec<u32> {
        let first = (self.tokenizer.size() - recipe.num_vectors) as u32;
        tokens.iter().map(|token| token.wrapping_sub(first)).collect()
    }

    /// Whether a sample is a picture of the class, beside those of an instance.
    pub(super) fn is_of_class(&self, sample: u64) -> bool {
        is_of_class(sample % self.images)
    }

    /// The first captions of the first `count` images.
    pub(super) fn first(&self, count: usize) -> Vec<String> {
        let count = (count as u64).min(self.images);
        (0..count).map(|index| self.captions.of(index)[0].clone()).collect()
    }
}
