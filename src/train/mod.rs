//! Training: the recorded step, the loop around it, and what it leaves in the run folder.

mod evaluate;
mod latents;
mod objective;
mod pictures;
mod resident;
mod session;
mod step;
mod times;
mod writer;

pub use resident::Input;
pub use session::{Ended, Session, Watch};
pub use step::{DryRun, Outcome, Trainer};
pub use times::Times;
