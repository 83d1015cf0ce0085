//! A model asked for its predictions, without a sampler.

use super::{Condition, Source, Texts};
use crate::diffusion::{Told, seen_by_model};
use crate::error::{Result, need};
use crate::nn::{self, Scope};
use crate::ops::arithmetic::affine;
use crate::ops::concat::split;
use crate::program::{Plan, Program, Sharing, halves};
use crate::tape::{Tape, Tensor};
use crate::tensor::DType;

/// A trained model's prediction for noisy samples at any timesteps.
pub struct Predictor {
    program: Program,
    out: Tensor,
    batch: usize,
    /// Elements of a sample.
    size: usize,
    labels: Option<DType>,
    /// What samples are told.
    texts: Option<Texts>,
    /// Of the prediction's derivative with a probe, where it was asked for.
    product: Option<Tensor>,
}

impl Source<'_> {
    /// A predictor for at most `most` samples at a time.
    ///
    /// # Errors
    /// When memory is too small, or the driver cannot build a kernel.
    pub(crate) fn predictor(&self, most: usize) -> Result<Predictor> {
        self.recorded(most, false)
    }

    /// One that multiplies the prediction's derivative too: see [`Predictor::predict_with_product`].
    ///
    /// # Errors
    /// As [`Source::predictor`].
    pub(crate) fn differentiable_predictor(&self, most: usize) -> Result<Predictor> {
        self.recorded(most, true)
    }

    fn recorded(&self, most: usize, differentiable: bool) -> Result<Predictor> {
        let (hint, texts) = ("draw with `denoir sample RUN --prompt TEXT`", self.denoiser.texts.clone());
        let is_told = self.recipe.text_width() == 0 || texts.is_some();
        need(is_told, "the model sees texts, and this command gives it none", hint)?;
        let denoiser = &self.denoiser;
        let ([h, w, c], labels) = (denoiser.shape, denoiser.labels);
        let record = |batch: usize| {
            let (tape, shape) = (Tape::new(), [batch, h, w, c]);
            let x = if differentiable { tape.variable("x", 0, shape) } else { tape.stored("x", 0, shape) };
            let t = tape.stored("t", 0, [batch]);
            let classes = labels.map(|element| match element {
                DType::U32 => tape.stored_u32("labels", [batch]),
                _ => tape.stored("labels", 0, [batch]),
            });
            let scope = if differentiable {
                Scope::frozen(&tape, &denoiser.params, nn::STORE)
            } else {
                Scope::new(&tape, &denoiser.params)
            };
            // It has predicted nothing before.
            let own = denoiser.self_conditioned.map(|_| affine(&x, 0.0, 0.0));
            let condition = (denoiser.condition.as_ref()).map(|Condition { channels, has_holes, .. }| {
                (tape.stored("condition", 0, [batch, h, w, *channels]), *has_holes)
            });
            let told = condition.as_ref().map(|(condition, has_holes)| (condition, *has_holes));
            let seen = seen_by_model(&x, own.as_ref(), told);
            let text = texts
                .as_ref()
                .map(|Texts { shape: [tokens, width], .. }| tape.stored("text", 0, [batch, *tokens, *width]));
            let beside = Told { labels: classes.as_ref(), text: text.as_ref() };
            let mut out = (denoiser.model)(&scope, &seen, &t, beside);
            if !differentiable {
                return (Plan::new(&tape, &[&out], &denoiser.device), (batch, out, None));
            }
            if out.shape().last() == 2 * c {
                out = split(&out, &[c, c]).swap_remove(0);
            }
            let gradients = tape.backward_from(&out, &tape.stored("probe", 0, shape));
            // A prediction that does not look at x has none.
            let product = gradients.get(&x).cloned();
            let kept: Vec<&Tensor> = [&out].into_iter().chain(&product).collect();
            (Plan::new(&tape, &kept, &denoiser.device), (batch, out, product))
        };
        let (plan, (batch, out, product)) = Plan::of_batch(&denoiser.device, halves(most.max(1)), record);
        let stores = [(nn::STORE, &denoiser.weights)];
        let program = Program::compile(&plan, &denoiser.device, &stores, Sharing::Shared)?;
        let predictor = Predictor { program, out, batch, size: h * w * c, labels, texts, product };
        predictor.set_texts(0)?;
        Ok(predictor)
    }
}

impl Predictor {
    /// Samples that it takes at a time.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Sets the conditions `[N, H, W, ..]` of the samples that are predicted next, for models that take some.
    ///
    /// # Errors
    /// When the driver reports an error.
    pub(crate) fn set_conditions(&mut self, conditions: &[f32]) -> Result<()> {
        self.program.write_at("condition", 0, conditions)
    }

    /// Tells the samples that are predicted next, from number `first` on, their texts, if there are some.
    ///
    /// # Errors
    /// When the driver reports an error.
    pub(crate) fn set_texts(&self, first: usize) -> Result<()> {
        let Some(texts) = &self.texts else { return Ok(()) };
        self.program.write("text", &texts.told(first, self.batch, false, 1.0))
    }

