//! The computation of a sampler's plan in f64, the reference of the device's steps.

use denoir::diffusion::{Clip, SamplerPlan};

/// A plan on its way.
#[derive(Clone, Debug)]
pub struct PlanRunner<'a> {
    plan: &'a SamplerPlan,
    row: usize,
    /// The sample `[N, elements]`, as is each slot.
    pub x: Vec<f64>,
    /// The predicted clean sample of the last step, clipped.
    pub x0: Vec<f64>,
    kept: Vec<Vec<f64>>,
    samples: usize,
}

impl<'a> PlanRunner<'a> {
    /// From `samples` samples `x [N, elements]`, scaled as the model sees them, at row `row` on.
    pub fn new(plan: &'a SamplerPlan, row: usize, x: Vec<f64>, samples: usize) -> Self {
        PlanRunner {
            plan,
            row,
            kept: vec![vec![0.0; x.len()]; plan.slots()],
            x0: vec![0.0; x.len()],
            x,
            samples,
        }
    }

    /// Takes the next step with the model's output and standard normal numbers of `x`'s shape.
    ///
    /// # Panics
    /// After the last one, or when the shapes differ.
    pub fn step(&mut self, out: &[f64], noise: &[f64]) {
        assert!(out.len() == self.x.len() && noise.len() == self.x.len(), "step: shapes differ");
        let step = &self.plan.steps[self.row];
        for ((x0, x), out) in self.x0.iter_mut().zip(&self.x).zip(out) {
            *x0 = step.x0[0] * x + step.x0[1] * out;
        }
        self.clip();
        for (i, (&out, &noise)) in out.iter().zip(noise).enumerate() {
            let (x0, x) = (self.x0[i], self.x[i]);
            let kept: Vec<f64> = self.kept.iter().map(|kept| kept[i]).collect();
            self.x[i] = step.next.at(x0, x, out, &kept, noise);
            for (slot, form) in step.keep.iter().enumerate() {
                self.kept[slot][i] = form.at(x0, x, out, &kept, noise);
            }
        }
        self.row += 1;
    }

    fn clip(&mut self) {
        match self.plan.clip {
            Clip::None => {}
            Clip::At(bound) => self.x0.iter_mut().for_each(|x0| *x0 = x0.clamp(-bound, bound)),
            Clip::Dynamic { ratio, most } => {
                for x0 in self.x0.chunks_mut(self.x.len() / self.samples) {
                    let s = quantile(x0, ratio).max(1.0).min(most);
                    x0.iter_mut().for_each(|x0| *x0 = x0.clamp(-s, s) / s);
                }
            }
        }
    }
}

/// The quantile of the absolute values, linear between its neighbours.
fn quantile(values: &[f64], ratio: f64) -> f64 {
    let mut sorted: Vec<f64> = values.iter().map(|v| v.abs()).collect();
    sorted.sort_by(f64::total_cmp);
    let rank = ratio * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
    low + (high - low) * rank.fract()
}
