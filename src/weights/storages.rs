//! Tensors of a pickle at their places in the file that holds their storages.

use super::pickle::Tensor;
use super::{Dtype, TensorInfo, TensorInfos, is_list_of_positions};

/// Longest pickle that is read; it holds names and shapes only.
pub(super) const MOST_BYTES: u64 = 4 << 20;

/// Finds the tensors' places in a file of `length` bytes. `storage`: first byte and size of the storage of a
/// name.
pub(super) fn placed(
    tensors: Vec<(String, Tensor)>,
    length: u64,
    storage: impl Fn(&str) -> Option<[u64; 2]>,
) -> Result<TensorInfos, String> {
    let mut infos = TensorInfos::new();
    let mut elements = 0_u64;
    for (name, tensor) in tensors {
        if &*tensor.storage == "LongStorage" && is_list_of_positions(&name) {
            continue;
        }
        let info = place(&tensor, storage(&tensor.key)).map_err(|reason| format!("{name} {reason}"))?;
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

/// Finds a tensor's place in its storage.
fn place(tensor: &Tensor, storage: Option<[u64; 2]>) -> Result<TensorInfo, String> {
    let dtype = match &*tensor.storage {
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "FloatStorage" => Dtype::F32,
        "DoubleStorage" => Dtype::F64,
        other => return Err(format!("is a {other}, no weights")),
    };
    let Some([first, size]) = storage else {
        return Err(format!("is in storage {:?}, which is not in the file", tensor.key));
    };
    let bytes = dtype.bitsize() / 8;
    let held = (size / bytes as u64) as usize;
    let view = TensorInfo { dtype, shape: tensor.shape.clone(), strides: tensor.strides.clone(), at: 0 };
    let fits = view.span().and_then(|span| span.checked_add(tensor.offset)).is_some_and(|end| end <= held);
    if !fits || tensor.shape.len() != tensor.strides.len() {
        return Err(format!(
            "{:?} with strides {:?} from {} on does not lie in its storage of {held}",
            tensor.shape, tensor.strides, tensor.offset
        ));
    }
    Ok(TensorInfo { at: first + (tensor.offset * bytes) as u64, ..view })
}
