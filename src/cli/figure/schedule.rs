//! The figure of noise schedules.

use std::path::Path;

use image::RgbImage;

use super::{Arguments, recipe_of};
use crate::cli::images::read;
use crate::cli::note_warnings;
use crate::data::{self, Options as DataOptions};
use crate::diffusion::{Betas, Rounding, Schedule};
use crate::error::{Error, Result};
use crate::figures;
use crate::recipe::{Recipe, System, find};

/// The schedule of a run or checkpoint, of a recipe, or of a name.
fn schedule_of(path: &Path) -> Result<Schedule> {
    let name = path.display().to_string();
    if let (false, Some(betas)) = (path.exists(), Betas::named(&name)) {
        let [start, end] = if betas == Betas::ScaledLinear { [0.000_85, 0.012] } else { [1e-4, 0.02] };
        return Ok(Schedule::new(&betas, 1000, start, end, Rounding::Exact));
    }
    let run = path.is_dir() || path.extension().is_some_and(|ending| ending == "safetensors");
    let recipe = if run {
        recipe_of(path)?
    } else {
        let names = Betas::names().join(", ");
        find(&name).map_err(|e| {
            Error::usage(format!("{name} is no run, recipe or schedule"))
                .hint(format!("schedules are {names}"))
                .caused_by(e)
        })?
    };
    if recipe.system == System::Vae {
        return Err(
            Error::new(format!("{name} is a VAE: it has no noise schedule")).hint("give a diffusion run")
        );
    }
    recipe.validate().map_err(Error::in_a_file)?;
    Ok(recipe.schedule())
}

/// Side of the picture that schedules make noisy, and white pixels over it.
const SCHEDULED: usize = 64;
const GAP: u32 = 16;

/// One schedule, or several on the same axes; below, what they do to a picture.
pub fn schedules(arguments: &Arguments, width: u32) -> Result<RgbImage> {
    let all = std::iter::once(&arguments.run).chain(&arguments.others);
    let named = all.map(|path| Ok((path.display().to_string(), schedule_of(path)?)));
    let named = named.collect::<Result<Vec<_>>>()?;
    let plots = match &named[..] {
        [(_, schedule)] if arguments.run.exists() => figures::schedule(schedule, width),
        _ => figures::schedules(&named, width),
    };
    let pictures = DataOptions { image_size: SCHEDULED, ..Recipe::default().pictures(3) };
    let data = data::open(arguments.data.as_deref().unwrap_or("faces"), &pictures)?;
    let (picture, _) = read(&*data, 0, 1)?;
    note_warnings(&*data);
    let strips = figures::noised_by(&named, &picture, data.shape(), arguments.seed.unwrap_or(0));
    Ok(figures::below(&[plots, strips], GAP))
}
