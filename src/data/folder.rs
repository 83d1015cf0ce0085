//! `images:DIR`: a folder of pictures in any common format; the folders directly in it are the classes.
//!
//! Pictures are decoded when they are read. One that cannot be decoded is reported once, and the next good
//! one in the list stands in for it: a choice that depends on the files alone, so every run makes the same.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use image::ImageDecoder;

use super::captions::Captions;
use super::decode::{Encoded, decode_and_fit, decoder};
use super::digest;
use super::in_memory::write;
use super::parquet::{self, Table};
use super::scan::pictures;
use super::split::{SMALLEST_SPLIT, part_of};
use super::{Dataset, Options, Split};
use crate::error::{Error, Result, lock, one_line};
use crate::names::{shown, shown_path};

/// Memory for finished pictures, so that a set of moderate size is decoded in the first epoch only.
const CACHE: u64 = 512 << 20;
/// Pictures whose headers are looked at to tell a grey set from a coloured one.
const PROBES: usize = 16;
/// Warnings that name a picture; the rest are counted.
const NAMED: usize = 20;

/// Pictures by their names: files below a folder, or rows of tables in it.
pub(super) struct Folder {
    dir: PathBuf,
    /// What holds the pictures where they are no files of their own, and the row of each.
    table: Option<(Table, Vec<usize>)>,
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
    Folder::of(dir, &pictures, left_out, options)
}

/// The pictures of `parquet:PATH`.
pub(super) fn open_table(path: &Path, options: &Options) -> Result<Folder> {
    let (table, is_part) = parquet::open(path, options)?;
    let (names, (classes, labels)) = (table.names(), table.labels()?);
    let split = if is_part { Split::Train } else { options.split };
    let rows = if is_part { (0..names.len()).collect() } else { part(path, &names, split)? };
    let files: Vec<PathBuf> = rows.iter().map(|&row| names[row].clone()).collect();
    let labels = rows.iter().map(|&row| labels.get(row).copied().unwrap_or(0)).collect();
    let dir = table.dir().to_owned();
    let folder = Folder { labels, classes, ..Folder::bare(&dir, files, Some((table, rows)), options) };
    folder.probed()
}

