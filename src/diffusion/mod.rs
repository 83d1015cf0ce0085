//! The diffusion process: schedules and reverse steps. The model is a function to it; nothing here knows a network.

mod schedule;

pub use schedule::{Schedule, Variance};
