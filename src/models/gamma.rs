//! A learned noise schedule: gamma(t) = -ln SNR, which rises along t in [0, 1] (Kingma et al. 2021,
//! arXiv:2107.00630, section 3.2 and appendix H), as it is recorded and as a function on the host.
//!
//! `z_t = sqrt(sigmoid(-gamma)) x + sqrt(sigmoid(gamma)) eps`.

use serde::{Deserialize, Serialize};

use crate::nn::{Init, Layout, Params, Scope};
use crate::ops::activation::{Activation, activation};
use crate::ops::arithmetic::{add, affine, div, mul, sub};
use crate::ops::matmul::linear;
use crate::tape::Tensor;

/// What of a noise schedule is learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LearnedSchedule {
    /// Nothing.
    #[default]
    None,
    /// The ends of a straight gamma: `g0 + |g1 - g0| t`. Its two parameters are how far the ends have moved,
    /// in lengths of the whole.
    Scalar,
    /// What lies between ends that stay: `g0 + (g1 - g0) (n(t) - n(0)) / (n(1) - n(0))` with the monotone
    /// network `n(t) = |w1| t + mean of |w3| tanh(|w2| (t - 1/2) + b2)` over its units.
    Network,
}

/// Hidden units of the network.
const UNITS: usize = 64;
/// Module of the parameters.
const MODULE: &str = "schedule";

impl LearnedSchedule {
    /// Names, shapes and initial values of the parameters. The network is nearly straight at first; its units
    /// are of many places and widths along t.
    fn parameters(self) -> &'static [(&'static str, &'static [usize], Init)] {
        match self {
            LearnedSchedule::None => &[],
            LearnedSchedule::Scalar => &[("start", &[1], Init::Zeros), ("end", &[1], Init::Zeros)],
            LearnedSchedule::Network => &[
                ("w1", &[1], Init::Ones),
                ("w2", &[1, UNITS], Init::Normal(8.0)),
                ("b2", &[UNITS], Init::Normal(4.0)),
                ("w3", &[UNITS, 1], Init::Normal(0.01)),
            ],
        }
    }

    /// The parameters, as a module of `s`.
    pub fn ask(self, s: &Scope) -> Vec<Tensor> {
        let s = s.sub(MODULE);
        self.parameters()
            .iter()
            .map(|(name, shape, init)| s.param(name, *shape, Layout::Plain, *init))
            .collect()
    }
}

/// gamma as it is recorded.
pub struct Recorded {
    /// At each timestep, `[N, 1]`.
    pub gamma: Tensor,
    /// Its derivative along t, above 0, `[N, 1]`.
    pub slope: Tensor,
    /// At t = 0 and t = 1, each `[1]`, where they are learned.
    pub ends: Option<[Tensor; 2]>,
}

/// Records gamma at `t [N, 1]`. `ends`: gamma at t = 0 and t = 1, at first or for good; `parameters` as
/// [`LearnedSchedule::ask`] gives them.
///
/// # Panics
/// When nothing is learned, or the parameters are of another kind.
#[track_caller]
pub fn gamma(kind: LearnedSchedule, ends: [f64; 2], parameters: &[Tensor], t: &Tensor) -> Recorded {
    let [least, span] = [ends[0] as f32, (ends[1] - ends[0]) as f32];
    match (kind, parameters) {
        (LearnedSchedule::Scalar, [start, end]) => {
            let first = affine(start, span, least);
            let length = magnitude(&sub(&affine(end, span, ends[1] as f32), &first));
            Recorded {
                gamma: add(&mul(t, &length), &first),
                slope: add(&affine(t, 0.0, 0.0), &length),
                ends: Some([first.clone(), add(&first, &length)]),
            }
        }
        (LearnedSchedule::Network, [w1, w2, b2, w3]) => {
            let [w1, w2, w3] = [w1, w2, w3].map(magnitude);
            let mean = |x: &Tensor, w: &Tensor| affine(&linear(x, w, None), 1.0 / UNITS as f32, 0.0);
            let units =
                |t: &Tensor| activation(&linear(&affine(t, 1.0, -0.5), &w2, Some(b2)), Activation::Tanh);
            let n = |t: &Tensor, units: &Tensor| add(&mean(units, &w3), &mul(t, &w1));
            let [zero, one] = [0.0, 1.0].map(|end| affine(t, 0.0, end));
            let (here, first) = (units(t), n(&zero, &units(&zero)));
            let length = sub(&n(&one, &units(&one)), &first);
            let part = div(&sub(&n(t, &here), &first), &length);
            let steepness = mul(&w3, &w2.reshape([UNITS, 1]));
            let rise = add(&mean(&affine(&mul(&here, &here), -1.0, 1.0), &steepness), &w1);
            Recorded {
                gamma: affine(&part, span, least),
                slope: affine(&div(&rise, &length), span, 0.0),
                ends: None,
            }
        }
        _ => panic!("{} parameters of a learned schedule of kind {kind:?}", parameters.len()),
    }
}

