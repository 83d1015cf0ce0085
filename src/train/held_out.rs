//! How well a diffusion model predicts on images that it was not trained on: at the same timesteps, with the
//! same noise, each time.

use std::sync::Arc;

use super::diffusion_loss::quarter_of;
use crate::data::condition::read_both;
use crate::data::{Captions, ConditionKind, Dataset, choice};
use crate::diffusion::{NoiseLevel, Prediction};
use crate::error::Result;
use crate::philox::{Stream, fill_normal};
use crate::recipe::{LossKind, Recipe};
use crate::run::HeldOutLoss;
use crate::sample::{Source, batch_of};

/// Of the choice of images and of the noise: alike in all runs, so that those on one data set compare.
const SEED: u64 = 0;

/// Images that a diffusion model is measured on.
pub(super) struct HeldOut {
    data: Arc<dyn Dataset>,
    chosen: Vec<u64>,
    held_out: bool,
    /// Of the images, where the model sees texts.
    captions: Option<Captions>,
}

impl HeldOut {
    /// For `count` images, or all that there are. `held_out`: whether training leaves them out.
    pub fn new(data: Arc<dyn Dataset>, count: usize, held_out: bool) -> HeldOut {
        let chosen = choice(&*data, count as u64, SEED);
        HeldOut { data, chosen, held_out, captions: None }
    }

    /// The same, with the captions of its images.
    pub fn captioned(self, captions: Option<Captions>) -> HeldOut {
        HeldOut { captions, ..self }
    }

    /// The first caption of each image, which the source that is measured is told.
    pub fn prompts(&self) -> Option<Vec<String>> {
        let captions = self.captions.as_ref()?;
        Some(self.chosen.iter().map(|&index| captions.of(index)[0].clone()).collect())
    }

    /// Mean error of the predictions of `source` after `step` steps, without the weights of timesteps. Image
    /// i is seen at the timestep `frac((i + 1) / golden ratio) T`: of any number of images, each part of the
    /// timesteps has its share.
    pub fn measure(&self, source: &Source, recipe: &Recipe, step: u64) -> Result<HeldOutLoss> {
        let (levels, labelled) = (recipe.schedule().levels(), recipe.class_count() > 0);
        let mut predictor = source.predictor(batch_of(recipe, self.chosen.len().max(1)))?;
        let (mut sums, mut counts) = ([0.0_f64; 4], [0_usize; 4]);
        for (batch, chosen) in self.chosen.chunks(predictor.batch()).enumerate() {
            let first = batch * predictor.batch();
            let (mut images, mut labels, mut conditions) = (Vec::new(), Vec::new(), Vec::new());
            for (i, &index) in chosen.iter().enumerate() {
                let (label, image, partner) = read_both(&*self.data, &recipe.condition, index)?;
                let number = (first + i) as u64;
                conditions.extend(recipe.condition.of(&image, self.data.shape(), &partner, SEED, number));
                images.extend(image);
                labels.push(label);
            }
            if recipe.condition.is_some() {
                predictor.set_conditions(&conditions)?;
            }
            predictor.set_texts(first)?;
            let x0 = source.samples_of(&images)?;
            let (size, channels) = (x0.len() / chosen.len(), recipe.diffused()[2]);
            let timesteps: Vec<usize> = (first..first + chosen.len())
                .map(|i| {
                    (((i + 1) as f64 / std::f64::consts::GOLDEN_RATIO).fract() * levels.len() as f64) as usize
                })
                .collect();
            let (mut x_t, mut targets) = (vec![0.0; x0.len()], vec![0.0; x0.len()]);
            let outs = x_t.chunks_exact_mut(size).zip(targets.chunks_exact_mut(size));
            for (i, ((x_t, target), x0)) in outs.zip(x0.chunks(size)).enumerate() {
                fill_normal(x_t, SEED, Stream::HeldOut as u32, 0, (first + i) as u32, 0);
                noised(x_t, target, x0, &levels[timesteps[i]], recipe.prediction_type);
            }
            let t: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
            let labels = if labelled { &labels[..] } else { &[] };
            let predicted = predictor.predict_at(&x_t, &t, labels)?;
            // A learned variance follows the prediction of each pixel.
            let width = predicted.len() / x0.len();
            for (i, (out, target)) in predicted.chunks(width * size).zip(targets.chunks(size)).enumerate() {
                let predictions = out.chunks(width * channels).flat_map(|pixel| &pixel[..channels]);
                // Of a condition with holes the last channel is 1 where the pixel is known: nothing is learnt
                // there.
                let told = conditions.len() / chosen.len() * i;
                let told = |k: usize| conditions[told + k / channels * (channels + 1) + channels];
                let is_learnt = |k: &usize| recipe.condition.kind != ConditionKind::Mask || told(*k) == 0.0;
                let errors = predictions.zip(target).enumerate().filter(|(k, _)| is_learnt(k));
                let errors = errors.map(|(_, (p, y))| error(recipe, f64::from(p - y)));
                let quarter = quarter_of((timesteps[i] as f64 + 0.5) / levels.len() as f64);
                sums[quarter] += errors.sum::<f64>() / size as f64;
                counts[quarter] += 1;
            }
        }
        let images = counts.iter().sum::<usize>();
        Ok(HeldOutLoss {
            step,
            images,
            held_out: self.held_out,
            held_out_loss: sums.iter().sum::<f64>() / images as f64,
            held_out_by_t: std::array::from_fn(|q| (counts[q] > 0).then(|| sums[q] / counts[q] as f64)),
        })
    }
}

