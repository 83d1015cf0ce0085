//! Samples of a model, as many as are wanted, in batches that the memory holds.

use std::rc::Rc;

use super::denoiser::{Start, check_finite, labels_of};
use super::{ClassifierGuide, Condition, Denoiser, Given, Latents, Options, Sampler, Texts};
use crate::classifier::Classifier;
use crate::codec::Codec;
use crate::data::quality::psnr;
use crate::error::{Error, Result, need};
use crate::models::unet::Class;
use crate::nn;
use crate::recipe::{Recipe, System};

/// Most samples that are drawn at a time. It does not change them.
const BATCH: usize = 64;

/// Samples that are drawn at a time of so many: as many as training held in memory.
pub(crate) fn batch_of(recipe: &Recipe, count: usize) -> usize {
    // A net that sees texts is large, and has as small a batch as memory allows.
    let least = if recipe.unet.sees_text() { 1 } else { 8 };
    BATCH.min(recipe.batch_size.max(least)).min(count)
}

/// A trained model and all that sampling from it needs.
pub struct Source<'a> {
    pub(super) denoiser: Denoiser<'a>,
    pub(crate) recipe: &'a Recipe,
    pub(super) codec: Option<&'a Codec>,
    given: Option<Given>,
}

impl<'a> Source<'a> {
    /// `denoiser`: the recipe's; `codec`: the decoder of latent diffusion, `None` where samples are images.
    pub(crate) fn new(denoiser: Denoiser<'a>, recipe: &'a Recipe, codec: Option<&'a Codec>) -> Source<'a> {
        let (labels, condition) = (labels_of(recipe), Condition::of(recipe));
        let (shape, null) = (recipe.diffused(), recipe.null_class());
        let self_conditioned = recipe.self_conditioning.then_some(recipe.clip_sample);
        let denoiser = Denoiser { labels, shape, null, self_conditioned, condition, ..denoiser };
        Source { denoiser, recipe, codec, given: None }
    }

    /// The same, whose sample number i has the condition, and if none is asked for the class, of image i of
    /// N, which begin again after the last.
    ///
    /// # Panics
    /// When the model takes no conditions.
    #[track_caller]
    pub fn conditioned_on(mut self, given: Given) -> Source<'a> {
        let condition = self.denoiser.condition.as_mut();
        condition.expect("a model that takes conditions").values = Rc::clone(&given.conditions);
        self.given = Some(given);
        self
    }

    /// The images whose conditions samples are drawn from, if there are any.
    pub fn given(&self) -> Option<&Given> {
        self.given.as_ref()
    }

    /// [`Source::psnr`] in words.
    pub(crate) fn describe_quality(&self, samples: &[f32]) -> Option<String> {
        let [ours, conditions] = self.psnr(samples)?;
        let trained_on = self.given.as_ref().is_some_and(|given| given.trained_on);
        let images = if trained_on { ", of training images" } else { "" };
        Some(format!("PSNR {ours:.2} dB, of the conditions themselves {conditions:.2} dB{images}"))
    }

    /// PSNR in dB of samples `[N, H, W, C]` against the images that their conditions are of, and that of the
    /// conditions as they are shown; `None`: the images are not known.
    pub fn psnr(&self, samples: &[f32]) -> Option<[f64; 2]> {
        let count = samples.len() / self.recipe.diffused().iter().product::<usize>();
        let [conditions, images] = self.given.as_ref()?.shown(self.recipe, count);
        let known = count > 0 && !images.is_empty();
        known.then(|| [samples, &conditions].map(|pictures| psnr(pictures, &images, count)))
    }

