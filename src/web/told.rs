//! What a page can tell its model of samples: classes, texts, a picture.

use serde::Serialize;

use crate::data::condition::hole;
use crate::data::{ConditionKind, Resize};
use crate::error::{Result, need};
use crate::models::unet::Class;
use crate::recipe::Recipe;
use crate::sample::Trained;

/// The part of `program.json` that says so.
#[derive(Serialize)]
pub(super) struct Told<'a> {
    labels: Option<Labels<'a>>,
    /// Of models that see texts; the tokenizer lies beside.
    text: Option<Text>,
    /// Of models that see a picture.
    picture: Option<Picture>,
}

/// The classes of a model.
#[derive(Serialize)]
struct Labels<'a> {
    /// 0: any number.
    count: usize,
    names: &'a [String],
    /// The label of no class.
    null: Option<u32>,
    /// Labels are floats.
    float: bool,
}

/// The texts of a model.
#[derive(Serialize)]
struct Text {
    /// Of each text.
    tokens: usize,
    /// Of what the model sees of one.
    bytes: usize,
}

/// How a condition is made of a picture.
#[derive(Serialize)]
struct Picture {
    kind: ConditionKind,
    /// Side of the square that is cut out of its middle; 0: as large as can be.
    crop: usize,
    /// Channels that it is read with.
    channels: usize,
    /// Side of the squares of `low_resolution`, and whether one more channel says how noisy it is.
    factor: usize,
    noise: bool,
    /// Training replaced some by zeros.
    dropped: bool,
    /// Top, left, bottom and right of the hole of `mask`, unless a picture says where it is.
    hole: Option<[usize; 4]>,
}

pub(super) fn check(trained: &Trained) -> Result<()> {
    let recipe = trained.recipe();
    let texts = "the model draws what a text says, and has no text encoder";
    need(recipe.text_width() == 0 || trained.text().is_some(), texts, "give the run or the whole pipeline")?;
    let (kind, hint) = (recipe.condition.kind, "sample it with `denoir sample`");
    let maps =
        "the model draws from maps of classes, or fills holes of latents, which the page cannot give it";
    need(!matches!(kind, ConditionKind::Map | ConditionKind::MaskedLatents), maps, hint)?;
    let resizes = recipe.condition.is_some() && recipe.resize != Resize::Bicubic;
    need(!resizes, "the model draws from pictures, and the page resizes them by bicubic alone", hint)
}

impl<'a> Told<'a> {
    pub fn of(trained: &'a Trained) -> Told<'a> {
        let (recipe, class) = (trained.recipe(), trained.recipe().class());
        let labels = matches!(class, Class::Number(_) | Class::Value).then(|| Labels {
            count: recipe.class_count(),
            names: &recipe.class_names,
            null: recipe.null_class(),
            float: class == Class::Value,
        });
        let text = trained.text().map(|text| {
            let tokens = text.config().max_position_embeddings;
            Text { tokens, bytes: 4 * tokens * text.config().hidden_size }
        });
        Told { labels, text, picture: recipe.condition.is_some().then(|| Picture::of(recipe)) }
    }
}

impl Picture {
    fn of(recipe: &Recipe) -> Picture {
        let (shape, condition) = (recipe.diffused(), &recipe.condition);
        let [is_pair, is_mask] =
            [ConditionKind::Pair, ConditionKind::Mask].map(|kind| condition.kind == kind);
        Picture {
            kind: condition.kind,
            crop: recipe.crop,
            channels: if is_pair { condition.channels } else { shape[2] },
            factor: condition.factor,
            noise: condition.noise > 0.0,
            dropped: condition.dropout > 0.0,
            hole: is_mask.then(|| {
                // Of the first picture, which all samples have.
                let [rows, columns] = hole(shape, recipe.seed, 0);
                [rows.start, columns.start, rows.end, columns.end]
            }),
        }
    }
}
