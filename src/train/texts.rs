//! The texts of a training step, and the frozen models that it reads.

use std::rc::Rc;

use super::batch::{Batch, BatchWriter, Input};
use super::captions::sample_weights;
use super::objective::Objective;
use crate::diffusers::text_params;
use crate::error::Result;
use crate::models::clip::{Word, clip_text_with};
use crate::nn::Scope;
use crate::recipe::{TEXT_MODULE, params_of};
use crate::tape::Tensor;

/// Store of the weights of a diffusion model that something is trained over.
const BASE: &str = "base";
/// Store of the weights of a text encoder that is not trained.
const TEXT: &str = "text encoder";
/// Stores of weights that are not trained.
pub(super) const FROZEN: [&str; 2] = [BASE, TEXT];

impl Objective {
    /// Tokens of a step's captions.
    fn tokens(&self) -> Input<u32, 2> {
        Input::new("tokens", [self.recipe.batch_size, self.recipe.text.max_position_embeddings])
    }

    /// Which row of a word that is learned each of these tokens is.
    fn places(&self) -> Input<u32, 2> {
        Input::new("word", [self.recipe.batch_size, self.recipe.text.max_position_embeddings])
    }

    /// The captions of a batch as the model sees them, `[N, tokens, D]`.
    pub(super) fn text(&self, scope: &Scope, batch: &Batch) -> Option<Tensor> {
        if self.recipe.text_width() == 0 {
            return None;
        }
        let tokens = batch.input(self.tokens());
        let word = self.recipe.learns_word();
        let word = word.then(|| (self.recipe.word(scope), batch.input(self.places())));
        let own = || text_params(&self.recipe.text);
        let scope = if self.recipe.trains_text() {
            scope.clone()
        } else {
            let params = self.text.as_ref().map_or_else(own, |(params, _)| Rc::clone(params));
            if let Some((_, weights)) = &self.text {
                batch.bind(TEXT, weights);
            }
            let frozen = Scope::frozen(batch.tape(), &params, TEXT);
            let adapts = self.recipe.train_text_encoder || word.is_some();
            if adapts { self.recipe.adapted(frozen, scope) } else { frozen }
        };
        let word = word.as_ref().map(|(rows, places)| Word { rows, places });
        Some(clip_text_with(&self.recipe.text, &scope.sub(TEXT_MODULE), &tokens, word, 0))
    }

    /// Writes the captions of samples, and what these weigh.
    pub(super) fn write_texts(&self, batch: &mut BatchWriter, samples: &[u64]) -> Result<()> {
        let Some(captions) = &self.captions else { return self.write_no_texts(batch, samples.len()) };
        let tokens = captions.tokens(samples, batch.step() as u32, batch.first_sample());
        batch.write(self.tokens(), &tokens)?;
        if self.recipe.learns_word() {
            batch.write(self.places(), &captions.places(&self.recipe, &tokens))?;
        }
        if self.recipe.keeps_prior() {
            // The mean over a step is the sum of two means, of the instances and of their class.
            let prior = self.recipe.prior_loss_weight as f32;
            let weight = |sample: &u64| 2.0 * if captions.is_of_class(*sample) { prior } else { 1.0 };
            let weights: Vec<f32> = samples.iter().map(weight).collect();
            batch.write(sample_weights(&self.recipe), &weights)?;
        }
        Ok(())
    }

    /// Stands in for captions where a step is timed without data.
    fn write_no_texts(&self, batch: &mut BatchWriter, samples: usize) -> Result<()> {
        if self.recipe.text_width() > 0 {
            let tokens = vec![0; samples * self.recipe.text.max_position_embeddings];
            batch.write(self.tokens(), &tokens)?;
            if self.recipe.learns_word() {
                batch.write(self.places(), &tokens)?;
            }
        }
        if self.recipe.keeps_prior() {
            batch.write(sample_weights(&self.recipe), &vec![1.0; samples])?;
        }
        Ok(())
    }

    /// The model beneath adapters, with these, or beneath a word.
    pub(super) fn adapted(&self, scope: &Scope, batch: &Batch) -> Option<Scope> {
        if !self.recipe.is_laid_over() {
            return None;
        }
        let own = || params_of(&self.recipe.of_denoiser());
        let params = self.base.as_ref().map_or_else(own, |(params, _)| Rc::clone(params));
        if let Some((_, weights)) = &self.base {
            batch.bind(BASE, weights);
        }
        Some(self.recipe.adapted(Scope::frozen(batch.tape(), &params, BASE), scope))
    }
}
