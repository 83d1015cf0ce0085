//! Files of `torch.save` as it wrote them before version 1.6, and still does on demand: pickles one behind
//! the other, and then the storages.
//!
//! A magic number, the protocol, what is known of the machine, the tensors, and the list of the storages'
//! names; then of each storage in this order the count of its elements in eight bytes, and its bytes. There
//! are no sums. Source: `_legacy_save` of PyTorch's `torch/serialization.py`.

use std::collections::BTreeMap;

use super::pickle::{self, Pickle};
use super::storages::{MOST_BYTES, placed};
use super::{Source, TensorInfos};

/// The number 0x1950a86a20f9469cfc6c and the number 1001, each a pickle.
const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.";

/// Bytes of an element of a storage.
fn width(class: &str) -> Option<u64> {
    Some(match class {
        "BoolStorage" | "ByteStorage" | "CharStorage" => 1,
        "HalfStorage" | "BFloat16Storage" | "ShortStorage" => 2,
        "FloatStorage" | "IntStorage" => 4,
        "DoubleStorage" | "LongStorage" => 8,
        _ => return None,
    })
}

/// The tensors of a file of `length` bytes.
///
/// # Errors
/// The fault of the file, or the function that it would have called.
pub(super) fn list(source: &mut impl Source, length: u64) -> Result<TensorInfos, String> {
    let head = source.read_at(0, length.min(MOST_BYTES) as usize)?;
    if !head.starts_with(MAGIC) {
        return Err("it is a bare pickle, and none that torch.save writes; save it anew".to_owned());
    }
    let mut at = MAGIC.len();
    let mut next = || -> Result<Pickle<'_>, String> {
        let pickle = pickle::run(&head[at..])?;
        at += pickle.length();
        Ok(pickle)
    };
    let (machine, tensors, names) = (next()?, next()?, next()?);
    if machine.flag("little_endian") != Some(true) {
        return Err("its byte order is not \"little\"".to_owned());
    }
    let mut at = at as u64;
    let mut within = BTreeMap::new();
    for name in names.texts()? {
        let Some(width) = tensors.storages().get(&name).and_then(|class| width(class)) else {
            return Err(format!("it holds storage {name:?}, of which its pickle says nothing"));
        };
        let first = at.checked_add(8).filter(|first| *first <= length).ok_or("its storages are cut short")?;
        let count = u64::from_le_bytes(source.read_at(at, 8)?.try_into().unwrap_or_default());
        let end = count.checked_mul(width).and_then(|size| first.checked_add(size));
        let Some(end) = end.filter(|end| *end <= length) else {
            return Err(format!("storage {name:?} would have {count} elements, beyond the file"));
        };
        if within.insert(name.clone(), [first, end - first]).is_some() {
            return Err(format!("it holds storage {name:?} twice"));
        }
        at = end;
    }
    if at != length {
        return Err(format!("it has {} bytes behind its storages", length - at));
    }
    placed(tensors.tensors()?, length, |name| within.get(name).copied())
}
