//! Data sets: what `--data SPEC` names, read as pictures in [-1, 1], and the loader that feeds training.
//!
//! Reading order: this file (the trait and `open`), `loader` (which sample comes when), `condition` (what a
//! model is told of a picture), `captions`, then one file a source: `idx` and `cifar` (kept in memory by
//! `in_memory`), `folder`, `pairs` (two of them) and `parquet`, and the generated `digits`, `faces` and
//! `shapes`.

mod canvas;
mod captions;
mod cifar;
pub(crate) mod condition;
mod decode;
pub(crate) mod digest;
mod digit_shapes;
mod digits;
mod dreambooth;
mod face_parts;
mod faces;
mod folder;
mod idx;
mod in_memory;
mod jpeg;
mod loader;
mod numbered;
mod order;
mod pairs;
mod parquet;
pub mod picture;
pub(crate) mod quality;
mod rng;
mod scan;
pub mod shapes;
mod split;
mod statistics;
mod templates;
mod whole;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result, need};
use crate::names::path_of;

pub use captions::Captions;
pub use condition::{ConditionConfig, ConditionKind};
pub use decode::read_picture;
pub(crate) use dreambooth::{DreamBooth, is_of_class};
pub use loader::{Batch, Loader, Picks, Positions};
pub(crate) use numbered::numbered;
pub(crate) use statistics::{choice, statistics};
pub(crate) use templates::templates;
pub use whole::read_whole;

/// The largest side of a training picture, in pixels.
pub(crate) const MAX_IMAGE_SIZE: usize = 4096;

/// Size, colours and part of the pictures of a data set.
#[derive(Clone, Debug)]
pub struct Options {
    /// Side of the square pictures, in pixels: 8 (`faces` and `shapes`: 16) to 4096.
    pub image_size: usize,
    /// 1 = grey, 3 = RGB; `None`: the data's own.
    pub channels: Option<usize>,
    /// Only `images:`. Side in pixels of the centred square that is cut out before resizing (178 for
    /// CelebA); `None`, or a picture smaller than that: the largest centred square.
    pub crop: Option<usize>,
    /// Resizing of pictures of another size.
    pub resize: Resize,
    /// Seed of generated data; files do not use it.
    pub seed: u64,
    /// Which part of the data.
    pub split: Split,
}

/// Resizing of a picture. Both filters are widened where they shrink it, so that every pixel counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// The centred square, by a Catmull-Rom filter.
    #[default]
    Bicubic,
    /// The whole picture, its shorter side to the size, by a triangle filter; of that, the centred square.
    /// This is torchvision's `Resize` (bilinear) and `CenterCrop` of a PIL picture.
    Bilinear,
    /// As `Bilinear`, by a Lanczos filter of three lobes.
    Lanczos,
    /// The centred square, each pixel that of the picture which is nearest: for numbers of classes, of which
    /// no mean can be taken.
    Nearest,
}

/// Pictures that stand beside others as conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partner {
    /// `[H, W, C]`.
    pub shape: [usize; 3],
    /// Their grey levels are numbers of classes.
    pub is_map: bool,
}

/// The part of a data set that trains, and the part that is kept from training to check the result.
///
/// `mnist:` holds out `t10k-*`, `cifar10:` holds out `test_batch.bin`, `images:` holds out one picture in
/// ten, chosen by a hash of its path (from 20 pictures on), `parquet:` holds out the files `validation*` or
/// `test*` beside those that are called `train*`, else one row in ten as `images:` does; generated data uses
/// random numbers of its own for each part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// The pictures to train with.
    Train,
    /// The pictures to check the result with.
    HeldOut,
}

/// Pictures of one shape, with or without labels. Reading is a pure function of the index.
pub trait Dataset: Send + Sync {
    /// Number of pictures, at least 1; `None`: endless (generated).
    fn len(&self) -> Option<u64>;

    /// Never true: `open` refuses a set without pictures.
    fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// `[H, W, C]`.
    fn shape(&self) -> [usize; 3];

    /// The name of each label, printable and different from the others; empty: unlabelled.
    fn classes(&self) -> &[String];

    /// Writes picture `index` to `out`, `[H, W, C]` row-major in [-1, 1]; returns its label, 0 where
    /// there are none.
    ///
    /// # Errors
    /// The source can no longer be read.
    ///
    /// # Panics
    /// If `out` is not `H * W * C` long or `index` is not below `len`.
    fn read(&self, index: u64, out: &mut [f32]) -> Result<u32>;

