//! The options of a `CLIPTextModel`.

use serde::{Deserialize, Serialize};

use super::limits::{Limit, Range, need_limits};
use super::options::{WIDEST_HEAD, config};
use crate::error::{Result, need};
use crate::ops::activation::Activation;

/// The activation of the feed-forward layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HiddenAct {
    /// `x sigmoid(1.702 x)`, as in OpenAI's models.
    QuickGelu,
    /// `x Phi(x)`, as in OpenCLIP's.
    Gelu,
}

impl HiddenAct {
    pub(super) fn activation(self) -> Activation {
        match self {
            HiddenAct::QuickGelu => Activation::QuickGelu,
            HiddenAct::Gelu => Activation::Gelu,
        }
    }
}

config! {
    /// Options, by the names and with the defaults of the transformers library's `CLIPTextConfig`.
    pub struct TextConfig {
        /// Tokens that there are; their numbers begin with 0.
        pub vocab_size: usize = 49_408,
        /// Channels of a token.
        pub hidden_size: usize = 512,
        /// Channels inside a feed-forward layer.
        pub intermediate_size: usize = 2048,
        /// Layers, each of attention and feed-forward.
        pub num_hidden_layers: usize = 12,
        /// Heads of each layer, all together as wide as a token.
        pub num_attention_heads: usize = 8,
        /// Tokens of the longest text.
        pub max_position_embeddings: usize = 77,
        /// Activation of the feed-forward layers: quick_gelu or gelu.
        pub hidden_act: HiddenAct = HiddenAct::QuickGelu,
        /// Added to the variance in the layer norms.
        pub layer_norm_eps: f32 = 1e-5,
    }
}

impl TextConfig {
    /// What its numbers may be.
    pub(crate) fn limits(&self) -> [Limit; 7] {
        [
            Limit::whole("vocab_size", self.vocab_size, [1, 1 << 22]),
            Limit::whole("hidden_size", self.hidden_size, [1, 16_384]),
            Limit::whole("intermediate_size", self.intermediate_size, [1, 65_536]),
            Limit::whole("num_hidden_layers", self.num_hidden_layers, [1, 1024]),
            Limit::whole("num_attention_heads", self.num_attention_heads, [1, 1024]),
            Limit::whole("max_position_embeddings", self.max_position_embeddings, [1, 1 << 16]),
            Limit::real("layer_norm_eps", self.layer_norm_eps, Range::Positive),
        ]
    }

    /// Checks the options.
    ///
    /// # Errors
    /// Names the key, its value and the allowed values.
    pub fn validate(&self) -> Result<()> {
        need_limits("text", &self.limits())?;
        let (width, heads) = (self.hidden_size, self.num_attention_heads);
        let message = format!("text.num_attention_heads = {heads} does not divide {width} channels");
        need(width.is_multiple_of(heads), message, "choose a divisor of text.hidden_size")?;
        let message = format!("a head of text.hidden_size {width} is {} channels wide", width / heads);
        let hint = format!("raise text.num_attention_heads: a head has at most {WIDEST_HEAD} channels");
        need(width / heads <= WIDEST_HEAD, message, hint)
    }
}