    /// The same, with samples led to their class by a classifier of noisy images: see [`ClassifierGuide`].
    ///
    /// # Errors
    /// When the classifier is of other images or timesteps, or was trained on clean images alone.
    pub fn guided_by(mut self, classifier: &'a Classifier, scale: f64) -> Result<Source<'a>> {
        let (recipe, theirs) = (self.recipe, classifier.recipe());
        if recipe.system == System::Ldm {
            return Err(Error::usage("the classifier is of images, and the run diffuses latents")
                .hint("give a run of pixels"));
        }
        if recipe.diffused() != classifier.image() {
            let text = |[h, w, c]: [usize; 3]| format!("{h} x {w} pixels of {c} channels");
            return Err(Error::usage(format!(
                "the classifier is of {}, samples have {}",
                text(classifier.image()),
                text(recipe.diffused())
            ))
            .hint("train one of the same images, with --image-size"));
        }
        if !theirs.classifier.noisy {
            return Err(Error::usage("the classifier knows no noisy images, which it would have to guide")
                .hint("train one with --set classifier.noisy=true"));
        }
        if recipe.schedule().alpha_bars != theirs.schedule().alpha_bars {
            return Err(Error::usage("the classifier was trained on another noise schedule")
                .hint("train one with the run's timesteps and betas"));
        }
        let classes = recipe.class_count();
        if classes > 0 && classes != classifier.classes() {
            let told = format!("the run has {classes} classes, the classifier {}", classifier.classes());
            return Err(Error::usage(told).hint("train a classifier on the run's data"));
        }
        let (logits, params, weights) = classifier.parts();
        let (params, weights) = (Rc::clone(params), weights.clone());
        let classes = classifier.classes();
        let (ours, known) = (&recipe.class_names, &theirs.class_names);
        if !ours.is_empty() && !known.is_empty() && ours != known {
            return Err(Error::usage(
                "the run and the classifier have other classes, or other numbers for them",
            )
            .hint("train a classifier on the run's data"));
        }
        self.denoiser.guide = Some(ClassifierGuide { logits, params, weights, classes, scale });
        Ok(self)
    }

    /// Classes that samples may be of.
    fn classes(&self) -> usize {
        self.denoiser.guide.as_ref().map_or(self.recipe.class_count(), |guide| guide.classes)
    }

    /// `[H, W, C]` of the images.
    pub fn image(&self) -> [usize; 3] {
        let [h, w, _] = self.denoiser.shape;
        self.codec.map_or(self.denoiser.shape, |codec| codec.image_of([h, w]))
    }

    /// The same, drawn from texts.
    #[must_use]
    pub fn told(mut self, texts: Texts) -> Source<'a> {
        self.denoiser.texts = Some(texts);
        self
    }

