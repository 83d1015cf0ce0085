//! The bound of the exact model of Gaussian data, against values computed in numpy (f64).

use std::f64::consts::LN_2;

use super::normal::log_density;
use super::process::tests::{cosine, linear};
use super::{Bound, Cdf, Decoder, GaussianData, Process, ReverseVariance, Tally, Term, close, value_of};
use crate::diffusion::Prediction;

const DATA: GaussianData = GaussianData { mean: 0.1, variance: 0.25 };
const PREDICTIONS: [Prediction; 3] = [Prediction::Epsilon, Prediction::Sample, Prediction::V];

/// Mean over standard normal noise: the trapezoid rule, which converges exponentially for such functions.
pub(super) fn over_noise(f: impl Fn(f64) -> f64) -> f64 {
    let (n, width) = (8000, 12.0);
    let step = 2.0 * width / f64::from(n);
    let at = |i: i32| f64::from(i).mul_add(step, -width);
    (0..=n).map(|i| step * log_density(at(i)).exp() * f(at(i))).sum()
}

/// Variance of the model's step.
type Choice = fn(&Process, usize) -> ReverseVariance;
const SMALL: Choice = |_, _| ReverseVariance::FixedSmall;
const LARGE: Choice = |_, _| ReverseVariance::FixedLarge;
const MIDDLE: Choice = |_, _| ReverseVariance::LearnedRange(0.0);
const BEST: Choice = |process, t| ReverseVariance::LogVariance(DATA.log_variance(process, t));

fn bound(process: &Process, prediction: Prediction, decoder: Decoder) -> Bound {
    Bound { process: process.clone(), prediction, clip: false, decoder }
}

/// A term of the exact model for these values of x_0, each with noise 1 and -1. The terms of a density are
/// quadratic in the noise (and in x_0), so that two points have the mean of the law.
fn term(bound: &Bound, t: usize, x0: &[f64], choice: Choice) -> Term {
    let process = &bound.process;
    let (signal, noise) = (process.alpha_bar(t).sqrt(), process.noise(t).sqrt());
    let x0: Vec<f64> = x0.iter().flat_map(|&x0| [x0, x0]).collect();
    let x_t: Vec<f64> =
        x0.iter().enumerate().map(|(i, x0)| signal * x0 + if i % 2 == 0 { noise } else { -noise }).collect();
    let output: Vec<f64> = x_t.iter().map(|&x_t| DATA.predict(process, bound.prediction, t, x_t)).collect();
    bound.term(t, &x0, &x_t, &output, |_| choice(process, t))
}

/// L_T, the sum of the L_t, and L_0, averaged over the data, nats.
fn over_data(process: &Process, prediction: Prediction, choice: Choice) -> [f64; 3] {
    let bound = bound(process, prediction, Decoder::Density);
    let x0 = [DATA.mean - 0.5, DATA.mean + 0.5];
    let later = (1..process.steps()).map(|t| term(&bound, t, &x0, choice).nats).sum();
    [bound.prior(&x0), later, term(&bound, 0, &x0, choice).nats]
}

