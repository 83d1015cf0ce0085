//! Tests of the bound: golden values, accuracy in every regime, gradients through the harness.

use super::*;
use crate::check::{Check, random};
use crate::normal::{ln_above, ln_between};

/// `ln P` of Ho et al. 2020, equation 13, in f64.
fn ln_bin(x0: f64, mean: f64, ln_scale: f64) -> f64 {
    let [low, high] = [-1.0, 1.0].map(|side| (x0 - mean + side / 255.0) * (-ln_scale).exp());
    if x0 < -0.999 {
        ln_above(-high)
    } else if x0 > 0.999 {
        ln_above(low)
    } else {
        ln_between(low, high)
    }
}

fn kl([m1, l1]: [f64; 2], [m2, l2]: [f64; 2]) -> f64 {
    0.5 * (-1.0 + l2 - l1 + (l1 - l2).exp() + (m1 - m2).powi(2) * (-l2).exp())
}

/// k of x0 = 2 k / 255 - 1, mean, logarithm of the scale: the logarithm of the probability, by scipy.
const GOLDEN: [(f64, f64, f64, f64); 9] = [
    (0.0, -0.9, -std::f64::consts::LN_10, -1.781_827_077_18),
    (0.0, -0.99, -4.5, -1.230_544_758_7),
    (127.0, -0.2, -3.0, -10.507_377_589),
    (128.0, 0.0, -3.0, -2.771_184_200_53),
    (128.0, 0.0, -6.0, -0.694_703_771_426),
    (128.0, 0.5, -4.0, -365.232_773_56),
    (200.0, 0.5, -2.0, -3.895_730_042_26),
    (255.0, 0.9, -2.0, -1.431_818_610_83),
    (255.0, 1.01, -5.0, -0.019_598_240_350_7),
];

#[test]
fn golden_values_of_the_reference() {
    for (k, mean, ln_scale, wanted) in GOLDEN {
        let got = ln_bin(2.0 * k / 255.0 - 1.0, mean, ln_scale);
        assert!((got - wanted).abs() <= 1e-9 * wanted.abs(), "{k}, {mean}: {got}, wanted {wanted}");
    }
    assert!((kl([0.1, -2.0], [-0.2, -1.5]) - 0.254_941_338_022).abs() < 1e-12);
    let total: f64 = (0..256).map(|k| ln_bin(2.0 * f64::from(k) / 255.0 - 1.0, 0.3, -1.2).exp()).sum();
    assert!((total - 1.0).abs() < 1e-12, "{total}");
}

/// Derivatives in the mean and in the logarithm of the scale, by scipy.
#[test]
fn golden_gradients() {
    for (k, mean, ln_scale, by_mean, by_scale) in [
        (0.0, -0.9, -std::f64::consts::LN_10, -14.938_180_55, 1.435_236_954),
        (128.0, 0.0, -3.0, 1.578_804_575, -0.991_755_059_1),
        (200.0, 0.5, -2.0, 3.745_883_295, -0.742_721_678_8),
        (255.0, 0.9, -2.0, 9.591_531_199, 0.921_539_272_1),
    ] {
        let x0 = 2.0 * k / 255.0 - 1.0;
        let term = decoder((x0 - mean) as f32, x0 as f32, (2.0 * ln_scale) as f32);
        // The term is -ln P, z goes down with the mean, and the variance is twice the scale.
        let got = [f64::from(term.dz), -2.0 * f64::from(term.dl)];
        for (got, wanted) in got.into_iter().zip([by_mean, by_scale]) {
            assert!((got - wanted).abs() <= 3e-6 * wanted.abs(), "{k}, {mean}: {got}, wanted {wanted}");
        }
    }
    let term = divergence(0.3, -2.0, -1.5);
    for (got, wanted) in [(term.value, 0.254_941_338), (term.dz, 1.344_506_721), (term.dl, -0.004_941_338_02)]
    {
        assert!((f64::from(got) - wanted).abs() <= 1e-5 * wanted.abs(), "{got}, wanted {wanted}");
    }
}

