//! Noise schedules in f64, and the table that the noising kernel reads.
//!
//! Notation of Ho, Jain & Abbeel 2020 (arXiv:2006.11239): `x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 -
//! alpha_bar_t) eps`.

pub use super::betas::Betas;
pub use super::variance::Variance;

/// Rounding of the tables of a schedule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// f64.
    #[default]
    Exact,
    /// Rounded to f32 after each operation, as in the diffusers library. `1 - alpha_bar` cancels at the first
    /// timesteps, which changes the fourth digit of the coefficients there.
    Reference,
}

impl Rounding {
    /// Rounds the result of an operation.
    pub fn keep(self, value: f64) -> f64 {
        match self {
            Rounding::Exact => value,
            Rounding::Reference => f64::from(value as f32),
        }
    }
}

/// Noise levels of the forward process.
///
/// ```
/// use denoir::diffusion::Schedule;
///
/// // Ho et al. 2020, section 4: a thousand betas from 1e-4 to 0.02.
/// let schedule = Schedule::linear(1000, 1e-4, 0.02);
/// assert!((schedule.alpha_bars[0] - 0.9999).abs() < 1e-12);
/// assert!(schedule.alpha_bars[999] < 1e-4); // nothing but noise is left
/// // Standard deviations of the noise beside a signal of size 1: they only grow.
/// assert!(schedule.sigmas().windows(2).all(|pair| pair[0] < pair[1]));
/// ```
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Variance of the noise that each timestep adds, `[T]`.
    pub betas: Vec<f64>,
    /// Products of `1 - beta` up to and with each timestep, `[T]`.
    pub alpha_bars: Vec<f64>,
    precision: Rounding,
}

impl Schedule {
    /// `steps` betas from `start` to `end` in equal steps.
    pub fn linear(steps: usize, start: f64, end: f64) -> Self {
        Schedule::new(&Betas::Linear, steps, start, end, Rounding::Exact)
    }

