//! Training: the recorded step, the loop around it, and the run folder.
//!
//! [`Trainer`] trains any objective; [`RecipeTrainer`] is one with the model, loss and data of a recipe, and
//! [`Session`] the loop of `denoir train` around it.

mod base;
mod batch;
mod captions;
mod class_pictures;
mod codes;
mod continuous_bound;
mod diffusion_loss;
mod dry_run;
mod encoded;
mod evaluate;
mod feed;
mod follower;
mod held_out;
mod latents;
mod micro_batch;
mod objective;
mod options;
mod outcome;
mod overflow;
mod picture_cost;
mod pictures;
mod ranks;
mod recipe_trainer;
mod resident;
mod resume;
mod session;
mod step;
mod steps;
mod texts;
mod times;
mod trainer;
mod writer;

pub(crate) use base::codec_of_base;
pub use batch::{Batch, BatchWriter, Element, Input, Loss};
pub use dry_run::DryRun;
pub use follower::Follower;
pub use options::TrainOptions;
pub use outcome::{Ended, Outcome};
pub use picture_cost::PictureCost;
pub use ranks::Ranks;
pub(crate) use ranks::{ranks_of, shared_by};
pub use recipe_trainer::RecipeTrainer;
pub use resident::Examples;
pub use resume::Resume;
pub use session::{Member, Session, Watch};
pub use times::Times;
pub use trainer::Trainer;
