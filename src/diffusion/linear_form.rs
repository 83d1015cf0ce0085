//! Linear forms: a solver's update written as in its paper, as coefficients of the tensors of a step.

use std::ops::{Add, Div, Mul, Neg, Sub};

/// Most tensors that a solver keeps from step to step besides the sample.
pub const SLOTS: usize = 5;

/// A linear combination of the sample `x`, the model's output, the predicted clean sample `x0`, the tensors
/// kept from earlier steps, and fresh noise.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LinearForm {
    /// Coefficient of the predicted clean sample, clipped.
    pub x0: f64,
    /// Of the sample.
    pub x: f64,
    /// Of the model's output.
    pub out: f64,
    /// Of the tensor in each slot.
    pub kept: [f64; SLOTS],
    /// Of fresh standard normal noise.
    pub noise: f64,
}

impl LinearForm {
    /// The sample as the model sees it: scaled to unit variance.
    pub const X: LinearForm = LinearForm { x: 1.0, ..LinearForm::ZERO };
    /// The model's output.
    pub const OUT: LinearForm = LinearForm { out: 1.0, ..LinearForm::ZERO };
    /// The predicted clean sample, clipped.
    pub const X0: LinearForm = LinearForm { x0: 1.0, ..LinearForm::ZERO };
    /// Standard normal numbers.
    pub const NOISE: LinearForm = LinearForm { noise: 1.0, ..LinearForm::ZERO };
    /// The empty combination.
    pub const ZERO: LinearForm = LinearForm { x0: 0.0, x: 0.0, out: 0.0, kept: [0.0; SLOTS], noise: 0.0 };

    /// The tensor in this slot.
    pub fn kept(slot: usize) -> LinearForm {
        let mut form = LinearForm::ZERO;
        form.kept[slot] = 1.0;
        form
    }

    fn zip(self, other: LinearForm, of: impl Fn(f64, f64) -> f64) -> LinearForm {
        LinearForm {
            x0: of(self.x0, other.x0),
            x: of(self.x, other.x),
            out: of(self.out, other.out),
            kept: std::array::from_fn(|i| of(self.kept[i], other.kept[i])),
            noise: of(self.noise, other.noise),
        }
    }

    /// The value for these numbers.
    pub fn at(&self, x0: f64, x: f64, out: f64, kept: &[f64], noise: f64) -> f64 {
        let of_kept: f64 = self.kept.iter().zip(kept).map(|(a, b)| a * b).sum();
        self.x0 * x0 + self.x * x + self.out * out + of_kept + self.noise * noise
    }
}

impl Add for LinearForm {
    type Output = LinearForm;

    fn add(self, other: LinearForm) -> LinearForm {
        self.zip(other, |a, b| a + b)
    }
}

impl Sub for LinearForm {
    type Output = LinearForm;

    fn sub(self, other: LinearForm) -> LinearForm {
        self.zip(other, |a, b| a - b)
    }
}

impl Neg for LinearForm {
    type Output = LinearForm;

    fn neg(self) -> LinearForm {
        -1.0 * self
    }
}

impl Mul<LinearForm> for f64 {
    type Output = LinearForm;

    fn mul(self, form: LinearForm) -> LinearForm {
        form.zip(LinearForm::ZERO, |a, _| self * a)
    }
}

impl Div<f64> for LinearForm {
    type Output = LinearForm;

    fn div(self, by: f64) -> LinearForm {
        self.zip(LinearForm::ZERO, |a, _| a / by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_what_its_formula_says() {
        let form = 3.0 * (LinearForm::X - 0.5 * LinearForm::X0) / 2.0 + LinearForm::kept(1) - LinearForm::OUT
            + -LinearForm::NOISE;
        let (x0, x, out, kept, noise) = (0.3, -1.1, 2.0, [7.0, 0.4], 0.9);
        let wanted = 3.0 * (x - 0.5 * x0) / 2.0 + kept[1] - out - noise;
        assert!((form.at(x0, x, out, &kept, noise) - wanted).abs() <= 1e-12);
    }
}