/// `|x|`.
fn magnitude(x: &Tensor) -> Tensor {
    add(&activation(x, Activation::Relu), &activation(&affine(x, -1.0, 0.0), Activation::Relu))
}

/// gamma as a function of t, on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Gamma {
    ends: [f64; 2],
    /// `|w1|`, and of each unit `|w2|`, `b2` and `|w3|`; a straight line has none.
    line: f64,
    units: Vec<[f64; 3]>,
}

impl Gamma {
    /// A straight line between these values.
    pub fn straight(ends: [f64; 2]) -> Self {
        Gamma { ends, line: 1.0, units: Vec::new() }
    }

    /// That of a model's parameters, flat. `ends` as in [`gamma`].
    ///
    /// # Panics
    /// When the parameters are of a model without such a schedule.
    #[track_caller]
    pub fn of(kind: LearnedSchedule, ends: [f64; 2], params: &Params, flat: &[f32]) -> Self {
        let values = |name: &str| -> Vec<f64> {
            let spec = params.find(&format!("{MODULE}.{name}")).expect("a model with a learned schedule");
            flat[spec.first..][..spec.shape.elements()].iter().map(|&v| f64::from(v)).collect()
        };
        let values: Vec<Vec<f64>> = kind.parameters().iter().map(|(name, ..)| values(name)).collect();
        Gamma::of_values(ends, &values)
    }

    /// Of as many values as each kind has parameters.
    fn of_values([least, most]: [f64; 2], values: &[Vec<f64>]) -> Self {
        match values {
            [start, end] => {
                let [first, last] =
                    [(start, least), (end, most)].map(|(moved, from)| from + (most - least) * moved[0]);
                Gamma::straight([first, first + (last - first).abs()])
            }
            [w1, w2, b2, w3] => {
                let units = w2.iter().zip(b2).zip(w3).map(|((w2, b2), w3)| [w2.abs(), *b2, w3.abs()]);
                Gamma { ends: [least, most], line: w1[0].abs(), units: units.collect() }
            }
            _ => Gamma::straight([least, most]),
        }
    }

    /// gamma at time `t`, from 0 to 1.
    pub fn at(&self, t: f64) -> f64 {
        let n = |t: f64| {
            let units = self.units.iter().map(|[w2, b2, w3]| w3 * (w2 * (t - 0.5) + b2).tanh());
            self.line * t + units.sum::<f64>() / UNITS as f64
        };
        let [first, last] = self.ends;
        first + (last - first) * (n(t) - n(0.0)) / (n(1.0) - n(0.0))
    }

