//! A classifier of images, noisy ones too: half a U-Net, then one vector of all its pixels.

use serde::{Deserialize, Serialize};

use super::limits::{Limit, need_limits};
use super::options::config;
use super::unet::{Class, UNetConfig, half};
use crate::error::{Result, need};
use crate::nn::linear;
use crate::nn::{Init, Layout, Scope};
use crate::ops::activation::{Activation, activation};
use crate::ops::arithmetic::add;
use crate::ops::attention::attention;
use crate::ops::concat::{concat, split};
use crate::ops::resample::average_pool;
use crate::tape::Tensor;

/// How the pixels of the half U-Net become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// The mean attends to the pixels and to itself, with learned positions (Dhariwal & Nichol 2021,
    /// arXiv:2105.05233, section 4.2; Radford et al. 2021).
    Attention,
    /// Their mean.
    Mean,
}

config! {
    /// The end of a classifier; its beginning is the recipe's `unet`, without the way up.
    pub struct ClassifierConfig {
        /// Number of classes; 0: filled in from the data when training begins.
        pub classes: usize = 0,
        /// Numbers of the last hidden layer, which distances between sets of images are measured in.
        pub features: usize = 64,
        /// attention or mean.
        pub pool: Pool = Pool::Attention,
        /// Train on noisy images too, so that it can guide sampling: at all timesteps alike.
        pub noisy: bool = true,
    }
}

impl ClassifierConfig {
    /// What its numbers may be.
    pub(crate) fn limits(&self) -> [Limit; 1] {
        [Limit::whole("features", self.features, [1, 65_536])]
    }

    pub(crate) fn validate(&self, unet: &UNetConfig) -> Result<()> {
        need(self.classes != 1, "classifier.classes is 1", "a classifier tells two classes or more apart")?;
        need_limits("classifier", &self.limits())?;
        need(
            !unet.sees_text(),
            "unet.cross_attention_dim is for models that see texts, which a classifier does not",
            "set it to 0",
        )?;
        need(
            unet.class() == Class::None,
            "unet.num_class_embeds is for models that are told the class",
            "set it to 0: classifier.classes is the number of classes",
        )
    }
}

/// Records a classifier with the parameters of the scope: `x_t [N, H, W, C]` at timesteps `t [N]` to logits
/// `[N, classes]`.
pub type Logits = dyn Fn(&Scope, &Tensor, &Tensor) -> Tensor;

/// Records the classifier: `x [N, H, W, C]` at timesteps `t [N]` to features `[N, features]` and logits `[N,
/// classes]`.
///
/// # Panics
/// When the configurations are not valid for the image.
#[track_caller]
pub fn classifier(
    config: &ClassifierConfig,
    unet: &UNetConfig,
    s: &Scope,
    x: &Tensor,
    t: &Tensor,
) -> [Tensor; 2] {
    assert!(config.classes > 0, "classifier: no classes");
    let hidden = half(unet, s, x, t);
    let [n, h, w, c] = hidden.shape().of_rank("classifier");
    let pixels = h * w;
    // Pictures are square.
    let mean = s.label(|| average_pool(&hidden, h)).reshape([n, c]);
    let pooled = match config.pool {
        Pool::Mean => mean,
        Pool::Attention => {
            let s = s.sub("pool");
            let positions = s.param(
                "positions",
                [(1 + pixels) * c],
                Layout::Plain,
                Init::Normal(1.0 / (c as f32).sqrt()),
            );
            let tokens = s.label(|| {
                let flat = [mean.reshape([n, c]), hidden.reshape([n, pixels * c])];
                add(&concat(&[&flat[0], &flat[1]]), &positions).reshape([n, 1 + pixels, c])
            });
            // Only the mean asks: the other rows of the result are not used.
            let asking = s.label(|| {
                let parts = split(&tokens.reshape([n, (1 + pixels) * c]), &[c, pixels * c]);
                parts[0].reshape([n, 1, c])
            });
            let q = linear(&s.sub("to_q"), &asking, c);
            let (k, v) = (linear(&s.sub("to_k"), &tokens, c), linear(&s.sub("to_v"), &tokens, c));
            let heads = if c.is_multiple_of(64) { c / 64 } else { 1 };
            let mixed = s.label(|| attention(&q, &k, &v, heads)).reshape([n, c]);
            linear(&s.sub("to_out"), &mixed, c)
        }
    };
    let features = linear(&s.sub("features"), &pooled, config.features);
    let features = s.label(|| activation(&features, Activation::Silu));
    let logits = linear(&s.sub("logits"), &features, config.classes);
    [features, logits]
}
