//! Curves: a noise schedule, and the losses of a run.

use image::RgbImage;

use super::{Line, PALETTE, Plot, beside, pale};
use crate::error::{Error, Result};
use crate::recipe::Recipe;
use crate::run::Run;

/// White pixels between plots.
const GAP: u32 = 16;

/// Height of a plot, in pixels, for its width.
fn height(width: u32) -> u32 {
    width * 3 / 4
}

/// `beta`, `alpha_bar` and the signal-to-noise ratio `alpha_bar / (1 - alpha_bar)` over `t`, side by side,
/// each `width` pixels wide.
pub fn schedule(recipe: &Recipe, width: u32) -> RgbImage {
    let schedule = recipe.schedule();
    let over_t = |values: &[f64]| -> Vec<(f64, f64)> {
        values.iter().enumerate().map(|(t, &v)| (t as f64, v)).collect()
    };
    let alpha_bars = &schedule.alpha_bars;
    let snr: Vec<f64> = alpha_bars.iter().map(|a| a / (1.0 - a)).collect();
    let plot = |name: &str, values: &[f64], log: bool| {
        let line = Line::new(name, over_t(values));
        Plot::new(name).x_label("t").log_y(log).line(line).draw(width, height(width))
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

/// The loss of a run over its steps, on a logarithmic axis; for a VAE also the parts of the loss, and what
/// was measured on held-out images. Each plot is `width` pixels wide.
///
/// # Errors
/// When the run has no metrics yet.
pub fn loss(run: &Run, width: u32) -> Result<RgbImage> {
    let metrics = run.metrics();
    if metrics.is_empty() {
        return Err(Error::new(format!("{} has no metrics yet", run.folder().display()))
            .hint("train it first: they are written to metrics.jsonl"));
    }
    let points = |of: &dyn Fn(&crate::run::Metrics) -> Option<f32>| -> Vec<(f64, f64)> {
        metrics.iter().filter_map(|m| Some((m.step as f64, f64::from(of(m)?)))).collect()
    };
    let with_mean = |plot: Plot, name: &str, points: &[(f64, f64)], colour: [u8; 3]| {
        let each = Line::new(format!("{name} of a step"), points.iter().copied()).width(1.0);
        plot.line(each.colour(pale(colour)))
            .line(Line::new(format!("{name}, running mean"), smooth(points)).colour(colour))
    };
    let losses = points(&|m| Some(m.loss));
    let plot = Plot::new("loss").x_label("step").log_y(losses.iter().all(|p| p.1 > 0.0));
    let mut panels = vec![with_mean(plot, "loss", &losses, PALETTE[0]).draw(width, height(width))];
    let (reconstruction, kl) = (points(&|m| m.reconstruction), points(&|m| m.kl));
    if !kl.is_empty() {
        let plot = Plot::new("reconstruction and KL, running means").x_label("step").log_y(true);
        let line = |name: &str, points: &[(f64, f64)]| Line::new(name, smooth(points));
        let plot =
            plot.line(line("reconstruction", &reconstruction)).line(line("KL, before its weight", &kl));
        panels.push(plot.draw(width, height(width)));
    }
    let evaluations = run.evaluations();
    if !evaluations.is_empty() {
        let psnr = evaluations.iter().map(|e| (e.step as f64, e.psnr));
        let of = if evaluations.iter().all(|e| e.held_out) { "held-out" } else { "training" };
        let plot = Plot::new(format!("PSNR of {of} images"))
            .x_label("step")
            .y_label("dB")
            .line(Line::new("PSNR", psnr));
        panels.push(plot.draw(width, height(width)));
    }
    Ok(beside(&panels, GAP))
}
