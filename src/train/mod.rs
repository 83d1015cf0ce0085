//! Training: the recorded step, the loop around it, and what it leaves in the run folder.

mod dry_run;
mod evaluate;
mod feed;
mod latents;
mod objective;
mod pictures;
mod resident;
mod session;
mod step;
mod times;
mod writer;

pub use dry_run::DryRun;
pub use resident::Input;
pub use session::{Ended, Session, Watch};
pub use step::{Outcome, Trainer};
pub use times::Times;
