//! The header of a safetensors file, believed only as far as the file's length bears it out.
//!
//! Eight bytes give the length of a JSON text, the text each tensor's type, shape and place; the rest of
//! the file is the tensors, without gaps. The crate `safetensors` checks types, shapes, overlaps and gaps.

use std::collections::BTreeMap;

use safetensors::tensor::Metadata;

use super::{Source, TensorInfo, TensorInfos, is_counter, is_float, summed};

/// Longest header that is read. The largest published models need less than 1 MB.
const MOST_BYTES: u64 = 8 << 20;
/// Bytes that are added to the sum at a time, while they are in the processor's cache.
const BLOCK: u64 = 1 << 18;

/// Names of tensors, and what a file says about itself.
type Header = (Vec<String>, BTreeMap<String, String>);

/// The header of a file of `length` bytes, and its text.
fn header(source: &mut impl Source, length: u64) -> Result<(Metadata, Vec<u8>), String> {
    let cut = || format!("it is no safetensors file: {length} bytes are too few");
    let Some(rest) = length.checked_sub(8) else { return Err(cut()) };
    let first = source.read_at(0, 8)?;
    let header = u64::from_le_bytes(first.try_into().unwrap_or_default());
    if header > rest {
        return Err(format!("its header would have {header} bytes, and the file has {length}"));
    }
    if header > MOST_BYTES {
        return Err(format!("its header has {header} bytes, more than the {MOST_BYTES} that are read"));
    }
    let text = source.read_at(8, header as usize)?;
    let metadata: Metadata =
        serde_json::from_slice(&text).map_err(|e| format!("its header is no safetensors header: {e}"))?;
    Ok((metadata, text))
}

/// What a file of `length` bytes says about itself, by key.
///
/// # Errors
/// The fault of its header.
pub fn notes(source: &mut impl Source, length: u64) -> Result<BTreeMap<String, String>, String> {
    let (metadata, _) = header(source, length)?;
    Ok(metadata.metadata().clone().unwrap_or_default().into_iter().collect())
}

/// The notes of a file of `length` bytes that has all its bytes; the tensors themselves are not looked at.
///
/// # Errors
/// The fault of its header, or what is missing.
pub(super) fn notes_of_whole(
    source: &mut impl Source,
    length: u64,
) -> Result<BTreeMap<String, String>, String> {
    let (metadata, text) = header(source, length)?;
    let end = metadata.tensors().values().map(|tensor| tensor.data_offsets.1).max().unwrap_or(0);
    let wanted = (8 + text.len() as u64).saturating_add(end as u64);
    if length != wanted {
        return Err(format!("it has {length} bytes, and its header says {wanted}"));
    }
    Ok(metadata.metadata().clone().unwrap_or_default().into_iter().collect())
}

/// Names of the tensors of a file of `length` bytes, and its notes; the tensors themselves are not looked at.
///
/// # Errors
/// The fault of its header.
pub(super) fn names(source: &mut impl Source, length: u64) -> Result<Header, String> {
    let (metadata, _) = header(source, length)?;
    let notes = metadata.metadata().clone().unwrap_or_default().into_iter().collect();
    Ok((metadata.tensors().into_keys().collect(), notes))
}

/// The tensors of a file of `length` bytes.
///
/// # Errors
/// The fault of the file.
pub fn list(source: &mut impl Source, length: u64) -> Result<TensorInfos, String> {
    let (metadata, text) = header(source, length)?;
    let data = 8 + text.len() as u64;
    if data.checked_add(metadata.data_len() as u64) != Some(length) {
        let needed = metadata.data_len();
        return Err(format!("its tensors have {needed} bytes, and the file has {} for them", length - data));
    }
    summed::check_rest(&metadata, &text, |sum| {
        for at in (data..length).step_by(BLOCK as usize) {
            sum.write(&source.read_at(at, BLOCK.min(length - at) as usize)?);
        }
        Ok(())
    })?;
    let mut infos = TensorInfos::new();
    for (name, info) in metadata.tensors() {
        if !is_float(info.dtype) {
            if is_counter(&name) {
                continue;
            }
            return Err(format!("{name} holds {:?}, no weights", info.dtype));
        }
        let at = data + info.data_offsets.0 as u64;
        infos.insert(name, TensorInfo::dense(info.dtype, info.shape.clone(), at));
    }
    Ok(infos)
}
