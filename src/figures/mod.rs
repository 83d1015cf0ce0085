//! Figures: sheets of labelled pictures, plots of lines, and animations.

mod animation;
mod ink;
mod plot;
mod sheet;
pub mod text;
mod ticks;

pub use animation::write_gif;
pub use plot::{Line, PALETTE, Plot, beside, pale};
pub use sheet::Sheet;
