//! The input images of a command: picture files, or a part of a data set.

use std::path::Path;

use super::{bar, note, note_warnings};
use crate::data::{open, read_picture};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::recipe::Recipe;

#[derive(clap::Args)]
pub struct Input {
    /// Pictures, or data: digits, faces, mnist:DIR, cifar10:DIR or images:DIR [default: the model's own]
    input: Vec<String>,
    /// How many images of the data [default: all, or 64 of data without end]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    count: Option<u64>,
}

/// Images read between two reports of progress.
const BLOCK: usize = 64;

impl Input {
    /// Passes the images, `[N, H, W, C]`, to `take` in blocks. `recipe`: its data is the default; `numbers`:
    /// f32 that the caller keeps for each image; `doing`: title of the progress bar.
    ///
    /// # Errors
    /// When they cannot be read or are too many for memory, or `take` does.
    pub fn for_each(
        &self,
        recipe: &Recipe,
        [side, _, channels]: [usize; 3],
        numbers: usize,
        doing: &str,
        mut take: impl FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        let crop = (recipe.crop > 0).then_some(recipe.crop);
        let is_file = |input: &String| Path::new(input).is_file();
        if !self.input.is_empty() && self.input.iter().all(is_file) {
            if self.count.is_some() {
                return Err(Error::usage("--count goes with data, not with pictures").hint("leave it out"));
            }
            for input in &self.input {
                take(&read_picture(Path::new(input), side, channels, crop, recipe.resize)?)?;
            }
            return Ok(());
        }
        let spec = match &self.input[..] {
            [] => &recipe.data,
            [spec] => spec,
            several => {
                let missing = several.iter().find(|i| !is_file(i)).unwrap_or(&several[0]);
                return Err(Error::usage(format!("{missing} is no picture"))
                    .hint("give picture files, or one data SPEC"));
            }
        };
        let data = open(spec, &recipe.pictures(channels))?;
        let count = match (data.len(), self.count) {
            (Some(len), wanted) => {
                if wanted.is_some_and(|wanted| wanted > len) {
                    note(&format!("note: the data holds {len} images"));
                }
                wanted.unwrap_or(len).min(len)
            }
            (None, wanted) => wanted.unwrap_or(64),
        };
        let pixels = side * side * channels;
        Device::open("cpu")?.check_memory(4 * (numbers as u64 * count + (BLOCK * pixels) as u64))?;
        let progress = bar(count, &format!("{doing} {{bar:30}} {{pos}}/{{len}} {{eta}} left"));
        let mut images = vec![0.0; BLOCK * pixels];
        let mut first = 0;
        while first < count {
            let n = (count - first).min(BLOCK as u64) as usize;
            for (i, out) in images[..n * pixels].chunks_exact_mut(pixels).enumerate() {
                data.read(first + i as u64, out)?;
            }
            take(&images[..n * pixels])?;
            first += n as u64;
            progress.set_position(first);
        }
        progress.finish_and_clear();
        note_warnings(&*data);
        Ok(())
    }
}