/// The places of the pictures that are of the part that the options name.
fn part(place: &Path, pictures: &[PathBuf], split: Split) -> Result<Vec<usize>> {
    part_of(pictures, split).ok_or_else(|| {
        Error::new(format!("folder {} has too few images to hold some out", place.display()))
            .hint(format!("add some, {SMALLEST_SPLIT} are enough, or use the training part"))
    })
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

impl Folder {
    /// The part of `pictures` below `dir` that the options name.
    pub(super) fn of(
        dir: &Path,
        pictures: &[PathBuf],
        left_out: Option<String>,
        options: &Options,
    ) -> Result<Folder> {
        let (names, mut notes) = classes_of(pictures);
        let label = |path: &Path| {
            top(path).and_then(|name| names.binary_search_by(|other| other.as_os_str().cmp(name)).ok())
        };
        notes.extend(left_out);
        let files: Vec<PathBuf> =
            part(dir, pictures, options.split)?.into_iter().map(|i| pictures[i].clone()).collect();
        let labels = files.iter().map(|path| label(path).unwrap_or(0) as u32).collect();
        let classes = names.iter().map(|name| shown(name)).collect();
        Ok(Folder { labels, classes, notes, ..Folder::with(dir, files, options)? })
    }

    /// All of `files` below `dir`, without labels.
    pub(super) fn with(dir: &Path, files: Vec<PathBuf>, options: &Options) -> Result<Folder> {
        Folder::bare(dir, files, None, options).probed()
    }

    /// Pictures of a number of channels that may not be known yet.
    fn bare(
        dir: &Path,
        files: Vec<PathBuf>,
        table: Option<(Table, Vec<usize>)>,
        options: &Options,
    ) -> Folder {
        Folder {
            dir: dir.to_owned(),
            table,
            labels: vec![0; files.len()],
            classes: Vec::new(),
            notes: Vec::new(),
            shape: [options.image_size, options.image_size, 0],
            options: options.clone(),
            cache: Vec::new(),
            bad: Mutex::new(BTreeMap::new()),
            digest: OnceLock::new(),
            files,
        }
    }

    /// With the channels that the options name, or that the pictures have; and with memory for them.
    fn probed(mut self) -> Result<Folder> {
        let channels = match self.options.channels {
            Some(channels) => channels,
            None => self.probe()?,
        };
        self.shape[2] = channels;
        self.options.channels = Some(channels);
        if self.files.len() as u64 * self.shape.iter().product::<usize>() as u64 <= CACHE {
            self.cache = self.files.iter().map(|_| OnceLock::new()).collect();
        }
        Ok(self)
    }

    /// 1 if all of some pictures spread over the set are grey, else 3.
    fn probe(&self) -> Result<usize> {
        let (count, probes) = (self.files.len(), self.files.len().min(PROBES));
        let mut first_wrong = None;
        let mut grey = None;
        for i in (0..probes).map(|i| i * count / probes) {
            let color = self.encoded(i).and_then(|picture| Ok(decoder(&picture)?.1.color_type()));
            match color {
                Ok(color) => grey = Some(grey.unwrap_or(true) && !color.has_color()),
                Err(wrong) => {
                    first_wrong = first_wrong.or(Some(format!("{}: {wrong}", shown_path(&self.files[i]))));
                }
            }
        }
        match (grey, first_wrong) {
            (Some(grey), _) => Ok(if grey { 1 } else { 3 }),
            (None, wrong) => Err(Error::new(format!("no image in {} can be read", self.dir.display()))
                .hint("check the files, or convert them to png or jpeg")
                .caused_by(wrong.unwrap_or_default())),
        }
    }

    /// Picture `i` as a file holds it.
    fn encoded(&self, i: usize) -> std::result::Result<Encoded, String> {
        match &self.table {
            Some((table, rows)) => table.picture(rows[i]).map(Encoded::Bytes),
            None => Ok(Encoded::File(self.dir.join(&self.files[i]))),
        }
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
        self.picture_at(i, None, out)
    }

    /// As `picture`, of the square at a place.
    fn picture_at(&self, i: usize, place: Option<[f32; 2]>, out: &mut [f32]) -> bool {
        // Squares at other places than the middle are other pictures each time.
        let cache = self.cache.get(i).filter(|_| place.is_none());
        if let Some(bytes) = cache.and_then(OnceLock::get) {
            write(bytes, out);
            return true;
        }
        if lock(&self.bad).contains_key(&i) {
            return false;
        }
        match self.encoded(i).and_then(|picture| decode_and_fit(&picture, &self.options, place)) {
            Ok(bytes) => {
                write(&bytes, out);
                if let Some(cache) = cache {
                    // Another thread may have been faster, with the same bytes.
                    let _ = cache.set(bytes.into_boxed_slice());
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

    /// Reads a picture, or the next one that can be.
    fn read_or_next(&self, index: u64, place: Option<[f32; 2]>, out: &mut [f32]) -> Result<u32> {
        assert_eq!(out.len(), self.shape.iter().product::<usize>(), "read: `out` is not {:?}", self.shape);
        assert!(index < self.files.len() as u64, "read: no picture {index} in {}", self.files.len());
        let mut i = index as usize;
        // `check` ends this: pictures are added to the bad ones until a good one is found or too many are
        // bad.
        while !self.picture_at(i, place, out) {
            self.check()?;
            i = (i + 1) % self.files.len();
        }
        Ok(self.labels[i])
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
        self.read_or_next(index, None, out)
    }

    fn read_cropped(&self, index: u64, place: [f32; 2], out: &mut [f32]) -> Result<u32> {
        self.read_or_next(index, Some(place), out)
    }

    fn shown(&self, index: u64) -> u64 {
        let (bad, count) = (lock(&self.bad), self.files.len());
        let next = (0..count).map(|more| (index as usize + more) % count).find(|i| !bad.contains_key(i));
        next.map_or(index, |i| i as u64)
    }

    fn digest(&self) -> Result<String> {
        let made = || match &self.table {
            Some((table, _)) => table.digest(),
            None => digest::of_files(&self.dir, &self.files),
        };
        Ok(self.digest.get_or_init(made).clone())
    }

    fn captions(&self) -> Result<Option<Captions>> {
        match &self.table {
            Some((table, rows)) => table.captions(rows, &self.files),
            None => Captions::of_folder(&self.dir, &self.files),
        }
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
