//! A codebook in training: the terms of its loss, and what a step writes beside the gradient.

use super::batch::{Batch, Loss};
use crate::models::codebook::{CODEBOOK, COUNTS, Quantised, quantise};
use crate::nn::{self, Params, Scope, Spec};
use crate::ops::arithmetic::{add, affine};
use crate::ops::codebook::{CodebookOptions, CodebookTensors, gather_codes, statistics_of, update_codebook};
use crate::ops::quantise::{perplexity, usage};
use crate::recipe::{Codebook, Recipe};
use crate::tape::{Tape, Tensor};

/// Store of what a step's latents say about the codes.
pub(super) const STATISTICS: &str = "statistics";
/// Names of the numbers that are reported: the mean squared distance between latents and codes, before its
/// weights, and how many codes the batch uses, as the exponential of the entropy of their use.
pub(super) const DISTANCE: &str = "codebook";
pub(super) const PERPLEXITY: &str = "perplexity";

/// Latents rounded to the codebook, and what the loss has of it.
pub(super) struct Codes {
    /// What the decoder sees.
    pub latents: Tensor,
    /// Weighted distance of the latents from their codes, `[1]`.
    term: Tensor,
    distance: Tensor,
    perplexity: Tensor,
}

impl Codes {
    /// Of latents `z [N, h, w, C]` of images of `values` numbers.
    pub fn new(recipe: &Recipe, scope: &Scope, batch: &Batch, z: &Tensor, values: usize) -> Codes {
        let Quantised { latents, rows: [rows, index], commitment, of_codes } =
            quantise(&recipe.vae, scope, z);
        scope.sub("quantize").label(|| {
            let [vectors, width] = rows.shape().of_rank("codes");
            let codes = recipe.vae.num_vq_embeddings;
            let used = usage(&index, codes);
            let numbers = [vectors / recipe.batch_size, vectors * recipe.accumulation as usize];
            let statistics = statistics(batch.tape(), codes, width);
            gather_codes(&statistics, &rows, [&index, &used], numbers, batch.state());
            // These are averaged over the numbers of the latents, where a reconstruction is summed over those
            // of an image: the weights are as between averages.
            let weight = recipe.codebook_weight * values as f64;
            let committed = affine(&commitment, (weight * recipe.commitment) as f32, 0.0);
            let term = match recipe.codebook {
                Codebook::Gradient => add(&affine(&of_codes, weight as f32, 0.0), &committed),
                Codebook::Ema => committed,
            };
            Codes { latents, term, distance: commitment, perplexity: perplexity(&used, vectors) }
        })
    }

    /// The whole loss, and its numbers of the codebook.
    pub fn loss(&self, reconstruction: &Tensor) -> Loss {
        let total = add(reconstruction, &self.term);
        Loss::from(total).with(DISTANCE, &self.distance).with(PERPLEXITY, &self.perplexity)
    }
}

fn statistics(tape: &Tape, codes: usize, width: usize) -> Tensor {
    tape.stored(STATISTICS, 0, [statistics_of(codes, width)])
}

/// Records what a step does to the codebook among `params`: before the optimiser, so that the moving average
/// of the weights sees it. `sets`: names of the stores of weights, moving average and moments.
pub(super) fn record_update(
    tape: &Tape,
    options: CodebookOptions,
    params: &Params,
    sets: [&str; 4],
    norm: &Tensor,
) {
    let [codes, counts] = [CODEBOOK, COUNTS].map(|name| params.find(name));
    let (Some(codes), Some(counts)) = (codes, counts) else {
        panic!("the objective has no {CODEBOOK} with {COUNTS} to update");
    };
    let stored = |store: &str, spec: &Spec| tape.stored(store, spec.first, spec.shape.clone());
    let [weights, ema, m, v] = sets.map(|set| stored(set, codes));
    let counts = stored(nn::STORE, counts);
    let tensors = CodebookTensors { codes: &weights, ema: &ema, moments: [&m, &v], counts: &counts };
    let [number, width] = codes.shape.of_rank("codebook");
    update_codebook(options, tensors, &statistics(tape, number, width), norm);
}
