//! Pictures of a class, which a model draws before it is taught an instance of it (DreamBooth, Ruiz et al.
//! 2022, arXiv:2208.12242, section 3.2).

use std::fs;
use std::path::Path;

use crate::data::picture::picture;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::names::path_of;
use crate::recipe::Recipe;
use crate::run::save_png;
use crate::sample::{Options, Trained};

/// Draws the pictures that are missing in the recipe's folder of them, by the model of the folder `base`.
/// `progress` is told how many of how many steps are done.
///
/// # Errors
/// When the model or the folder cannot be used.
pub(super) fn draw_missing(
    recipe: &Recipe,
    base: &Path,
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
    let trained = Trained::open(base, device)?;
    let Some(text) = trained.text() else {
        return Err(
            Error::usage(format!("{} is no model of texts", base.display())).hint("give another --base")
        );
    };
    let prompts = [recipe.class_prompt.clone()];
    let texts = text.texts(&prompts, &[String::new()], missing, 0)?.texts;
    let source = trained.source().told(texts).sized([recipe.image_size; 2])?;
    let options = Options { seed: recipe.seed, ..Options::of(trained.recipe())? };
    let (all, mut done) = (source.work(&options, missing)?, 0);
    let images = source.draw(&options, missing, None, || {
        done += 1;
        progress(done, all);
        Ok(())
    })?;
    let image = source.image();
    for (i, pixels) in images.chunks_exact(image.iter().product()).enumerate() {
        save_png(&folder.join(format!("class-{:05}.png", there + i)), &picture(pixels, image))?;
    }
    Ok(())
}
