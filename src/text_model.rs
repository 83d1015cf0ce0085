//! A text encoder at work: prompts to what a diffusion model sees of them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;

use crate::device::{Buffer, Device};
use crate::diffusers::{Text, text_params};
use crate::error::Result;
use crate::models::clip::{TextConfig, clip_text};
use crate::nn::{self, Params, Scope};
use crate::program::{Plan, Program, Sharing, halves};
use crate::recipe::{Recipe, TEXT_MODULE};
use crate::tape::{Tape, Tensor};
use crate::tokenizer::Tokenizer;

/// Prompts that are embedded at a time.
const BATCH: usize = 16;

/// Embedded prompts, and what guidance leads away from.
#[derive(Clone)]
pub struct Texts {
    /// Tokens of a text, and numbers of each.
    pub shape: [usize; 2],
    /// `[P, tokens, width]`.
    pub prompts: Rc<[f32]>,
    /// Of the same shape: the prediction without the prompt is the one with this text.
    pub negatives: Rc<[f32]>,
    /// Samples of each prompt, one after another; after the last prompt the first follows.
    pub each: usize,
}

impl Texts {
    /// Zeros, to measure times with.
    pub(crate) fn nothing(recipe: &Recipe) -> Texts {
        let shape = [recipe.text.max_position_embeddings, recipe.text_width()];
        let zeros: Rc<[f32]> = vec![0.0; shape.iter().product()].into();
        Texts { shape, prompts: Rc::clone(&zeros), negatives: zeros, each: 1 }
    }

    /// Samples of all prompts.
    pub(crate) fn count(&self) -> usize {
        self.prompts.len() / self.shape.iter().product::<usize>() * self.each
    }

    /// Those of `count` samples from number `first` on, out of `all` prompts or negatives.
    fn of_samples(&self, all: &[f32], first: usize, count: usize) -> Vec<f32> {
        let size = self.shape.iter().product::<usize>();
        let known = all.len() / size;
        let of_prompt = |i: usize| &all[i / self.each % known * size..][..size];
        (first..first + count).flat_map(of_prompt).copied().collect()
    }

    /// What the model is told of a batch of samples: their prompts, or with `twice` these and then the
    /// negatives; with a `scale` of guidance of 0 the negatives alone.
    pub(crate) fn told(&self, first: usize, batch: usize, twice: bool, scale: f64) -> Vec<f32> {
        let mut told = match scale == 0.0 {
            true => self.of_samples(&self.negatives, first, batch),
            false => self.of_samples(&self.prompts, first, batch),
        };
        if twice {
            told.extend(self.of_samples(&self.negatives, first, batch));
        }
        told
    }
}

/// A text encoder and its tokenizer, on a device.
pub struct TextModel {
    device: Device,
    config: TextConfig,
    tokenizer: Tokenizer,
    params: Rc<RefCell<Params>>,
    weights: Buffer,
}

/// What is drawn from prompts: see [`TextModel::texts`].
pub struct Told {
    /// The texts, embedded.
    pub texts: Texts,
    /// The parts of prompts that did not fit, which the model does not see.
    pub cut: Vec<String>,
}

impl TextModel {
    /// One whose parameters are among `params`, in a module `text_model`.
    pub(crate) fn new(
        device: &Device,
        config: &TextConfig,
        tokenizer: Tokenizer,
        params: Rc<RefCell<Params>>,
        weights: Buffer,
    ) -> Self {
        TextModel { device: device.clone(), config: config.clone(), tokenizer, params, weights }
    }

    /// That of a folder.
    ///
    /// # Errors
    /// When it does not fit into memory.
    pub(crate) fn of_folder(text: Text, device: &Device) -> Result<Self> {
        let params = text_params(&text.encoder.config);
        let weights = text.encoder.weights.upload(device, "text encoder", &mut params.borrow_mut())?;
        Ok(TextModel::new(device, &text.encoder.config, text.tokenizer, params, weights))
    }

