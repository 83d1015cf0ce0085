//! The forward process as the likelihood needs it: tables in f64 that no subtraction from 1 has worn.

/// The variance of the model's reverse step at one element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ReverseVariance {
    /// beta-tilde, the posterior's: right for data that is one point.
    FixedSmall,
    /// beta: right for data of variance 1.
    FixedLarge,
    /// Between both, in logarithms, by a model's output from -1 (beta-tilde) to 1 (beta), which may lie
    /// outside (Nichol & Dhariwal 2021, equation 15).
    LearnedRange(f64),
    /// A logarithm of the model's own.
    LogVariance(f64),
}

/// What one timestep's reverse step is made of: the law `q(x_{t-1} | x_t, x_0)`, whose mean is
/// `of_x0 x_0 + of_xt x_t` (Ho et al. 2020, equations 6 and 7), and the variances that a model may choose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Posterior {
    /// Coefficient of the data.
    pub of_x0: f64,
    /// Coefficient of `x_t`.
    pub of_xt: f64,
    /// `ln beta-tilde`; at t = 0, where beta-tilde is 0, that of t = 1, as OpenAI's code and Ho et al.'s have
    /// it.
    pub log_variance: f64,
    /// `ln beta`.
    pub log_beta: f64,
    /// Whether t is 0.
    first: bool,
}

impl Posterior {
    /// Logarithm of the model's variance. At t = 0 the fixed large one is beta-tilde of t = 1 too ("to get a
    /// better decoder log likelihood": OpenAI), but the upper end of a range is beta.
    pub fn of_model(&self, variance: ReverseVariance) -> f64 {
        match variance {
            ReverseVariance::FixedLarge if !self.first => self.log_beta,
            ReverseVariance::FixedSmall | ReverseVariance::FixedLarge => self.log_variance,
            ReverseVariance::LearnedRange(output) => {
                let part = (output + 1.0) / 2.0;
                part * self.log_beta + (1.0 - part) * self.log_variance
            }
            ReverseVariance::LogVariance(log_variance) => log_variance,
        }
    }
}

/// A forward process of T timesteps; t = 0 has the least noise.
///
/// `1 - alpha_bar` comes from the sum of `ln(1 - beta)`. As a difference it would keep 12 digits at t = 0 in
/// f64, and 4 in f32.
#[derive(Clone, Debug)]
pub struct Process {
    betas: Vec<f64>,
    /// `ln alpha_bar`, `[T]`.
    logs: Vec<f64>,
}

impl Process {
    /// The process of these betas, `[T]`.
    ///
    /// # Panics
    /// If there is none, or one is outside (0, 1]; the last alone may be 1, of a schedule that ends in noise.
    #[track_caller]
    pub fn new(betas: &[f64]) -> Self {
        assert!(!betas.is_empty(), "a process has at least one beta");
        for (t, &beta) in betas.iter().enumerate() {
            let inside = beta > 0.0 && (beta < 1.0 || beta == 1.0 && t + 1 == betas.len());
            assert!(inside, "beta {beta} at timestep {t} is not between 0 and 1");
        }
        let sum = |sum: &mut f64, beta: &f64| {
            *sum += (-beta).ln_1p();
            Some(*sum)
        };
        Process { betas: betas.to_vec(), logs: betas.iter().scan(0.0, sum).collect() }
    }

    /// T.
    pub fn steps(&self) -> usize {
        self.betas.len()
    }

    /// beta at timestep `t`.
    pub fn beta(&self, t: usize) -> f64 {
        self.betas[t]
    }

    /// alpha-bar, the square of the data's factor in `x_t`.
    pub fn alpha_bar(&self, t: usize) -> f64 {
        self.logs[t].exp()
    }

    /// `1 - alpha_bar`, the variance of the noise in `x_t`.
    pub fn noise(&self, t: usize) -> f64 {
        -self.logs[t].exp_m1()
    }

    /// alpha-bar of the timestep before, 1 for t = 0.
    pub fn alpha_bar_before(&self, t: usize) -> f64 {
        if t == 0 { 1.0 } else { self.alpha_bar(t - 1) }
    }

    /// `1 - alpha_bar` of the timestep before, 0 for t = 0.
    pub fn noise_before(&self, t: usize) -> f64 {
        if t == 0 { 0.0 } else { self.noise(t - 1) }
    }

    /// `alpha_bar / (1 - alpha_bar)`.
    pub fn snr(&self, t: usize) -> f64 {
        self.alpha_bar(t) / self.noise(t)
    }

    /// The posterior at timestep `t`.
    pub fn posterior(&self, t: usize) -> Posterior {
        let noise = self.noise(t);
        let clipped = if t == 0 { 1usize.min(self.steps() - 1) } else { t };
        Posterior {
            of_x0: self.alpha_bar_before(t).sqrt() * self.betas[t] / noise,
            of_xt: (1.0 - self.betas[t]).sqrt() * self.noise_before(t) / noise,
            log_variance: self.log_beta_tilde(clipped),
            log_beta: self.betas[t].ln(),
            first: t == 0,
        }
    }

