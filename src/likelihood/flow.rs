//! The probability-flow ODE (Song et al. 2021, arXiv:2011.13456, section 4.3), by which a diffusion model has
//! a density.
//!
//! In `y = x / a` and `sigma = b / a` (`x = a x_0 + b eps`) it is `dy / d sigma = eps`, and with the
//! logarithm `u = ln sigma` for time `dy / du = sigma eps`, whose divergence is smooth. Along it `d ln p(y) /
//! du = -div`.

use crate::diffusion::{NoiseLevel, Prediction};
use crate::error::Result;

/// Between two images of different noise, `x = a y`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// `sqrt(alpha_bar)` and `sqrt(1 - alpha_bar)`.
    pub a: f64,
    /// See `a`.
    pub b: f64,
    /// The timestep, between two of the model's where need be.
    pub t: f64,
}

/// The levels that a model was trained on, as places along the flow.
#[derive(Clone, Debug)]
pub struct Flow {
    /// `ln sigma` of each timestep, rising.
    logs: Vec<f64>,
}

impl Flow {
    /// `None` where a level is noise alone, or no noise: it has no finite `ln sigma`.
    pub fn new(levels: &[NoiseLevel]) -> Option<Flow> {
        let logs: Vec<f64> = levels.iter().map(|level| -0.5 * level.log_snr()).collect();
        (logs.iter().all(|u| u.is_finite()) && !logs.is_empty()).then_some(Flow { logs })
    }

    /// The first and the last `ln sigma`.
    pub fn ends(&self) -> [f64; 2] {
        [self.logs[0], self.logs[self.logs.len() - 1]]
    }

    /// The place of `u = ln sigma`; beyond the ends the timestep is theirs.
    pub fn place(&self, u: f64) -> Place {
        let above = self.logs.partition_point(|&log| log <= u).clamp(1, self.logs.len().max(2) - 1);
        let t = match self.logs[..] {
            [_] => 0.0,
            _ => {
                let [low, high] = [self.logs[above - 1], self.logs[above]];
                (above - 1) as f64 + ((u - low) / (high - low)).clamp(0.0, 1.0)
            }
        };
        // ln a^2 = -ln(1 + sigma^2), and b = sigma a.
        let a = (-0.5 * (2.0 * u).exp().ln_1p()).exp();
        Place { a, b: u.exp() * a, t }
    }
}

impl Place {
    /// Coefficients of x and of the model's output in the predicted noise; `None` for [`Prediction::Mean`],
    /// which is of a step and has no meaning between two.
    pub fn noise(&self, prediction: Prediction) -> Option<[f64; 2]> {
        let Place { a, b, .. } = *self;
        match prediction {
            Prediction::Epsilon => Some([0.0, 1.0]),
            Prediction::Sample => Some([1.0 / b, -a / b]),
            Prediction::V => Some([b, a]),
            Prediction::Mean => None,
        }
    }
}

/// Follows images `y [N, D]` from one `u` to another in so many steps of the classical Runge-Kutta method,
/// and gives the integral of the divergence for each. `slope`: `sigma eps [N, D]` and its divergence `[N]` at
/// `(u, y)`.
///
/// # Errors
/// Those of `slope`.
pub fn follow(
    [from, to]: [f64; 2],
    steps: usize,
    y: &mut [f64],
    mut slope: impl FnMut(f64, &[f64]) -> Result<(Vec<f64>, Vec<f64>)>,
) -> Result<Vec<f64>> {
    let h = (to - from) / steps as f64;
    let mut integral = Vec::new();
    for step in 0..steps {
        let u = from + step as f64 * h;
        let moved = |y: &[f64], slope: &[f64], by: f64| -> Vec<f64> {
            y.iter().zip(slope).map(|(y, s)| y + by * s).collect()
        };
        let (s1, d1) = slope(u, y)?;
        let (s2, d2) = slope(u + 0.5 * h, &moved(y, &s1, 0.5 * h))?;
        let (s3, d3) = slope(u + 0.5 * h, &moved(y, &s2, 0.5 * h))?;
        let (s4, d4) = slope(u + h, &moved(y, &s3, h))?;
        let sum = |[a, b, c, d]: [&[f64]; 4], i: usize| h / 6.0 * (a[i] + 2.0 * (b[i] + c[i]) + d[i]);
        for i in 0..y.len() {
            y[i] += sum([&s1, &s2, &s3, &s4], i);
        }
        integral.resize(d1.len(), 0.0);
        for (i, integral) in integral.iter_mut().enumerate() {
            *integral += sum([&d1, &d2, &d3, &d4], i);
        }
    }
    Ok(integral)
}