    /// The betas of `steps` timesteps at t = 1/T, 2/T .. 1, of which the first adds all noise up to there:
    /// `beta = sigmoid(gamma_t) (1 - exp(gamma_s - gamma_t))`, the variance of `z_t` given `z_s`.
    pub fn betas(&self, steps: usize) -> Vec<f64> {
        let gammas: Vec<f64> = (1..=steps).map(|i| self.at(i as f64 / steps as f64)).collect();
        let before = std::iter::once(f64::NEG_INFINITY).chain(gammas.iter().copied());
        before.zip(&gammas).map(|(s, t)| -(s - t).exp_m1() / (1.0 + (-t).exp())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Check, random};
    use crate::diffusion::{Betas, LossWeight, Prediction, Rounding, Schedule, Variance, Weighting};

    const ENDS: [f64; 2] = [-13.3, 5.0];

    /// Parameters far from their beginnings.
    fn moved(kind: LearnedSchedule) -> Vec<Vec<f32>> {
        let shapes = kind.parameters().iter().map(|(_, shape, _)| shape.iter().product());
        let drawn = shapes.zip(1..).map(|(n, salt)| random(salt, n));
        let scale = if kind == LearnedSchedule::Network { [-1.0, 12.0, 5.0, 6.0] } else { [0.1; 4] };
        drawn.zip(scale).map(|(values, scale)| values.into_iter().map(|v| scale * v).collect()).collect()
    }

    /// The curve of parameters, and its derivative at `t`.
    fn curve_of(values: &[Vec<f64>], t: f64) -> (Gamma, f64) {
        let curve = Gamma::of_values(ENDS, values);
        let n = |t: f64| {
            let units = curve.units.iter().map(|[w2, b2, w3]| w3 * (w2 * (t - 0.5) + b2).tanh());
            curve.line * t + units.sum::<f64>() / UNITS as f64
        };
        let units = curve.units.iter().map(|[w2, b2, w3]| w3 * w2 / (w2 * (t - 0.5) + b2).cosh().powi(2));
        let rise = curve.line + units.sum::<f64>() / UNITS as f64;
        let slope = (curve.ends[1] - curve.ends[0]) * rise / (n(1.0) - n(0.0));
        (curve, slope)
    }

    #[test]
    fn a_network_rises_between_ends_that_stay() {
        let values = moved(LearnedSchedule::Network);
        let values: Vec<Vec<f64>> =
            values.iter().map(|v| v.iter().map(|&v| f64::from(v)).collect()).collect();
        let (curve, slope) = curve_of(&values, 0.3);
        assert_eq!([curve.at(0.0), curve.at(1.0)], ENDS);
        let difference = (curve.at(0.3 + 1e-5) - curve.at(0.3 - 1e-5)) / 2e-5;
        assert!((difference / slope - 1.0).abs() < 1e-6, "{difference} instead of {slope}");
        let rises = |i: usize| curve.at(i as f64 / 1000.0) > curve.at((i - 1) as f64 / 1000.0);
        assert!((1..=1000).all(rises));
        let bend = (0..100).map(|i| f64::from(i) / 100.0).map(|t| curve.at(t) - Gamma::straight(ENDS).at(t));
        assert!(bend.map(f64::abs).fold(0.0, f64::max) > 1.0, "it is as good as straight");
        // What the betas leave of a picture is what gamma says.
        let schedule = Schedule::new(&Betas::Given(curve.betas(100)), 100, 0.0, 0.0, Rounding::Exact);
        for (i, level) in schedule.levels().iter().enumerate() {
            let wanted = -curve.at((i + 1) as f64 / 100.0);
            assert!((level.log_snr() - wanted).abs() < 1e-9, "{i}: {} for {wanted}", level.log_snr());
        }
    }

    #[test]
    fn what_is_recorded_is_what_the_host_says() {
        for kind in [LearnedSchedule::Scalar, LearnedSchedule::Network] {
            let times: Vec<f32> = random(9, 7).iter().map(|t| 0.5 + 0.5 * t).chain([0.0, 1.0]).collect();
            for which in 0..3 {
                let mut check = Check::new(format!("gamma {kind:?}, output {which}")).tolerance(1e-5);
                check = check.fixed(&[times.len(), 1], times.clone());
                for ((_, shape, _), values) in kind.parameters().iter().zip(moved(kind)) {
                    check = check.values(shape, values);
                }
                check.run(
                    |x| {
                        let Recorded { gamma, slope, ends } = gamma(kind, ENDS, &x[1..], &x[0]);
                        let last = ends.map_or_else(|| gamma.clone(), |[first, last]| sub(&last, &first));
                        [gamma, slope, last][which].clone()
                    },
                    |x| {
                        let of = |t: &f64| {
                            let (curve, slope) = curve_of(&x[1..], *t);
                            if which == 1 { slope } else { curve.at(*t) }
                        };
                        let all = x[0].iter().map(of).collect();
                        let (curve, _) = curve_of(&x[1..], 0.0);
                        let scalar = kind == LearnedSchedule::Scalar && which == 2;
                        if scalar { vec![curve.at(1.0) - curve.at(0.0)] } else { all }
                    },
                );
            }
        }
    }

    /// The bound of N(0.1, 0.25) in T timesteps, bits: T terms of the exact model, of which the first leads
    /// from the first timestep to what gamma at t = 0 leaves of the noise.
    #[test]
    fn discrete_bounds_are_the_published_ones() {
        let curve = Gamma::straight(ENDS);
        let weighting = Weighting {
            kind: LossWeight::Variational,
            p2_k: 1.0,
            p2_gamma: 1.0,
            min_snr_gamma: 5.0,
            sigma_data: 0.5,
            variance: Variance::FixedSmall,
        };
        for (steps, wanted) in [(10, 22.6900792581), (100, 9.35687332824), (1000, 8.66516802116)] {
            let betas = Betas::Given(curve.betas(steps));
            let levels = Schedule::new(&betas, steps, 0.0, 0.0, Rounding::Exact).levels();
            let term = |i: usize| {
                let at = &levels[i];
                let least = at.signal() * 0.25 / (at.signal() * 0.25 + at.noise());
                let weight = match i {
                    0 => 0.5 * (-at.log_snr() - ENDS[0]).exp_m1(),
                    _ => weighting.of(Prediction::Epsilon, at),
                };
                weight * least
            };
            let bits = (0..steps).map(term).sum::<f64>() / std::f64::consts::LN_2;
            assert!((bits / wanted - 1.0).abs() < 1e-9, "{steps} timesteps: {bits} instead of {wanted}");
        }
    }
}
