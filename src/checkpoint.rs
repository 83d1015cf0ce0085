//! Checkpoints: safetensors files that hold everything resuming needs, written so that a crash leaves the
//! old or the new one.

use std::borrow::Cow;
use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView, View};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::replace;
use crate::nn::{Params, Spec};
use crate::recipe::Recipe;
use crate::weights::{notes_of_whole, summed};

/// The metadata of a checkpoint. Kept as one entry, because the format gives several
/// no fixed order and the same run must give the same bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Header {
    /// Version of the layout, [`FORMAT`].
    pub format: u32,
    /// Optimiser steps done.
    pub step: u64,
    /// The recipe as TOML; a model of a program's own has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<String>,
}

const FORMAT: u32 = 1;
/// Key of the metadata of all that denoir writes in this form.
pub(crate) const KEY: &str = "denoir";

/// Names of the sets of flat values over the model's parameters. A tensor is called `<set>.<parameter>`.
pub const SETS: [&str; 4] = ["model", "ema", "adam_m", "adam_v"];

/// What comes before the name of a state (see [`Scope::state`](crate::nn::Scope::state)), of which there is
/// one set.
const STATE: &str = "state";

/// Flat values of the four sets, each of [`Params::elements`] numbers.
pub struct Values {
    /// In the order of [`SETS`].
    pub sets: [Vec<f32>; 4],
}

impl Values {
    /// Says that training has diverged, if so.
    pub(crate) fn check_finite(&self, step: u64) -> Result<()> {
        if self.sets.iter().flatten().all(|v| v.is_finite()) {
            return Ok(());
        }
        Err(Error::new(format!("step {step}: a weight is not finite any more; nothing was saved"))
            .hint("train again from the last checkpoint with a lower lr"))
    }
}

/// [`replace`] with an error that says what to do.
pub(crate) fn write_whole(path: &Path, write: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
    replace(path, write).map_err(|e| cannot_write(path, e))
}

/// The error of a file that cannot be written.
pub(crate) fn cannot_write(path: &Path, e: std::io::Error) -> Error {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    let hint = match e.kind() {
        StorageFull | QuotaExceeded => "make room on the disk, or choose another",
        FileTooLarge => "raise the limit on the size of files (`ulimit -f`), or choose another disk",
        _ => "check the path and its permissions",
    };
    Error::new(format!("cannot write {}", path.display())).hint(hint).caused_by(e)
}

/// Saves the four sets, in the layout of PyTorch's files; without a recipe, for [`read`] alone.
pub(crate) fn save(
    path: &Path,
    params: &Params,
    step: u64,
    recipe: Option<&Recipe>,
    values: &Values,
) -> Result<()> {
    let sets: Vec<(&str, &[f32])> =
        SETS.into_iter().zip(&values.sets).map(|(set, flat)| (set, flat.as_slice())).collect();
    save_sets(path, params, step, recipe, &sets)
}

/// Saves the moving average alone: a trained model that another run uses.
pub(crate) fn save_ema(path: &Path, params: &Params, step: u64, recipe: &Recipe, ema: &[f32]) -> Result<()> {
    save_sets(path, params, step, Some(recipe), &[(SETS[1], ema)])
}

/// Saves parameters under their own names, as other programs of the field expect them.
pub(crate) fn save_plain(path: &Path, params: &Params, flat: &[f32]) -> Result<()> {
    write_views(path, file_tensors(params, flat, ""), "format", "pt")
}

fn save_sets(
    path: &Path,
    params: &Params,
    step: u64,
    recipe: Option<&Recipe>,
    sets: &[(&str, &[f32])],
) -> Result<()> {
    let header = Header { format: FORMAT, step, recipe: recipe.map(Recipe::to_toml) };
    let text = serde_json::to_string(&header).unwrap_or_else(|e| unreachable!("a plain header: {e}"));
    let tensors = sets.iter().flat_map(|(set, flat)| file_tensors(params, flat, &format!("{set}.")));
    let states = sets.iter().filter(|(set, _)| *set == SETS[0]).flat_map(|(_, flat)| states(params, flat));
    write_views(path, tensors.chain(states), KEY, &text)
}

/// All parameters by name.
fn file_tensors<'a>(params: &'a Params, flat: &'a [f32], prefix: &str) -> Vec<(String, FileTensor<'a>)> {
    let specs = params.specs().iter().filter(|spec| spec.state.is_none());
    specs.map(|spec| (format!("{prefix}{}", spec.name), FileTensor::of(spec, flat))).collect()
}