// L_T of cosine 1000 by mpmath: numpy's has 7 digits.
#[test]
fn the_bound_averaged_over_the_data() {
    let (l1000, c1000, c10, c4) = (linear(1000), cosine(1000), cosine(10), cosine(4));
    #[rustfmt::skip]
    let rows: [(&Process, Choice, [f64; 3], f64); 12] = [
        (&l1000, SMALL, [5.246985904e-6, 4.36851635121, -3.07280411224], 1.29571748595),
        (&l1000, LARGE, [5.246985904e-6, 3.91326017056, -3.07280411224], 0.840461305304),
        (&l1000, BEST, [5.246985904e-6, 3.91216793797, -3.18638163029], 0.725791554665),
        (&c1000, SMALL, [3.15739699389e-10, 4.75666247607, -3.50087770273], 1.25578477366),
        (&c1000, LARGE, [3.15739699389e-10, 4.35504176339, -3.50087770273], 0.854164060972),
        (&c1000, BEST, [3.15739699389e-10, 4.35442978991, -3.62863843757], 0.725791352657),
        (&c10, SMALL, [3.13206924332e-6, 1.70345879544, -0.398435151454], 1.30502677605),
        (&c10, LARGE, [3.13206924332e-6, 1.19179200565, -0.398435151454], 0.793359986261),
        (&c10, BEST, [3.13206924332e-6, 1.13648456945, -0.410696228337], 0.725791473185),
        (&c4, SMALL, [1.87605774206e-5, 0.576169344312, 0.299333643807], 0.875521748697),
        (&c4, LARGE, [1.87605774206e-5, 0.527230596297, 0.299333643807], 0.826583000682),
        (&c4, BEST, [1.87605774206e-5, 0.43439633796, 0.291376978396], 0.725792076932),
    ];
    for (process, choice, wanted, total) in rows {
        for prediction in PREDICTIONS {
            let got = over_data(process, prediction, choice);
            std::iter::zip(got, wanted).for_each(|(got, wanted)| close(got, wanted, 1e-9));
            close(got.iter().sum(), total, 1e-9);
        }
    }
    close(over_data(&l1000, Prediction::V, MIDDLE)[1], 4.01470192546, 1e-9);
}

#[test]
fn the_bound_of_the_best_variance_is_tight() {
    for process in [linear(1000), cosine(10), cosine(4)] {
        let [prior, later, first] = over_data(&process, Prediction::V, BEST);
        let last = process.steps() - 1;
        let end = DATA.variance_at(&process, last);
        let mismatch = super::gaussian_kl(process.alpha_bar(last).sqrt() * DATA.mean, end.ln(), 0.0, 0.0);
        close(prior + later + first, DATA.entropy() + mismatch, 1e-12);
        let of_snr = |t| (DATA.variance * process.snr(t)).ln_1p();
        close(later, 0.5 * (of_snr(0) - of_snr(last)), 1e-12);
    }
}

/// L_T, the L_t from 1 on, and L_0 of one pixel of a level, noise integrated out, bits.
fn of_pixel(process: &Process, level: u8, cdf: Cdf, choice: Choice) -> (f64, Vec<f64>, f64) {
    let bound = bound(process, Prediction::Epsilon, Decoder::Levels(cdf));
    let x0 = value_of(level);
    let later = (1..process.steps()).map(|t| term(&bound, t, &[x0], choice).nats / LN_2).collect();
    let (signal, noise) = (process.alpha_bar(0).sqrt(), process.noise(0).sqrt());
    let first = over_noise(|e| {
        let x_t = signal * x0 + noise * e;
        let output = DATA.predict(process, Prediction::Epsilon, 0, x_t);
        bound.nats(0, x0, x_t, output, choice(process, 0))
    });
    (bound.prior(&[x0]) / LN_2, later, first / LN_2)
}

#[test]
fn full_bits_of_one_pixel() {
    let (l1000, c10, c4) = (linear(1000), cosine(10), cosine(4));
    #[rustfmt::skip]
    let rows: [(&Process, u8, Choice, [f64; 4]); 9] = [
        (&l1000, 0, SMALL, [2.911294542e-5, 9.116737476, 1.213652685, 10.33041927]),
        (&l1000, 0, LARGE, [2.911294542e-5, 8.405074873, 1.213652685, 9.618756671]),
        (&l1000, 100, SMALL, [1.354910935e-6, 5.861699296, 2.512835252, 8.374535903]),
        (&l1000, 100, LARGE, [1.354910935e-6, 5.213495951, 2.512835252, 7.726332558]),
        (&l1000, 255, SMALL, [2.911294542e-5, 7.944112226, 1.202262627, 9.146403965]),
        (&l1000, 255, LARGE, [2.911294542e-5, 7.255310776, 1.202262627, 8.457602516]),
        (&c10, 100, SMALL, [8.086673055e-7, 1.788109504, 6.364181992, 8.152292305]),
        (&c10, 100, LARGE, [8.086673055e-7, 1.398221156, 6.364181992, 7.762403957]),
        (&c4, 100, LARGE, [4.848918603e-6, 0.4629992134 + 0.1190474671 + 0.01866688358, 7.274818705,
            7.875537118]),
    ];
    for (process, level, choice, [prior, later, first, total]) in rows {
        let got = of_pixel(process, level, Cdf::Exact, choice);
        let sum: f64 = got.1.iter().sum();
        close(got.0, prior, 1e-9);
        close(sum, later, 1e-9);
        close(got.2, first, 1e-9);
        close(got.0 + sum + got.2, total, 1e-9);
    }
    close(of_pixel(&l1000, 100, Cdf::Tanh, SMALL).2, 2.517003754, 1e-9);
    #[rustfmt::skip]
    let each: [(u8, Choice, f64, [f64; 3], f64); 3] = [
        (100, SMALL, 4.848918603e-6, [0.3415449644, 0.05906941293, 0.01210984903], 7.274818705),
        (100, LARGE, 4.848918603e-6, [0.4629992134, 0.1190474671, 0.01866688358], 7.274818705),
        (0, SMALL, 1.040778313e-4, [2.702338158, 0.6542618002, 0.1470200741], 3.626804398),
    ];
    for (level, choice, prior, later, first) in each {
        let got = of_pixel(&c4, level, Cdf::Exact, choice);
        close(got.0, prior, 1e-9);
        got.1.iter().zip(later).for_each(|(&got, wanted)| close(got, wanted, 1e-9));
        close(got.2, first, 1e-9);
    }
}

