//! Latents of a data set, each encoded once.

use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::Dtype;

use crate::checkpoint::{fingerprint, write_tensors};
use crate::codec::Codec;
use crate::data::digest::Digest;
use crate::data::picture::mirror;
use crate::data::{Batch, Dataset, Values, Whole};
use crate::error::{Error, Result};
use crate::recipe::Recipe;
use crate::weights::summed;

/// Images encoded between two reports of progress.
const BLOCK: u64 = 64;
const KEY: &str = "denoir_latents";
/// Numbers of images that could not be read, and are others' therefore.
const UNREAD: &str = "unread";

/// Encoded images as a data set: `[h, w, 2 c]` numbers each, means and log-variances side by side (an
/// autoencoder's: `[h, w, c]`). Where training mirrors its images, those are encoded too, after the others.
pub struct CachedLatents {
    moments: Vec<f32>,
    labels: Vec<u32>,
    shape: [usize; 3],
    pub(super) images: Arc<Images>,
    /// VAE and settings that they are made with; see [`Images::key`].
    origin: String,
}

impl Dataset for CachedLatents {
    fn len(&self) -> Option<u64> {
        Some(self.labels.len() as u64)
    }

    fn shape(&self) -> [usize; 3] {
        self.shape
    }

    fn classes(&self) -> &[String] {
        self.images.classes()
    }

    fn together(&self) -> u64 {
        self.images.together()
    }

    fn shown(&self, index: u64) -> u64 {
        self.images.shown(index)
    }

    fn whole(&self) -> Option<Whole<'_>> {
        Some(Whole { values: Values::Numbers(&self.moments), labels: self.labels.clone() })
    }

    fn read(&self, index: u64, out: &mut [f32]) -> Result<u32> {
        out.copy_from_slice(self.of(index));
        Ok(self.labels[index as usize])
    }
}

impl CachedLatents {
    /// The moments of a sample.
    fn of(&self, index: u64) -> &[f32] {
        let size = self.size();
        &self.moments[index as usize * size..][..size]
    }

    /// Numbers of a sample.
    fn size(&self) -> usize {
        self.shape.iter().product()
    }

    /// Keeps them in a file.
    pub fn save(&self, path: &Path) -> Result<()> {
        let [h, w, c] = self.shape;
        let n = self.labels.len();
        let labels: Vec<f32> = self.labels.iter().map(|&l| l as f32).collect();
        let unread = (0..n as u64).filter(|&i| self.images.shown(i) != i).map(|i| i as f32);
        let unread: Vec<f32> = unread.collect();
        let mut tensors =
            vec![("moments", vec![n, h, w, c], &self.moments[..]), ("labels", vec![n], &labels[..])];
        if !unread.is_empty() {
            tensors.push((UNREAD, vec![unread.len()], &unread));
        }
        let key = self.images.key(&self.origin)?;
        write_tensors(path, &tensors, KEY, format!("{key}, moments {}", fingerprint(&self.moments)))
    }

    /// The latents of the file, if it holds all of these images as they are now.
    pub fn load(path: &Path, images: &Arc<Images>, codec: &Codec, recipe: &Recipe) -> Option<CachedLatents> {
        let kept = summed::read(path, u64::MAX).ok()?;
        let (file, metadata) = kept.parse().ok()?;
        let (key, whole) = metadata.get(KEY)?.rsplit_once(", moments ")?;
        let origin = images.origin(codec, recipe);
        if key != images.key(&origin).ok()? {
            return None;
        }
        let shape = moments_shape(codec);
        let n = images.samples() as usize;
        let values = |name: &str, shape: &[usize]| -> Option<Vec<f32>> {
            let tensor = file.tensor(name).ok()?;
            let values: Vec<f32> = bytemuck::pod_collect_to_vec(tensor.data());
            let whole = tensor.dtype() == Dtype::F32 && tensor.shape() == shape;
            (whole && values.iter().all(|v| v.is_finite())).then_some(values)
        };
        let moments = values("moments", &[n, shape[0], shape[1], shape[2]])?;
        let classes = images.classes().len().max(1);
        let is_label = |&l: &f32| l >= 0.0 && l.fract() == 0.0 && (l as usize) < classes;
        let labels = values("labels", &[n])?;
        if !labels.iter().all(is_label) || fingerprint(&moments) != whole {
            return None;
        }
        let labels = labels.into_iter().map(|l| l as u32).collect();
        if let Ok(unread) = file.tensor(UNREAD) {
            // They are met once more, so that the data knows which stand in for them.
            let all = values(UNREAD, unread.shape())?;
            let mut image = vec![0.0; images.shape().iter().product()];
            for index in all.into_iter().filter(|&i| i >= 0.0 && (i as usize) < n) {
                images.read(index as u64, &mut image).ok()?;
            }
        }
        Some(CachedLatents { moments, labels, shape, images: Arc::clone(images), origin })
    }
}

/// `[h, w, C]` of what is cached of an image.
fn moments_shape(codec: &Codec) -> [usize; 3] {
    let [h, w, c] = codec.latent();
    [h, w, c * codec.recipe().vae.moments()]
}

/// The images whose latents are cached: those of the data, of endless data the first; then, where training
/// mirrors its images, the same mirrored.
pub struct Images {
    data: Arc<dyn Dataset>,
    count: u64,
    mirrored: bool,
}

