//! The likelihood by the probability-flow ODE.

use serde::Serialize;

use super::{Arguments, Images};
use crate::cli::{bar, print_report, ticks};
use crate::diffusion::Prediction;
use crate::error::{Error, Result};
use crate::likelihood::{Estimate, Flow, follow, log_density};
use crate::philox::{Stream, draw, uniform};
use crate::sample::{Trained, batch_of};

/// Steps without `--steps`; each evaluates the model four times.
const STEPS: usize = 50;

#[derive(Serialize)]
struct Report {
    data: String,
    images: usize,
    /// Of the Runge-Kutta method, each of four evaluations.
    steps: usize,
    /// Of dequantised levels, and its standard error over images.
    bits_per_dim: f64,
    standard_error: f64,
}

/// The density of images with uniform noise of one level, which bounds the probability of the levels from
/// below (Theis et al. 2016, arXiv:1511.01844, section 3.1).
pub fn flow(arguments: &Arguments, trained: &Trained, images: Images) -> Result<()> {
    let (recipe, source) = (trained.recipe(), trained.source());
    let refused =
        |what: &str, hint: &str| Err(Error::usage(format!("{} {what}", arguments.run.display())).hint(hint));
    // Between two timesteps too.
    recipe.check_times(&[0.5])?;
    if recipe.prediction_type == Prediction::Mean {
        return refused("predicts the mean of a step, which has no meaning between steps", "leave --ode out");
    }
    let Some(flow) = Flow::new(&recipe.schedule().levels()) else {
        return refused("has a schedule that ends in noise alone, where no image is left", "leave --ode out");
    };
    let Images { spec, images, labels } = images;
    let (steps, size) = (arguments.steps.unwrap_or(STEPS), source.image().iter().product::<usize>());
    let [from, to] = flow.ends();
    let mut predictor = source.differentiable_predictor(batch_of(recipe, labels.len()))?;
    let progress =
        bar((4 * steps * labels.len().div_ceil(predictor.batch())) as u64, "{bar:30} {percent}% {eta} left");
    let (mut tick, mut bits) = (ticks(&progress), Vec::new());
    for (batch, x) in images.chunks(predictor.batch() * size).enumerate() {
        let (first, here) = (batch * predictor.batch(), x.len() / size);
        let labels = if recipe.class_count() > 0 { &labels[first..first + here] } else { &[] };
        // Of each value a number between 0 and 1, and a sign: the trace of Hutchinson's estimate.
        let words: Vec<[u32; 2]> = (0..x.len())
            .map(|i| {
                let (sample, i) = ((first + i / size) as u32, (i % size) as u32);
                let [word, sign, ..] = draw(arguments.seed, Stream::HeldOut as u32, 1, sample, i);
                [word, sign]
            })
            .collect();
        let probe: Vec<f32> =
            words.iter().map(|[_, sign]| if sign >> 31 == 0 { 1.0 } else { -1.0 }).collect();
        let mut y: Vec<f64> = x
            .iter()
            .zip(&words)
            .map(|(&x, &[word, _])| f64::from(x) + (2.0 * f64::from(uniform(word)) - 1.0) / 255.0)
            .collect();
        let slope = |u: f64, y: &[f64]| {
            let place = flow.place(u);
            let Some([of_x, of_out]) = place.noise(recipe.prediction_type) else {
                unreachable!("a prediction between timesteps")
            };
            let x: Vec<f32> = y.iter().map(|&y| (place.a * y) as f32).collect();
            let t = vec![place.t as f32; here];
            let [out, product] = predictor.predict_with_product(&x, &t, labels, &probe)?;
            tick()?;
            let factor = u.exp();
            let noise = y.iter().zip(&out).map(|(y, &out)| of_x * place.a * y + of_out * f64::from(out));
            let traces = probe.chunks(size).zip(product.chunks(size)).map(|(probe, product)| {
                let trace: f64 = probe.iter().zip(product).map(|(v, p)| f64::from(v * p)).sum();
                factor * place.a * (of_x * size as f64 + of_out * trace)
            });
            Ok((noise.map(|eps| factor * eps).collect(), traces.collect()))
        };
        let integrals = follow([from, to], steps, &mut y, slope)?;
        let a = flow.place(to).a;
        bits.extend(y.chunks(size).zip(integrals).map(|(y, integral)| {
            // A level is 2 / 255 wide.
            127.5_f64.log2() - log_density(y, a, integral) / (size as f64 * std::f64::consts::LN_2)
        }));
    }
    progress.finish_and_clear();
    let Estimate { mean, standard_error, count } = Estimate::of(&bits);
    if !mean.is_finite() {
        return Err(Error::new("the density is not a finite number")
            .hint("more --steps may follow the model; or it has diverged: use an older checkpoint"));
    }
    let report = Report { data: spec, images: count, steps, bits_per_dim: mean, standard_error };
    print_report(&report, arguments.json, describe)
}

fn describe(report: &Report) -> String {
    let Report { data, images, steps, bits_per_dim, standard_error } = report;
    format!(
        "{bits_per_dim:.4} ± {standard_error:.4} bits/dim by the probability-flow ODE: {images} images of \
         {data},\n\
         dequantised by uniform noise of one level, {steps} Runge-Kutta steps of 4 evaluations, one random \
         probe\nof the trace, weights of the moving average\n"
    )
}
