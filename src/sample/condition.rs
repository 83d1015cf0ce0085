//! Conditions of samples: what a model is told beside noise, and the images that it is told of.

use std::path::PathBuf;
use std::rc::Rc;

use crate::data::condition::{read_both, with_holes};
use crate::data::{ConditionKind, Resize, numbered, open, open_for_evaluation, read_picture};
use crate::error::{Error, Result, need};
use crate::recipe::Recipe;

/// What a denoiser sees beside its samples, joined to them along the channels.
#[derive(Clone)]
pub struct Condition {
    /// Channels.
    pub channels: usize,
    /// It has holes: its last channel is 1 where the others are pixels of the sample, and 0 in holes.
    pub has_holes: bool,
    /// Training replaced some by zeros, so that guidance can.
    pub dropped: bool,
    /// `[N, H, W, channels]`: sample number `first` + i has condition i mod N. Without any, nothing can be
    /// drawn.
    pub values: Rc<[f32]>,
    /// Number of the sample that has the first one.
    pub first: usize,
}

impl Condition {
    /// That of a recipe's model, without values.
    pub(super) fn of(recipe: &Recipe) -> Option<Condition> {
        let channels = recipe.condition.channels_of(recipe.diffused()[2]);
        let dropped = recipe.condition.dropout > 0.0;
        let has_holes = recipe.condition.kind == ConditionKind::Mask;
        (channels > 0).then(|| Condition { channels, has_holes, dropped, values: Rc::from([]), first: 0 })
    }

    /// Those of `count` samples of `pixels` pixels, from number `first` on.
    pub(super) fn of_samples(&self, first: usize, count: usize, pixels: usize) -> Vec<f32> {
        let size = self.channels * pixels;
        let known = self.values.len() / size;
        (first..first + count)
            .flat_map(|i| &self.values[(i - self.first) % known * size..][..size])
            .copied()
            .collect()
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
    pub images: Rc<[f32]>,
    /// `[N]`; empty where images have not the classes of the model.
    pub labels: Vec<u32>,
    /// `[N, H, W, condition's]`.
    pub conditions: Rc<[f32]>,
    /// Of data that was too small to hold any out: its training images.
    pub trained_on: bool,
}

impl Given {
    /// Zeros in place of a condition, to measure times with.
    pub(crate) fn nothing(recipe: &Recipe) -> Given {
        let [h, w, c] = recipe.diffused();
        let conditions = vec![0.0; h * w * recipe.condition.channels_of(c)].into();
        Given { images: Rc::from([]), labels: Vec::new(), conditions, trained_on: false }
    }

    /// The first `count` images that the data of a recipe holds out, or that other data (`spec`) does; those
    /// of a smaller set begin again.
    ///
    /// # Errors
    /// When the data cannot be opened, an image cannot be read, or stands alone where the condition is its
    /// partner.
    pub fn held_out(recipe: &Recipe, spec: Option<&str>, count: usize) -> Result<Given> {
        let options = recipe.pictures(recipe.diffused()[2]);
        let (data, held_out) = match open_for_evaluation(spec.unwrap_or(&recipe.data), &options) {
            // Of a run's own data the part that trains is there.
            Err(_) if spec.is_none() => (open(&recipe.data, &options)?, false),
            opened => opened?,
        };
        let data = numbered(data, &recipe.class_names);
        recipe.check_partner(&*data)?;
        let has_classes = recipe.class_count() > 0 && data.classes().len() == recipe.class_count();
        let (mut images, mut labels, mut conditions) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..count as u64 {
            let index = data.len().map_or(number, |len| number % len);
            let (label, image, partner) = read_both(&*data, &recipe.condition, index)?;
            labels.extend(has_classes.then_some(label));
            conditions.extend(recipe.condition.of(&image, data.shape(), &partner, recipe.seed, number));
            images.extend(image);
        }
        Ok(Given { images: images.into(), labels, conditions: conditions.into(), trained_on: !held_out })
    }

    /// Picture files, of which conditions are made; where a condition is a picture beside the image, these
    /// are the conditions themselves, whose images nobody knows.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn pictures(recipe: &Recipe, files: &[PathBuf]) -> Result<Given> {
        let (shape, kind) = (recipe.diffused(), recipe.condition.kind);
        let (is_pair, is_map) = (kind == ConditionKind::Pair, kind == ConditionKind::Map);
        let (mut images, mut conditions) = (Vec::new(), Vec::new());
        for (number, file) in files.iter().enumerate() {
            let channels = if is_pair { recipe.condition.channels } else { shape[2] };
            let crop = (recipe.crop > 0).then_some(recipe.crop);
            let (channels, resize) = if is_map { (3, Resize::Nearest) } else { (channels, recipe.resize) };
            let mut picture = read_picture(file, recipe.image_size, channels, crop, resize)?;
            if is_map {
                let grey = picture.chunks_exact(3).all(|rgb| rgb[0] == rgb[1] && rgb[1] == rgb[2]);
                let (name, hint) = (file.display(), "in maps grey levels are the numbers of classes");
                need(grey, format!("{name} has colours"), hint)?;
                picture = picture.chunks_exact(3).map(|rgb| rgb[0]).collect();
                recipe.condition.check_map(&picture, &name.to_string())?;
            }
            let (image, partner) =
                if is_pair || is_map { (Vec::new(), picture) } else { (picture, Vec::new()) };
            conditions.extend(recipe.condition.of(&image, shape, &partner, recipe.seed, number as u64));
            images.extend(image);
        }
        let (images, conditions) = (images.into(), conditions.into());
        Ok(Given { images, labels: Vec::new(), conditions, trained_on: false })
    }

    /// The same with holes where `mask` `[H, W]` is above 0.
    #[must_use]
    pub fn with_holes(self, recipe: &Recipe, mask: &[f32]) -> Given {
        let (channels, size) = (recipe.diffused()[2], recipe.diffused().iter().product());
        let all = self.images.chunks_exact(size);
        let conditions = all.flat_map(|image| with_holes(image, channels, |pixel| mask[pixel] > 0.0));
        Given { conditions: conditions.collect(), ..self }
    }

    /// How many there are.
    pub(super) fn count(&self, recipe: &Recipe) -> usize {
        let [h, w, c] = recipe.diffused();
        self.conditions.len() / (h * w * recipe.condition.channels_of(c))
    }

    /// Conditions, as pictures, and images (if they are known) of so many samples: `[N, H, W, C]`.
    pub(crate) fn shown(&self, recipe: &Recipe, count: usize) -> [Vec<f32>; 2] {
        let (size, known) = (recipe.diffused().iter().product::<usize>(), self.count(recipe));
        let many = |all: &[f32]| {
            let one = |i: usize| all.get(i % known * size..).and_then(|all| all.get(..size)).unwrap_or(&[]);
            (0..count).flat_map(one).copied().collect::<Vec<f32>>()
        };
        [many(&recipe.condition.shown(&self.conditions, recipe.diffused()[2])), many(&self.images)]
    }
}
