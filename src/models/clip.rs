//! CLIP's text model (Radford et al. 2021, arXiv:2103.00020), with the semantics, options and parameter names
//! of the transformers library's `CLIPTextModel`.

pub use super::clip_config::{HiddenAct, TextConfig};
use crate::nn::{Init, Layout, Scope, layer_norm, linear_from};
use crate::ops::activation::activation;
use crate::ops::arithmetic::{add, affine};
use crate::ops::attention::attention_causal;
use crate::ops::concat::concat;
use crate::ops::embedding::embedding;
use crate::ops::positions::positions;
use crate::tape::Tensor;

/// Most rows of a new word: a text of 77 tokens has a first and a last one.
pub const MOST_ROWS: usize = 75;

/// A new word, whose rows are trained while those of all other tokens stay as they are (textual inversion,
/// Gal et al. 2022, arXiv:2208.01618).
#[derive(Clone, Copy)]
pub struct Word<'a> {
    /// `[R, hidden_size]`; the table's own rows of these tokens are zeros.
    pub rows: &'a Tensor,
    /// Which of them a token is, `u32 [N, S]`; of other tokens `R` or more.
    pub places: &'a Tensor,
}

impl Word<'_> {
    /// Its rows where it stands, and zeros elsewhere, `[N S, hidden_size]`.
    #[track_caller]
    fn rows_of_tokens(&self) -> Tensor {
        let ([rows, d], [n, tokens]) =
            (self.rows.shape().of_rank("word"), self.places.shape().of_rank("word"));
        let flat = self.rows.reshape([1, rows * d]);
        // A number past the last row picks that, which is zero.
        let table = concat(&[&flat, &affine(&flat, 0.0, 0.0)]).reshape([2 * rows, d]);
        embedding(&table, &self.places.reshape([n * tokens]))
    }
}

/// Records the model: tokens `ids`, `u32 [N, S]`, to `[N, S, hidden_size]`, what each token means after those
/// before it. A number past the last token means the last one.
///
/// `skip`: layers at the end that are left out, the pipelines' `clip_skip`; the final norm is not. Their
/// parameters are still the model's, whose list is the same for any `skip`.
///
/// Names are those of version 5 of the library; version 4 has all of them in a module `text_model`.
///
/// # Panics
/// When the configuration is not valid, a text is longer than it allows, or no layer is left.
#[track_caller]
pub fn clip_text(config: &TextConfig, s: &Scope, ids: &Tensor, skip: usize) -> Tensor {
    clip_text_with(config, s, ids, None, skip)
}

/// As [`clip_text`], with a new word.
///
/// # Panics
/// As [`clip_text`], and when the word does not fit.
#[track_caller]
pub fn clip_text_with(
    config: &TextConfig,
    s: &Scope,
    ids: &Tensor,
    word: Option<Word<'_>>,
    skip: usize,
) -> Tensor {
    let [n, tokens] = ids.shape().of_rank("clip_text");
    config.validate().unwrap_or_else(|e| panic!("clip_text: {e}"));
    let (d, layers, longest) = (config.hidden_size, config.num_hidden_layers, config.max_position_embeddings);
    assert!(tokens <= longest, "clip_text: {tokens} tokens of at most {longest}");
    assert!(skip < layers, "clip_text: {skip} of {layers} layers left out");

    let embeddings = s.sub("embeddings");
    let table = |name: &str, rows: usize| {
        embeddings.sub(name).param("weight", [rows, d], Layout::Plain, Init::Normal(0.02))
    };
    let [of_tokens, of_places] =
        [table("token_embedding", config.vocab_size), table("position_embedding", longest)];
    let mut hidden = embeddings.label(|| {
        let [place, _] = positions(ids.tape(), [tokens, 1]);
        let places = embedding(&of_places, &place).reshape([tokens * d]);
        let meant = embedding(&of_tokens, &ids.reshape([n * tokens]));
        let meant = word.map_or(meant.clone(), |word| add(&meant, &word.rows_of_tokens()));
        add(&meant.reshape([n, tokens * d]), &places).reshape([n, tokens, d])
    });
    let mut out = hidden.clone();
    for number in 0..layers {
        let s = s.sub(format!("encoder.layers.{number}"));
        hidden = s.block(|| layer(config, &s, &hidden));
        if number + skip + 1 == layers {
            // What follows has parameters and no other effect: a program leaves it out.
            out = hidden.clone();
        }
    }
    layer_norm(&s.sub("final_layer_norm"), &out, config.layer_norm_eps)
}

/// Attention, then a feed-forward layer, each behind a norm and beside a residual connection. Initial values
/// are those of the library.
fn layer(config: &TextConfig, s: &Scope, x: &Tensor) -> Tensor {
    let (d, eps) = (config.hidden_size, config.layer_norm_eps);
    let whole = (d as f32).powf(-0.5);
    let inward = whole * (2.0 * config.num_hidden_layers as f32).powf(-0.5);
    let project = |s: &Scope, name: &str, x: &Tensor, out: usize, deviation: f32| {
        linear_from([Init::Normal(deviation), Init::Zeros], &s.sub(name), x, out)
    };

    let normed = layer_norm(&s.sub("layer_norm1"), x, eps);
    let attention = s.sub("self_attn");
    let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|name| project(&attention, name, &normed, d, inward));
    let mixed = attention.label(|| attention_causal(&q, &k, &v, config.num_attention_heads));
    let mixed = project(&attention, "out_proj", &mixed, d, whole);
    let x = attention.label(|| add(x, &mixed));

    let normed = layer_norm(&s.sub("layer_norm2"), &x, eps);
    let forward = s.sub("mlp");
    let hidden = project(&forward, "fc1", &normed, config.intermediate_size, (2.0 * d as f32).powf(-0.5));
    let hidden = forward.label(|| activation(&hidden, config.hidden_act.activation()));
    let hidden = project(&forward, "fc2", &hidden, d, inward);
    forward.label(|| add(&x, &hidden))
}
