//! A model asked for its predictions, without a sampler.

use super::Source;
use crate::error::{Error, Result};
use crate::nn::{self, Scope};
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
}

impl Source<'_> {
    /// A predictor for at most `most` samples at a time.
    ///
    /// # Errors
    /// When memory is too small, or the driver cannot build a kernel.
    pub(crate) fn predictor(&self, most: usize) -> Result<Predictor> {
        let denoiser = &self.denoiser;
        let ([h, w, c], labels) = (denoiser.shape, denoiser.labels);
        if denoiser.condition.is_some() {
            return Err(Error::usage(
                "the model draws from conditions, and no likelihood is measured of such",
            )
            .hint("give a run without a condition"));
        }
        let record = |batch: usize| {
            let tape = Tape::new();
            let (x, t) = (tape.stored("x", 0, [batch, h, w, c]), tape.stored("t", 0, [batch]));
            let classes = labels.map(|element| match element {
                DType::U32 => tape.stored_u32("labels", [batch]),
                DType::F32 => tape.stored("labels", 0, [batch]),
            });
            let out = (denoiser.model)(&Scope::new(&tape, &denoiser.params), &x, &t, classes.as_ref());
            (Plan::new(&tape, &[&out], &denoiser.device), (batch, out))
        };
        let (plan, (batch, out)) = Plan::of_batch(&denoiser.device, halves(most.max(1)), record);
        let stores = [(nn::STORE, &denoiser.weights)];
        let program = Program::compile(&plan, &denoiser.device, &stores, Sharing::Shared)?;
        Ok(Predictor { program, out, batch, size: h * w * c, labels })
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
        let count = x.len() / self.size;
        let mut all = x.to_vec();
        all.resize(self.batch * self.size, 0.0);
        self.program.write("x", &all)?;
        self.program.write("t", &vec![t; self.batch])?;
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
        self.program.run()?;
        let mut out = self.program.read(&self.out)?;
        out.truncate(out.len() / self.batch * count);
        Ok(out)
    }
}
