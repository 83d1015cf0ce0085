//! Where the time of a run goes besides its steps.

use std::time::{Duration, Instant};

/// Times of a session. What is not a step keeps the next one waiting.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Steps, without the waiting for their data.
    pub steps: Duration,
    /// Waiting for data; in latent diffusion, encoding images that no step met before too.
    pub data: Duration,
    /// Writing `metrics.jsonl`.
    pub log: Duration,
    /// Measuring a VAE.
    pub evaluations: Duration,
    /// Making pictures: sampling for the most part. They are drawn and written beside the steps.
    pub pictures: Duration,
    /// Copying the state, and waiting for an earlier copy to be written.
    pub checkpoints: Duration,
    /// When the first step had its data, and when its loss was there.
    pub first_step: Option<[Instant; 2]>,
    /// Steps that changed nothing, because a gradient left the range of 16-bit floats.
    pub skipped: u64,
}

impl Times {
    /// Runs `work` and adds the time that it takes to one of the times.
    pub(super) fn during<R>(time: &mut Duration, work: impl FnOnce() -> R) -> R {
        let before = Instant::now();
        let result = work();
        *time += before.elapsed();
        result
    }

    /// A line for people. `started`: when the command did.
    pub fn describe(&self, started: Instant) -> String {
        let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
        let first = self.first_step.map_or_else(String::new, |[began, ended]| {
            let at = |when: Instant| seconds(when.saturating_duration_since(started));
            format!("first step from {} to {} after the start; ", at(began), at(ended))
        });
        let waits = [
            ("data", self.data),
            ("log", self.log),
            ("evaluations", self.evaluations),
            ("pictures", self.pictures),
            ("checkpoints", self.checkpoints),
        ];
        let waits = waits.map(|(what, time)| format!("{what} {}", seconds(time))).join(", ");
        format!("{first}steps {}; besides: {waits}", seconds(self.steps))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_where_the_time_went() {
        let started = Instant::now();
        let after = |ms| started + Duration::from_millis(ms);
        let mut times = Times { steps: Duration::from_millis(12_340), ..Times::default() };
        assert_eq!(Times::during(&mut times.log, || 7), 7);
        times.log = Duration::from_millis(20);
        let rest = "steps 12.34 s; besides: data 0.00 s, log 0.02 s, evaluations 0.00 s, \
                    pictures 0.00 s, checkpoints 0.00 s";
        assert_eq!(times.describe(started), rest);
        times.first_step = Some([after(250), after(500)]);
        assert_eq!(
            times.describe(started),
            format!("first step from 0.25 s to 0.50 s after the start; {rest}")
        );
    }
}
