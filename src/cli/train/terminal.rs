//! What a training tells its user while it runs.

use std::time::{Duration, Instant};

use indicatif::{FormattedDuration, ProgressBar};

use crate::cli::pace::Pace;
use crate::cli::signals::Stop;
use crate::cli::{bar, note};
use crate::recipe::Recipe;
use crate::run::{Evaluation, HeldOutLoss, Metrics};
use crate::train::Watch;

/// Progress on the terminal, or a line now and then where standard error is no terminal.
pub(super) struct Terminal {
    pub bar: ProgressBar,
    pub stop: Stop,
    /// A running mean of the loss, which is noisy from step to step.
    loss: Option<f32>,
    pace: Pace,
    steps: u64,
    /// Images of a step.
    per_step: u64,
    began: Instant,
    spoke: Instant,
}

impl Terminal {
    pub fn new(first: u64, recipe: &Recipe, stop: Stop) -> Self {
        let (steps, per_step) = (recipe.steps, recipe.accumulation * recipe.batch_size as u64);
        let bar = bar(steps, "{bar:16} {percent}% {pos}/{len} {elapsed_precise} {msg}");
        bar.set_position(first);
        let (now, loss) = (Instant::now(), None);
        let pace = Pace::new(now, first);
        Terminal { bar, stop, loss, pace, steps, per_step, began: now, spoke: now }
    }

    /// Loss, learning rate, throughput and the time that is left, as the last minute went.
    fn describe(&mut self, m: &Metrics, loss: f32) -> String {
        let mut text = format!("loss {loss:.4}  lr {:.1e}", m.lr);
        if let Some(rate) = self.pace.rate(Instant::now(), m.step) {
            // A step in a century is no time to print.
            let left = (self.steps.saturating_sub(m.step) as f64 / rate).min(1e9);
            let left = FormattedDuration(Duration::from_secs_f64(left));
            text += &format!("  {:.1} images/s  {left} left", rate * self.per_step as f64);
        }
        text
    }
}

impl Watch for Terminal {
    fn step(&mut self, m: &Metrics) {
        let loss = self.loss.map_or(m.loss, |mean| 0.95 * mean + 0.05 * m.loss);
        self.loss = Some(loss);
        self.bar.set_position(m.step);
        let text = self.describe(m, loss);
        self.bar.set_message(text.clone());
        let is_due = m.step == 1 || m.step == self.steps || self.spoke.elapsed().as_secs() >= 10;
        if self.bar.is_hidden() && is_due {
            self.spoke = Instant::now();
            let (percent, elapsed) = (100 * m.step / self.steps, FormattedDuration(self.began.elapsed()));
            note(&format!("step {}/{}  {percent} %  {elapsed}  {text}", m.step, self.steps));
        }
    }

    fn doing(&mut self, what: Option<&str>) {
        self.pace.pause(Instant::now(), what.is_some());
        if let Some(what) = what {
            self.bar.set_message(format!("{what} "));
        }
        self.bar.tick();
    }

    fn evaluated(&mut self, e: &Evaluation) {
        let of = if e.held_out { "held-out" } else { "training" };
        let kl = e.kl.map(|kl| format!("KL {kl:.2}  ")).unwrap_or_default();
        let codes = match (e.codes_used, e.perplexity) {
            (Some(used), Some(perplexity)) => format!("{used} codes used, perplexity {perplexity:.1}  "),
            _ => String::new(),
        };
        self.message(&format!(
            "step {}, {} {of} images: reconstruction {:.2}  {kl}{codes}PSNR {:.2} dB  SSIM {:.3}  \
             active {}/{} latent units",
            e.step, e.images, e.reconstruction, e.psnr, e.ssim, e.active_units, e.units
        ));
    }

    fn held_out_loss(&mut self, e: &HeldOutLoss) {
        let of = if e.held_out { "held-out" } else { "training" };
        let quarters = e.held_out_by_t.map(|q| q.map_or("-".to_owned(), |q| format!("{q:.4}"))).join("  ");
        self.message(&format!(
            "step {}, {} {of} images: loss {:.4}, by quarter of t {quarters}",
            e.step, e.images, e.held_out_loss
        ));
    }

    fn message(&mut self, line: &str) {
        self.bar.suspend(|| note(line));
    }

    fn interrupted(&self) -> bool {
        self.stop.is_wanted()
    }
}
