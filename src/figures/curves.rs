//! Curves: a noise schedule, and the losses of a run.

use image::RgbImage;

use super::{Line, PALETTE, Plot, Sheet, beside, pale};
use crate::diffusion::{NoiseLevel, Schedule};
use crate::error::{Error, Result};
use crate::likelihood::{Process, Term};
use crate::philox::Stream;
use crate::run::{HeldOutLoss, Run};

/// White pixels between plots.
const GAP: u32 = 16;

/// Height of a plot, in pixels, for its width.
fn height(width: u32) -> u32 {
    width * 3 / 4
}

/// `beta`, `alpha_bar` and the signal-to-noise ratio `alpha_bar / (1 - alpha_bar)` over `t`, side by side,
/// each `width` pixels wide.
pub fn schedule(schedule: &Schedule, width: u32) -> RgbImage {
    let over_t = |values: &[f64]| -> Vec<(f64, f64)> {
        values.iter().enumerate().map(|(t, &v)| (t as f64, v)).collect()
    };
    let alpha_bars = &schedule.alpha_bars;
    let snr: Vec<f64> = alpha_bars.iter().map(|a| a / (1.0 - a)).collect();
    let plot = |name: &str, values: &[f64], log: bool| {
        Plot::new(name, "t", vec![Line::new(name, over_t(values))]).log_y(log).draw(width, height(width))
    };
    beside(
        &[
            plot("β", &schedule.betas, false),
            plot("ᾱ", alpha_bars, false),
            plot("signal-to-noise ratio ᾱ / (1 − ᾱ)", &snr, true),
        ],
        GAP,
    )
}

/// Curves of a likelihood: bits of each timestep, squared errors of noise and of x0, and distortion over
/// rate, side by side, each `width` pixels wide.
pub fn likelihood_curves(process: &Process, terms: &[Term], curve: &[[f64; 2]], width: u32) -> RgbImage {
    let over_t = |of: &dyn Fn(usize, &Term) -> f64| -> Vec<(f64, f64)> {
        terms.iter().enumerate().map(|(t, term)| (t as f64, of(t, term))).collect()
    };
    let bits = over_t(&|_, term| term.nats / std::f64::consts::LN_2);
    let [mse, x0] = [over_t(&|t, term| process.snr(t) * term.x0_error), over_t(&|_, term| term.x0_error)];
    let is_log = |points: &[(f64, f64)]| points.iter().all(|p| p.1 > 0.0);
    let log = is_log(&bits);
    let plots = [
        Plot::new("bits per dimension of a step", "t", vec![Line::new("bits", bits)]).log_y(log),
        Plot::new(
            "squared errors",
            "t",
            vec![Line::new("predicted noise", mse), Line::new("predicted x0", x0)],
        )
        .log_y(true),
        Plot {
            y_label: "distortion, RMSE of 255",
            ..Plot::new(
                "rate and distortion",
                "rate, bits per dimension",
                vec![Line::new(
                    "distortion",
                    curve.iter().rev().map(|&[rate, distortion]| (rate, distortion)),
                )],
            )
        },
    ];
    beside(&plots.map(|plot| plot.draw(width, height(width))), GAP)
}

