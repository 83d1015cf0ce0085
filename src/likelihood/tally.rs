//! Bits per dimension over a set of images, with their standard error, and the curve of rate and distortion.

use std::f64::consts::LN_2;

use super::Term;

/// A mean over images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Its standard error, from the spread over images; NaN for one image, which tells nothing of it.
    pub standard_error: f64,
    /// Number of images.
    pub count: usize,
}

impl Estimate {
    /// Of one value per image.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        Estimate { mean, standard_error: (squares / (n - 1.0) / n).sqrt(), count: values.len() }
    }
}

/// Terms of the bound summed over images.
#[derive(Clone, Debug)]
pub struct Tally {
    prior: f64,
    terms: Vec<Term>,
    /// Nats per value of each image.
    images: Vec<f64>,
}

impl Tally {
    /// Nothing yet, for a process of `steps` timesteps.
    pub fn new(steps: usize) -> Self {
        Tally { prior: 0.0, terms: vec![Term::default(); steps], images: Vec::new() }
    }

    /// Adds an image: its `L_T`, and its terms of all timesteps, that of t = 0 first. OpenAI's files have the
    /// noisiest timestep first.
    #[track_caller]
    pub fn add(&mut self, prior: f64, terms: &[Term]) {
        assert_eq!(terms.len(), self.terms.len(), "terms of an image, and timesteps");
        self.prior += prior;
        for (sum, term) in self.terms.iter_mut().zip(terms) {
            sum.nats += term.nats;
            sum.x0_error += term.x0_error;
        }
        self.images.push(prior + terms.iter().map(|term| term.nats).sum::<f64>());
    }

    /// The bound in bits per dimension: a mean over images.
    pub fn bits_per_dim(&self) -> Estimate {
        Estimate::of(&self.images.iter().map(|nats| nats / LN_2).collect::<Vec<_>>())
    }

    /// `L_T`, nats per value, mean over images.
    pub fn prior(&self) -> f64 {
        self.prior / self.images.len() as f64
    }

    /// The terms of each timestep, means over images, `[T]`.
    pub fn terms(&self) -> Vec<Term> {
        let n = self.images.len() as f64;
        self.terms.iter().map(|sum| Term { nats: sum.nats / n, x0_error: sum.x0_error / n }).collect()
    }
}

/// `[rate, distortion]` of each timestep, `[T]`: the bits per dimension that tell `x_t`'s receiver what it
/// has, `L_T + sum_{s > t} L_s`, and the root mean square error of the x_0 it predicts, on the scale of 0 to
/// 255 (Ho et al. 2020, section 4.3 and figure 5).
pub fn rate_distortion(prior: f64, terms: &[Term]) -> Vec<[f64; 2]> {
    let mut rate = prior;
    let mut curve: Vec<_> = terms
        .iter()
        .rev()
        .map(|term| {
            let point = [rate / LN_2, 127.5 * term.x0_error.sqrt()];
            rate += term.nats;
            point
        })
        .collect();
    curve.reverse();
    curve
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::likelihood::close;

    fn term(nats: f64, x0_error: f64) -> Term {
        Term { nats, x0_error }
    }

    #[test]
    fn means_and_their_error() {
        let mut tally = Tally::new(2);
        tally.add(0.5, &[term(1.0, 0.01), term(2.0, 0.25)]);
        tally.add(0.7, &[term(3.0, 0.03), term(2.2, 0.75)]);
        assert_eq!(tally.prior(), 0.6);
        assert_eq!(tally.terms(), [term(2.0, 0.02), term(2.1, 0.5)]);
        let bits = tally.bits_per_dim();
        close(bits.mean, 4.7 / LN_2, 1e-12);
        close(bits.standard_error, 1.2 / LN_2, 1e-12); // 3.5 and 5.9: deviation 1.2 sqrt 2
        assert_eq!(bits.count, 2);
        assert!(Estimate::of(&[1.0]).standard_error.is_nan());
    }

    #[test]
    fn rate_and_distortion_of_each_timestep() {
        let curve = rate_distortion(0.1, &[term(1.0, 0.01), term(0.5, 0.04), term(0.2, 0.25)]);
        for (point, [nats, rmse]) in curve.iter().zip([[0.8, 12.75], [0.3, 25.5], [0.1, 63.75]]) {
            close(point[0], nats / LN_2, 1e-12);
            close(point[1], rmse, 1e-12);
        }
    }
}
