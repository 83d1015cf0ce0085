//! The input images of a command: picture files, or a part of a data set.

use super::{any_text, bar, note, note_warnings, number};
use crate::data::{Dataset, open, read_picture};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::names::path_of;
use crate::recipe::Recipe;

#[derive(clap::Args)]
pub struct Input {
    /// Pictures, or data: digits, faces, shapes, mnist:DIR, cifar10:DIR or images:DIR [default: the model's
    /// own]
    #[arg(value_parser = any_text())]
    input: Vec<String>,
    /// How many images of the data [default: all, or 64 of data without end]
    #[arg(long, value_parser = number::<u64>(1..=10_000_000))]
    count: Option<u64>,
}

/// Images read between two reports of progress.
const BLOCK: usize = 64;

impl Input {
    /// Passes the images, `[N, H, W, C]`, to `take` in blocks. `recipe`: its data is the default; `numbers`:
    /// f32 that the caller keeps for each image; `doing`: title of the progress bar.
    pub fn for_each(
        &self,
        recipe: &Recipe,
        [side, _, channels]: [usize; 3],
        numbers: usize,
        doing: &str,
        mut take: impl FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        let crop = (recipe.crop > 0).then_some(recipe.crop);
        // Pipes and devices too: they are refused as pictures.
        let is_file = |input: &String| {
            let path = path_of(input);
            path.exists() && !path.is_dir()
        };
        if !self.input.is_empty() && self.input.iter().all(is_file) {
            if self.count.is_some() {
                return Err(Error::usage("--count goes with data, not with pictures").hint("leave it out"));
            }
            for input in &self.input {
                take(&read_picture(&path_of(input), side, channels, crop, recipe.resize)?)?;
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
        for first in (0..count).step_by(BLOCK) {
            let n = (count - first).min(BLOCK as u64);
            take(&read(&*data, first, n as usize)?.0)?;
            progress.inc(n);
        }
        progress.finish_and_clear();
        note_warnings(&*data);
        Ok(())
    }
}

/// Images from number `first` on, `[count, H, W, C]`, and their labels; those of finite data begin again.
pub fn read(data: &dyn Dataset, first: u64, count: usize) -> Result<(Vec<f32>, Vec<u32>)> {
    let len = data.len().unwrap_or(u64::MAX);
    read_all(data, (0..count).map(|i| first.wrapping_add(i as u64) % len))
}

/// The images of these numbers, `[count, H, W, C]`, and their labels.
pub fn read_all(
    data: &dyn Dataset,
    numbers: impl ExactSizeIterator<Item = u64>,
) -> Result<(Vec<f32>, Vec<u32>)> {
    let size: usize = data.shape().iter().product();
    let mut images = vec![0.0; numbers.len() * size];
    let numbered = images.chunks_exact_mut(size).zip(numbers);
    let labels = numbered.map(|(image, number)| data.read(number, image)).collect::<Result<_>>()?;
    Ok((images, labels))
}