/// Schedules side by side: the logarithm of the signal-to-noise ratio over `t / T`, the factors of signal
/// and noise, and how much of the training is spent on each ratio (where two schedules really differ). Each
/// plot is `width` pixels wide.
pub fn schedules(named: &[(String, Schedule)], width: u32) -> RgbImage {
    let levels: Vec<(&String, Vec<NoiseLevel>)> = named.iter().map(|(name, s)| (name, s.levels())).collect();
    let over = |levels: &[NoiseLevel], of: &dyn Fn(&NoiseLevel) -> f64| -> Vec<(f64, f64)> {
        levels.iter().enumerate().map(|(t, at)| ((t + 1) as f64 / levels.len() as f64, of(at))).collect()
    };
    let plot = |title: &str, x: &'static str, lines| Plot::new(title, x, lines).draw(width, height(width));
    let log_snr = levels.iter().map(|(name, levels)| Line::new(*name, over(levels, &NoiseLevel::log_snr)));
    let factors = levels.iter().zip(PALETTE.into_iter().cycle()).flat_map(|((name, levels), colour)| {
        let signal = over(levels, &|at| at.signal().sqrt());
        let noise = over(levels, &|at| at.noise().sqrt());
        [
            Line { colour: Some(colour), ..Line::new(format!("{name}: signal"), signal) },
            Line { colour: Some(pale(colour)), ..Line::new(format!("{name}: noise"), noise) },
        ]
    });
    let density = levels.iter().map(|(name, levels)| {
        let drawn = levels.windows(2).map(|pair| {
            let [low, high] = [pair[1].log_snr(), pair[0].log_snr()];
            (0.5 * (low + high), 1.0 / (levels.len() as f64 * (high - low)))
        });
        Line::new(*name, drawn.filter(|(at, _)| at.is_finite()))
    });
    beside(
        &[
            plot("log signal-to-noise ratio", "t / T", log_snr.collect()),
            plot("factors of signal and noise", "t / T", factors.collect()),
            plot("density of training", "log signal-to-noise ratio", density.collect()),
        ],
        GAP,
    )
}

/// What each schedule does to a picture `[H, W, C]`, with the same noise: a row for each, over `t / T`.
pub fn noised_by(named: &[(String, Schedule)], picture: &[f32], image: [usize; 3], seed: u64) -> RgbImage {
    let noise = super::noise(seed, Stream::Noise, 0, picture.len());
    let shown: Vec<f64> = (0..=10).map(|i| f64::from(i) / 10.0).collect();
    let mut cells = Vec::new();
    for (_, schedule) in named {
        let levels = schedule.levels();
        for part in &shown {
            // Number i is at (i + 1) / T; the picture itself is at 0.
            let number = (part * levels.len() as f64).round() as usize;
            let at = number.checked_sub(1).map_or([1.0, 0.0], |i| [levels[i].signal(), levels[i].noise()]);
            let [a, b] = at.map(|square| square.sqrt() as f32);
            cells.extend(picture.iter().zip(&noise).map(|(x, eps)| a * x + b * eps));
        }
    }
    let strips = Sheet {
        column_labels: shown.iter().map(f64::to_string).collect(),
        column_axis: "t / T",
        row_labels: named.iter().map(|(name, _)| name.clone()).collect(),
        ..Sheet::new(shown.len())
    };
    strips.draw(&cells, named.len() * shown.len(), image)
}

/// An exponential mean over about a hundredth of the steps, as the eye would draw it.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / (points.len() as f64 / 100.0).max(1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let step = |&(x, y): &(f64, f64)| {
        sum = keep * sum + y;
        weight = keep * weight + 1.0;
        (x, sum / weight)
    };
    points.iter().map(step).collect()
}

