//! The cached latents that latent diffusion trains on, and the factor that gives them unit variance.

use std::path::Path;
use std::sync::Arc;

use super::latents::{CachedLatents, Growing, Images};
use crate::codec::Codec;
use crate::data::{Dataset, Loader};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::recipe::{Latents, Recipe};

/// Images that the scale of latents is measured on.
const MEASURED: u64 = 64;

/// Cached latents of a latent diffusion run.
pub enum Encoded {
    All(Arc<CachedLatents>),
    /// Latents encoded so far.
    Some(Growing),
}

impl Encoded {
    /// The data set that steps read: latents, or images for [`Growing::encode`].
    pub fn source(&self) -> Arc<dyn Dataset> {
        match self {
            Encoded::All(latents) => Arc::clone(latents) as Arc<dyn Dataset>,
            Encoded::Some(growing) => Arc::clone(&growing.latents.images) as Arc<dyn Dataset>,
        }
    }

    /// All latents, once, when the last of them is encoded; from then on [`Encoded::source`] gives them.
    pub fn grown(encoded: &mut Option<Encoded>) -> Option<Arc<CachedLatents>> {
        let is_whole = |encoded: &mut Encoded| matches!(encoded, Encoded::Some(some) if some.missing == 0);
        let Some(Encoded::Some(growing)) = encoded.take_if(is_whole) else { return None };
        let latents = Arc::new(growing.latents);
        *encoded = Some(Encoded::All(Arc::clone(&latents)));
        Some(latents)
    }
}

/// One over the standard deviation of latents drawn from these moments, over all their numbers (Rombach et
/// al. 2022, appendix G): the variance of the means, and the mean of the variances.
fn scale_of(moments: &[f32], codec: &Codec) -> f64 {
    let vae = &codec.recipe().vae;
    let pixels = || moments.chunks_exact(vae.moments() * vae.latent).map(|pixel| pixel.split_at(vae.latent));
    let means = || pixels().flat_map(|(means, _)| means).map(|&mean| f64::from(mean));
    let variances = pixels().flat_map(|(_, logs)| logs).map(|&log| f64::from(log).exp());
    let n = means().count() as f64;
    let mean = means().sum::<f64>() / n;
    let squares: f64 = means().map(|mean| mean * mean).sum();
    1.0 / (squares / n - mean * mean + variances.sum::<f64>() / n).sqrt()
}

/// Cached latents for the steps of a latent diffusion run, from `file` if it holds them; or nothing, where
/// steps encode images. Fills in the scale if it is not known: that of the first images that training shows.
///
/// On the CPU device latents are encoded by the steps that meet their images first, so that the first step
/// comes soon. A GPU, where all of them may lie, gets all at once.
pub fn prepare(
    codec: &Codec,
    data: &Arc<dyn Dataset>,
    recipe: &mut Recipe,
    file: Option<&Path>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Option<Encoded>> {
    let mut encoded = None;
    if recipe.latents == Latents::Cached {
        let images = Arc::new(Images::new(Arc::clone(data), recipe));
        let kept = file.and_then(|path| CachedLatents::load(path, &images, codec, recipe));
        encoded = Some(match kept {
            Some(latents) => Encoded::All(Arc::new(latents)),
            None => Encoded::Some(Growing::new(images, codec, recipe)?),
        });
    }
    if recipe.scaling_factor == 0.0 {
        recipe.scaling_factor = measure_scale(codec, data, recipe, &mut encoded)?;
    }
    if !(recipe.scaling_factor > 1e-9 && recipe.scaling_factor < 1e9) {
        return Err(Error::new(format!("latents would be scaled by {}", recipe.scaling_factor))
            .hint("the VAE has collapsed or diverged: train it anew, or set scaling_factor"));
    }
    if let (Some(Encoded::Some(growing)), Device::Gpu(_)) = (&mut encoded, codec.device()) {
        growing.encode_all(codec, progress)?;
    }
    if let (Some(latents), Some(path)) = (Encoded::grown(&mut encoded), file) {
        latents.save(path)?;
    }
    Ok(encoded)
}

/// The factor that gives latents unit variance, measured on the first images in the order of training, as the
/// reference measures it on the first batch (appendix G). On generated digits and faces it is within 0.3 % of
/// that of ten thousand images.
fn measure_scale(
    codec: &Codec,
    data: &Arc<dyn Dataset>,
    recipe: &Recipe,
    encoded: &mut Option<Encoded>,
) -> Result<f64> {
    // Mirrored images are among the cached.
    let (source, flip) = match encoded {
        Some(encoded) => (encoded.source(), false),
        None => (Arc::clone(data), recipe.flip),
    };
    let count = source.len().unwrap_or(MEASURED).min(MEASURED) as usize;
    let first = Loader::new(source, count, recipe.seed, flip, 0)?.next()?;
    let moments = match encoded {
        Some(Encoded::Some(growing)) => growing.encode(codec, first)?.images,
        Some(Encoded::All(_)) => first.images,
        None => codec.moments(&first.images)?,
    };
    Ok(scale_of(&moments, codec))
}