    /// As [`read`](Self::read), with the square that is cut out of a picture at a `place` from 0 to 1 across
    /// and down, where pictures are cut: those of `images:` and `parquet:`.
    ///
    /// # Errors
    /// As `read`.
    ///
    /// # Panics
    /// As `read`.
    fn read_cropped(&self, index: u64, _place: [f32; 2], out: &mut [f32]) -> Result<u32> {
        self.read(index, out)
    }

    /// Pictures with consecutive numbers that stay together in the order of training; a divisor of `len`.
    fn together(&self) -> u64 {
        1
    }

    /// Number of the picture that [`read`](Self::read) gave for this one, which itself may be unreadable.
    fn shown(&self, index: u64) -> u64 {
        index
    }

    /// The label of each picture, where they are known without reading pictures.
    fn labels(&self) -> Option<Vec<u32>> {
        None
    }

    /// All pictures at once, where they lie in memory as they are read.
    fn whole(&self) -> Option<Whole<'_>> {
        None
    }

    /// The captions of all pictures, read anew by each call; `None`: they have none.
    ///
    /// # Errors
    /// Captions that cannot be read, or are not those of these pictures.
    fn captions(&self) -> Result<Option<Captions>> {
        Ok(None)
    }

    /// The pictures that stand beside these as conditions; `None`: none do.
    fn partner(&self) -> Option<Partner> {
        None
    }

    /// As [`read`](Self::read), with the picture that stands beside it, of the shape of
    /// [`partner`](Self::partner).
    ///
    /// # Errors
    /// As `read`.
    ///
    /// # Panics
    /// As `read`, and where there is none.
    fn read_pair(&self, index: u64, _out: &mut [f32], _partner: &mut [f32]) -> Result<u32> {
        panic!("read_pair: nothing stands beside picture {index}")
    }

    /// Tells these pictures and the names of their classes from others, by what they are read from and not by
    /// when that was written.
    ///
    /// # Errors
    /// The source can no longer be read.
    fn digest(&self) -> Result<String> {
        digest::of_pictures(self)
    }

    /// Words for picture `index` beyond its label: a face's features, a file's path. Empty if there are none.
    fn describe(&self, _index: u64) -> String {
        String::new()
    }

    /// Number of pictures that could not be read so far; others were read in their place.
    fn skipped(&self) -> u64 {
        0
    }

    /// Problems with the data so far, each once and in a printable line, in a fixed order.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

/// All pictures of a set and their labels.
pub struct Whole<'a> {
    /// `[N, H, W, C]`.
    pub values: Values<'a>,
    /// `[N]`; 0 where the set has no labels.
    pub labels: Vec<u32>,
}

