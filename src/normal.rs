//! Probabilities of the standard normal distribution in f64, also far out, where only their logarithms fit.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// `e^(x^2) erfc(x)` for `x >= 0`, relatively exact to 1e-12.
fn scaled_erfc(x: f64) -> f64 {
    if x < 2.5 {
        // erf by its series of positive terms: 2/sqrt(pi) e^(-x^2) sum of 2^n x^(2n+1) / (2n+1)!!
        let (mut term, mut sum, mut n) = (x, 0.0, 0.0);
        while term > 1e-18 * sum {
            sum += term;
            n += 1.0;
            term *= 2.0 * x * x / (2.0 * n + 1.0);
        }
        return (x * x).exp() - 2.0 / PI.sqrt() * sum;
    }
    // The continued fraction of Laplace, from its tail.
    let tail = (1..120).rev().fold(x, |tail, k| x + 0.5 * f64::from(k) / tail);
    1.0 / (PI.sqrt() * tail)
}

/// `ln P(Z > x)`.
pub(crate) fn ln_above(x: f64) -> f64 {
    if x > 0.0 {
        -0.5 * x * x + (0.5 * scaled_erfc(x * FRAC_1_SQRT_2)).ln()
    } else {
        (-ln_above_exp(-x)).ln_1p()
    }
}

fn ln_above_exp(x: f64) -> f64 {
    if x == 0.0 { 0.5 } else { ln_above(x).exp() }
}

/// `P(Z < x)`.
pub(crate) fn below(x: f64) -> f64 {
    ln_above(-x).exp()
}

/// `ln P(low < Z < high)`, also where both lie far out on one side: what tests hold kernels against.
#[cfg(test)]
pub(crate) fn ln_between(low: f64, high: f64) -> f64 {
    if high < 0.0 {
        return ln_between(-high, -low);
    }
    if low > 0.0 {
        let near = ln_above(low);
        return near + (-(ln_above(high) - near).exp()).ln_1p();
    }
    (1.0 - ln_above_exp(high) - ln_above_exp(-low)).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From scipy.stats.norm.logsf.
    #[test]
    fn tails() {
        for (x, wanted) in [
            (0.0, -std::f64::consts::LN_2),
            (1.0, -1.841_021_645_009_263_9),
            (-1.0, -0.172_753_779_023_449_8),
            (3.5, -8.366_065_308_344_094),
            (3.6, -8.745_923_631_887_4),
            (10.0, -53.231_285_150_512_47),
            (40.0, -804.608_442_013_754_4),
        ] {
            let got = ln_above(x);
            assert!((got - wanted).abs() <= 1e-12 * wanted.abs(), "{x}: {got}, wanted {wanted}");
        }
        assert!((below(1.0) - 0.841_344_746_068_542_9).abs() < 1e-14);
    }
}