    /// The same, of images of so many pixels; a pipeline's takes whole numbers of its VAE's squares.
    ///
    /// # Errors
    /// When the model has no such images.
    pub fn sized(self, [height, width]: [usize; 2]) -> Result<Source<'a>> {
        let [own_h, own_w, _] = self.image();
        let unit = self.unit().max(8);
        let fits = |side: usize| (unit..=8192).contains(&side) && side.is_multiple_of(unit);
        if !self.recipe.unet.sees_text() && [height, width] != [own_h, own_w] {
            return Err(Error::usage(format!("the model draws images of {own_w}x{own_h} pixels"))
                .hint("leave --width and --height out"));
        }
        if !(fits(height) && fits(width)) {
            return Err(Error::usage(format!("{width}x{height} pixels"))
                .hint(format!("width and height must be multiples of {unit}, at most 8192")));
        }
        let sized = self.resized([height, width]);
        let [h, w, _] = sized.denoiser.shape;
        sized.recipe.unet.validate([h, w])?;
        Ok(sized)
    }

    /// The same, of images of so many pixels, whole numbers of the squares that become a latent.
    #[must_use]
    pub(crate) fn resized(mut self, [height, width]: [usize; 2]) -> Source<'a> {
        let ([own_h, own_w, _], [h, w, _]) = (self.image(), self.denoiser.shape);
        [self.denoiser.shape[0], self.denoiser.shape[1]] = [height * h / own_h, width * w / own_w];
        self
    }

    /// Side in pixels of the square that a latent stands for; 1 without a VAE.
    pub(crate) fn unit(&self) -> usize {
        self.image()[0] / self.denoiser.shape[0].max(1)
    }

    /// The Gaussians over the latents of pictures `[N, H, W, C]` of this source's size, scaled as the model
    /// has them; pictures themselves where it has no VAE.
    ///
    /// # Errors
    /// When memory is too small, or the driver reports an error.
    pub fn latents_of(&self, pictures: &[f32]) -> Result<Latents> {
        let Some(codec) = self.codec else {
            return Ok(Latents { mean: pictures.into(), sigma: vec![0.0; pictures.len()].into() });
        };
        let [h, w, _] = self.denoiser.shape;
        let posterior = codec.encode_sized(pictures, [h, w])?;
        let factor = self.recipe.scaling_factor as f32;
        let scaled = |values: &[f32]| values.iter().map(|v| v * factor).collect();
        Ok(Latents { mean: scaled(&posterior.mean), sigma: scaled(&posterior.sigma()) })
    }

    /// Images `[N, H, W, C]` of samples as the process has them: the same, or latents decoded.
    pub(crate) fn images_of(&self, samples: Vec<f32>) -> Result<Vec<f32>> {
        match self.codec {
            Some(codec) => {
                let factor = (1.0 / self.recipe.scaling_factor) as f32;
                let [h, w, _] = self.denoiser.shape;
                let latents: Vec<f32> = samples.into_iter().map(|v| v * factor).collect();
                codec.decode_sized(&latents, [h, w])
            }
            None => Ok(samples),
        }
    }

    /// Images of the samples that a sampler predicts so far. A VAE has its decoder compiled for them alone,
    /// and takes no memory beside its weights while the model runs.
    ///
    /// # Errors
    /// When memory is too small, or the driver reports an error.
    pub fn preview(&self, sampler: &Sampler) -> Result<Vec<f32>> {
        let images = self.images_of(sampler.predicted()?);
        self.codec.inspect(|codec| codec.free_programs());
        images
    }

    /// Samples of the process from images `[N, H, W, C]`: the same, or the means of their latents, scaled.
    pub(crate) fn samples_of(&self, images: &[f32]) -> Result<Vec<f32>> {
        match self.codec {
            Some(codec) => {
                let factor = self.recipe.scaling_factor as f32;
                Ok(codec.encode(images)?.mean.into_iter().map(|v| v * factor).collect())
            }
            None => Ok(images.to_vec()),
        }
    }

    /// An error if the model sees texts, and there are none.
    pub(super) fn check_told(&self) -> Result<()> {
        need(
            self.recipe.text_width() == 0 || self.denoiser.texts.is_some(),
            "the model draws what a text says, and this command gives it none",
            "draw with `denoir sample RUN --prompt TEXT`",
        )
    }

    /// The model as samplers see it.
    ///
    /// # Errors
    /// When it does not know a timestep of the options, or takes an embedding for a class.
    pub(super) fn denoiser(&self, options: &Options) -> Result<&Denoiser<'a>> {
        self.check_told()?;
        self.recipe.check_times(&options.plan()?.timesteps())?;
        if let Class::Embedding(width) = self.recipe.class() {
            return Err(Error::usage(format!(
                "class_embed_type is identity: the model takes {width} numbers as an image's class"
            ))
            .hint("samplers give it none; the library's `models::unet::unet` takes one"));
        }
        Ok(&self.denoiser)
    }

    /// A sampler for `batch` samples at a time.
    ///
    /// # Errors
    /// As [`Sampler::new`]; and when the model cannot be asked so.
    pub fn sampler(&self, options: &Options, batch: usize) -> Result<Sampler> {
        Sampler::new(self.denoiser(options)?, options, batch)
    }

    /// Labels of samples from `first` on: all classes in turn, so that a grid shows each; `class`: that one
    /// always. An error where classes are any numbers, and none is given.
    pub(crate) fn labels(&self, first: usize, count: usize, class: Option<u32>) -> Result<Vec<u32>> {
        let classes = match (self.recipe.class(), class) {
            (Class::Value, None) => {
                return Err(Error::usage(
                    "class_embed_type is timestep: the model takes a number as an image's class",
                )
                .hint("sample with --class N"));
            }
            _ => self.classes().max(1),
        };
        let given = self.given.as_ref().map(|given| &given.labels).filter(|labels| !labels.is_empty());
        let told = |i: usize| given.map_or((i % classes) as u32, |labels| labels[i % labels.len()]);
        Ok((first..first + count).map(|i| class.unwrap_or_else(|| told(i))).collect())
    }

    /// Draws `count` images `[count, H, W, C]`, calling `progress` after each reverse step of each batch.
    ///
    /// # Errors
    /// As [`Sampler::run`].
    pub fn draw(
        &self,
        options: &Options,
        count: usize,
        class: Option<u32>,
        mut progress: impl FnMut() -> Result<()>,
    ) -> Result<Vec<f32>> {
        self.shown(options, self.sample(options, count, None, class, |_, _| progress())?)
    }

    /// Samples of [`Source::sample`] as images, with the pixels that their conditions know.
    ///
    /// # Errors
    /// When they are not finite, or memory is too small to decode them.
    pub fn shown(&self, options: &Options, mut samples: Vec<f32>) -> Result<Vec<f32>> {
        self.keep_known(options, &mut samples);
        check_finite(self.images_of(samples)?)
    }

    /// Frees the model's weights, where the source has taken them (`Trained::take_source`): samples can
    /// still be shown, and no more be drawn.
    ///
    /// # Errors
    /// When the driver reports an error.
    pub(crate) fn free_weights(&mut self) -> Result<()> {
        self.denoiser.weights = self.denoiser.device.alloc(nn::STORE, 0)?;
        Ok(())
    }

    /// Gives samples from number 0 on the pixels that their conditions know.
    pub(crate) fn keep_known(&self, options: &Options, samples: &mut [f32]) {
        let [h, w, c] = self.recipe.diffused();
        let is_told = |condition: &&Condition| {
            !condition.values.is_empty() && (!condition.dropped || options.guidance.scale != 0.0)
        };
        if let Some(condition) = self.denoiser.condition.as_ref().filter(is_told) {
            let conditions = condition.of_samples(0, samples.len() / (h * w * c), h * w);
            self.recipe.condition.keep_known(samples, &conditions, c);
        }
    }

    /// Draws `count` samples, not decoded, from noise that the sampler draws or from `noise` `[count, h, w,
    /// c]`, which is taken as it is, calling `watch(row, sampler)` after each reverse step of each batch.
    ///
    /// # Errors
    /// As [`Sampler::run`].
    pub fn sample(
        &self,
        options: &Options,
        count: usize,
        noise: Option<&[f32]>,
        class: Option<u32>,
        watch: impl FnMut(usize, &Sampler) -> Result<()>,
    ) -> Result<Vec<f32>> {
        // Before they are drawn, which may take long.
        let [h, w, _] = self.denoiser.shape;
        self.codec.map_or(Ok(()), |codec| codec.check_decode([h, w], count))?;
        let labels = |first, batch| self.labels(first, batch, class);
        let start = Start { count, noise, labels: &labels };
        self.denoiser(options)?.sample(options, batch_of(self.recipe, count), start, watch)
    }

    /// Number of evaluations of the model in [`Source::draw`].
    pub(crate) fn work(&self, options: &Options, count: usize) -> Result<u64> {
        let batch = self.denoiser(options)?.batch(options, batch_of(self.recipe, count))?;
        Ok((count.div_ceil(batch) * options.plan()?.steps.len()) as u64)
    }
}
