//! `images:DIR`: a folder of pictures in any common format; the folders directly in it are the classes.
//!
//! Pictures are decoded when they are read. One that cannot be decoded is reported once, and the next good
//! one in the list stands in for it: a choice that depends on the files alone, so every run makes the same.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use image::ImageDecoder;

use super::decode::{decode_and_fit, decoder};
use super::digest;
use super::in_memory::write;
use super::picture::from_u8;
use super::scan::pictures;
use super::split::{SMALLEST_SPLIT, part_of};
use super::{Dataset, Options, Resize, Split, check};
use crate::error::{Error, Result, lock, one_line};
use crate::names::{shown, shown_path};

/// Memory for finished pictures, so that a set of moderate size is decoded in the first epoch only.
const CACHE: u64 = 512 << 20;
/// Pictures whose headers are looked at to tell a grey set from a coloured one.
const PROBES: usize = 16;
/// Warnings that name a picture; the rest are counted.
const NAMED: usize = 20;

pub(super) struct Folder {
    dir: PathBuf,
    files: Vec<PathBuf>,
    labels: Vec<u32>,
    classes: Vec<String>,
    notes: Vec<String>,
    shape: [usize; 3],
    options: Options,
    /// `[H, W, C]` bytes of the pictures read so far; empty if they would not all fit.
    cache: Vec<OnceLock<Box<[u8]>>>,
    /// The errors of pictures that could not be decoded, by index.
    bad: Mutex<BTreeMap<usize, String>>,
    digest: OnceLock<String>,
}

pub(super) fn open(dir: &Path, options: &Options) -> Result<Folder> {
    let (pictures, left_out) = listed(dir)?;
    Folder::of(dir, pictures, left_out, options)
}

/// The pictures of a folder, at least one, and what is said of its other files.
pub(super) fn listed(dir: &Path) -> Result<(Vec<PathBuf>, Option<String>)> {
    let found = pictures(dir)?;
    let left_out = found.left_out();
    if found.pictures.is_empty() {
        let error = Error::new(format!("folder {} holds no images", dir.display())).hint(
            "png, jpeg, webp, gif, bmp, tiff, tga, ico, qoi and pnm files are read, convert others first",
        );
        return Err(error.caused_by(left_out.unwrap_or_default()));
    }
    Ok((found.pictures, left_out))
}

/// One picture file of any format that `images:` reads, cut and resized as there: `[size, size, channels]`,
/// row-major in [-1, 1].
///
/// `size`, `channels`, `crop` and `resize` are those of [`Options`]; `crop` is the side in pixels of the
/// centred square that is cut out first, `None` the largest.
///
/// # Errors
/// A size, number of channels or crop that cannot be used, or a file that is missing or no picture.
pub fn read_picture(
    path: &Path,
    size: usize,
    channels: usize,
    crop: Option<usize>,
    resize: Resize,
) -> Result<Vec<f32>> {
    let split = Split::Train; // neither it nor the seed matters to a single file
    let options = Options { image_size: size, channels: Some(channels), crop, resize, seed: 0, split };
    check(&options)?;
    if !path.is_file() {
        let wrong = if path.exists() { "is not a file" } else { "does not exist" };
        return Err(Error::new(format!("picture {} {wrong}", path.display()))
            .hint("give the path of a picture, such as a png or a jpeg"));
    }
    let bytes = decode_and_fit(path, &options).map_err(|wrong| {
        Error::new(format!("picture {} cannot be read", path.display()))
            .hint("check the file, or convert it to png or jpeg")
            .caused_by(wrong)
    })?;
    Ok(bytes.into_iter().map(from_u8).collect())
}

/// The name of the folder directly in DIR that a picture lies in; none if it lies in DIR itself.
fn top(path: &Path) -> Option<&OsStr> {
    let mut names = path.iter();
    let first = names.next()?;
    names.next().map(|_| first)
}

/// The classes' names, sorted, if each picture belongs to one of at least two; and what to tell the user.
fn classes_of(files: &[PathBuf]) -> (Vec<OsString>, Vec<String>) {
    let tops: BTreeSet<&OsStr> = files.iter().filter_map(|path| top(path)).collect();
    let loose = files.iter().filter(|path| top(path).is_none()).count();
    match (tops.len(), loose) {
        (0, _) | (1, 0) => (Vec::new(), Vec::new()),
        (_, 0) => (tops.into_iter().map(OsStr::to_owned).collect(), Vec::new()),
        (folders, loose) => {
            let note = "sub-folders, so the sub-folders are not taken as classes";
            (Vec::new(), vec![format!("{loose} images lie beside the {folders} {note}")])
        }
    }
}

/// 1 if all of some pictures spread over the set are grey, else 3.
fn probe(dir: &Path, files: &[PathBuf]) -> Result<usize> {
    let probes = files.len().min(PROBES);
    let mut first_wrong = None;
    let mut grey = None;
    for i in 0..probes {
        let path = &files[i * files.len() / probes];
        match decoder(&dir.join(path)).map(|(_, d)| d.color_type()) {
            Ok(color) => grey = Some(grey.unwrap_or(true) && !color.has_color()),
            Err(wrong) => first_wrong = first_wrong.or(Some(format!("{}: {wrong}", shown_path(path)))),
        }
    }
    match (grey, first_wrong) {
        (Some(grey), _) => Ok(if grey { 1 } else { 3 }),
        (None, wrong) => Err(Error::new(format!("no image in {} can be read", dir.display()))
            .hint("check the files, or convert them to png or jpeg")
            .caused_by(wrong.unwrap_or_default())),
    }
}

