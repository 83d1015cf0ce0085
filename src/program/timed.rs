//! A run with a clock beside every launch, and what a program is made of.

use std::time::{Duration, Instant};

use super::{Code, Part, Program, Sharing};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::launch::Cost;

/// When a launch ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Since the run began; on a GPU, since its first dispatch did.
    pub start: Duration,
    /// How long it took; on a GPU, the sum of its dispatches.
    pub time: Duration,
}

impl Program {
    /// The launches of a run, in order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Launches per run: twins on the CPU device, dispatches on a GPU.
    pub fn launches(&self) -> usize {
        self.parts.iter().map(|part| part.dispatches).sum()
    }

    /// What a run costs.
    pub fn cost(&self) -> Cost {
        self.parts.iter().map(|part| part.cost).sum()
    }

    /// As [`Program::run`], and puts the times of the launches into `spans`, one for each of
    /// [`Program::parts`]. The CPU device reads a clock between launches. A GPU puts a pair of timestamps
    /// around each dispatch, which keeps it from overlapping them, and is waited for.
    ///
    /// # Errors
    /// When the driver reports an error, or has no timestamps.
    pub fn run_timed(&mut self, spans: &mut Vec<Span>) -> Result<()> {
        if self.sharing == Sharing::Guarded {
            self.poison()?;
        }
        spans.clear();
        match (&mut self.code, &self.device) {
            (Code::Cpu(calls, touched), Device::Cpu(cpu)) => {
                let _held = touched.hold();
                cpu.run(|| {
                    let began = Instant::now();
                    let mut start = Duration::ZERO;
                    for call in calls {
                        call.run();
                        let end = began.elapsed();
                        spans.push(Span { start, time: end - start });
                        start = end;
                    }
                });
                Ok(())
            }
            (Code::Gpu(dispatches), Device::Gpu(gpu)) => {
                let Some(times) = gpu.replay_timed(&*dispatches)? else {
                    return Err(Error::new(format!("{} cannot time its kernels", gpu.name()))
                        .hint("its driver has no timestamps: use another device"));
                };
                let mut times = times.into_iter();
                for part in &self.parts {
                    let of_part: Vec<(Duration, Duration)> = times.by_ref().take(part.dispatches).collect();
                    spans.push(Span {
                        start: of_part.first().map_or(Duration::ZERO, |(start, _)| *start),
                        time: of_part.iter().map(|(_, time)| *time).sum(),
                    });
                }
                Ok(())
            }
            _ => unreachable!("code is built for the program's device"),
        }
    }
}
