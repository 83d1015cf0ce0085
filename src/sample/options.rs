//! How samples are drawn: steps, solver, random numbers, guidance.

use super::Denoiser;
use crate::diffusion::{Rounding, SamplerPlan, Scheduler, Step};
use crate::error::{Error, Result};
use crate::recipe::{Recipe, Rng};

/// Seed, steps, solver and random numbers of sampling.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of all noise.
    pub seed: u64,
    /// Reverse steps.
    pub steps: usize,
    /// The solver, and the process that it reverses.
    pub scheduler: Scheduler,
    /// Source of the noise.
    pub rng: Rng,
    /// Classifier-free guidance.
    pub guidance: Guidance,
    /// Steps that are left out at the beginning, of samples that begin with a picture.
    pub first: usize,
}

/// Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598): `u + scale (c - u)` of a prediction `c`
/// with the class and one without, `u`. The scale of the paper's own formula, `w`, is one less.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    /// 1: none; 0: without the class.
    pub scale: f64,
    /// How far the guided prediction is brought back to the deviation of `c` (Lin et al. 2023,
    /// arXiv:2305.08891, section 3.4): 0 not at all, 1 wholly.
    pub rescale: f64,
    /// Noise levels `sqrt(1 / alpha_bar - 1)` that are guided: above the first, up to the second. Others take
    /// `c` as it is, and half the time (Kynkäänniemi et al. 2024, arXiv:2404.07724).
    pub sigmas: [f64; 2],
}

impl Default for Guidance {
    fn default() -> Self {
        Guidance { scale: 1.0, rescale: 0.0, sigmas: [0.0, f64::INFINITY] }
    }
}

impl Guidance {
    /// The recipe's own.
    pub fn of(recipe: &Recipe) -> Guidance {
        Guidance { scale: recipe.guidance, rescale: recipe.guidance_rescale, ..Guidance::default() }
    }

    /// An error if the model was not trained to be guided so.
    pub(super) fn check(&self, denoiser: &Denoiser) -> Result<()> {
        if denoiser.texts.is_some() {
            return Ok(());
        }
        let dropped = denoiser.condition.as_ref().is_some_and(|condition| condition.dropped);
        if self.scale == 1.0 || denoiser.null.is_some() || dropped {
            return Ok(());
        }
        let message = match &denoiser.condition {
            Some(_) => "the model was not trained without conditions too",
            None => "the model was not trained without classes too",
        };
        Err(Error::usage(format!("guidance {}: {message}", self.scale)).hint(
            "guide one that is trained with label_dropout or condition.dropout, or leave guidance at 1",
        ))
    }

    /// Whether a prediction takes two passes of the model.
    pub(super) fn takes_both(&self) -> bool {
        self.scale != 0.0 && self.scale != 1.0
    }

    /// Whether the row of a plan is guided.
    pub(super) fn holds(&self, step: &Step) -> bool {
        let sigma = (1.0 / step.alpha_bar - 1.0).sqrt();
        let [low, high] = self.sigmas;
        self.takes_both() && sigma > low && sigma <= high
    }
}

impl Options {
    /// `steps` reverse steps of a scheduler, drawing with `seed`.
    pub fn new(scheduler: Scheduler, steps: usize, seed: u64) -> Self {
        Options { seed, steps, scheduler, rng: Rng::Denoir, guidance: Guidance::default(), first: 0 }
    }

    /// The steps of the reverse process.
    ///
    /// # Errors
    /// As [`Scheduler::plan_from`].
    pub(crate) fn plan(&self) -> Result<SamplerPlan> {
        self.scheduler.plan_from(self.steps, self.first)
    }

    /// The recipe's own.
    ///
    /// # Errors
    /// As [`Recipe::scheduler`].
    pub fn of(recipe: &Recipe) -> Result<Self> {
        let guidance = Guidance::of(recipe);
        Ok(Options { guidance, ..Options::new(recipe.scheduler()?, recipe.sample_steps, recipe.seed) })
    }

    /// The same with other random numbers. With torch's also the tables are rounded as the reference library
    /// rounds them, so that its pictures come out.
    #[must_use]
    pub fn with_rng(mut self, rng: Rng) -> Self {
        self.rng = rng;
        self.scheduler.precision = match rng {
            Rng::Denoir => Rounding::Exact,
            Rng::Torch => Rounding::Reference,
        };
        self
    }
}