/// A run over f32 images as a trainer would make it: noise drawn, terms tallied.
#[test]
fn drawn_noise_converges_to_the_integral() {
    let process = cosine(4);
    let bound = bound(&process, Prediction::V, Decoder::Levels(Cdf::Exact));
    let x0 = vec![value_of(100) as f32; 64];
    let mut tally = Tally::new(4);
    for image in 0..400 {
        let terms: Vec<Term> = (0..4)
            .map(|t| {
                let mut noise = [0.0; 64];
                crate::philox::fill_normal(&mut noise, 7, 3, t as u32, image, 0);
                let (signal, deviation) = (process.alpha_bar(t).sqrt(), process.noise(t).sqrt());
                let noisy =
                    |(x0, e): (&f32, &f32)| (signal * f64::from(*x0) + deviation * f64::from(*e)) as f32;
                let x_t: Vec<f32> = x0.iter().zip(&noise).map(noisy).collect();
                let model = |&x: &f32| DATA.predict(&process, Prediction::V, t, x.into()) as f32;
                let output: Vec<f32> = x_t.iter().map(model).collect();
                bound.term(t, &x0, &x_t, &output, |_| ReverseVariance::FixedSmall)
            })
            .collect();
        tally.add(bound.prior(&x0), &terms);
    }
    let bits = tally.bits_per_dim();
    let off = (bits.mean - 7.68754778).abs();
    assert!(off <= 3.0 * bits.standard_error && bits.standard_error < 0.01, "{bits:?}");
}

#[test]
fn what_is_clipped_and_what_is_refused() {
    let process = linear(1000);
    let mut bound = bound(&process, Prediction::Sample, Decoder::Density);
    assert_eq!(bound.x0(5, 0.3, 1.7), 1.7);
    bound.clip = true;
    assert_eq!(bound.x0(5, 0.3, 1.7), 1.0);
    let exact = bound.term(5, &[1.0], &[0.9], &[1.7], |_| ReverseVariance::FixedSmall);
    assert!(exact.nats.abs() < 1e-15 && exact.x0_error == 0.0, "{exact:?}");
}

#[test]
#[should_panic(expected = "0.3 is not one of the 256 levels of a pixel")]
fn latents_have_no_levels() {
    let bound = bound(&linear(1000), Prediction::Sample, Decoder::Levels(Cdf::Exact));
    bound.term(0, &[0.3], &[0.3], &[0.3], |_| ReverseVariance::FixedSmall);
}

#[test]
#[should_panic(expected = "the noise says nothing of x_0 at timestep 1")]
fn noise_alone_says_nothing_of_the_data() {
    let bound = bound(&Process::new(&[0.5, 1.0]), Prediction::Epsilon, Decoder::Density);
    bound.term(1, &[0.3], &[0.3], &[0.3], |_| ReverseVariance::FixedSmall);
}
