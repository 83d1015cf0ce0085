//! Latents of a data set, encoded once: what latent diffusion trains on, and the factor that scales it.

use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::{Dtype, SafeTensors};

use crate::checkpoint::{fingerprint, write_tensors};
use crate::codec::Codec;
use crate::data::picture::mirror;
use crate::data::{Dataset, Values, Whole};
use crate::error::{Error, Result};
use crate::recipe::{Latents, Recipe};

/// Images encoded between two reports of progress.
const BLOCK: usize = 64;
/// Images that the scale of latents is measured on, where they are not cached.
const MEASURED: u64 = 1024;
const KEY: &str = "denoir_latents";

/// Encoded images as a data set: `[h, w, 2 c]` numbers each, means and log-variances side by side (an
/// autoencoder's: `[h, w, c]`). Where training mirrors its images, those are encoded too, after the others.
pub struct CachedLatents {
    moments: Vec<f32>,
    labels: Vec<u32>,
    shape: [usize; 3],
    classes: Vec<String>,
}

impl Dataset for CachedLatents {
    fn len(&self) -> Option<u64> {
        Some(self.labels.len() as u64)
    }

    fn shape(&self) -> [usize; 3] {
        self.shape
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn whole(&self) -> Option<Whole<'_>> {
        Some(Whole { values: Values::Numbers(&self.moments), labels: self.labels.clone() })
    }

    fn read(&self, index: u64, out: &mut [f32]) -> Result<u32> {
        let size = out.len();
        let index = index as usize;
        out.copy_from_slice(&self.moments[index * size..(index + 1) * size]);
        Ok(self.labels[index])
    }
}

impl CachedLatents {
    /// Encodes a data set. `progress` is told how many images of how many are done.
    ///
    /// # Errors
    /// When the data cannot be read, memory is too small, or the driver reports an error.
    pub fn encode(
        codec: &Codec,
        data: &dyn Dataset,
        recipe: &Recipe,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<CachedLatents> {
        let count = data.len().unwrap_or(recipe.latent_count as u64);
        let [h, w, c] = codec.latent();
        let shape = [h, w, c * codec.recipe().vae.moments()];
        let passes = if recipe.flip { 2 } else { 1 };
        let size = shape.iter().product::<usize>();
        // They are held once more while they are written.
        let bytes = 2 * passes as u64 * count * size as u64 * 4;
        if crate::device::available_memory().is_some_and(|available| bytes > available) {
            let needed = crate::device::size(bytes);
            return Err(Error::new(format!("the latents of {count} images need {needed} of memory"))
                .hint("set latents=drawn, which encodes anew in each step"));
        }
        let mut cached = CachedLatents {
            moments: Vec::with_capacity(passes * count as usize * size),
            labels: Vec::new(),
            shape,
            classes: data.classes().to_vec(),
        };
        for pass in 0..passes {
            let encoded = pass as u64 * count;
            encode_some(codec, data, count, pass == 1, |moments, labels| {
                cached.moments.extend(moments);
                cached.labels.extend(labels);
                progress(encoded.max(cached.labels.len() as u64), passes as u64 * count);
            })?;
        }
        Ok(cached)
    }

    /// What the cached latents are of; another recipe's are of no use.
    fn origin(codec: &Codec, images: &dyn Dataset, recipe: &Recipe) -> String {
        let Recipe { data, image_size, crop, resize, flip, seed, latent_count, .. } = recipe;
        let (vae, count) = (codec.fingerprint(), images.len().unwrap_or(*latent_count as u64));
        format!(
            "vae {vae}, {data}, size {image_size} {resize:?}, crop {crop}, flip {flip}, seed {seed}, {count} images"
        )
    }

    /// Keeps them in a file.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn save(&self, path: &Path, codec: &Codec, images: &dyn Dataset, recipe: &Recipe) -> Result<()> {
        let [h, w, c] = self.shape;
        let n = self.labels.len();
        let labels: Vec<f32> = self.labels.iter().map(|&l| l as f32).collect();
        let tensors = [("moments", vec![n, h, w, c], &self.moments[..]), ("labels", vec![n], &labels[..])];
        let origin = Self::origin(codec, images, recipe);
        write_tensors(path, &tensors, KEY, format!("{origin}, moments {}", fingerprint(&self.moments)))
    }

