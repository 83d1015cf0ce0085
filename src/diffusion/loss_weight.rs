//! Weights of the loss at each timestep. One weight means one objective, whatever the model predicts: it is
//! converted to the target's error.

use serde::{Deserialize, Serialize};

use super::levels::NoiseLevel;
use super::prediction::Prediction;
use super::schedule::Variance;

/// How much the error at a timestep counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossWeight {
    /// 1, on the error of whatever is predicted.
    #[default]
    Simple,
    /// 1 on the error of the noise, also of a model that predicts something else (Ho et al. 2020, equation
    /// 14).
    Snr,
    /// The variational bound's, in nats per dimension, for the recipe's fixed variance (Ho et al. 2020,
    /// equation 12).
    Variational,
    /// `(k + SNR)^-gamma` on the noise (Choi et al. 2022, arXiv:2204.00227).
    P2,
    /// `min(SNR, gamma)` on x_0 (Hang et al. 2023, arXiv:2303.09556).
    MinSnr,
    /// `SNR / (1 + SNR)` on x_0 (Crowson et al. 2024, arXiv:2401.11605).
    SoftMinSnr,
    /// `max(SNR, 1)` on x_0 (Salimans & Ho 2022, arXiv:2202.00512).
    TruncatedSnr,
    /// `SNR + 1 / sigma_data^2` on x_0 (Karras et al. 2022, arXiv:2206.00364).
    Edm,
}

/// A weight and its numbers.
#[derive(Clone, Copy, Debug)]
pub struct Weighting {
    /// The formula.
    pub kind: LossWeight,
    /// k of P2.
    pub p2_k: f64,
    /// gamma of P2.
    pub p2_gamma: f64,
    /// gamma of min-SNR.
    pub min_snr_gamma: f64,
    /// Standard deviation of the data, of EDM.
    pub sigma_data: f64,
    /// Of the reverse step, for the bound.
    pub variance: Variance,
}

