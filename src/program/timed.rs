//! Times of the launches of a run.

use std::time::Duration;

/// Start and duration of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Since the run began; on a GPU, since its first dispatch did.
    pub start: Duration,
    /// How long it took; on a GPU, the sum of its dispatches.
    pub time: Duration,
}

impl Span {
    /// Of the start and duration of each dispatch.
    pub(super) fn of(dispatches: impl Iterator<Item = (Duration, Duration)>) -> Span {
        let mut span = Span { start: Duration::ZERO, time: Duration::ZERO };
        for (i, (start, time)) in dispatches.enumerate() {
            span.start = if i == 0 { start } else { span.start };
            span.time += time;
        }
        span
    }
}
