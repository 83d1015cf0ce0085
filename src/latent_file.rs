//! Latents in a file: safetensors, in PyTorch's layout, with the fingerprint of the VAE that made them.

use std::io::Read;
use std::path::Path;

use safetensors::tensor::Dtype;

use crate::checkpoint::write_tensors;
use crate::codec::{Codec, Posterior};
use crate::error::{Error, Result};
use crate::files;
use crate::weights::summed;

/// Metadata entry that holds the fingerprint.
const KEY: &str = "denoir_vae";
/// Largest file that is read: memory must hold it several times.
const MOST_BYTES: u64 = 8 << 30;
/// Longest header of a file of this format.
const MOST_HEADER: u64 = 100_000_000;

/// `[N, h, w, c]` as `[N, c, h, w]`; with `back`, the other way.
pub(crate) fn transposed(values: &[f32], [h, w, c]: [usize; 3], back: bool) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    for (from, to) in values.chunks_exact(h * w * c).zip(out.chunks_exact_mut(h * w * c)) {
        for (pixel, k) in (0..h * w).flat_map(|pixel| (0..c).map(move |k| (pixel, k))) {
            let (ours, theirs) = (pixel * c + k, k * h * w + pixel);
            if back { to[ours] = from[theirs] } else { to[theirs] = from[ours] }
        }
    }
    out
}

/// The shape of `n` latents in a file: `[N, C, h, w]`, or `[N, D]` for vectors.
fn file_shape(codec: &Codec, n: usize) -> Vec<usize> {
    match codec.latent() {
        [1, 1, d] if codec.recipe().vae.kind == crate::models::vae::VaeKind::Mlp => vec![n, d],
        [h, w, c] => vec![n, c, h, w],
    }
}

/// An error if there is a file that holds no latents.
pub fn check_replaceable(path: &Path) -> Result<()> {
    check_holds(path, KEY, "latents")
}

/// An error if there is a file without the metadata `key`, which so does not hold `what`.
pub(crate) fn check_holds(path: &Path, key: &str, what: &str) -> Result<()> {
    // The header alone: whatever lies there may be larger than memory.
    let is_such = || {
        let mut file = files::open(path).ok()?.0;
        let mut head = vec![0; 8];
        file.read_exact(&mut head).ok()?;
        let length = u64::from_le_bytes(head[..].try_into().ok()?).min(MOST_HEADER);
        file.take(length).read_to_end(&mut head).ok()?;
        let header: serde_json::Value = serde_json::from_slice(&head[8..]).ok()?;
        header["__metadata__"].get(key).cloned()
    };
    if path.is_dir() {
        return Err(Error::new(format!("{} is a folder", path.display())).hint("name a file"));
    }
    if !path.exists() || is_such().is_some() {
        return Ok(());
    }
    Err(Error::new(format!("{} is there already, and does not hold {what}", path.display()))
        .hint("choose another --out"))
}

/// Writes `latents` (what [`read`] gives back), and the `mean` and `log_var` that they come from.
pub(crate) fn write(path: &Path, codec: &Codec, latents: &[f32], posterior: &Posterior) -> Result<()> {
    let size: usize = codec.latent().iter().product();
    let shape = file_shape(codec, latents.len() / size);
    let turn = |values: &[f32]| transposed(values, codec.latent(), false);
    let (latents, mean) = (turn(latents), turn(&posterior.mean));
    let log_var = posterior.log_var.as_deref().map(turn);
    let mut tensors = vec![("latents", shape.clone(), &latents[..]), ("mean", shape.clone(), &mean[..])];
    tensors.extend(log_var.as_ref().map(|values| ("log_var", shape, &values[..])));
    write_tensors(path, &tensors, KEY, codec.fingerprint().to_owned())
}

/// Reads the tensor `latents` of a file as `[N, h, w, c]`.
///
/// # Errors
/// When the file is missing or damaged, holds no latents of this VAE's shape, or latents of another VAE.
pub fn read(path: &Path, codec: &Codec) -> Result<Vec<f32>> {
    let shown = path.display();
    let wanted = file_shape(codec, 1);
    let (values, made_by) = read_tensor(path, "latents", &wanted[1..], KEY, "denoir encode")?;
    if let Some(other) = made_by.filter(|f| *f != codec.fingerprint()) {
        return Err(Error::new(format!("the latents in {shown} are those of another VAE"))
            .hint("decode them with the run that encoded them")
            .caused_by(format!("its fingerprint is {other}, this one's {}", codec.fingerprint())));
    }
    Ok(transposed(&values, codec.latent(), true))
}

/// The finite numbers of the tensor `name`, `[N, ..wanted]`, and what the file says under `key`. `writer`:
/// the command that writes such files.
pub(crate) fn read_tensor(
    path: &Path,
    name: &str,
    wanted: &[usize],
    key: &str,
    writer: &str,
) -> Result<(Vec<f32>, Option<String>)> {
    let shown = path.display();
    let wrong = |message: String| Error::new(message).hint(format!("give a file that `{writer}` wrote"));
    let unreadable = |e: std::io::Error| {
        let error = wrong(format!("cannot read {shown}"));
        let error = match e.kind() {
            std::io::ErrorKind::FileTooLarge => error.hint("write fewer into one file"),
            _ => error,
        };
        error.caused_by(e)
    };
    let whole = summed::read(path, MOST_BYTES).map_err(unreadable)?;
    let damaged = |e| wrong(format!("{shown} is damaged, or no safetensors file")).caused_by(e);
    let (file, metadata) = whole.parse().map_err(damaged)?;
    let tensor = file.tensor(name).map_err(|_| wrong(format!("{shown} has no tensor called {name}")))?;
    let shape = tensor.shape();
    if tensor.dtype() != Dtype::F32 || shape.len() != 1 + wanted.len() || shape[1..] != *wanted {
        let sizes: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        return Err(Error::new(format!("the {name} in {shown} are {:?} {shape:?}", tensor.dtype()))
            .hint(format!("this model takes F32 [N, {}]", sizes.join(", "))));
    }
    let values: Vec<f32> = bytemuck::pod_collect_to_vec(tensor.data());
    if values.is_empty() {
        return Err(wrong(format!("{shown} holds no {name}")));
    }
    if let Some(bad) = values.iter().position(|v| !v.is_finite()) {
        let message = format!("{shown} holds {} at {bad}", values[bad]);
        return Err(Error::new(message).hint(format!("make the file again with `{writer}`")));
    }
    Ok((values, metadata.get(key).cloned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turning_there_and_back() {
        let values: Vec<f32> = (0..2 * 2 * 3 * 4).map(|v| v as f32).collect();
        let there = transposed(&values, [2, 3, 4], false);
        assert_eq!(&there[..6], [0.0, 4.0, 8.0, 12.0, 16.0, 20.0], "the first channel's pixels");
        assert_eq!(transposed(&there, [2, 3, 4], true), values);
    }
}