/// `ln p(y_0)` of an image from its end `y [D]` at a place whose law of `x = a y` is taken for `N(0, 1)`, and
/// the integral of the divergence on the way.
pub fn log_density(y: &[f64], a: f64, integral: f64) -> f64 {
    let of = |y: &f64| super::normal::log_density(a * y) + a.ln();
    y.iter().map(of).sum::<f64>() + integral
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{Betas, Rounding, Schedule};

    const MEAN: f64 = 0.1;
    const VARIANCE: f64 = 0.25;

    /// Of data `N(mean, variance)` for each value: `eps = b (x - a mean) / V`, as a model of each prediction
    /// gives it, whose derivative is known.
    fn ends(prediction: Prediction, from: Option<f64>, steps: usize) -> (f64, f64) {
        let schedule = Schedule::new(&Betas::Linear, 1000, 1e-4, 0.02, Rounding::Exact);
        let flow = Flow::new(&schedule.levels()).unwrap();
        let [first, last] = flow.ends();
        let mut y = vec![-0.3];
        let slope = |u: f64, y: &[f64]| {
            let place = flow.place(u);
            let Place { a, b, .. } = place;
            let v = a * a * VARIANCE + b * b;
            let (x, eps) = (a * y[0], b * (a * y[0] - a * MEAN) / v);
            let x0 = (x - b * eps) / a;
            let [out, slope] = match prediction {
                Prediction::Epsilon => [eps, b / v],
                Prediction::Sample => [x0, (1.0 - b * b / v) / a],
                _ => [a * eps - b * x0, a * b * (1.0 - VARIANCE) / v],
            };
            let [of_x, of_out] = place.noise(prediction).unwrap();
            let factor = u.exp();
            Ok((vec![factor * (of_x * x + of_out * out)], vec![factor * a * (of_x + of_out * slope)]))
        };
        let integral = follow([from.unwrap_or(first), last], steps, &mut y, slope).unwrap();
        let a = flow.place(last).a;
        (a * y[0], log_density(&y, a, integral[0]))
    }

    /// The sheet's numbers, from data without noise on; the data's own logarithm is -.545791352645.
    #[test]
    fn the_density_of_gaussian_data() {
        for prediction in [Prediction::Epsilon, Prediction::Sample, Prediction::V] {
            let (z, density) = ends(prediction, Some(-14.0), 2000);
            assert!((z + 0.79935261061).abs() < 1e-9, "{prediction:?}: {z}");
            assert!((density + 0.54528878528).abs() < 1e-9, "{prediction:?}: {density}");
        }
    }

    /// The classical method is of order 4: half the step, a sixteenth of the error.
    #[test]
    fn the_order_of_the_method() {
        let exact = ends(Prediction::Epsilon, None, 4000).1;
        let error = |steps| (ends(Prediction::Epsilon, None, steps).1 - exact).abs();
        let ratio = error(20) / error(40);
        assert!((12.0..20.0).contains(&ratio), "{ratio}");
    }

    #[test]
    fn places_lie_between_timesteps() {
        let schedule = Schedule::new(&Betas::Linear, 1000, 1e-4, 0.02, Rounding::Exact);
        let (levels, flow) = (schedule.levels(), Flow::new(&schedule.levels()).unwrap());
        for t in [0, 1, 500, 998, 999] {
            let place = flow.place(-0.5 * levels[t].log_snr());
            assert!((place.t - t as f64).abs() < 1e-9, "{t}: {place:?}");
            assert!((place.a.powi(2) / levels[t].signal() - 1.0).abs() < 1e-12);
        }
        assert_eq!((flow.place(-40.0).t, flow.place(40.0).t), (0.0, 999.0));
        assert_eq!(flow.place(-40.0).a, 1.0);
    }
}
