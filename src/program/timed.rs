//! Times of the launches of a run.

use std::time::Duration;

/// Start and duration of a launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Since the run began; on a GPU, since its first dispatch did.
    pub start: Duration,
    /// How long it took; on a GPU, the sum of its dispatches.
    pub time: Duration,
}

impl Span {
    /// Of the start and duration of each dispatch.
    pub(super) fn of(dispatches: impl Iterator<Item = (Duration, Duration)>) -> Span {
        let spans = dispatches.map(|(start, time)| Span { start, time });
        spans.reduce(|all, next| Span { time: all.time + next.time, ..all }).unwrap_or_default()
    }
}