/// The values of pictures.
#[derive(Clone, Copy)]
pub enum Values<'a> {
    /// Each stands for one in [-1, 1], as [`picture::from_u8`] says.
    Bytes(&'a [u8]),
    /// The values themselves.
    Numbers(&'a [f32]),
}

/// Opens the data set that `spec` names: `digits`, `faces`, `shapes`, `mnist:DIR`, `cifar10:DIR`,
/// `images:DIR`, `parquet:FILE` or `parquet:DIR`, or `pairs:A,B`: the images of folder B, each with the one
/// of the same name in folder A beside it; or as `maps:A,B`, whose grey levels in A are numbers of classes.
///
/// # Errors
/// An unknown spec, options that do not fit it, files that are missing, cut short or of a wrong kind.
pub fn open(spec: &str, options: &Options) -> Result<Arc<dyn Dataset>> {
    check(options)?;
    let (kind, argument) = spec.split_once(':').map_or((spec, None), |(kind, dir)| (kind, Some(dir)));
    match (kind, argument) {
        ("digits", None) => Ok(Arc::new(digits::Digits::new(options))),
        ("faces", None) => Ok(Arc::new(faces::Faces::new(options)?)),
        ("shapes", None) => Ok(Arc::new(shapes::Shapes::new(options)?)),
        ("mnist", Some(dir)) => Ok(Arc::new(idx::open(&folder_of(kind, dir)?, options)?)),
        ("cifar10", Some(dir)) => Ok(Arc::new(cifar::open(&folder_of(kind, dir)?, options)?)),
        ("images", Some(dir)) => Ok(Arc::new(folder::open(&folder_of(kind, dir)?, options)?)),
        ("parquet", Some(path)) => Ok(Arc::new(folder::open_table(&place_of(kind, path)?, options)?)),
        ("pairs" | "maps", Some(folders)) if folders.contains(',') => {
            let (a, b) = folders.split_once(',').unwrap_or_default();
            let folders = [&*folder_of(kind, a)?, &*folder_of(kind, b)?];
            Ok(Arc::new(pairs::open(folders, options, kind == "maps")?))
        }
        ("digits" | "faces" | "shapes", Some(_)) => {
            Err(Error::usage(format!("data `{spec}`: `{kind}` is generated and takes no folder"))
                .hint(format!("write `{kind}`")))
        }
        ("pairs" | "maps", _) => Err(Error::usage(format!("data `{spec}` does not name two folders"))
            .hint(format!("write `{kind}:A,B`: the folder of the conditions, then that of the images"))),
        ("mnist" | "cifar10" | "images", None) => Err(Error::usage(format!("data `{spec}` names no folder"))
            .hint(format!("write `{kind}:DIR`, the folder that holds the data"))),
        ("parquet", None) => Err(Error::usage(format!("data `{spec}` names no file"))
            .hint("write `parquet:FILE`, or the folder of such files")),
        _ => Err(Error::usage(format!("unknown data `{spec}`")).hint(if Path::new(spec).is_dir() {
            format!("for a folder of images write `images:{spec}`")
        } else {
            "use digits, faces, shapes, mnist:DIR, cifar10:DIR, images:DIR, parquet:DIR, pairs:A,B or \
             maps:A,B"
                .to_owned()
        })),
    }
}

/// All pictures of a folder, also those that would be held out.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_whole_folder(dir: &str, options: &Options) -> Result<Arc<dyn Dataset>> {
    check(options)?;
    let dir = folder_of("images", dir)?;
    let (pictures, _) = folder::listed(&dir)?;
    Ok(Arc::new(folder::Folder::with(&dir, pictures, options)?))
}

/// The held-out part and true; the training part and false for a folder too small to hold any out.
pub(crate) fn open_for_evaluation(spec: &str, options: &Options) -> Result<(Arc<dyn Dataset>, bool)> {
    let open = |split| open(spec, &Options { split, ..options.clone() });
    match open(Split::HeldOut) {
        Err(_) if ["images:", "parquet:", "pairs:", "maps:"].iter().any(|kind| spec.starts_with(kind)) => {
            Ok((open(Split::Train)?, false))
        }
        held_out => Ok((held_out?, true)),
    }
}

fn check(options: &Options) -> Result<()> {
    let Options { image_size, channels, crop, .. } = *options;
    need(
        (8..=MAX_IMAGE_SIZE).contains(&image_size),
        format!("an image size of {image_size} pixels cannot be used"),
        format!("use 8 to {MAX_IMAGE_SIZE}"),
    )?;
    let message = format!("{} image channels cannot be used", channels.unwrap_or(0));
    need(matches!(channels, None | Some(1 | 3)), message, "use 1 (grey) or 3 (RGB)")?;
    need(crop != Some(0), "a crop of 0 pixels leaves nothing", "use 1 or more, or leave it out")
}

/// The folder named in a spec.
fn folder_of(kind: &str, dir: &str) -> Result<PathBuf> {
    let path = place_of(kind, dir)?;
    if path.is_dir() {
        return Ok(path);
    }
    Err(Error::new(format!("data folder {} is not a folder", path.display()))
        .hint(format!("give the folder that holds the data, as in `{}`", form_of(kind))))
}

/// How a spec of this kind is written.
fn form_of(kind: &str) -> String {
    format!("{kind}:{}", if ["pairs", "maps"].contains(&kind) { "A,B" } else { "DIR" })
}

/// The folder or file named in a spec. A shell does not expand `~` behind a colon, so it is done here.
fn place_of(kind: &str, dir: &str) -> Result<PathBuf> {
    let form = form_of(kind);
    if dir.is_empty() {
        return Err(Error::usage(format!("data `{kind}:` names no folder"))
            .hint(format!("write `{form}`, the folder that holds the data")));
    }
    let path = match (dir.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => path_of(home.join(rest)),
        _ => path_of(dir),
    };
    if path.exists() {
        return Ok(path);
    }
    Err(Error::new(format!("data folder {} does not exist", path.display()))
        .hint(format!("give the folder that holds the data, as in `{form}`")))
}

#[cfg(test)]
mod tests;