/// The losses of a diffusion model on held-out images, whose timesteps and noise never change; `None` without
/// any.
fn held_out(run: &Run, quarters: [&'static str; 4]) -> Result<Option<Plot>> {
    let losses = run.held_out_losses()?;
    let of = if losses.iter().all(|e| e.held_out) { "held-out" } else { "training" };
    let over_steps = |of: &dyn Fn(&HeldOutLoss) -> Option<f64>| -> Vec<(f64, f64)> {
        losses.iter().filter_map(|e| Some((e.step as f64, of(e)?))).collect()
    };
    let all = Line::new("all t", over_steps(&|e| Some(e.held_out_loss)));
    let by_t = quarters.into_iter().enumerate();
    let by_t = by_t.map(|(q, name)| Line::new(name, over_steps(&|e| e.held_out_by_t[q])));
    let lines = by_t.chain([all]).filter(|line| !line.points.is_empty()).collect();
    let title = format!("loss of {of} images without weights, EMA");
    Ok((!losses.is_empty()).then(|| Plot::new(title, "step", lines).log_y(true)))
}

/// The loss of a run over its steps, on a logarithmic axis; of a diffusion model also by quarters of the
/// timesteps, and on held-out images; of a VAE the parts of the loss, and what was measured on held-out
/// images. Each plot is `width` pixels wide.
pub fn loss(run: &Run, width: u32) -> Result<RgbImage> {
    let metrics = run.metrics()?;
    if metrics.is_empty() {
        return Err(Error::new(format!("{} has no metrics yet", run.folder().display()))
            .hint("train it first: they are written to metrics.jsonl"));
    }
    let points = |of: &dyn Fn(&crate::run::Metrics) -> Option<f32>| -> Vec<(f64, f64)> {
        metrics.iter().filter_map(|m| Some((m.step as f64, f64::from(of(m)?)))).collect()
    };
    let losses = points(&|m| Some(m.loss));
    let [blue, ..] = PALETTE;
    let each = Line { width: 1.0, colour: Some(pale(blue)), ..Line::new("loss of a step", losses.clone()) };
    let mean = Line { colour: Some(blue), ..Line::new("loss, running mean", smooth(&losses)) };
    let plot = Plot::new("loss", "step", vec![each, mean]).log_y(losses.iter().all(|p| p.1 > 0.0));
    let mut panels = vec![plot.draw(width, height(width))];
    // Without the weights: what the model knows at each level of noise.
    let quarters = ["first quarter of t (least noise)", "second", "third", "last (most noise)"];
    let by_t = |of: &dyn Fn(&crate::run::Metrics) -> Option<[Option<f32>; 4]>| -> Vec<Line> {
        let lines = quarters.into_iter().enumerate();
        let lines =
            lines.map(|(q, name)| Line::new(name, smooth(&points(&|m| of(m).and_then(|by_t| by_t[q])))));
        lines.filter(|line| !line.points.is_empty()).collect()
    };
    let (losses_by_t, accuracies_by_t) = (by_t(&|m| m.loss_by_t), by_t(&|m| m.accuracy_by_t));
    if !losses_by_t.is_empty() {
        let plot = Plot::new("loss without weights, by quarter of t, running means", "step", losses_by_t);
        panels.push(plot.log_y(true).draw(width, height(width)));
    }
    panels.extend(held_out(run, quarters)?.map(|plot| plot.draw(width, height(width))));
    if !accuracies_by_t.is_empty() {
        let plot = Plot::new("accuracy by quarter of t, running means", "step", accuracies_by_t);
        panels.push(plot.draw(width, height(width)));
    }
    let (reconstruction, kl) = (points(&|m| m.reconstruction), points(&|m| m.kl));
    if !kl.is_empty() {
        let lines = vec![
            Line::new("reconstruction", smooth(&reconstruction)),
            Line::new("KL, before its weight", smooth(&kl)),
        ];
        let plot = Plot::new("reconstruction and KL, running means", "step", lines).log_y(true);
        panels.push(plot.draw(width, height(width)));
    }
    let perplexities = points(&|m| m.perplexity);
    if !perplexities.is_empty() {
        let of_run = run.evaluations()?;
        let held_out = of_run.iter().filter_map(|e| Some((e.step as f64, e.perplexity?)));
        let lines = vec![
            Line::new("of a batch, running mean", smooth(&perplexities)),
            Line::new("over the images of an evaluation", held_out),
        ];
        let lines = lines.into_iter().filter(|line| !line.points.is_empty()).collect();
        panels.push(Plot::new("perplexity of the codes' use", "step", lines).draw(width, height(width)));
    }
    let accuracies = points(&|m| m.accuracy);
    if !accuracies.is_empty() {
        let plot =
            Plot::new("accuracy, running mean", "step", vec![Line::new("accuracy", smooth(&accuracies))]);
        panels.push(plot.draw(width, height(width)));
    }
    let evaluations = run.evaluations()?;
    if !evaluations.is_empty() {
        let psnr = evaluations.iter().map(|e| (e.step as f64, e.psnr));
        let of = if evaluations.iter().all(|e| e.held_out) { "held-out" } else { "training" };
        let plot = Plot::new(format!("PSNR of {of} images"), "step", vec![Line::new("PSNR", psnr)]);
        panels.push(Plot { y_label: "dB", ..plot }.draw(width, height(width)));
    }
    Ok(beside(&panels, GAP))
}