/// All states by name.
fn states<'a>(params: &'a Params, flat: &'a [f32]) -> Vec<(String, FileTensor<'a>)> {
    let specs = params.specs().iter().filter(|spec| spec.state.is_some());
    specs.map(|spec| (format!("{STATE}.{}", spec.name), FileTensor::of(spec, flat))).collect()
}

/// A parameter, converted to the layout of the file when it is written: one at a time.
struct FileTensor<'a> {
    spec: &'a Spec,
    flat: &'a [f32],
    shape: Vec<usize>,
}

impl<'a> FileTensor<'a> {
    fn of(spec: &'a Spec, flat: &'a [f32]) -> FileTensor<'a> {
        FileTensor { spec, flat, shape: spec.file_shape() }
    }
}

impl View for FileTensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut file = vec![0.0_f32; self.spec.shape.elements()];
        self.spec.for_each_index(|here, there| file[there] = self.flat[self.spec.first + here]);
        Cow::Owned(bytemuck::cast_slice(&file).to_vec())
    }

    fn data_len(&self) -> usize {
        self.spec.shape.elements() * 4
    }
}

/// Writes tensors by name and one metadata entry as safetensors.
pub(crate) fn write_views<V: View>(
    path: &Path,
    views: impl IntoIterator<Item = (String, V)>,
    key: &str,
    text: &str,
) -> Result<()> {
    write_whole(path, |file| summed::write(file, views, [key, text]))
}

/// A tensor's name, shape and values.
pub(crate) type Named<'a> = (&'a str, Vec<usize>, &'a [f32]);

/// Writes tensors and one metadata entry as safetensors.
pub(crate) fn write_tensors(path: &Path, tensors: &[Named], key: &str, text: String) -> Result<()> {
    let views = tensors.iter().map(|(name, shape, data)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytemuck::cast_slice(data));
        ((*name).to_owned(), view.unwrap_or_else(|e| unreachable!("{name}: {e}")))
    });
    write_views(path, views, key, &text)
}

/// A checkpoint's bytes and header.
pub struct Saved {
    path: PathBuf,
    bytes: Vec<u8>,
    pub(crate) header: Header,
}

/// A checkpoint of a recipe's model.
pub struct Loaded {
    saved: Saved,
    /// The recipe of the run.
    pub recipe: Recipe,
}

impl Deref for Loaded {
    type Target = Saved;

    fn deref(&self) -> &Saved {
        &self.saved
    }
}

/// Reads a checkpoint and its recipe, without looking at its tensors yet.
///
/// # Errors
/// When the file is missing, damaged, no checkpoint of denoir, or has no recipe.
pub fn load(path: &Path) -> Result<Loaded> {
    let (saved, shown) = (read(path)?, path.display());
    let Some(recipe) = &saved.header.recipe else {
        return Err(Error::new(format!("{shown} holds a model without a recipe"))
            .hint("only the program that trained it can use it"));
    };
    let recipe =
        crate::recipe::parse(recipe, &format!("the recipe inside {shown}")).map_err(Error::in_a_file)?;
    Ok(Loaded { saved, recipe })
}

/// What to do about a checkpoint that cannot be used. It is never to be deleted: it may be the only one.
fn remedy(path: &Path) -> String {
    if path.file_name().is_some_and(|name| name == "vae.safetensors") {
        return "put a copy of it in its place: from a copy of the run, or the checkpoint of the VAE's run \
                from where it came from; without it the run's latents mean nothing"
            .to_owned();
    }
    let Some((folder, step)) = path.parent().zip(step_of(path)) else {
        return "give a run's folder; if this file belongs to a run, get it again from where it came from"
            .to_owned();
    };
    let siblings = folder.read_dir().into_iter().flatten().flatten();
    match siblings.filter_map(|entry| step_of(&entry.path())).filter(|&other| other < step).max() {
        Some(before) => {
            format!("if it is damaged, move it out of its folder: the run then goes on from step {before}")
        }
        None => "the run has none before it: put a copy in its place, or train anew".to_owned(),
    }
}

/// The step in the name of a run's checkpoint.
pub(crate) fn step_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok()
}

