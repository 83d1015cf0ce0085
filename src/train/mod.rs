//! Training: the recorded step, the loop around it, and what it leaves in the run folder.

mod evaluate;
mod latents;
mod objective;
mod session;
mod step;

pub use session::{Ended, Session, Watch, open_data};
pub use step::{DryRun, Trainer};