    /// The options of the model.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Embeds token numbers `[P, tokens]`, of at most `max_position_embeddings` tokens, to `[P, tokens,
    /// hidden_size]`. `skip`: layers at the end that are left out.
    ///
    /// # Errors
    /// When memory is too small, or the driver reports an error.
    ///
    /// # Panics
    /// When no layer is left.
    #[track_caller]
    pub fn embed(&self, ids: &[u32], tokens: usize, skip: usize) -> Result<Vec<f32>> {
        let most = (ids.len() / tokens).clamp(1, BATCH);
        let (plan, (batch, out)) = Plan::of_batch(&self.device, halves(most), |batch| {
            let tape = Tape::new();
            let scope = Scope::new(&tape, &self.params).sub(TEXT_MODULE);
            let out = clip_text(&self.config, &scope, &tape.stored_u32("ids", [batch, tokens]), skip);
            (Plan::new(&tape, &[&out], &self.device), (batch, out))
        });
        let stores = [(nn::STORE, &self.weights)];
        let mut program = Program::compile(&plan, &self.device, &stores, Sharing::Shared)?;
        let mut all = Vec::new();
        for chunk in ids.chunks(batch * tokens) {
            // The rest of a short chunk repeats the one before, and is dropped.
            program.write_at("ids", 0, chunk)?;
            program.run()?;
            let out = program.read(&out)?;
            all.extend_from_slice(&out[..chunk.len() * self.config.hidden_size]);
        }
        Ok(all)
    }

    /// Records the encoder of `count` texts `ids`, u32 `[count, tokens]`, with its parameters in a store of
    /// this name.
    pub(crate) fn recorded(&self, tape: &Tape, count: usize, store: &str) -> Tensor {
        let scope = Scope::frozen(tape, &self.params, store).sub(TEXT_MODULE);
        let ids = tape.stored_u32("ids", [count, self.config.max_position_embeddings]);
        clip_text(&self.config, &scope, &ids, 0)
    }

    /// Whether its parameters are among these.
    pub(crate) fn is_among(&self, params: &Rc<RefCell<Params>>) -> bool {
        Rc::ptr_eq(&self.params, params)
    }

    /// Its device, parameters and weights.
    pub(crate) fn parts(&self) -> (&Device, &Rc<RefCell<Params>>, &Buffer) {
        (&self.device, &self.params, &self.weights)
    }

    /// The texts of `prompts`, each of `each` samples, against `negatives`, one for each prompt or one for
    /// all.
    ///
    /// # Errors
    /// As [`TextModel::embed`].
    ///
    /// # Panics
    /// When there are no prompts, or no layer is left.
    #[track_caller]
    pub fn texts(&self, prompts: &[String], negatives: &[String], each: usize, skip: usize) -> Result<Told> {
        let tokens = self.config.max_position_embeddings;
        let mut cut = Vec::new();
        let mut ids = Vec::new();
        // A text that many samples share is embedded once.
        let mut known: HashMap<&String, usize> = HashMap::new();
        for text in prompts.iter().chain(negatives) {
            let next = known.len();
            if let Entry::Vacant(new) = known.entry(text) {
                let prompt = self.tokenizer.prompt(text, tokens);
                cut.extend(prompt.cut);
                ids.extend(prompt.ids);
                new.insert(next);
            }
        }
        let all = self.embed(&ids, tokens, skip)?;
        let size = tokens * self.config.hidden_size;
        let of = |texts: &mut dyn Iterator<Item = &String>| -> Vec<f32> {
            texts.flat_map(|text| &all[known[text] * size..][..size]).copied().collect()
        };
        let texts = Texts {
            shape: [tokens, self.config.hidden_size],
            prompts: of(&mut prompts.iter()).into(),
            negatives: of(&mut negatives.iter().cycle().take(prompts.len())).into(),
            each,
        };
        Ok(Told { texts, cut })
    }
}