/// Steps of a checkpoint, of which only the header is read.
///
/// # Errors
/// When it is missing, cut off, or no checkpoint.
pub(crate) fn check_head(path: &Path) -> Result<u64> {
    let notes = notes_of_whole(path)?;
    let header = notes.get(KEY).and_then(|text| serde_json::from_str::<Header>(text).ok());
    let damaged =
        || Error::new(format!("{} is damaged, or no checkpoint", path.display())).hint(remedy(path));
    header.map(|header| header.step).ok_or_else(damaged)
}

/// Reads a checkpoint, with or without a recipe.
pub(crate) fn read(path: &Path) -> Result<Saved> {
    let shown = path.display();
    let whole = summed::read(path, u64::MAX).map_err(|e| {
        Error::new(format!("cannot read the checkpoint {shown}")).hint("check the path").caused_by(e)
    })?;
    let damaged = || Error::new(format!("{shown} is damaged, or no checkpoint")).hint(remedy(path));
    let (_, metadata) = whole.parse().map_err(|e| damaged().caused_by(e))?;
    let Some(text) = metadata.get(KEY) else {
        return Err(Error::new(format!("{shown} is not a checkpoint of denoir"))
            .hint("give a folder made by `denoir train`"));
    };
    let header: Header = serde_json::from_str(text).map_err(|e| damaged().caused_by(e))?;
    if header.step > u64::from(u32::MAX) {
        return Err(damaged().caused_by(format!("it says {} steps", header.step)));
    }
    if header.format != FORMAT {
        return Err(Error::new(format!("{shown} has format {}, this program reads {FORMAT}", header.format))
            .hint("use the version of denoir that wrote it"));
    }
    Ok(Saved { path: path.to_owned(), bytes: whole.into_bytes(), header })
}

impl Saved {
    /// The file that it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The values of one set, flat; those of the model with its states.
    ///
    /// # Errors
    /// When a tensor is missing, has another shape, or holds a number that is not finite.
    pub fn set(&self, set: &str, params: &Params) -> Result<Vec<f32>> {
        let shown = self.path.display();
        let file = SafeTensors::deserialize(&self.bytes)
            .map_err(|e| Error::new(format!("the checkpoint {shown} is damaged")).caused_by(e))?;
        let other = |what: String| {
            Error::new(format!("{shown} is of another model: {what}"))
                .hint("use the recipe that it was trained with")
        };
        let mut flat = vec![0.0; params.elements()];
        for spec in params.specs().iter().filter(|spec| spec.state.is_none() || set == SETS[0]) {
            let name = format!("{}.{}", if spec.state.is_some() { STATE } else { set }, spec.name);
            let tensor = match (file.tensor(&name), spec.state) {
                (Ok(tensor), _) => tensor,
                (Err(_), None) => return Err(other(format!("it has no tensor {name}"))),
                (Err(_), Some(missing)) => {
                    flat[spec.first..][..spec.shape.elements()].fill(missing);
                    continue;
                }
            };
            if tensor.dtype() != Dtype::F32 || tensor.shape() != spec.file_shape() {
                let (dtype, shape, wanted) = (tensor.dtype(), tensor.shape(), spec.file_shape());
                return Err(other(format!("{name} is {dtype:?} {shape:?}, expected F32 {wanted:?}")));
            }
            // The data need not be aligned in the file.
            let values: Vec<f32> = bytemuck::pod_collect_to_vec(tensor.data());
            // The second moment is a mean of squares.
            let is_wrong = |v: &f32| !v.is_finite() || set == SETS[3] && *v < 0.0;
            if let Some(bad) = values.iter().position(is_wrong) {
                let (message, hint) =
                    (format!("{shown} holds {} in {name} at {bad}", values[bad]), remedy(&self.path));
                let error = Error::new(message).hint(hint);
                return Err(error.caused_by("it was damaged, or the run had diverged"));
            }
            spec.for_each_index(|here, there| flat[spec.first + here] = values[there]);
        }
        let known = |name: &&str| {
            let of = |(set, name)| set == STATE || SETS.contains(&set) && params.find(name).is_some();
            name.split_once('.').is_some_and(of)
        };
        if let Some(surplus) = file.names().iter().find(|name| !known(name)) {
            return Err(other(format!("it holds a tensor {surplus} that the model has not")));
        }
        Ok(flat)
    }

    /// All four sets.
    pub(crate) fn values(&self, params: &Params) -> Result<Values> {
        let [a, b, c, d] = SETS.map(|set| self.set(set, params));
        Ok(Values { sets: [a?, b?, c?, d?] })
    }
}
