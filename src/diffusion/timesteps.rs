//! Which timesteps training draws: their probabilities.

use serde::{Deserialize, Serialize};

use super::levels::NoiseLevel;
use crate::normal::below;

/// How training draws timesteps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepSampling {
    /// Each alike, for each sample on its own.
    #[default]
    Uniform,
    /// Each alike; those of a step's batch lie in equal distances from a random first one (Kingma et al.
    /// 2021, arXiv:2107.00630, appendix I.1).
    Stratified,
    /// In proportion to the root of the mean square of the last ten losses of each, so that the terms of the
    /// bound, which differ by orders of magnitude, weigh alike; alike until each has ten (Nichol & Dhariwal
    /// 2021, arXiv:2102.09672, section 3.3). Of a step in several batches, the losses of the first are known
    /// when the second draws.
    LossSecondMoment,
    /// The logarithm of `sigma = sqrt((1 - alpha_bar) / alpha_bar)` is normal (Karras et al. 2022,
    /// arXiv:2206.00364).
    LogNormal,
    /// The logit of `t / T` is normal (Esser et al. 2024, arXiv:2403.03206).
    LogitNormal,
}

impl TimestepSampling {
    /// Probability of each timestep, where they differ, and do not depend on losses. `loc` and `scale`: mean
    /// and standard deviation of the normal distribution. A timestep has the mass between the middles to its
    /// neighbours, the outermost all that lies beyond.
    pub fn probabilities(self, levels: &[NoiseLevel], [loc, scale]: [f64; 2]) -> Option<Vec<f64>> {
        let steps = levels.len();
        // Between timesteps t and t + 1.
        let edge = |t: usize| match self {
            TimestepSampling::LogNormal => -0.25 * (levels[t].log_snr() + levels[t + 1].log_snr()),
            _ => ((t + 1) as f64 / (steps - t - 1) as f64).ln(),
        };
        if !matches!(self, TimestepSampling::LogNormal | TimestepSampling::LogitNormal) {
            return None;
        }
        let mut before = 0.0;
        let mass = |t: usize| {
            let up_to = if t + 1 == steps { 1.0 } else { below((edge(t) - loc) / scale) };
            up_to - std::mem::replace(&mut before, up_to)
        };
        Some((0..steps).map(mass).collect())
    }
}

/// The sums of probabilities up to and with each timestep, as the kernel that draws from them reads them.
pub(crate) fn cumulative(probabilities: &[f64]) -> Vec<f32> {
    let total: f64 = probabilities.iter().sum();
    let mut sum = 0.0;
    let up_to = |p: &f64| {
        sum += p / total;
        sum as f32
    };
    let mut sums: Vec<f32> = probabilities.iter().map(up_to).collect();
    if let Some(last) = sums.last_mut() {
        *last = 1.0;
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::Schedule;

    /// Means and deviations of what is normal come out again.
    #[test]
    fn densities_have_their_moments() {
        let levels = Schedule::linear(1000, 1e-4, 0.02).levels();
        for (sampling, [loc, scale]) in [
            (TimestepSampling::LogNormal, [-1.2, 1.2]),
            (TimestepSampling::LogNormal, [0.0, 0.5]),
            (TimestepSampling::LogitNormal, [0.0, 1.0]),
            (TimestepSampling::LogitNormal, [0.5, 0.7]),
        ] {
            let p = sampling.probabilities(&levels, [loc, scale]).unwrap();
            let value = |t: usize| match sampling {
                TimestepSampling::LogNormal => -0.5 * levels[t].log_snr(),
                _ => ((t as f64 + 0.5) / (1000.0 - t as f64 - 0.5)).ln(),
            };
            let mean: f64 = p.iter().enumerate().map(|(t, p)| p * value(t)).sum();
            let square: f64 = p.iter().enumerate().map(|(t, p)| p * (value(t) - loc).powi(2)).sum();
            assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            assert!((mean - loc).abs() < 2e-3, "{sampling:?}: mean {mean}, wanted {loc}");
            assert!((square.sqrt() - scale).abs() < 3e-3, "{sampling:?}: deviation {}", square.sqrt());
        }
        assert_eq!(TimestepSampling::Stratified.probabilities(&levels, [0.0, 1.0]), None);
        assert_eq!(cumulative(&[1.0, 0.0, 3.0]), [0.25, 0.25, 1.0]);
    }
}
