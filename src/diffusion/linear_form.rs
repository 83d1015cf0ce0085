//! Linear forms: a solver's update written as in its paper, as coefficients of the tensors of a step.

use std::ops::{Add, Div, Mul, Neg, Sub};

/// Most tensors that a solver keeps from step to step besides the sample.
pub(super) const SLOTS: usize = 5;

/// A linear combination of the predicted clean sample `x0`, clipped, the sample `x`, the model's output, the
/// tensors kept from earlier steps, and fresh standard normal noise: their coefficients in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LinearForm(pub [f64; 4 + SLOTS]);

impl LinearForm {
    /// The predicted clean sample, clipped.
    pub const X0: LinearForm = LinearForm::unit(0);
    /// The sample as the model sees it: scaled to unit variance.
    pub const X: LinearForm = LinearForm::unit(1);
    /// The model's output.
    pub const OUT: LinearForm = LinearForm::unit(2);
    /// Standard normal numbers.
    pub const NOISE: LinearForm = LinearForm::unit(LinearForm::NOISE_AT);
    /// The empty combination.
    pub const ZERO: LinearForm = LinearForm([0.0; 4 + SLOTS]);
    pub(super) const NOISE_AT: usize = 3 + SLOTS;

    const fn unit(at: usize) -> LinearForm {
        let mut form = LinearForm::ZERO;
        form.0[at] = 1.0;
        form
    }

    /// The tensor in this slot.
    pub const fn kept(slot: usize) -> LinearForm {
        assert!(slot < SLOTS, "a solver has five slots");
        LinearForm::unit(3 + slot)
    }

    /// The value for these numbers.
    pub fn at(&self, x0: f64, x: f64, out: f64, kept: &[f64], noise: f64) -> f64 {
        let [of_x0, of_x, of_out, of_kept @ .., of_noise] = &self.0;
        let of_kept: f64 = of_kept.iter().zip(kept).map(|(a, b)| a * b).sum();
        of_x0 * x0 + of_x * x + of_out * out + of_kept + of_noise * noise
    }
}

impl Add for LinearForm {
    type Output = LinearForm;

    fn add(self, other: LinearForm) -> LinearForm {
        LinearForm(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }
}

impl Sub for LinearForm {
    type Output = LinearForm;

    fn sub(self, other: LinearForm) -> LinearForm {
        LinearForm(std::array::from_fn(|i| self.0[i] - other.0[i]))
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
        LinearForm(form.0.map(|a| self * a))
    }
}

impl Div<f64> for LinearForm {
    type Output = LinearForm;

    fn div(self, by: f64) -> LinearForm {
        LinearForm(self.0.map(|a| a / by))
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
