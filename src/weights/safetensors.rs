//! The header of a safetensors file, believed only as far as the file's length bears it out.
//!
//! Eight bytes give the length of a JSON text, the text each tensor's type, shape and place; the rest of
//! the file is the tensors, without gaps. The crate `safetensors` checks types, shapes, overlaps and gaps.

use safetensors::tensor::Metadata;

use super::{Source, TensorInfo, TensorInfos, is_float, is_list_of_positions, summed};

/// Longest header that is read. The largest published models need less than 1 MB.
const MOST_BYTES: u64 = 8 << 20;
/// Bytes that are added to the sum at a time, while they are in the processor's cache.
const BLOCK: u64 = 1 << 18;

/// The tensors of a file of `length` bytes.
///
/// # Errors
/// The fault of the file.
pub fn list(source: &mut impl Source, length: u64) -> Result<TensorInfos, String> {
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
    let data = 8 + header;
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
            if is_list_of_positions(&name) {
                continue;
            }
            return Err(format!("{name} holds {:?}, no weights", info.dtype));
        }
        let at = data + info.data_offsets.0 as u64;
        infos.insert(name, TensorInfo::dense(info.dtype, info.shape.clone(), at));
    }
    Ok(infos)
}
