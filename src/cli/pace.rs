//! The pace of a work in steps over the last minute.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How far back the pace looks.
const MINUTE: Duration = Duration::from_mins(1);
/// Marks in a minute.
const MARKS: u32 = 120;

/// Steps a second over the last minute of work. While the work stands for something else, so does its clock.
pub struct Pace {
    /// Times and steps done, oldest first; the first is a minute old, or the beginning.
    marks: VecDeque<(Instant, u64)>,
    paused: Option<Instant>,
}

impl Pace {
    /// Of a work that goes on after `done` steps.
    pub fn new(now: Instant, done: u64) -> Pace {
        Pace { marks: VecDeque::from([(now, done)]), paused: None }
    }

    /// Stops the clock, or lets it go on.
    pub fn pause(&mut self, now: Instant, pauses: bool) {
        if pauses {
            self.paused.get_or_insert(now);
        } else if let Some(since) = self.paused.take() {
            let lost = now.saturating_duration_since(since);
            self.marks.iter_mut().for_each(|(time, _)| *time += lost);
        }
    }

    /// Steps a second, when `done` are done.
    pub fn rate(&mut self, now: Instant, done: u64) -> Option<f64> {
        let now = self.paused.unwrap_or(now);
        if self.marks.back().is_none_or(|(last, _)| now.saturating_duration_since(*last) >= MINUTE / MARKS) {
            self.marks.push_back((now, done));
        }
        // The second may be a minute old too: then the first is older than it need be.
        while self.marks.get(1).is_some_and(|(time, _)| now.saturating_duration_since(*time) >= MINUTE) {
            self.marks.pop_front();
        }
        let (since, before) = *self.marks.front()?;
        let seconds = now.saturating_duration_since(since).as_secs_f64();
        (done > before && seconds > 0.0).then(|| (done - before) as f64 / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_follows_the_last_minute() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut pace = Pace::new(start, 1000);
        assert_eq!(pace.rate(start, 1000), None);
        // Ten steps a second for five minutes, then one.
        for second in 1..=300 {
            let rate = pace.rate(at(second), 1000 + 10 * second).unwrap();
            assert!((rate - 10.0).abs() < 1e-9, "{rate} after {second} s");
        }
        let mut rate = 0.0;
        for second in 301..=370 {
            rate = pace.rate(at(second), 4000 + second - 300).unwrap();
        }
        assert!((rate - 1.0).abs() < 1e-9, "{rate}");
        assert!(pace.marks.len() <= 2 + MARKS as usize, "{} marks", pace.marks.len());
    }

    #[test]
    fn the_clock_stands_while_something_else_is_done() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut pace = Pace::new(start, 0);
        assert_eq!(pace.rate(at(10), 20), Some(2.0));
        pace.pause(at(10), true);
        pace.pause(at(400), true);
        assert_eq!(pace.rate(at(500), 20), Some(2.0));
        pace.pause(at(1000), false);
        pace.pause(at(1001), false);
        assert_eq!(pace.rate(at(1010), 40), Some(2.0));
    }
}
