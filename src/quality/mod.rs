//! Quality of samples by features of a classifier: distances between two sets, diversity, copies. And a judge
//! of whether a picture of shapes shows what its caption says.
//!
//! A number is comparable only within one file of the classifier, one number of samples and one set of real
//! images, and means little without its floor (two real sets) and its ceiling (noise). None of the distances
//! is "FID", which needs Inception's features.

mod classes;
mod features;
mod frechet;
mod kernel;
mod manifold;
mod memorisation;
mod shapes;
mod sweep;

pub use classes::Confusion;
pub use features::Features;
pub use frechet::{Moments, frechet};
pub use kernel::{KernelDistance, kernel_distance, kernel_distance_of_all};
pub use manifold::{Manifold, manifold};
pub use memorisation::{Memorisation, Neighbour, mann_whitney, memorisation, nearest};
pub use shapes::{Found, Verdict, find_shapes, judge_shapes};