    /// `steps` betas; `start` and `end` are the first and the last, for the kinds that have them.
    pub fn new(kind: &Betas, steps: usize, start: f64, end: f64, precision: Rounding) -> Self {
        let last = steps.saturating_sub(1).max(1) as f64;
        // From both ends to the middle, as torch.linspace.
        let even = |from: f64, to: f64, i: usize| match precision {
            Rounding::Exact => from + (to - from) * i as f64 / last,
            Rounding::Reference => {
                let stride = precision.keep((precision.keep(to) - precision.keep(from)) / last);
                let part = |n: usize| precision.keep(stride * n as f64);
                precision.keep(if i < steps / 2 { from + part(i) } else { to - part(steps - 1 - i) })
            }
        };
        let of_bars = |alpha_bar: &dyn Fn(f64) -> f64| {
            let ratio =
                |i: usize| alpha_bar((i + 1) as f64 / steps as f64) / alpha_bar(i as f64 / steps as f64);
            (0..steps).map(|i| precision.keep((1.0 - ratio(i)).min(0.999))).collect()
        };
        let betas: Vec<f64> = match kind {
            Betas::Linear => (0..steps).map(|i| even(start, end, i)).collect(),
            Betas::ScaledLinear => {
                (0..steps).map(|i| precision.keep(even(start.sqrt(), end.sqrt(), i).powi(2))).collect()
            }
            Betas::Cosine => of_bars(&|t| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2)),
            Betas::Exponential => of_bars(&|t| (-12.0 * t).exp()),
            Betas::Laplace => of_bars(&|t| {
                let log_snr = -0.5 * (0.5 - t).signum() * (1.0 - 2.0 * (0.5 - t).abs() + 1e-6).ln();
                let snr = log_snr.exp();
                (snr / (1.0 + snr)).sqrt()
            }),
            Betas::Sigmoid => {
                let at = |i: usize| precision.keep(1.0 / (1.0 + (-even(-6.0, 6.0, i)).exp()));
                (0..steps).map(|i| precision.keep(at(i) * (end - start) + start)).collect()
            }
            Betas::SigmoidChen => {
                // (s(3) - s(6 u - 3)) / (s(3) - s(-3)), which is s(3 - 6 u) and s(-3) the other way round.
                let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
                let [low, high] = [-3.0, 3.0].map(sigmoid);
                of_bars(&|u| (sigmoid(3.0 - 6.0 * u) - low) / (high - low))
            }
            Betas::Vp => of_bars(&|u| (-0.1 * u - 9.95 * u * u).exp()),
            Betas::Edm => {
                let variance = |i: usize| even(0.002_f64.powf(1.0 / 7.0), 80_f64.powf(1.0 / 7.0), i).powi(14);
                // 1 - (1 + sigma_before^2) / (1 + sigma^2).
                let beta = |i: usize| {
                    let before = if i == 0 { 0.0 } else { variance(i - 1) };
                    precision.keep((variance(i) - before) / (1.0 + variance(i)))
                };
                (0..steps).map(beta).collect()
            }
            Betas::Given(betas) => betas.iter().map(|&beta| precision.keep(beta)).collect(),
        };
        Schedule::of(betas, precision)
    }

    fn of(betas: Vec<f64>, precision: Rounding) -> Self {
        let product = |so_far: &mut f64, beta: &f64| {
            *so_far *= precision.keep(1.0 - beta);
            Some(precision.keep(*so_far))
        };
        let alpha_bars = betas.iter().scan(1.0, product).collect();
        Schedule { betas, alpha_bars, precision }
    }

    /// The schedule shifted and scaled so that the last timestep is nothing but noise, and the first as it
    /// was (Lin et al. 2024, arXiv:2305.08891, algorithm 1).
    #[must_use]
    pub(crate) fn with_zero_terminal_snr(&self) -> Self {
        let keep = |value: f64| self.precision.keep(value);
        let roots: Vec<f64> = self.alpha_bars.iter().map(|a| keep(a.sqrt())).collect();
        let (Some(&first), Some(&last)) = (roots.first(), roots.last()) else { return self.clone() };
        let factor = keep(first / keep(first - last));
        let bars: Vec<f64> = roots.iter().map(|r| keep(keep(keep(r - last) * factor).powi(2))).collect();
        let before = std::iter::once(&1.0).chain(&bars);
        let betas = bars.iter().zip(before).map(|(bar, before)| keep(1.0 - keep(bar / before))).collect();
        Schedule::of(betas, self.precision)
    }

    /// `sqrt((1 - alpha_bar) / alpha_bar)` of each timestep, `[T]`: the noise in `x0 + sigma noise`.
    pub fn sigmas(&self) -> Vec<f64> {
        let keep = |value: f64| self.precision.keep(value);
        self.alpha_bars.iter().map(|&a| keep(keep(keep(1.0 - a) / a).sqrt())).collect()
    }

    /// Number of timesteps, T.
    pub fn steps(&self) -> usize {
        self.betas.len()
    }

    /// Coefficients of the step from timestep `t` to the next lower one `prev` (none: to the end):
    /// those of x_0 and x_t in the posterior's mean, and the standard deviation of the noise (Ho et al.,
    /// equations 6 and 7).
    pub fn reverse(&self, t: usize, prev: Option<usize>, variance: Variance) -> [f64; 3] {
        let keep = |value: f64| self.precision.keep(value);
        let alpha_bar = self.alpha_bars[t];
        let before = prev.map_or(1.0, |p| self.alpha_bars[p]);
        let alpha = keep(alpha_bar / before);
        let beta = keep(1.0 - alpha);
        let (noise, noise_before) = (keep(1.0 - alpha_bar), keep(1.0 - before));
        let of_x0 = before.sqrt() * beta / noise;
        let of_xt = alpha.sqrt() * noise_before / noise;
        let small = noise_before / noise * beta;
        let sigma = match (prev, variance) {
            (None, _) => 0.0,
            (_, Variance::FixedSmall) => small.max(1e-20).sqrt(),
            (_, Variance::FixedLarge) => beta.sqrt(),
            // Times what the model says.
            (_, Variance::LearnedRange | Variance::Learned) => 1.0,
        };
        [of_x0, of_xt, sigma]
    }

    /// The standard deviation of the noise in a step from timestep `t` to the end, by the formula.
    pub(crate) fn last_deviation(&self, t: usize, variance: Variance) -> f64 {
        match variance {
            Variance::FixedSmall => 1e-10, // the square root of the least variance
            Variance::LearnedRange | Variance::Learned => 0.0,
            Variance::FixedLarge => self.precision.keep(1.0 - self.alpha_bars[t]).sqrt(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published in the reference library's documentation of the linear schedule.
    #[test]
    fn alpha_bars_of_the_linear_schedule() {
        let schedule = Schedule::linear(1000, 1e-4, 0.02);
        for (t, wanted) in [
            (0, 0.9999),
            (1, 0.999_780_092),
            (249, 0.524_085_374),
            (499, 0.078_587_242_9),
            (749, 0.003_350_550_44),
            (999, 4.035_829_77e-5),
        ] {
            let err = (schedule.alpha_bars[t] - wanted).abs() / wanted;
            assert!(err <= 2e-9, "alpha_bar[{t}] = {}, wanted {wanted}", schedule.alpha_bars[t]);
        }
    }

    #[test]
    fn the_last_step_ends_at_x0_without_noise() {
        let schedule = Schedule::linear(1000, 1e-4, 0.02);
        for variance in [Variance::FixedSmall, Variance::FixedLarge] {
            let [x0, xt, sigma] = schedule.reverse(0, None, variance);
            assert!((x0 - 1.0).abs() <= 1e-12 && xt.abs() <= 1e-12 && sigma == 0.0, "{x0} {xt} {sigma}");
        }
    }

    /// From the reference library's tables, in f64 (scaled_linear .00085 to .012, the others 1e-4 to .02).
    #[test]
    fn alpha_bars_of_the_other_schedules() {
        for (kind, [start, end], wanted) in [
            (
                Betas::ScaledLinear,
                [0.000_85, 0.012],
                [0.99915, 0.998_296_028, 0.675_432_414, 0.277_669_65, 0.056_623_491_6, 0.004_660_098_51],
            ),
            (
                Betas::SigmoidChen,
                [0.0, 0.0],
                [0.999_699_720_8, 0.999_397_807_4, 0.850_853_547_93, 0.5, 0.149_146_452_07, 3.002_791_997e-7],
            ),
            (
                Betas::Vp,
                [0.0, 0.0],
                [
                    0.999_890_056,
                    0.999_760_228_7,
                    0.523_679_721_5,
                    0.079_063_812_45,
                    0.003_441_406_586,
                    4.318_574_906e-5,
                ],
            ),
            (
                Betas::Cosine,
                [0.0, 0.0],
                [0.999_958_716, 0.999_912_576, 0.847_012_161, 0.493_843_59, 0.144_272_102, 2.428_766_91e-9],
            ),
            (
                Betas::Sigmoid,
                [1e-4, 0.02],
                [
                    0.999_850_795,
                    0.999_701_019,
                    0.903_744_665,
                    0.301_931_057,
                    0.005_732_198_89,
                    3.968_181_99e-5,
                ],
            ),
        ] {
            let schedule = Schedule::new(&kind, 1000, start, end, Rounding::Exact);
            for (t, wanted) in [0, 1, 249, 499, 749, 999].into_iter().zip(wanted) {
                let err = (schedule.alpha_bars[t] - wanted).abs() / wanted;
                assert!(err <= 3e-9, "{kind:?}: alpha_bar[{t}] = {}, not {wanted}", schedule.alpha_bars[t]);
            }
        }
    }

    #[test]
    fn sigmas_of_edm() {
        let sigmas = Schedule::new(&Betas::Edm, 18, 0.0, 0.0, Rounding::Exact).sigmas();
        // The formula in numpy, for its 18 steps of CIFAR-10.
        for (i, wanted) in [(0, 0.002), (1, 0.007_528_02), (9, 3.256_822), (16, 57.585_98), (17, 80.0)] {
            assert!((sigmas[i] / wanted - 1.0).abs() < 1e-5, "sigma {i} is {}, not {wanted}", sigmas[i]);
        }
    }

    #[test]
    fn zero_terminal_snr_moves_the_end_and_keeps_the_beginning() {
        let plain = Schedule::new(&Betas::ScaledLinear, 1000, 0.000_85, 0.012, Rounding::Exact);
        let zero = plain.with_zero_terminal_snr();
        assert!((zero.alpha_bars[0] - plain.alpha_bars[0]).abs() <= 1e-12);
        assert_eq!(zero.alpha_bars[999], 0.0);
        assert!(zero.alpha_bars.windows(2).all(|pair| pair[1] < pair[0]));
    }
}
