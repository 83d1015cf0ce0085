//! Linear forms: a solver's update written as in its paper, as coefficients of what is known at a step.

use std::ops::{Add, Div, Mul, Neg, Sub};

/// Most tensors that a solver keeps from step to step beside the sample.
pub const SLOTS: usize = 5;

/// A linear combination of the sample `x`, the model's output, the predicted clean sample `x0`, what is
/// kept from earlier steps, and fresh noise.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Form {
    pub x0: f64,
    pub x: f64,
    pub out: f64,
    pub kept: [f64; SLOTS],
    pub noise: f64,
}

impl Form {
    /// The sample as the model sees it: scaled to unit variance.
    pub const X: Form = Form { x: 1.0, ..Form::ZERO };
    /// What the model said.
    pub const OUT: Form = Form { out: 1.0, ..Form::ZERO };
    /// The predicted clean sample, clipped.
    pub const X0: Form = Form { x0: 1.0, ..Form::ZERO };
    /// Standard normal numbers.
    pub const NOISE: Form = Form { noise: 1.0, ..Form::ZERO };
    pub const ZERO: Form = Form { x0: 0.0, x: 0.0, out: 0.0, kept: [0.0; SLOTS], noise: 0.0 };

    /// What an earlier step left in this slot.
    pub fn kept(slot: usize) -> Form {
        let mut form = Form::ZERO;
        form.kept[slot] = 1.0;
        form
    }

    fn zip(self, other: Form, of: impl Fn(f64, f64) -> f64) -> Form {
        Form {
            x0: of(self.x0, other.x0),
            x: of(self.x, other.x),
            out: of(self.out, other.out),
            kept: std::array::from_fn(|i| of(self.kept[i], other.kept[i])),
            noise: of(self.noise, other.noise),
        }
    }

    /// Its value.
    pub fn at(&self, x0: f64, x: f64, out: f64, kept: &[f64], noise: f64) -> f64 {
        let of_kept: f64 = self.kept.iter().zip(kept).map(|(a, b)| a * b).sum();
        self.x0 * x0 + self.x * x + self.out * out + of_kept + self.noise * noise
    }
}

impl Add for Form {
    type Output = Form;

    fn add(self, other: Form) -> Form {
        self.zip(other, |a, b| a + b)
    }
}

impl Sub for Form {
    type Output = Form;

    fn sub(self, other: Form) -> Form {
        self.zip(other, |a, b| a - b)
    }
}

impl Neg for Form {
    type Output = Form;

    fn neg(self) -> Form {
        -1.0 * self
    }
}

impl Mul<Form> for f64 {
    type Output = Form;

    fn mul(self, form: Form) -> Form {
        form.zip(Form::ZERO, |a, _| self * a)
    }
}

impl Div<f64> for Form {
    type Output = Form;

    fn div(self, by: f64) -> Form {
        self.zip(Form::ZERO, |a, _| a / by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_what_its_formula_says() {
        let form = 3.0 * (Form::X - 0.5 * Form::X0) / 2.0 + Form::kept(1) - Form::OUT + -Form::NOISE;
        let (x0, x, out, kept, noise) = (0.3, -1.1, 2.0, [7.0, 0.4], 0.9);
        let wanted = 3.0 * (x - 0.5 * x0) / 2.0 + kept[1] - out - noise;
        assert!((form.at(x0, x, out, &kept, noise) - wanted).abs() <= 1e-12);
    }
}
