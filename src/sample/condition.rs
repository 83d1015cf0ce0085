//! Conditions of samples: what a model is told beside noise, and the images that it is told of.

use std::rc::Rc;

use crate::data::condition::read_both;
use crate::data::quality::psnr;
use crate::data::{Dataset, numbered, open_for_evaluation};
use crate::error::{Error, Result};
use crate::recipe::Recipe;

/// What a denoiser sees beside its samples, joined to them along the channels.
#[derive(Clone)]
pub struct Condition {
    /// Channels.
    pub channels: usize,
    /// Training replaced some by zeros, so that guidance can.
    pub dropped: bool,
    /// `[N, H, W, channels]`: sample number i has condition i mod N. Without any, nothing can be drawn.
    pub values: Rc<[f32]>,
}

impl Condition {
    /// That of a recipe's model, without values.
    pub(super) fn of(recipe: &Recipe) -> Option<Condition> {
        let channels = recipe.condition.channels_of(recipe.diffused()[2]);
        let dropped = recipe.condition.dropout > 0.0;
        (channels > 0).then(|| Condition { channels, dropped, values: Rc::from([]) })
    }

    /// Those of `count` samples of `pixels` pixels, from number `first` on.
    pub(super) fn of_samples(&self, first: usize, count: usize, pixels: usize) -> Vec<f32> {
        let size = self.channels * pixels;
        let known = self.values.len() / size;
        (first..first + count).flat_map(|i| &self.values[i % known * size..][..size]).copied().collect()
    }

    /// An error if there are no values.
    pub(super) fn check_given(&self) -> Result<()> {
        if self.values.is_empty() {
            return Err(Error::usage("the model draws from conditions, which this command does not give it")
                .hint("draw with `denoir sample RUN`"));
        }
        Ok(())
    }
}

/// Images, and the conditions that are made of them.
#[derive(Clone)]
pub struct Given {
    /// `[N, H, W, C]`; empty where only conditions are known.
    pub images: Vec<f32>,
    /// `[N]`; empty where images have not the classes of the model.
    pub labels: Vec<u32>,
    /// `[N, H, W, condition's]`.
    pub conditions: Rc<[f32]>,
}

impl Given {
    /// The first `count` images of the data and their conditions; those of a smaller set begin again.
    ///
    /// # Errors
    /// When an image cannot be read, or stands alone where the condition is its partner.
    pub fn of(recipe: &Recipe, data: &dyn Dataset, count: usize) -> Result<Given> {
        recipe.check_partner(data)?;
        let has_classes = recipe.class_count() > 0 && data.classes().len() == recipe.class_count();
        let (mut images, mut labels, mut conditions) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..count as u64 {
            let index = data.len().map_or(number, |len| number % len);
            let (label, image, partner) = read_both(data, index)?;
            labels.extend(has_classes.then_some(label));
            conditions.extend(recipe.condition.of(&image, data.shape(), &partner, recipe.seed, number));
            images.extend(image);
        }
        Ok(Given { images, labels, conditions: conditions.into() })
    }

    /// Of images that the data of a recipe holds out; `spec`: other data.
    ///
    /// # Errors
    /// As [`Given::of`]; and when the data cannot be opened.
    pub fn held_out(recipe: &Recipe, spec: Option<&str>, count: usize) -> Result<Given> {
        let spec = spec.unwrap_or(&recipe.data);
        let (data, _) = open_for_evaluation(spec, &recipe.pictures(recipe.diffused()[2]))?;
        Given::of(recipe, &*numbered(data, &recipe.class_names), count)
    }

    /// PSNR in dB of samples `[N, H, W, C]` against the images, and of the conditions as they are shown.
    pub fn psnr(&self, recipe: &Recipe, samples: &[f32]) -> Option<[f64; 2]> {
        let [h, w, c] = recipe.diffused();
        let (size, known) = (h * w * c, self.images.len() / (h * w * c));
        let count = samples.len() / size;
        let shown = recipe.condition.shown(&self.conditions, c);
        let of = |all: &[f32], i: usize| all[i % known * size..][..size].to_vec();
        let many = |all: &[f32]| (0..count).flat_map(|i| of(all, i)).collect::<Vec<f32>>();
        (known > 0 && count > 0).then(|| {
            let images = many(&self.images);
            [psnr(samples, &images, count), psnr(&many(&shown), &images, count)]
        })
    }
}