/// Makes of the noise in `x_t` the noisy sample, and fills in what is to be predicted of it.
fn noised(x_t: &mut [f32], target: &mut [f32], x0: &[f32], at: &NoiseLevel, prediction: Prediction) {
    let [signal, noise] = [at.signal().sqrt(), at.noise().sqrt()];
    let [of_x0, of_noise] = prediction.target(at);
    for ((x_t, target), &x0) in x_t.iter_mut().zip(target).zip(x0) {
        let (eps, x0) = (f64::from(*x_t), f64::from(x0));
        *target = (of_x0 * x0 + of_noise * eps) as f32;
        *x_t = (signal * x0 + noise * eps) as f32;
    }
}

/// The recipe's error of one number, before its weight; of the bound, the squared error of the prediction.
fn error(recipe: &Recipe, difference: f64) -> f64 {
    let (size, delta) = (difference.abs(), recipe.huber_delta);
    match recipe.loss {
        LossKind::Mse | LossKind::Bound => size * size,
        LossKind::L1 => size,
        LossKind::Huber if size < delta => 0.5 * size * size,
        LossKind::Huber => delta * (size - 0.5 * delta),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;
    use crate::check::devices;
    use crate::diffusion::Told;
    use crate::nn::{self, Init, Layout, Params, Scope};
    use crate::ops::arithmetic::{add, mul};
    use crate::ops::embedding::embedding;
    use crate::recipe::find;
    use crate::sample::Denoiser;
    use crate::tape::{Tape, Tensor};

    /// All pictures are of this grey, and the model takes them for another.
    const GREY: f64 = 0.3;
    const TAKEN: f64 = 0.1;
    const STEPS: usize = 1000;

    struct Plain;

    impl Dataset for Plain {
        fn len(&self) -> Option<u64> {
            Some(300)
        }

        fn shape(&self) -> [usize; 3] {
            [8, 8, 1]
        }

        fn classes(&self) -> &[String] {
            &[]
        }

        fn read(&self, _index: u64, pixels: &mut [f32]) -> Result<u32> {
            pixels.fill(GREY as f32);
            Ok(0)
        }
    }

    /// The noise `(x - a c) / b` of pictures of one grey, c.
    fn model(scope: &Scope, x: &Tensor, t: &Tensor, _told: Told) -> Tensor {
        let of_t = |name| {
            let table = scope.param(name, [STEPS, 1], Layout::Plain, Init::Zeros);
            embedding(&table, t).reshape([x.dims()[0], 1, 1, 1])
        };
        add(&mul(x, &of_t("factor")), &of_t("offset"))
    }

    /// A wrong x0 is a wrong noise by SNR times as much: by 9.2 the error of a timestep is SNR (c - c')^2.
    #[test]
    fn each_quarter_of_t_has_the_error_of_its_noise_levels() {
        let mut recipe = find("digits").unwrap();
        recipe.set("image_size=8").unwrap();
        let levels = recipe.schedule().levels();
        for (name, device) in devices() {
            let (params, tape): (Rc<RefCell<Params>>, _) = (Rc::default(), Tape::new());
            let (x, t) = (tape.stored("x", 0, [1, 8, 8, 1]), tape.stored("t", 0, [1]));
            model(&Scope::new(&tape, &params), &x, &t, None.into());
            let of =
                |at: &NoiseLevel| [1.0, -TAKEN * at.signal().sqrt()].map(|v| (v / at.noise().sqrt()) as f32);
            let mut flat = vec![0.0_f32; params.borrow().elements()];
            for (i, name) in ["factor", "offset"].into_iter().enumerate() {
                let first = params.borrow().find(name).unwrap().first;
                flat[first..].iter_mut().zip(&levels).for_each(|(value, at)| *value = of(at)[i]);
            }
            let weights = device.alloc(nn::STORE, flat.len() * 4).unwrap();
            device.write(&weights, 0, bytemuck::cast_slice(&flat)).unwrap();
            let (device, shape) = (device.clone(), [8, 8, 1]);
            let denoiser = Denoiser::new(device, &model, params, weights, shape);
            let source = Source::new(denoiser, &recipe, None);
            let held_out = HeldOut::new(Arc::new(Plain), 256, true);
            let loss = held_out.measure(&source, &recipe, 7).unwrap();
            assert_eq!((loss.step, loss.images, loss.held_out), (7, 256, true));
            for q in 1..4 {
                let quarter = &levels[q * STEPS / 4..][..STEPS / 4];
                let snr = quarter.iter().map(NoiseLevel::snr).sum::<f64>() / quarter.len() as f64;
                let (wanted, got) = (snr * (GREY - TAKEN).powi(2), loss.held_out_by_t[q].unwrap());
                assert!((got / wanted - 1.0).abs() < 0.1, "{name}, quarter {q}: {got} instead of {wanted}");
            }
            assert_eq!(loss.held_out_loss, held_out.measure(&source, &recipe, 8).unwrap().held_out_loss);
        }
    }
}
