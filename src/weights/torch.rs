//! Files of `torch.save`: a zip archive of one pickle and the bytes of its storages, or its older format.

use std::collections::BTreeMap;

use super::storages::{MOST_BYTES, placed};
use super::zip::{self, Entry};
use super::{Source, TensorInfos, legacy, pickle};

/// The tensors of a file of `length` bytes.
///
/// # Errors
/// The fault of the file, or the function that it would have called.
pub fn list(source: &mut impl Source, length: u64) -> Result<TensorInfos, String> {
    if length >= 2 && source.read_at(0, 2)?[0] == 0x80 {
        return legacy::list(source, length);
    }
    let entries = zip::entries(source, length)?;
    zip::check_sums(source, &entries)?;
    let pickle = entries.iter().find(|e| e.name == "data.pkl" || e.name.ends_with("/data.pkl"));
    let Some(pickle) = pickle else { return Err("it holds no data.pkl".to_owned()) };
    let root = pickle.name.trim_end_matches("data.pkl");
    let within: BTreeMap<&str, &Entry> =
        entries.iter().filter_map(|e| Some((e.name.strip_prefix(root)?, e))).collect();
    if let Some(order) = within.get("byteorder").filter(|order| order.size < 16) {
        let text = source.read_at(order.at, order.size as usize)?;
        if text != b"little" {
            return Err(format!("its byte order is {:?}", String::from_utf8_lossy(&text)));
        }
    }
    let size = pickle.size;
    if size > MOST_BYTES {
        return Err(format!("its pickle has {size} bytes, more than the {MOST_BYTES} that are read"));
    }
    let text = source.read_at(pickle.at, pickle.size as usize)?;
    placed(pickle::load(&text)?, length, |key| {
        within.get(format!("data/{key}").as_str()).map(|entry| [entry.at, entry.size])
    })
}