impl Weighting {
    /// The factor of the squared error of what is predicted at a timestep.
    pub fn of(&self, prediction: Prediction, at: &NoiseLevel) -> f64 {
        let snr = at.snr();
        let on_x0 = match self.kind {
            LossWeight::Simple => return 1.0,
            LossWeight::Snr => snr,
            LossWeight::Variational => 0.5 * at.posterior_mean()[0].powi(2) / at.variance(self.variance),
            LossWeight::P2 => snr * (self.p2_k + snr).powf(-self.p2_gamma),
            LossWeight::MinSnr => snr.min(self.min_snr_gamma),
            LossWeight::SoftMinSnr => snr / (1.0 + snr),
            LossWeight::TruncatedSnr => snr.max(1.0),
            LossWeight::Edm => snr + self.sigma_data.powi(-2),
        };
        on_x0 / prediction.error_of_x0(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{Betas, Rounding, Schedule};

    fn weighting(kind: LossWeight) -> Weighting {
        let [p2_k, p2_gamma, min_snr_gamma, sigma_data] = [1.0, 1.0, 5.0, 1.0];
        let variance = Variance::FixedSmall;
        Weighting { kind, p2_k, p2_gamma, min_snr_gamma, sigma_data, variance }
    }

    const ALL: [LossWeight; 7] = [
        LossWeight::Snr,
        LossWeight::Variational,
        LossWeight::P2,
        LossWeight::MinSnr,
        LossWeight::SoftMinSnr,
        LossWeight::TruncatedSnr,
        LossWeight::Edm,
    ];

    fn close(got: f64, wanted: f64, what: &str) {
        assert!((got - wanted).abs() <= 1e-9 * wanted.abs(), "{what}: {got:e}, wanted {wanted:e}");
    }

    /// SNR, P2 of gamma 1 and 0.5, min-SNR on noise and on v, the bound with beta-tilde and with beta.
    #[rustfmt::skip]
    const GOLDEN: [(usize, [f64; 7]); 6] = [
        (1, [4.546357657464e+03, 2.199079279279e-04, 1.482929290047e-02, 1.099781490308e-03,
            1.099539639640e-03, 5.996715121593e-01, 2.726920842780e-01]),
        (10, [4.549074797672e+02, 2.193427492154e-03, 4.683404202238e-02, 1.099124596183e-02,
            1.096713746077e-02, 7.897654161118e-02, 6.822398899051e-02]),
        (100, [8.536669577190e+00, 1.048584091025e-01, 3.238184817185e-01, 5.857085078425e-01,
            5.242920455123e-01, 1.017838341947e-02, 9.996230226461e-03]),
        (250, [1.089528046643e+00, 4.785769693815e-01, 6.917925768476e-01, 1.000000000000e+00,
            5.214230306185e-01, 5.364321308992e-03, 5.334479370683e-03]),
        (500, [8.435954941033e-02, 9.222033416350e-01, 9.603141890210e-01, 1.000000000000e+00,
            7.779665836502e-02, 5.514461959635e-03, 5.509734533430e-03]),
        (999, [4.035992651168e-05, 9.999596417023e-01, 9.999798206476e-01, 1.000000000000e+00,
            4.035829765376e-05, 1.020450187380e-02, 1.020449346864e-02]),
    ];

    /// Computed in numpy's f64 by the papers' formulas for the linear schedule of a thousand steps.
    #[test]
    fn weights_of_the_linear_schedule() {
        let levels = Schedule::linear(1000, 1e-4, 0.02).levels();
        let half = Weighting { p2_gamma: 0.5, ..weighting(LossWeight::P2) };
        let large = Weighting { variance: Variance::FixedLarge, ..weighting(LossWeight::Variational) };
        for (t, wanted) in GOLDEN {
            let at = &levels[t];
            let [eps, v] = [Prediction::Epsilon, Prediction::V];
            let got = [
                at.snr(),
                weighting(LossWeight::P2).of(eps, at),
                half.of(eps, at),
                weighting(LossWeight::MinSnr).of(eps, at),
                weighting(LossWeight::MinSnr).of(v, at),
                weighting(LossWeight::Variational).of(eps, at),
                large.of(eps, at),
            ];
            for (column, (got, wanted)) in got.into_iter().zip(wanted).enumerate() {
                close(got, wanted, &format!("t = {t}, column {column}"));
            }
        }
    }

    /// One objective: the weight of each target times its error for an error of x_0 of 1.
    #[test]
    fn a_weight_is_the_same_objective_for_every_target() {
        for kind in [Betas::Linear, Betas::Cosine] {
            let levels = Schedule::new(&kind, 1000, 1e-4, 0.02, Rounding::Exact).levels();
            for (t, at) in levels.iter().enumerate() {
                for kind in ALL {
                    let of = |p: Prediction| weighting(kind).of(p, at) * p.error_of_x0(at);
                    let wanted = of(Prediction::Sample);
                    for prediction in [Prediction::Epsilon, Prediction::V, Prediction::Mean] {
                        close(of(prediction), wanted, &format!("{kind:?} of {prediction:?} at {t}"));
                    }
                }
                let [soft, p2, edm] =
                    [LossWeight::SoftMinSnr, LossWeight::P2, LossWeight::Edm].map(weighting);
                let eps = Prediction::Epsilon;
                close(soft.of(eps, at), p2.of(eps, at), "soft min-SNR is P2 with k = gamma = 1");
                close(edm.of(Prediction::V, at), 1.0, "EDM with sigma_data 1 is the plain error of v");
            }
        }
    }

    #[test]
    fn weights_are_finite_where_nothing_is_left_of_the_sample() {
        let schedule = Schedule::linear(1000, 1e-4, 0.02).with_zero_terminal_snr();
        let last = schedule.levels()[999];
        assert_eq!((last.snr(), last.noise()), (0.0, 1.0));
        for kind in ALL {
            for prediction in [Prediction::Sample, Prediction::V, Prediction::Mean] {
                let weight = weighting(kind).of(prediction, &last);
                assert!(weight.is_finite() && weight >= 0.0, "{kind:?} of {prediction:?}: {weight}");
            }
        }
    }
}
