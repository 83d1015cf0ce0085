//! Curves of a noise schedule and of a likelihood.

use image::RgbImage;

use super::{Line, PALETTE, Plot, Sheet, beside, pale};
use crate::diffusion::{NoiseLevel, Schedule};
use crate::likelihood::{Process, Term};
use crate::philox::Stream;

/// White pixels between plots.
pub(super) const GAP: u32 = 16;

/// Height of a plot, in pixels, for its width.
pub(super) fn height(width: u32) -> u32 {
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
