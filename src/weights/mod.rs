//! Weight files of other programs: safetensors, whole or in shards, and the pickles of PyTorch, zipped or
//! followed by their storages, read without running anything.
//!
//! Every size in such a file is compared with the size of the file before memory is allocated. A parser
//! returns the reason for an error as text, and [`Weights`] adds the name of the file.

mod legacy;
mod number;
pub mod pickle;
pub mod safetensors;
pub mod shards;
mod storages;
pub(crate) mod summed;
pub mod torch;
pub mod zip;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use ::safetensors::Dtype;

pub(crate) use self::number::Number;
use self::number::is_float;
use crate::error::{Error, Result};
use crate::files;

/// A file, or bytes that stand for one.
pub trait Source: Read + Seek {
    /// `count` bytes from byte `at` on. The caller has compared `count` with the length of the file.
    ///
    /// # Errors
    /// When there are fewer, or they cannot be read.
    fn read_at(&mut self, at: u64, count: usize) -> std::result::Result<Vec<u8>, String> {
        let mut bytes = vec![0; count];
        self.seek(SeekFrom::Start(at))
            .and_then(|_| self.read_exact(&mut bytes))
            .map_err(|e| format!("cannot read {count} bytes at {at}: {e}"))?;
        Ok(bytes)
    }
}

impl<T: Read + Seek> Source for T {}

/// Whether whole numbers of this name, which are no weights, may stand among them: positions of a text model,
/// and counts of a training program.
fn is_counter(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    ["position_ids", "num_updates", "num_batches_tracked"].contains(&last)
}

/// Where a tensor lies in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Type of its numbers.
    pub dtype: Dtype,
    /// As in the file.
    pub shape: Vec<usize>,
    /// Elements from one index to the next, along each dimension.
    pub strides: Vec<usize>,
    /// The byte of the file where its first element begins.
    pub at: u64,
}

impl TensorInfo {
    /// A tensor in row-major order.
    fn dense(dtype: Dtype, shape: Vec<usize>, at: u64) -> Self {
        TensorInfo { strides: dense_strides(&shape), dtype, shape, at }
    }

    /// Elements from its first to its last, both included; none where that has no end.
    fn span(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        let mut dimensions = self.shape.iter().zip(&self.strides);
        dimensions
            .try_fold(1_usize, |span, (size, stride)| span.checked_add((size - 1).checked_mul(*stride)?))
    }

    /// Its elements in row-major order, out of all elements of its span.
    fn gathered<T: Copy>(&self, all: &[T]) -> Vec<T> {
        let place = |mut element: usize| -> usize {
            let along = |(size, stride): (&usize, &usize)| {
                let index = element % size;
                element /= size;
                index * stride
            };
            self.shape.iter().zip(&self.strides).rev().map(along).sum()
        };
        (0..self.shape.iter().product()).map(|element| all[place(element)]).collect()
    }
}

fn dense_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1_usize; shape.len()];
    for d in (1..shape.len()).rev() {
        strides[d - 1] = strides[d].saturating_mul(shape[d]);
    }
    strides
}

/// The tensors of one file by name.
pub type TensorInfos = BTreeMap<String, TensorInfo>;

/// The tensors of a file, or of several that belong together.
pub struct Weights {
    /// The file, or the index of the shards.
    path: PathBuf,
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, (usize, TensorInfo)>,
}

/// The error about one of the files.
fn unusable(path: &Path, reason: &str) -> Error {
    Error::new(format!("{}: {reason}", path.display())).hint("get the file again from where it came from")
}

/// Opens a file of a known kind and lists its tensors.
fn open_one(path: &Path) -> Result<(File, TensorInfos)> {
    let (mut file, length) = files::open(path).map_err(|e| unreadable(path, e))?;
    let infos = match path.extension().and_then(|e| e.to_str()) {
        Some("safetensors") => safetensors::list(&mut file, length),
        _ => torch::list(&mut file, length),
    };
    Ok((file, infos.map_err(|reason| unusable(path, &reason))?))
}

/// Names of the tensors of a safetensors file, and what it says about itself, even if its end is cut off.
///
/// # Errors
/// When its header cannot be read.
pub(crate) fn header_of(path: &Path) -> Result<(Vec<String>, BTreeMap<String, String>)> {
    let (mut file, length) = files::open(path).map_err(|e| unreadable(path, e))?;
    safetensors::names(&mut file, length).map_err(|reason| unusable(path, &reason))
}

/// What a safetensors file says about itself, if it is as long as it should be.
///
/// # Errors
/// When its header cannot be read, or its end is cut off.
pub(crate) fn notes_of_whole(path: &Path) -> Result<BTreeMap<String, String>> {
    let (mut file, length) = files::open(path).map_err(|e| unreadable(path, e))?;
    safetensors::notes_of_whole(&mut file, length).map_err(|reason| unusable(path, &reason))
}

fn unreadable(path: &Path, e: std::io::Error) -> Error {
    Error::new(format!("cannot read {}", path.display())).hint("check the path").caused_by(e)
}

