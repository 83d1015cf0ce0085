//! Quality of samples by features of a classifier: distances between two sets, diversity, copies.
//!
//! A number is comparable only within one file of the classifier, one number of samples and one set of real
//! images, and means little without its floor (two real sets) and its ceiling (noise). None of them is "FID",
//! which needs Inception's features.

mod classes;
mod features;
mod frechet;
mod kernel;
mod manifold;
mod memorisation;
mod sweep;

pub use classes::Confusion;
pub use features::Features;
pub use frechet::{Moments, frechet};
pub use kernel::{KernelDistance, kernel_distance, kernel_distance_of_all};
pub use manifold::{Manifold, manifold};
pub use memorisation::{Memorisation, Neighbour, mann_whitney, memorisation, nearest};
