//! A model asked for its predictions, without a sampler.

use super::Source;
use crate::error::Result;
use crate::nn::{self, Scope};
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
        let denoiser = &self.denoiser;
        let ([h, w, c], labels) = (denoiser.shape, denoiser.labels);
        let record = |batch: usize| {
            let (tape, shape) = (Tape::new(), [batch, h, w, c]);
            let x = if differentiable { tape.variable("x", 0, shape) } else { tape.stored("x", 0, shape) };
            let t = tape.stored("t", 0, [batch]);
            let classes = labels.map(|element| match element {
                DType::U32 => tape.stored_u32("labels", [batch]),
                DType::F32 => tape.stored("labels", 0, [batch]),
            });
            let scope = if differentiable {
                Scope::frozen(&tape, &denoiser.params, nn::STORE)
            } else {
                Scope::new(&tape, &denoiser.params)
            };
            let mut out = (denoiser.model)(&scope, &x, &t, classes.as_ref());
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
        Ok(Predictor { program, out, batch, size: h * w * c, labels, product })
    }
}

impl Predictor {
    /// Samples that it takes at a time.
    pub fn batch(&self) -> usize {
        self.batch
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
                DType::F32 => {
                    self.program.write("labels", &labels.iter().map(|&l| l as f32).collect::<Vec<f32>>())?;
                }
            }
        }
        self.program.run()
    }
}
