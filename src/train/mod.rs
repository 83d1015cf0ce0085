//! Training: the recorded step, the loop around it, and what it leaves in the run folder.

mod evaluate;
mod latents;
mod objective;
mod pictures;
mod session;
mod step;
mod writer;

pub use session::{Ended, Session, Watch};
pub use step::{DryRun, Trainer};
