//! The numbers of metrics and evaluations by name, for what shows them all.

use super::{Evaluation, HeldOutLoss, Metrics};

/// A number and its name; those of one family have a `/` in it.
pub(crate) type Scalar = (&'static str, f32);

const LOSSES: [&str; 4] = ["loss_by_t/1", "loss_by_t/2", "loss_by_t/3", "loss_by_t/4"];
const WEIGHTED: [&str; 4] = ["weighted_by_t/1", "weighted_by_t/2", "weighted_by_t/3", "weighted_by_t/4"];
const ACCURACIES: [&str; 4] = ["accuracy_by_t/1", "accuracy_by_t/2", "accuracy_by_t/3", "accuracy_by_t/4"];
const HELD_OUT: [&str; 4] =
    ["evaluation/loss_by_t_1", "evaluation/loss_by_t_2", "evaluation/loss_by_t_3", "evaluation/loss_by_t_4"];

/// Names with the values that are there.
fn named<const N: usize>(
    names: [&'static str; N],
    values: Option<[Option<f32>; N]>,
) -> impl Iterator<Item = Scalar> {
    names.into_iter().zip(values.into_iter().flatten()).filter_map(|(name, value)| Some((name, value?)))
}

impl Metrics {
    /// Its numbers but for the step.
    pub(crate) fn scalars(&self) -> Vec<Scalar> {
        let names = [
            "loss",
            "reconstruction",
            "kl",
            "codebook",
            "perplexity",
            "accuracy",
            "bound",
            "loss_scale",
            "skipped",
            "grad_norm",
            "lr",
            "images_per_s",
            "seconds",
            "device_ms",
            "memory_mb",
        ];
        let values = [
            Some(self.loss),
            self.reconstruction,
            self.kl,
            self.codebook,
            self.perplexity,
            self.accuracy,
            self.bound,
            self.loss_scale,
            self.skipped,
            self.grad_norm,
            Some(self.lr as f32),
            Some(self.images_per_s as f32),
            Some(self.seconds as f32),
            self.device_ms.map(|ms| ms as f32),
            self.memory_mb.map(|mb| mb as f32),
        ];
        let quarters = named(LOSSES, self.loss_by_t).chain(named(WEIGHTED, self.weighted_by_t));
        named(names, Some(values)).chain(quarters).chain(named(ACCURACIES, self.accuracy_by_t)).collect()
    }
}

impl Evaluation {
    /// Its numbers but for the step.
    pub(crate) fn scalars(&self) -> Vec<Scalar> {
        let names = [
            "evaluation/reconstruction",
            "evaluation/kl",
            "evaluation/perplexity",
            "evaluation/codes_used",
            "evaluation/psnr",
            "evaluation/ssim",
            "evaluation/active_units",
        ];
        let values = [
            Some(self.reconstruction),
            self.kl,
            self.perplexity,
            self.codes_used.map(|used| used as f64),
            Some(self.psnr),
            Some(self.ssim),
            Some(self.active_units as f64),
        ];
        named(names, Some(values.map(|value| value.map(|v| v as f32)))).collect()
    }
}

impl HeldOutLoss {
    /// Its numbers but for the step.
    pub(crate) fn scalars(&self) -> Vec<Scalar> {
        let by_t = self.held_out_by_t.map(|value| value.map(|v| v as f32));
        let all = std::iter::once(("evaluation/loss", self.held_out_loss as f32));
        all.chain(named(HELD_OUT, Some(by_t))).collect()
    }
}
