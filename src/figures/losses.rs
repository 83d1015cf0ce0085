//! Curves of training: the losses of a run, or of several over one another.

use image::RgbImage;

use super::curves::{GAP, height};
use super::{Line, PALETTE, Plot, beside, pale};
use crate::error::{Error, Result};
use crate::names::shown_path;
use crate::run::{Evaluation, HeldOutLoss, Metrics, Run};

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
    let metrics = metrics_of(run)?;
    let points = |of: &dyn Fn(&Metrics) -> Option<f32>| -> Vec<(f64, f64)> {
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
    let by_t = |of: &dyn Fn(&Metrics) -> Option<[Option<f32>; 4]>| -> Vec<Line> {
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

fn metrics_of(run: &Run) -> Result<Vec<Metrics>> {
    let metrics = run.metrics()?;
    if metrics.is_empty() {
        return Err(Error::new(format!("{} has no metrics yet", run.folder().display()))
            .hint("train it first: they are written to metrics.jsonl"));
    }
    Ok(metrics)
}

/// The running means of the losses of several runs in one plot, and in others what was measured on held-out
/// images: the loss of diffusion models, the PSNR of VAEs. Each plot is `width` pixels wide.
pub fn losses(runs: &[Run], width: u32) -> Result<RgbImage> {
    let (mut losses, mut held_out, mut psnr) = (Vec::new(), Vec::new(), Vec::new());
    for (run, colour) in runs.iter().zip(PALETTE.into_iter().cycle()) {
        let line = |points: Vec<(f64, f64)>| Line {
            colour: Some(colour),
            ..Line::new(shown_path(run.folder()), points)
        };
        let of_steps = |m: &Metrics| (m.step as f64, f64::from(m.loss));
        losses.push(line(smooth(&metrics_of(run)?.iter().map(of_steps).collect::<Vec<_>>())));
        let of_steps = |e: &HeldOutLoss| (e.step as f64, e.held_out_loss);
        held_out.push(line(run.held_out_losses()?.iter().map(of_steps).collect()));
        let of_steps = |e: &Evaluation| (e.step as f64, e.psnr);
        psnr.push(line(run.evaluations()?.iter().map(of_steps).collect()));
    }
    let plot = |title: &'static str, lines: Vec<Line>, log: bool| {
        let lines: Vec<Line> = lines.into_iter().filter(|line| !line.points.is_empty()).collect();
        let log = log && lines.iter().flat_map(|line| &line.points).all(|point| point.1 > 0.0);
        (!lines.is_empty()).then(|| Plot::new(title, "step", lines).log_y(log).draw(width, height(width)))
    };
    let panels = [
        plot("loss, running mean", losses, true),
        plot("loss of held-out images without weights, EMA", held_out, true),
        plot("PSNR of held-out images, dB", psnr, false),
    ];
    Ok(beside(&panels.into_iter().flatten().collect::<Vec<_>>(), GAP))
}