    /// Those of the file, if it holds the latents of this recipe, whole.
    fn load(path: &Path, codec: &Codec, images: &dyn Dataset, recipe: &Recipe) -> Option<CachedLatents> {
        let bytes = std::fs::read(path).ok()?;
        let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
        let (origin, whole) = header.metadata().as_ref()?.get(KEY)?.rsplit_once(", moments ")?;
        if origin != Self::origin(codec, images, recipe) {
            return None;
        }
        let file = SafeTensors::deserialize(&bytes).ok()?;
        let [h, w, c] = codec.latent();
        let shape = [h, w, c * codec.recipe().vae.moments()];
        let passes = if recipe.flip { 2 } else { 1 };
        let n = passes * images.len().unwrap_or(recipe.latent_count as u64) as usize;
        let values = |name: &str, shape: &[usize]| -> Option<Vec<f32>> {
            let tensor = file.tensor(name).ok()?;
            let values: Vec<f32> = bytemuck::pod_collect_to_vec(tensor.data());
            let whole = tensor.dtype() == Dtype::F32 && tensor.shape() == shape;
            (whole && values.iter().all(|v| v.is_finite())).then_some(values)
        };
        let moments = values("moments", &[n, shape[0], shape[1], shape[2]])?;
        let classes = images.classes().to_vec();
        let is_label = |&l: &f32| l >= 0.0 && l.fract() == 0.0 && (l as usize) < classes.len().max(1);
        let labels = values("labels", &[n])?;
        if !labels.iter().all(is_label) || fingerprint(&moments) != whole {
            return None;
        }
        let labels = labels.into_iter().map(|l| l as u32).collect();
        Some(CachedLatents { moments, labels, shape, classes })
    }

    /// What latents must be multiplied by for unit variance.
    pub fn scale(&self, codec: &Codec) -> f64 {
        scale_of(&self.moments, codec)
    }
}

/// Encodes images 0 to `count`, mirrored or not, and hands them over in blocks: moments and labels.
fn encode_some(
    codec: &Codec,
    data: &dyn Dataset,
    count: u64,
    mirrored: bool,
    mut take: impl FnMut(Vec<f32>, Vec<u32>),
) -> Result<()> {
    let image = codec.image();
    let pixels: usize = image.iter().product();
    let mut first = 0;
    while first < count {
        let n = (count - first).min(BLOCK as u64) as usize;
        let mut images = vec![0.0; n * pixels];
        let mut labels = Vec::with_capacity(n);
        for (i, out) in images.chunks_exact_mut(pixels).enumerate() {
            labels.push(data.read(first + i as u64, out)?);
            if mirrored {
                mirror(out, image);
            }
        }
        take(codec.moments(&images)?, labels);
        first += n as u64;
    }
    Ok(())
}

/// The factor for latents that are not cached, measured on the first images of the data.
///
/// # Errors
/// As [`CachedLatents::encode`].
pub fn measure_scale(codec: &Codec, data: &dyn Dataset, progress: &mut dyn FnMut(u64, u64)) -> Result<f64> {
    let count = data.len().unwrap_or(MEASURED).min(MEASURED);
    let (mut all, mut done) = (Vec::new(), 0);
    encode_some(codec, data, count, false, |moments, labels| {
        all.extend(moments);
        done += labels.len() as u64;
        progress(done, count);
    })?;
    Ok(scale_of(&all, codec))
}

/// One over the standard deviation of latents drawn from these moments, over all their numbers (Rombach et
/// al. 2022, appendix G): the variance of the means, and the mean of the variances.
fn scale_of(moments: &[f32], codec: &Codec) -> f64 {
    let vae = &codec.recipe().vae;
    let (mut n, mut sum, mut squares, mut variances) = (0.0, 0.0, 0.0, 0.0);
    for pixel in moments.chunks_exact(vae.moments() * vae.latent) {
        for (i, &v) in pixel.iter().enumerate() {
            let v = f64::from(v);
            if i < vae.latent {
                n += 1.0;
                sum += v;
                squares += v * v;
            } else {
                variances += v.exp();
            }
        }
    }
    let mean: f64 = sum / n;
    1.0 / (squares / n - mean * mean + variances / n).sqrt()
}

/// What the steps of a latent diffusion run read: cached latents, those of `file` if they are the ones
/// (else they are encoded, and kept there); or nothing, where steps encode images. Fills in the scale if it
/// is not known.
///
/// # Errors
/// As [`CachedLatents::encode`]; and when latents have no variance.
pub fn prepare(
    codec: &Codec,
    images: &dyn Dataset,
    recipe: &mut Recipe,
    file: Option<&Path>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Option<Arc<CachedLatents>>> {
    let mut cached = None;
    if recipe.latents == Latents::Cached {
        cached = file.and_then(|path| CachedLatents::load(path, codec, images, recipe));
        if cached.is_none() {
            let encoded = CachedLatents::encode(codec, images, recipe, progress)?;
            if let Some(path) = file {
                encoded.save(path, codec, images, recipe)?;
            }
            cached = Some(encoded);
        }
    }
    if recipe.scaling_factor == 0.0 {
        recipe.scaling_factor = match &cached {
            Some(cached) => cached.scale(codec),
            None => measure_scale(codec, images, progress)?,
        };
    }
    if !(recipe.scaling_factor > 1e-9 && recipe.scaling_factor < 1e9) {
        return Err(Error::new(format!("latents would be scaled by {}", recipe.scaling_factor))
            .hint("the VAE has collapsed or diverged: train it anew, or set scaling_factor"));
    }
    Ok(cached.map(Arc::new))
}
