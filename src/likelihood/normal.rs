//! The standard normal law, with logarithms that stay right far in the tails.
//!
//! Notation: `phi` the density, `Phi` the distribution function, `Q = 1 - Phi` its upper tail.

use std::f64::consts::{FRAC_1_SQRT_2, TAU};

/// `ln phi(z)`.
pub fn log_density(z: f64) -> f64 {
    -0.5 * (z * z + TAU.ln())
}

/// `Phi(z)`.
pub fn cdf(z: f64) -> f64 {
    0.5 * libm::erfc(-z * FRAC_1_SQRT_2)
}

/// `ln Phi(z)`; about `-z^2 / 2` far below, where `Phi` itself would be 0.
pub fn log_cdf(z: f64) -> f64 {
    if z > 0.0 { (-cdf(-z)).ln_1p() } else { -0.5 * z * z + (0.5 * erfcx(-z * FRAC_1_SQRT_2)).ln() }
}

/// `ln (Phi(centre + half) - Phi(centre - half))`: the probability of an interval of width `2 half`.
///
/// Right to about 1e-13 of the result: a difference of two `Phi` keeps no digit of a narrow interval, and is
/// 0 beyond 38 deviations.
pub fn log_between(centre: f64, half: f64) -> f64 {
    let c = centre.abs(); // both sides are alike
    let h = 2.0 * half;
    if h * c.max(1.0) < 0.02 {
        // Density times width, and two terms of Taylor's series of the rest.
        let (c2, h2) = (c * c, h * h);
        let bend = h2 * (c2 - 1.0) / 24.0 + h2 * h2 * (c2 * (c2 - 6.0) + 3.0) / 1920.0;
        log_density(c) + h.ln() + bend.ln_1p()
    } else if c <= half {
        // The interval holds 0, and at least .008: nothing cancels.
        (-cdf(c - half) - cdf(-c - half)).ln_1p()
    } else {
        // Q(z) = exp(-z^2 / 2) erfcx(z / sqrt 2) / 2, with the exponential of the nearer end taken out.
        let (near, far) = (c - half, c + half);
        let kept = erfcx(near * FRAC_1_SQRT_2) - (-c * h).exp() * erfcx(far * FRAC_1_SQRT_2);
        -0.5 * near * near + (0.5 * kept).ln()
    }
}

/// `ln(mean(exp(values)))` without overflow; NaN of none.
pub fn log_mean_exp(values: &[f64]) -> f64 {
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if most.is_infinite() && !values.is_empty() && !values.iter().any(|v| v.is_nan()) {
        return most; // all are -infinity, or one is +infinity: their differences are not numbers
    }
    most + (values.iter().map(|v| (v - most).exp()).sum::<f64>() / values.len() as f64).ln()
}

/// `exp(x^2) erfc(x)` for `x >= 0`, which falls as `1 / (x sqrt pi)`.
fn erfcx(x: f64) -> f64 {
    if x < 10.0 {
        return (x * x).exp() * libm::erfc(x);
    }
    // The asymptotic series; at 10 the twelfth term is below 1e-16.
    let y = 0.5 / (x * x);
    let series = (1..=12).rev().fold(1.0, |sum, n| 1.0 - f64::from(2 * n - 1) * y * sum);
    series / (x * std::f64::consts::PI.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, wanted: f64, tolerance: f64) {
        assert!((got - wanted).abs() <= tolerance * wanted.abs(), "{got:e}, not {wanted:e}");
    }

    // mpmath 1.3.0, mp.dps = 80, of the arguments as f64:
    //   log(ncdf(z)) and log(erfc((c - h) / sqrt(2)) / 2 - erfc((c + h) / sqrt(2)) / 2)
    const LOG_CDF: [(f64, f64); 7] = [
        (-40.0, -804.608_442_013_753_8),
        (-14.2, -104.397_079_797_098_09),
        (-14.1, -102.975_081_523_735_34),
        (-3.0, -6.607_726_221_510_349),
        (-0.5, -1.175_911_761_593_618_5),
        (0.5, -0.368_946_415_288_656_4),
        (3.0, -0.001_350_809_964_748_193_8),
    ];
    const LOG_BETWEEN: [(f64, f64, f64); 10] = [
        (0.0, 0.005, -5.524_112_885_852_486),
        (0.0, 0.02, -4.137_881_022_961_785),
        (0.0, 2.0, -0.046_567_912_292_390_164),
        (0.3, 3.0, -0.003_958_221_377_966_367),
        (0.9, 1.0, -0.671_167_948_373_996),
        (2.0, 1.9, -0.776_259_116_344_606_4),
        (4.0, 0.002, -14.440_389_451_095_186),
        (27.1, 0.21, -365.748_132_466_159),
        (50.0, 0.000_1, -1_259.436_127_559_624_3),
        (300.0, 45.0, -32_518.960_217_456_47),
    ];

    #[test]
    fn logarithms_of_tails() {
        for (z, wanted) in LOG_CDF {
            close(log_cdf(z), wanted, 1e-14);
        }
        assert!(log_cdf(f64::NAN).is_nan() && log_cdf(f64::INFINITY) == 0.0);
    }

    #[test]
    fn intervals_of_any_width_and_place() {
        for (centre, half, wanted) in LOG_BETWEEN {
            close(log_between(centre, half), wanted, 1e-13);
            close(log_between(-centre, half), wanted, 1e-13);
        }
        assert_eq!(log_between(3.0, f64::INFINITY), 0.0, "no scale at all: everything is inside");
        assert!(log_between(f64::NAN, 1.0).is_nan() && log_between(0.0, f64::NAN).is_nan());
    }

    #[test]
    fn means_of_exponentials() {
        let ln_2 = std::f64::consts::LN_2;
        close(log_mean_exp(&[-1000.0, -1000.0 + ln_2]), -1000.0 + 1.5_f64.ln(), 1e-12);
        assert_eq!(log_mean_exp(&[f64::NEG_INFINITY; 2]), f64::NEG_INFINITY);
        assert!(log_mean_exp(&[f64::NAN, 1.0]).is_nan() && log_mean_exp(&[]).is_nan());
    }

    #[test]
    fn the_forms_meet() {
        // Ends of the ranges of the three forms, and of the two of erfcx.
        for (a, b) in
            [((0.0, 0.009_999_999), (0.0, 0.010_000_001)), ((5.0, 1.999_999e-3), (5.0, 2.000_001e-3))]
        {
            let slope = log_between(b.0, b.1) - log_between(a.0, a.1);
            close(slope, (b.1 / a.1).ln(), 1e-3);
        }
        close(erfcx(10.0 - 1e-13), erfcx(10.0), 1e-13);
        close(log_between(2.0 + 1e-13, 2.0), log_between(2.0, 2.0), 1e-12);
    }
}