/// How many images are cached of a data set.
pub(super) fn images_of(data: &dyn Dataset, recipe: &Recipe) -> u64 {
    data.len().unwrap_or((recipe.latent_count as u64).next_multiple_of(data.together()))
}

impl Images {
    pub fn new(data: Arc<dyn Dataset>, recipe: &Recipe) -> Images {
        let count = images_of(&*data, recipe);
        Images { data, count, mirrored: recipe.flip }
    }

    fn samples(&self) -> u64 {
        if self.mirrored { 2 * self.count } else { self.count }
    }

    fn origin(&self, codec: &Codec, recipe: &Recipe) -> String {
        let Recipe { image_size, crop, resize, flip, .. } = recipe;
        let (vae, n) = (codec.fingerprint(), self.count);
        format!("vae {vae}, size {image_size} {resize:?}, crop {crop}, flip {flip}, {n} images")
    }

    /// What latents are of: those of other pictures, or of pictures with other labels, are of no use.
    fn key(&self, origin: &str) -> Result<String> {
        let mut classes = Digest::default();
        classes.names(self.data.classes());
        Ok(format!("{origin}, pictures {}, classes {}", self.data.digest()?, classes.text()))
    }
}

impl Dataset for Images {
    fn len(&self) -> Option<u64> {
        Some(self.samples())
    }

    fn shape(&self) -> [usize; 3] {
        self.data.shape()
    }

    fn classes(&self) -> &[String] {
        self.data.classes()
    }

    fn digest(&self) -> Result<String> {
        self.data.digest()
    }

    fn together(&self) -> u64 {
        self.data.together()
    }

    fn shown(&self, index: u64) -> u64 {
        let first = index / self.count * self.count;
        first + self.data.shown(index % self.count)
    }

    fn read(&self, index: u64, out: &mut [f32]) -> Result<u32> {
        let label = self.data.read(index % self.count, out)?;
        if index >= self.count {
            mirror(out, self.shape());
        }
        Ok(label)
    }
}

/// Latents of which some may still have to be encoded: a step encodes those of its images that no step met
/// before. An image's latent does not depend on those that are encoded with it, nor on when that is done.
pub struct Growing {
    pub(super) latents: CachedLatents,
    known: Vec<bool>,
    /// How many are not known.
    pub(super) missing: u64,
}

impl Growing {
    /// None is known yet.
    pub fn new(images: Arc<Images>, codec: &Codec, recipe: &Recipe) -> Result<Growing> {
        let (samples, shape) = (images.samples(), moments_shape(codec));
        let size: usize = shape.iter().product();
        // They are held once more while they are written.
        let bytes = 2 * samples * size as u64 * 4;
        if crate::device::available_memory().is_some_and(|available| bytes > available) {
            let needed = crate::device::size(bytes);
            return Err(Error::new(format!("the latents of {samples} images need {needed} of memory"))
                .hint("give --set latents=drawn, which encodes anew in each step"));
        }
        let latents = CachedLatents {
            moments: vec![0.0; samples as usize * size],
            labels: vec![0; samples as usize],
            shape,
            origin: images.origin(codec, recipe),
            images,
        };
        Ok(Growing { latents, known: vec![false; samples as usize], missing: samples })
    }

    /// How many there will be.
    pub fn samples(&self) -> u64 {
        self.known.len() as u64
    }

    /// Puts the moments in the place of the images of a batch.
    pub fn encode(&mut self, codec: &Codec, batch: Batch) -> Result<Batch> {
        let size = self.latents.size();
        let pixels: usize = codec.image().iter().product();
        let (mut new, mut images) = (Vec::new(), Vec::new());
        let pictures = batch.images.chunks_exact(pixels);
        for ((&sample, &label), image) in batch.samples.iter().zip(&batch.labels).zip(pictures) {
            if !self.known[sample as usize] {
                new.push((sample as usize, label));
                images.extend_from_slice(image);
            }
        }
        if !new.is_empty() {
            let moments = codec.moments(&images)?;
            for ((sample, label), moments) in new.into_iter().zip(moments.chunks_exact(size)) {
                self.latents.moments[sample * size..][..size].copy_from_slice(moments);
                self.latents.labels[sample] = label;
                // A batch may show one image twice, at the end of an epoch.
                self.missing -= u64::from(!std::mem::replace(&mut self.known[sample], true));
            }
        }
        let moments = batch.samples.iter().flat_map(|&sample| self.latents.of(sample)).copied().collect();
        Ok(Batch { images: moments, ..batch })
    }

    /// Encodes all that are missing. `progress` is told how many of how many are known.
    pub fn encode_all(&mut self, codec: &Codec, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let source = Arc::clone(&self.latents.images);
        let (all, pixels) = (source.samples(), codec.image().iter().product::<usize>());
        for first in (0..all).step_by(BLOCK as usize) {
            let samples: Vec<u64> = (first..all.min(first + BLOCK)).collect();
            let mut images = vec![0.0; samples.len() * pixels];
            let pictures = samples.iter().zip(images.chunks_exact_mut(pixels));
            let labels = pictures.map(|(&i, out)| source.read(i, out)).collect::<Result<_>>()?;
            self.encode(codec, Batch { images, labels, samples })?;
            progress(all - self.missing, all);
        }
        Ok(())
    }
}