/// A text file of at most `most` bytes.
pub(crate) fn read_text(path: &Path, most: u64) -> Result<String> {
    let text = files::read_text(path, most).map_err(|e| unreadable(path, e))?;
    // Some editors begin a text with a byte order mark.
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

impl Weights {
    /// The weights called `stem` in `folder`: whole or in shards, safetensors before pickles, full
    /// precision before half. `None` where there are none.
    ///
    /// # Errors
    /// When there are and cannot be used.
    pub fn find(folder: &Path, stem: &str) -> Result<Option<Weights>> {
        for precision in ["", ".fp16", ".bf16"] {
            for ending in ["safetensors", "bin"] {
                let whole = folder.join(format!("{stem}{precision}.{ending}"));
                // A broken link is there too, and must be told.
                if whole.symlink_metadata().is_ok() {
                    return Weights::open(&whole).map(Some);
                }
                for index in [
                    format!("{stem}.{ending}.index{precision}.json"),
                    format!("{stem}{precision}.{ending}.index.json"),
                ] {
                    let index = folder.join(index);
                    if index.symlink_metadata().is_ok() {
                        return Weights::open_shards(&index).map(Some);
                    }
                }
            }
        }
        Ok(None)
    }

    /// One file, a pickle unless it is called `.safetensors`.
    ///
    /// # Errors
    /// When it cannot be read, or is not what it should be.
    pub fn open(path: &Path) -> Result<Weights> {
        let (file, infos) = open_one(path)?;
        let tensors = infos.into_iter().map(|(name, info)| (name, (0, info))).collect();
        Ok(Weights { path: path.to_owned(), files: vec![(path.to_owned(), file)], tensors })
    }

    /// The files that an index names.
    pub(crate) fn open_shards(index: &Path) -> Result<Weights> {
        let text = read_text(index, shards::MOST_BYTES)?;
        let shards = shards::parse(&text).map_err(|reason| unusable(index, &reason))?;
        let (mut files, mut tensors) = (Vec::new(), BTreeMap::new());
        for (name, mut promised) in shards {
            let path = index.with_file_name(&name);
            let (file, infos) = open_one(&path)?;
            for (tensor, info) in infos {
                if !promised.remove(&tensor) {
                    return Err(unusable(index, &format!("it does not say that {name} holds {tensor}")));
                }
                tensors.insert(tensor, (files.len(), info));
            }
            if let Some(missing) = promised.first() {
                let reason = format!("it says that {name} holds {missing}, which it does not");
                return Err(unusable(index, &reason));
            }
            files.push((path, file));
        }
        Ok(Weights { path: index.to_owned(), files, tensors })
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names and shapes of the tensors, by name.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, (_, info))| (name.as_str(), info.shape.as_slice()))
    }

    /// What a safetensors file says about itself, by key; other files and shards say nothing.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn notes(&self) -> Result<BTreeMap<String, String>> {
        match &self.files[..] {
            [(path, file)] if path.extension().is_some_and(|ending| ending == "safetensors") => {
                let length = file.metadata().map_err(|e| unreadable(path, e))?.len();
                safetensors::notes(&mut &*file, length).map_err(|reason| unusable(path, &reason))
            }
            _ => Ok(BTreeMap::new()),
        }
    }

    #[track_caller]
    fn tensor(&self, name: &str) -> &(usize, TensorInfo) {
        self.tensors.get(name).unwrap_or_else(|| panic!("weights: no tensor {name}"))
    }

    /// Type of a tensor's numbers.
    ///
    /// # Panics
    /// When there is no tensor of that name.
    #[track_caller]
    pub(crate) fn dtype(&self, name: &str) -> Dtype {
        self.tensor(name).1.dtype
    }

    /// A tensor's numbers in row-major order.
    ///
    /// # Errors
    /// When the file cannot be read, or a number is not finite.
    ///
    /// # Panics
    /// When there is no tensor of that name.
    #[track_caller]
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        self.numbers(name)
    }

    /// As [`Weights::values`], as `f32`, or of a tensor of halves as they are.
    #[track_caller]
    pub(crate) fn numbers<T: Number>(&self, name: &str) -> Result<Vec<T>> {
        let (file, info) = self.tensor(name);
        let (path, file) = &self.files[*file];
        let span = info.span().unwrap_or_else(|| unreachable!("parsers refuse what has no end"));
        let bytes = (&mut &*file)
            .read_at(info.at, info.dtype.bitsize() / 8 * span)
            .map_err(|reason| unusable(path, &reason))?;
        let all = T::parsed(info.dtype, &bytes);
        let values = if info.strides == dense_strides(&info.shape) { all } else { info.gathered(&all) };
        // A sum over all can be vectorised; a search, which may end early, cannot.
        let bad = |v: &T| !v.is_finite();
        if values.iter().fold(false, |any, v| any | bad(v))
            && let Some(at) = values.iter().position(bad)
        {
            return Err(unusable(path, &format!("{name} holds {} at {at}", values[at])));
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_training_programs_tensors_are_found_and_its_positions_left_out() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/state_dict.ckpt");
        let weights = Weights::open(&path).unwrap();
        assert_eq!(weights.shapes().collect::<Vec<_>>(), [("w", &[3_usize][..])]);
        assert_eq!(weights.values("w").unwrap(), [0.0, 1.0, 2.0]);
    }

    #[test]
    fn a_transposed_tensor_is_gathered() {
        let info = TensorInfo { dtype: Dtype::F32, shape: vec![3, 2], strides: vec![1, 3], at: 0 };
        assert_eq!(info.span(), Some(6));
        assert_eq!(info.gathered(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        let endless = TensorInfo { shape: vec![usize::MAX, 2], strides: vec![2, 1], ..info };
        assert_eq!(endless.span(), None);
    }
}
