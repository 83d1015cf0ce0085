//! Euler, Heun and linear multistep over `y = x0 + sigma eps`, as in k-diffusion.
//!
//! A plan's sample is the model's input, `x = alpha y` with `alpha = 1 / sqrt(sigma^2 + 1)`, so formulas
//! over `y` divide it by `alpha` first, and multiply by that of the next level at last.

use super::spacing::Levels;
use super::{FinalSigma, Level, Method, Scheduler, Spacing};
use crate::diffusion::linear_form::LinearForm;
use crate::diffusion::plan::{Clip, SamplerPlan, Step};

/// Derivatives that linear multistep goes by.
const LMS_ORDER: usize = 4;

/// A step from one level to another.
struct Leap<'a> {
    scheduler: &'a Scheduler,
    t: f64,
    sigma: f64,
    /// The level at which the next step begins.
    to: f64,
}

impl Leap<'_> {
    fn at(&self) -> Level {
        Level::of_sigma(self.sigma)
    }

    /// The unscaled sample.
    fn y(&self) -> LinearForm {
        LinearForm::X / self.at().alpha
    }

    /// `dy/dsigma`.
    fn derivative(&self) -> LinearForm {
        (self.y() - LinearForm::X0) / self.sigma
    }

    /// The step that leaves `y` and `keep`.
    fn step(&self, y: LinearForm, keep: Vec<LinearForm>, draws: bool) -> Step {
        Step {
            log_variance: None,
            t: self.t,
            alpha_bar: self.at().alpha_bar(),
            x0: self.scheduler.process.prediction.x0(self.at()),
            next: Level::of_sigma(self.to).alpha * y,
            keep,
            draws,
        }
    }
}

impl Scheduler {
    pub(super) fn euler_plan(&self, n: usize) -> SamplerPlan {
        self.leaps(n, |leap| {
            leap.step(leap.y() + (leap.to - leap.sigma) * leap.derivative(), Vec::new(), false)
        })
    }

    pub(super) fn ancestral_plan(&self, n: usize) -> SamplerPlan {
        self.leaps(n, |leap| {
            let (from, to) = (leap.sigma.powi(2), leap.to.powi(2));
            let up = (to * (from - to) / from).sqrt();
            let down = (to - up * up).max(0.0).sqrt();
            leap.step(
                leap.y() + (down - leap.sigma) * leap.derivative() + up * LinearForm::NOISE,
                Vec::new(),
                true,
            )
        })
    }

    /// Adams and Bashforth's method for steps of any size: the integral of the polynomial through the last
    /// derivatives.
    pub(super) fn lms_plan(&self, n: usize) -> SamplerPlan {
        let mut walked: Vec<f64> = Vec::new();
        self.leaps(n, |leap| {
            walked.insert(0, leap.sigma);
            walked.truncate(LMS_ORDER);
            let newest = std::iter::once(leap.derivative());
            let derivatives: Vec<LinearForm> =
                newest.chain((0..LMS_ORDER - 1).map(LinearForm::kept)).collect();
            let mut y = leap.y();
            for (which, derivative) in derivatives.iter().take(walked.len()).enumerate() {
                y = y + lagrange_integral(&walked, which, [leap.sigma, leap.to]) * *derivative;
            }
            leap.step(y, derivatives[..LMS_ORDER - 1].to_vec(), false)
        })
    }

    /// Each step but the last is made twice: to the next level by Euler's method, and again with the mean of
    /// the derivatives at both ends.
    pub(super) fn heun_plan(&self, n: usize) -> SamplerPlan {
        let levels = self.levels(n);
        let mut steps = Vec::with_capacity(2 * n - 1);
        for i in 0..n {
            let (sigma, to) = (levels.sigmas[i], levels.sigmas[i + 1]);
            let euler = Leap { scheduler: self, t: levels.timesteps[i], sigma, to };
            let derivative = euler.derivative();
            steps.push(euler.step(
                euler.y() + (to - sigma) * derivative,
                vec![derivative, LinearForm::X],
                false,
            ));
            if to > 0.0 {
                let t = levels.timesteps[(i + 1).min(n - 1)];
                let again = Leap { scheduler: self, t, sigma: to, to };
                let mean = 0.5 * (LinearForm::kept(0) + again.derivative());
                let y = LinearForm::kept(1) / euler.at().alpha + (to - sigma) * mean;
                steps.push(again.step(y, Vec::new(), false));
            }
        }
        SamplerPlan { steps, start: self.start(&levels), clip: self.clip_if(true, false) }
    }

    fn levels(&self, n: usize) -> Levels {
        // Of these only Euler's may end elsewhere.
        let own = matches!(self.method, Method::Euler { .. });
        let final_sigma = if own { self.final_sigma } else { FinalSigma::Zero };
        Scheduler { final_sigma, ..self.clone() }.k_levels(&self.schedule(), n)
    }

    /// Factor of the noise of the first level. Leading spacing begins below the last timestep,
    /// with noise of unit variance.
    fn start(&self, levels: &Levels) -> f64 {
        match self.spacing {
            Spacing::Leading => 1.0,
            _ => Level::of_sigma(levels.sigmas[0]).sigma,
        }
    }

    fn leaps(&self, n: usize, mut step: impl FnMut(&Leap) -> Step) -> SamplerPlan {
        let levels = self.levels(n);
        let steps = (0..levels.timesteps.len()).map(|i| {
            let [sigma, to] = [levels.sigmas[i], levels.sigmas[i + 1]];
            step(&Leap { scheduler: self, t: levels.timesteps[i], sigma, to })
        });
        SamplerPlan { steps: steps.collect(), start: self.start(&levels), clip: Clip::None }
    }
}

/// The integral over `[from, to]` of the polynomial that is 1 at `nodes[which]` and 0 at the other nodes: by
/// Gauss and Legendre's two points, exact up to the third degree.
fn lagrange_integral(nodes: &[f64], which: usize, [from, to]: [f64; 2]) -> f64 {
    let value = |at: f64| -> f64 {
        let others = nodes.iter().enumerate().filter(|(k, _)| *k != which);
        others.map(|(_, node)| (at - node) / (nodes[which] - node)).product()
    };
    let (middle, half) = ((from + to) / 2.0, (to - from) / 2.0);
    let reach = half / 3.0_f64.sqrt();
    half * (value(middle - reach) + value(middle + reach))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::Variance;

    /// The first coefficients for ten steps over the linear schedule, from scipy's quadrature at 1e-12.
    #[test]
    fn coefficients_of_linear_multistep() {
        let scheduler = Scheduler::ddpm(1000, [1e-4, 0.02], Variance::FixedSmall, 0.0).named("lms").unwrap();
        let sigmas = scheduler.levels(10).sigmas;
        for (i, wanted) in [
            (0, &[-102.8398][..]),
            (1, &[-38.49291, 5.342892]),
            (3, &[-6.17275, 1.553443, -0.170_325_1, 0.004_046_668]),
        ] {
            let nodes: Vec<f64> = (0..wanted.len()).map(|k| sigmas[i - k]).collect();
            for (which, wanted) in wanted.iter().enumerate() {
                let got = lagrange_integral(&nodes, which, [sigmas[i], sigmas[i + 1]]);
                assert!((got - wanted).abs() <= 1e-5 * wanted.abs(), "{i}, {which}: {got}, not {wanted}");
            }
        }
    }
}
