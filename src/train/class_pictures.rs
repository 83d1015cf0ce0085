//! Pictures of a class, which a model draws before it is taught an instance of it (DreamBooth, Ruiz et al.
//! 2022, arXiv:2208.12242, section 3.2).

use std::fs;
use std::path::Path;

use crate::data::picture::picture;
use crate::device::Device;
use crate::diffusers::{Extras, Unsaid};
use crate::error::{Error, Result};
use crate::names::path_of;
use crate::recipe::Recipe;
use crate::run::save_png;
use crate::sample::{Options, Trained};

/// Draws the pictures that are missing in the recipe's folder of them, by the model `base`.
/// `progress` is told how many of how many steps are done.
///
/// # Errors
/// When the model or the folder cannot be used.
pub(super) fn draw_missing(
    recipe: &Recipe,
    base: &Path,
    unsaid: &Unsaid,
    device: &Device,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<()> {
    let folder = path_of(&recipe.class_folder);
    let shown = || format!("cannot use the folder {}", folder.display());
    let failed = |e: std::io::Error| Error::new(shown()).hint("choose another class_folder").caused_by(e);
    fs::create_dir_all(&folder).map_err(failed)?;
    let there = fs::read_dir(&folder).map_err(failed)?.filter_map(std::result::Result::ok).filter(|entry| {
        let name = entry.file_name().to_string_lossy().to_lowercase();
        [".png", ".jpg", ".jpeg", ".webp", ".bmp"].iter().any(|ending| name.ends_with(ending))
    });
    let there = there.count();
    let missing = recipe.class_images.saturating_sub(there);
    if missing == 0 {
        return Ok(());
    }
    let trained = Trained::open_with(base, unsaid, &Extras::default(), device)?;
    let Some(text) = trained.text() else {
        return Err(
            Error::usage(format!("{} is no model of texts", base.display())).hint("give another --base")
        );
    };
    let prompts = [recipe.class_prompt.clone()];
    let texts = text.texts(&prompts, &[String::new()], 1, 0)?.texts;
    let source = trained.source().told(texts).sized([recipe.image_size; 2])?;
    let (image, mut number) = (source.image(), 0_u64);
    for done in 0..missing {
        let name = |number: u64| folder.join(format!("class-{number:05}.png"));
        while name(number).symlink_metadata().is_ok() {
            number += 1;
        }
        // Each has a seed of its own, so that pictures that are drawn later are others.
        let seed = recipe.seed.wrapping_add(number);
        let options = Options { seed, ..Options::of(trained.recipe())? };
        let pixels = source.draw(&options, 1, None, || Ok(()))?;
        save_png(&name(number), &picture(&pixels, image))?;
        progress(done as u64 + 1, missing as u64);
    }
    Ok(())
}