    fn log_beta_tilde(&self, t: usize) -> f64 {
        // One timestep alone has no variance to borrow but its beta.
        let before = if t == 0 { self.noise(0) } else { self.noise_before(t) };
        self.betas[t].ln() + before.ln() - self.noise(t).ln()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::likelihood::close;

    pub(crate) fn linear(steps: usize) -> Process {
        let beta = |i: usize| 1e-4 + (0.02 - 1e-4) * i as f64 / (steps - 1) as f64;
        Process::new(&(0..steps).map(beta).collect::<Vec<_>>())
    }

    pub(crate) fn scaled_linear(steps: usize) -> Process {
        let (start, end) = (0.00085_f64.sqrt(), 0.012_f64.sqrt());
        let beta = |i: usize| (start + (end - start) * i as f64 / (steps - 1) as f64).powi(2);
        Process::new(&(0..steps).map(beta).collect::<Vec<_>>())
    }

    pub(crate) fn cosine(steps: usize) -> Process {
        let bar = |i: usize| {
            ((i as f64 / steps as f64 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2)
        };
        Process::new(&(0..steps).map(|i| (1.0 - bar(i + 1) / bar(i)).min(0.999)).collect::<Vec<_>>())
    }

    #[test]
    fn log_snr_of_three_schedules() {
        let at = [0, 1, 10, 100, 250, 500, 750, 999];
        #[rustfmt::skip]
        let wanted = [
            (linear(1000), [9.21024036698, 8.42208167652, 6.1200940571, 2.14437095249, 0.0857446177449,
                -2.47266726466, -5.71047920741, -10.1176731833]),
            (scaled_linear(1000), [7.06942384703, 6.37308776225, 4.63964411147, 2.13462712942, 0.725389087829,
                -0.962726262732, -2.8215661257, -5.3640477003]),
            (cosine(1000), [10.0949888115, 9.34465245476, 7.23401661047, 3.53167411465, 1.70270724875,
                -0.0308617594904, -1.78913631502, -19.8358821516]),
        ];
        for (process, wanted) in wanted {
            at.iter().zip(wanted).for_each(|(&t, wanted)| close(process.snr(t).ln(), wanted, 1e-9));
        }
    }

    #[test]
    fn variances_of_the_reverse_step() {
        let process = linear(1000);
        let log_variance = |t| process.posterior(t).of_model(ReverseVariance::FixedSmall);
        for (t, wanted) in [
            (0, -9.8167251353),
            (1, -9.8167251353),
            (10, -8.26075560735),
            (100, -6.18769671499),
            (500, -4.60004973998),
            (999, -3.9120238291),
        ] {
            close(log_variance(t), wanted, 1e-9);
        }
        close(process.posterior(500).of_model(ReverseVariance::LearnedRange(0.3)), -4.59949227038, 1e-9);
        close(process.posterior(0).of_model(ReverseVariance::LearnedRange(0.3)), -9.42257503914, 1e-9);
        assert_eq!(process.posterior(0).of_model(ReverseVariance::FixedLarge), log_variance(1));
        close(process.posterior(7).of_model(ReverseVariance::FixedLarge), process.beta(7).ln(), 1e-15);
        assert_eq!(process.posterior(7).of_model(ReverseVariance::LogVariance(-2.5)), -2.5);
    }

    #[test]
    fn the_posterior_follows_from_bayes() {
        // 1 / beta-tilde = alpha / beta + 1 / noise_before, and the mean is weighted by the same terms.
        let process = cosine(10);
        for t in 1..10 {
            let Posterior { of_x0, of_xt, log_variance, .. } = process.posterior(t);
            let (beta, before) = (process.beta(t), process.noise_before(t));
            let variance = 1.0 / ((1.0 - beta) / beta + 1.0 / before);
            close(log_variance, variance.ln(), 1e-12);
            close(of_xt, variance * (1.0 - beta).sqrt() / beta, 1e-12);
            close(of_x0, variance * process.alpha_bar_before(t).sqrt() / before, 1e-12);
        }
        let first = process.posterior(0);
        assert!((first.of_x0 - 1.0).abs() <= 1e-15 && first.of_xt == 0.0);
    }

    #[test]
    fn ends_of_what_a_process_may_be() {
        let process = Process::new(&[0.5, 1.0]);
        assert_eq!((process.alpha_bar(1), process.noise(1), process.snr(1)), (0.0, 1.0, 0.0));
        let one = Process::new(&[0.25]);
        close(one.posterior(0).log_variance, 0.25_f64.ln(), 1e-15);
    }

    #[test]
    #[should_panic(expected = "beta 1 at timestep 0 is not between 0 and 1")]
    fn noise_in_the_middle_panics() {
        Process::new(&[1.0, 0.5]);
    }
}