    /// The model's output `[N, ..]` for at most [`batch`](Self::batch) samples `x [N, H, W, C]`, all at
    /// timestep `t`.
    ///
    /// # Errors
    /// When the driver reports an error.
    pub fn predict(&mut self, x: &[f32], t: f32, labels: &[u32]) -> Result<Vec<f32>> {
        self.predict_at(x, &vec![t; x.len() / self.size], labels)
    }

    /// As [`predict`](Self::predict), with a timestep `t [N]` of each sample.
    ///
    /// # Errors
    /// When the driver reports an error.
    pub fn predict_at(&mut self, x: &[f32], t: &[f32], labels: &[u32]) -> Result<Vec<f32>> {
        self.run(x, t, labels)?;
        let mut out = self.program.read(&self.out)?;
        out.truncate(out.len() / self.batch * (x.len() / self.size));
        Ok(out)
    }

    /// The prediction `[N, H, W, C]`, without what it says of a variance, and the product of `probe
    /// [N, H, W, C]` with its derivative to `x`, of the same shape.
    ///
    /// # Errors
    /// When the driver reports an error.
    ///
    /// # Panics
    /// If it is not a [`differentiable_predictor`](Source::differentiable_predictor).
    #[track_caller]
    pub(crate) fn predict_with_product(
        &mut self,
        x: &[f32],
        t: &[f32],
        labels: &[u32],
        probe: &[f32],
    ) -> Result<[Vec<f32>; 2]> {
        let Some(product) = self.product.clone() else { panic!("the predictor multiplies no derivative") };
        self.program.write_at("probe", 0, probe)?;
        let mut out = self.predict_at(x, t, labels)?;
        out.truncate(x.len());
        let mut product = self.program.read(&product)?;
        product.truncate(x.len());
        Ok([out, product])
    }

    fn run(&mut self, x: &[f32], t: &[f32], labels: &[u32]) -> Result<()> {
        let mut all = x.to_vec();
        all.resize(self.batch * self.size, 0.0);
        self.program.write("x", &all)?;
        let mut t = t.to_vec();
        t.resize(self.batch, 0.0);
        self.program.write("t", &t)?;
        if let Some(element) = self.labels {
            let mut labels = labels.to_vec();
            labels.resize(self.batch, 0);
            match element {
                DType::U32 => self.program.write("labels", &labels)?,
                _ => {
                    self.program.write("labels", &labels.iter().map(|&l| l as f32).collect::<Vec<f32>>())?;
                }
            }
        }
        self.program.run()
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::check::devices;
    use crate::philox::{Stream, fill_normal};
    use crate::recipe::{find, model_of, params_of};
    use crate::sample::Denoiser;

    /// The product along a probe is the slope of `probe . prediction` along any direction.
    #[test]
    fn the_product_is_the_derivative() {
        let mut recipe = find("digits").unwrap();
        for assignment in [
            "image_size=8",
            "unet.block_out_channels=[8,16]",
            "unet.norm_num_groups=4",
            "unet.attention_head_dim=8",
        ] {
            recipe.set(assignment).unwrap();
        }
        let (model, params, shape) = (model_of(&recipe), params_of(&recipe), recipe.diffused());
        let random = |sample, size: usize| {
            let mut values = vec![0.0; size];
            fill_normal(&mut values, 5, Stream::Noise as u32, 0, sample, 0);
            values
        };
        // Zeros among the initial weights would hide all but a linear model.
        let flat: Vec<f32> = random(9, params.borrow().elements()).iter().map(|w| 0.1 * w).collect();
        let (x, probe, direction) = (random(0, 2 * 64), random(1, 2 * 64), random(2, 2 * 64));
        for (name, device) in devices() {
            let weights = device.alloc(nn::STORE, flat.len() * 4).unwrap();
            device.write(&weights, 0, bytemuck::cast_slice(&flat)).unwrap();
            let (device, params) = (device.clone(), Rc::clone(&params));
            let denoiser = Denoiser::new(device, &model, params, weights, shape);
            let mut predictor = Source::new(denoiser, &recipe, None).differentiable_predictor(2).unwrap();
            let t = [3.0, 700.5];
            let [_, product] = predictor.predict_with_product(&x, &t, &[], &probe).unwrap();
            let mut at = |step: f32| -> f64 {
                let moved: Vec<f32> = x.iter().zip(&direction).map(|(x, d)| x + step * d).collect();
                let out = predictor.predict_at(&moved, &t, &[]).unwrap();
                out.iter().zip(&probe).map(|(out, v)| f64::from(out * v)).sum()
            };
            let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
            let wanted: f64 = product.iter().zip(&direction).map(|(p, d)| f64::from(p * d)).sum();
            assert!((slope / wanted - 1.0).abs() < 1e-2, "{name}: {slope} by differences, {wanted}");
        }
    }
}