impl Folder {
    /// The part of `pictures` below `dir` that the options name.
    pub(super) fn of(
        dir: &Path,
        pictures: Vec<PathBuf>,
        left_out: Option<String>,
        options: &Options,
    ) -> Result<Folder> {
        let (names, mut notes) = classes_of(&pictures);
        let label = |path: &Path| {
            top(path).and_then(|name| names.binary_search_by(|other| other.as_os_str().cmp(name)).ok())
        };
        notes.extend(left_out);
        let files = part_of(pictures, options.split).ok_or_else(|| {
            Error::new(format!("folder {} has too few images to hold some out", dir.display()))
                .hint(format!("add some, {SMALLEST_SPLIT} are enough, or use the training part"))
        })?;
        let labels = files.iter().map(|path| label(path).unwrap_or(0) as u32).collect();
        let classes = names.iter().map(|name| shown(name)).collect();
        Ok(Folder { labels, classes, notes, ..Folder::with(dir, files, options)? })
    }

    /// All of `files` below `dir`, without labels.
    pub(super) fn with(dir: &Path, files: Vec<PathBuf>, options: &Options) -> Result<Folder> {
        let channels = match options.channels {
            Some(channels) => channels,
            None => probe(dir, &files)?,
        };
        let shape = [options.image_size, options.image_size, channels];
        let fits = files.len() as u64 * shape.iter().product::<usize>() as u64 <= CACHE;
        Ok(Folder {
            dir: dir.to_owned(),
            labels: vec![0; files.len()],
            classes: Vec::new(),
            notes: Vec::new(),
            shape,
            options: Options { channels: Some(channels), ..options.clone() },
            cache: if fits { files.iter().map(|_| OnceLock::new()).collect() } else { Vec::new() },
            bad: Mutex::new(BTreeMap::new()),
            digest: OnceLock::new(),
            files,
        })
    }

    /// The files, relative to the folder.
    pub(super) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    pub(super) fn label(&self, i: usize) -> u32 {
        self.labels[i]
    }

    /// Writes picture `i` to `out`; false if it cannot be decoded.
    pub(super) fn picture(&self, i: usize, out: &mut [f32]) -> bool {
        if let Some(bytes) = self.cache.get(i).and_then(OnceLock::get) {
            write(bytes, out);
            return true;
        }
        if lock(&self.bad).contains_key(&i) {
            return false;
        }
        match decode_and_fit(&self.dir.join(&self.files[i]), &self.options) {
            Ok(bytes) => {
                write(&bytes, out);
                if let Some(place) = self.cache.get(i) {
                    // Another thread may have been faster, with the same bytes.
                    let _ = place.set(bytes.into_boxed_slice());
                }
                true
            }
            Err(wrong) => {
                lock(&self.bad).insert(i, wrong);
                false
            }
        }
    }

    /// An error once more than half of the pictures are known to be bad.
    pub(super) fn check(&self) -> Result<()> {
        let bad = lock(&self.bad);
        match bad.first_key_value() {
            Some((i, wrong)) if bad.len() * 2 > self.files.len() => Err(Error::new(format!(
                "{} of the {} images in {} cannot be read",
                bad.len(),
                self.files.len(),
                self.dir.display()
            ))
            .hint("check the files, or convert them to png or jpeg")
            .caused_by(format!("{}: {wrong}", shown_path(&self.files[*i])))),
            _ => Ok(()),
        }
    }
}

impl Dataset for Folder {
    fn len(&self) -> Option<u64> {
        Some(self.files.len() as u64)
    }

    fn shape(&self) -> [usize; 3] {
        self.shape
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn labels(&self) -> Option<Vec<u32>> {
        Some(self.labels.clone())
    }

    fn read(&self, index: u64, out: &mut [f32]) -> Result<u32> {
        assert_eq!(out.len(), self.shape.iter().product::<usize>(), "read: `out` is not {:?}", self.shape);
        assert!(index < self.files.len() as u64, "read: no picture {index} in {}", self.files.len());
        let mut i = index as usize;
        // `check` ends this: pictures are added to the bad ones until a good one is found or too many are
        // bad.
        while !self.picture(i, out) {
            self.check()?;
            i = (i + 1) % self.files.len();
        }
        Ok(self.labels[i])
    }

    fn digest(&self) -> Result<String> {
        Ok(self.digest.get_or_init(|| digest::of_files(&self.dir, &self.files)).clone())
    }

    fn describe(&self, index: u64) -> String {
        self.files.get(index as usize).map(|path| shown_path(path)).unwrap_or_default()
    }

    fn skipped(&self) -> u64 {
        lock(&self.bad).len() as u64
    }

    fn warnings(&self) -> Vec<String> {
        let bad = lock(&self.bad);
        let mut warnings = self.notes.clone();
        warnings.extend(bad.iter().take(NAMED).map(|(i, wrong)| {
            let path = self.dir.join(shown_path(&self.files[*i]));
            one_line(&format!("{} cannot be read and is left out: {wrong}", path.display()))
        }));
        if bad.len() > NAMED {
            warnings.push(format!("{} more images cannot be read and are left out", bad.len() - NAMED));
        }
        warnings
    }
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
