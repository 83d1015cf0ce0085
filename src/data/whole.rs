//! A picture file as a whole, at a size that goes by its own.

use std::path::Path;

use image::imageops::{self, FilterType};

use super::decode::decode_safely;
use super::picture::from_u8;
use crate::error::{Error, Result};

/// A picture file `[h, w, channels]` in [-1, 1] of 1 or 3 channels, resized by Lanczos's filter to the height
/// and width that `size` makes of its own.
///
/// # Errors
/// When the file is missing or no picture.
pub fn read_whole(
    path: &Path,
    channels: usize,
    size: impl FnOnce([usize; 2]) -> [usize; 2],
) -> Result<(Vec<f32>, [usize; 2])> {
    let picture = decode_safely(path).map_err(|wrong| {
        Error::new(format!("picture {} cannot be read", path.display()))
            .hint("give the path of a picture, such as a png or a jpeg")
            .caused_by(wrong)
    })?;
    let own = [picture.height() as usize, picture.width() as usize];
    let [h, w] = size(own);
    let [rows, columns] = [h as u32, w as u32];
    let bytes = match (channels, [h, w] == own) {
        (1, true) => picture.into_luma8().into_raw(),
        (_, true) => picture.into_rgb8().into_raw(),
        (1, false) => imageops::resize(&picture.into_luma8(), columns, rows, FilterType::Lanczos3).into_raw(),
        (_, false) => imageops::resize(&picture.into_rgb8(), columns, rows, FilterType::Lanczos3).into_raw(),
    };
    Ok((bytes.into_iter().map(from_u8).collect(), [h, w]))
}
