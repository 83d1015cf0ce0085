//! Files of `torch.save`: a zip archive of one pickle and the bytes of its storages.

use std::collections::BTreeMap;

use super::pickle::{self, Tensor};
use super::zip::{self, Entry};
use super::{Dtype, Source, TensorInfo, TensorInfos};

/// Longest pickle that is read; it holds names and shapes only.
const MOST_BYTES: u64 = 4 << 20;

/// The tensors of a file of `length` bytes.
///
/// # Errors
/// The fault of the file, or the function that it would have called.
pub fn list(source: &mut impl Source, length: u64) -> Result<TensorInfos, String> {
    if length >= 2 && source.read_at(0, 2)?[0] == 0x80 {
        return Err("it is a bare pickle, as torch.save wrote before version 1.6; save it anew".to_owned());
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
    let mut infos = TensorInfos::new();
    let mut elements = 0_u64;
    for (name, tensor) in pickle::load(&text)? {
        let info = place(&tensor, &within).map_err(|reason| format!("{name} {reason}"))?;
        let count = info.shape.iter().try_fold(1_u64, |n, &d| n.checked_mul(d as u64));
        // Views of one storage could multiply without end.
        match count.and_then(|count| elements.checked_add(count)).filter(|&sum| sum <= length) {
            Some(sum) => elements = sum,
            None => {
                return Err(format!("its tensors up to {name} have more elements than the file has bytes"));
            }
        }
        infos.insert(name, info);
    }
    Ok(infos)
}

/// Finds a tensor's storage, and its own place there.
fn place(tensor: &Tensor, within: &BTreeMap<&str, &Entry>) -> Result<TensorInfo, String> {
    let dtype = match &*tensor.storage {
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "FloatStorage" => Dtype::F32,
        "DoubleStorage" => Dtype::F64,
        other => return Err(format!("is a {other}, no weights")),
    };
    let Some(entry) = within.get(format!("data/{}", tensor.key).as_str()) else {
        return Err(format!("is in storage {:?}, which is not in the file", tensor.key));
    };
    let bytes = dtype.bitsize() / 8;
    let held = (entry.size / bytes as u64) as usize;
    let view = TensorInfo { dtype, shape: tensor.shape.clone(), strides: tensor.strides.clone(), at: 0 };
    let fits = view.span().and_then(|span| span.checked_add(tensor.offset)).is_some_and(|end| end <= held);
    if !fits || tensor.shape.len() != tensor.strides.len() {
        return Err(format!(
            "{:?} with strides {:?} from {} on does not lie in its storage of {held}",
            tensor.shape, tensor.strides, tensor.offset
        ));
    }
    Ok(TensorInfo { at: entry.at + (tensor.offset * bytes) as u64, ..view })
}
