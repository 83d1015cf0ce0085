//! Training: the recorded step, the loop around it, and what it leaves in the run folder.

mod pictures;
mod session;
mod step;

pub use pictures::{backward_strip, forward_strip};
pub use session::{Ended, Session, Watch};
pub use step::{DryRun, Trainer};
