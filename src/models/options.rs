//! The choices that configurations of models name, and the checks of their values.

use serde::{Deserialize, Serialize};

use crate::error::{Result, need};
use crate::ops::activation::Activation;
use crate::tape::{Tape, Tensor};

/// A key of a table: the field that [`config!`] declares.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// Name of the field.
    pub name: &'static str,
    /// Its type in Rust.
    pub kind: &'static str,
    /// Its documentation.
    pub about: &'static str,
}

/// Declares a struct whose fields have their defaults beside them, for tables in which keys may be missing.
/// What is written of a field here is all that is written of it: the documentation of the library, of recipes
/// and of `denoir help keys`.
macro_rules! config {
    ($(#[$about:meta])* pub struct $name:ident {
        $(
            $(#[doc = $doc:literal])* $(#[serde($($serde:tt)*)])*
            pub $field:ident: $type:ty = $default:expr,
        )*
    }) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[doc = $doc])* $(#[serde($($serde)*)])* pub $field: $type,)*
        }

        impl $name {
            /// Its keys, in their order.
            pub(crate) const KEYS: &'static [crate::models::Key] = &[$(crate::models::Key {
                name: stringify!($field),
                kind: stringify!($type),
                about: concat!($($doc),*),
            },)*];
        }

        impl Default for $name {
            fn default() -> Self {
                $name { $($field: $default,)* }
            }
        }
    };
}
pub(crate) use config;

/// Most channels that the attention kernels give a head.
pub(super) const WIDEST_HEAD: usize = 512;

/// One value for all levels of a net, or one for each, from the image inwards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "one value is expected, or a list with one for each level")]
pub enum Levels<T> {
    /// For all.
    All(T),
    /// For each.
    Each(Vec<T>),
}

impl<T: Copy> Levels<T> {
    /// The value of a level.
    ///
    /// # Panics
    /// When there are fewer.
    #[track_caller]
    pub fn at(&self, level: usize) -> T {
        match self {
            Levels::All(value) => *value,
            Levels::Each(values) => values[level],
        }
    }

    /// The value for all levels, or those of each.
    pub(super) fn values(&self) -> &[T] {
        match self {
            Levels::All(value) => std::slice::from_ref(value),
            Levels::Each(values) => values,
        }
    }

    /// Checks that a list has one value for each of `levels`, and gives the values.
    pub(super) fn of(&self, key: &str, levels: usize) -> Result<Vec<T>> {
        if let Levels::Each(values) = self {
            let message = format!("{key} has {} values for {levels} levels", values.len());
            need(values.len() == levels, message, "give one for all levels, or one for each")?;
        }
        Ok((0..levels).map(|level| self.at(level)).collect())
    }
}

/// A level on the way down, by the reference library's names; its first versions wrote a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownBlock {
    /// Residual blocks.
    #[serde(rename = "DownBlock2D", alias = "UNetResDownBlock2D")]
    Plain,
    /// Residual blocks, each with attention behind it.
    #[serde(rename = "AttnDownBlock2D", alias = "UNetResAttnDownBlock2D")]
    Attention,
    /// Residual blocks, each with a transformer behind it that sees a text.
    #[serde(rename = "CrossAttnDownBlock2D")]
    CrossAttention,
    /// Halves the image by a residual block.
    #[serde(rename = "ResnetDownsampleBlock2D", alias = "UNetResResnetDownsampleBlock2D")]
    Resnet,
}

/// A level on the way up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpBlock {
    /// Residual blocks.
    #[serde(rename = "UpBlock2D", alias = "UNetResUpBlock2D")]
    Plain,
    /// Residual blocks, each with attention behind it.
    #[serde(rename = "AttnUpBlock2D", alias = "UNetResAttnUpBlock2D")]
    Attention,
    /// Residual blocks, each with a transformer behind it that sees a text.
    #[serde(rename = "CrossAttnUpBlock2D")]
    CrossAttention,
    /// Doubles the image by a residual block.
    #[serde(rename = "ResnetUpsampleBlock2D", alias = "UNetResResnetUpsampleBlock2D")]
    Resnet,
}

/// How a timestep `t` enters the net.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeEmbedding {
    /// Sines and cosines of `t`.
    Positional,
    /// Sines and cosines of the logarithm of `t > 0` at fixed random frequencies; the output is divided by
    /// `t`.
    Fourier,
    /// A row of a table.
    Learned,
}

/// How an image is halved or doubled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resampling {
    /// By a convolution.
    Conv,
    /// By a residual block.
    Resnet,
}

/// The activation of the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActFn {
    /// `x sigmoid(x)`.
    #[serde(alias = "swish")]
    Silu,
    /// `max(x, 0)`.
    Relu,
    /// `x Phi(x)`.
    Gelu,
}

impl ActFn {
    pub(super) fn activation(self) -> Activation {
        match self {
            ActFn::Silu => Activation::Silu,
            ActFn::Relu => Activation::Relu,
            ActFn::Gelu => Activation::Gelu,
        }
    }
}

/// How the timestep embedding enters a residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeScaleShift {
    /// Added.
    Default,
    /// By adaptive group norm.
    ScaleShift,
}

/// How the class of an image enters the net.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassEmbedding {
    /// A row of a table of `num_class_embeds`; not at all where that is 0.
    #[serde(rename = "")]
    Table,
    /// A number, embedded as a timestep is.
    Timestep,
    /// The embedding itself.
    Identity,
    /// A vector of `projection_class_embeddings_input_dim` numbers, through two linear layers.
    Projection,
    /// Such a vector, through one.
    SimpleProjection,
}

/// The tensor that carries the classes of N images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Nothing.
    None,
    /// Its number, `u32 [N]`, below this many.
    Number(usize),
    /// Any number, `f32 [N]`.
    Value,
    /// Its embedding, or what that is made of, `f32 [N, this many]`.
    Embedding(usize),
}

impl Class {
    /// The tensor that the net takes for `n` images, from the store `labels`.
    pub fn tensor(self, tape: &Tape, n: usize) -> Option<Tensor> {
        match self {
            Class::None => None,
            Class::Number(_) => Some(tape.stored_u32("labels", [n])),
            Class::Value => Some(tape.stored("labels", 0, [n])),
            Class::Embedding(width) => Some(tape.stored("labels", 0, [n, width])),
        }
    }
}

/// Images of `[h, w]` pixels can be halved so often.
pub(super) fn need_halvings([h, w]: [usize; 2], halvings: usize, fewer: &str) -> Result<()> {
    let divisor = 1_usize.checked_shl(halvings as u32).unwrap_or(usize::MAX);
    let times = if halvings == 1 { "once".to_owned() } else { format!("{halvings} times") };
    need(
        h > 0 && w > 0 && h.is_multiple_of(divisor) && w.is_multiple_of(divisor),
        format!("images of {h}x{w} pixels cannot be halved {times}"),
        format!("choose a multiple of {divisor}, or fewer {fewer}"),
    )
}