/// The f32 form on the host against f64: narrow and wide bins, near the mean and forty deviations out.
#[test]
fn the_decoder_is_accurate_in_every_regime() {
    let mut worst = 0.0_f64;
    for scale in 0..60 {
        let ln_scale = -7.0 + 0.1 * f64::from(scale);
        for place in 0..200 {
            let c = 0.2 * f64::from(place) - 15.0;
            for x0 in [0.003_921_569_f32, -1.0, 1.0] {
                let z = (c * ln_scale.exp()) as f32;
                let l2 = (2.0 * ln_scale) as f32;
                let got = decoder(z, x0, l2);
                let at = |z: f64, l2: f64| -ln_bin(f64::from(x0), f64::from(x0) - z, 0.5 * l2);
                let (z, l2) = (f64::from(z), f64::from(l2));
                let s = (0.5 * l2).exp();
                let dz = (at(z + 1e-5 * s, l2) - at(z - 1e-5 * s, l2)) / 2e-5; // times s
                let dl = (at(z, l2 + 1e-5) - at(z, l2 - 1e-5)) / 2e-5;
                for (got, wanted) in
                    [(f64::from(got.value), at(z, l2)), (f64::from(got.dz) * s, dz), (f64::from(got.dl), dl)]
                {
                    let error = (got - wanted).abs() / wanted.abs().max(1.0);
                    worst = worst.max(error);
                    assert!(error <= 2e-5, "z {z}, x0 {x0}, l2 {l2}: {got}, wanted {wanted}");
                }
            }
        }
    }
    assert!(worst < 1e-5, "largest error {worst:e}");
}

const TABLE: [f32; 12] = [-0.01, 0.0, -8.5, 0.4, -0.02, -7.0, -6.8, 0.3, 0.5, -4.0, -3.9, 0.05];

fn reference(x: &[Vec<f64>], channels: usize) -> Vec<f64> {
    let [output, target, x0, t, table] = x else { unreachable!() };
    let size = x0.len() / t.len();
    let of_sample = |n: usize| {
        let element = |i: usize| {
            let at = n * size + i;
            let out = 2 * channels * (at / channels) + at % channels;
            let row = &table[4 * t[n] as usize..][..4];
            let z = row[0] * (target[at] - output[out]);
            let l2 = row[2] + row[3] * output[out + channels];
            if t[n] == 0.0 { -ln_bin(x0[at], x0[at] - z, 0.5 * l2) } else { kl([z, row[1]], [0.0, l2]) }
        };
        (0..size).map(element).sum::<f64>() / size as f64
    };
    (0..t.len()).map(of_sample).collect()
}

fn check(shape: &[usize]) {
    let n: usize = shape.iter().product();
    let mut double = shape.to_vec();
    *double.last_mut().unwrap() *= 2;
    let x0 = random(3, n).into_iter().map(|x| (((x + 1.0) * 127.9).floor() * 2.0) / 255.0 - 1.0);
    let t = (0..shape[0]).map(|n| (n % 3) as f32).collect();
    Check::new("variational_bound")
        .tolerance(2e-5)
        .input(&double)
        .fixed(shape, random(2, n))
        .fixed(shape, x0.collect())
        .fixed(&[shape[0]], t)
        .fixed(&[3, 4], TABLE.to_vec())
        .run(
            |x| variational_bound(&x[0], [&x[1], &x[2]], &x[3], &x[4], true),
            |x| reference(x, *shape.last().unwrap()),
        );
}

#[test]
fn shapes() {
    for shape in [&[1, 1][..], &[3, 5], &[6, 3, 2, 3], &[2, 17, 19, 1], &[300, 2]] {
        check(shape);
    }
}

/// The mean gets no gradient then, and the variance the same.
#[test]
fn without_the_mean() {
    let shape = [6, 2, 3];
    Check::new("variational_bound of the variance")
        .tolerance(2e-5)
        .fixed(&shape, random(1, 36))
        .input(&shape)
        .fixed(&shape, random(2, 36))
        .fixed(&shape, vec![0.1; 36])
        .fixed(&[6], vec![0.0, 1.0, 2.0, 2.0, 1.0, 0.0])
        .fixed(&[3, 4], TABLE.to_vec())
        .run(
            |x| {
                let output = crate::ops::concat::concat(&[&x[0], &x[1]]);
                variational_bound(&output, [&x[2], &x[3]], &x[4], &x[5], false)
            },
            |x| {
                let rows = x[0].chunks(3).zip(x[1].chunks(3));
                let output = rows.flat_map(|(m, v)| [m, v].concat()).collect();
                reference(&[output, x[2].clone(), x[3].clone(), x[4].clone(), x[5].clone()], 3)
            },
        );
}
