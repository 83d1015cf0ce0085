//! The texts that samples are drawn from, embedded.

use std::rc::Rc;

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
    /// Those of `count` samples from number `first` on, out of `all` prompts or negatives.
    fn of_samples(&self, all: &[f32], first: usize, count: usize) -> Vec<f32> {
        let size = self.shape.iter().product::<usize>();
        let known = all.len() / size;
        let of_prompt = |i: usize| &all[i / self.each % known * size..][..size];
        (first..first + count).flat_map(of_prompt).copied().collect()
    }

    /// What the model is told of a batch of samples: their prompts, or with `twice` these and then the
    /// negatives; with a `scale` of guidance of 0 the negatives alone.
    pub(super) fn told(&self, first: usize, batch: usize, twice: bool, scale: f64) -> Vec<f32> {
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
