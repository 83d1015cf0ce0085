//! A data set that lies on the device: steps are told which samples to take, and nothing else is uploaded.

use crate::data::{Batch, Dataset, Picks, Values, Whole};
use crate::device::{Buffer, Device, available_memory};
use crate::error::Result;
use crate::ops::gather::MIRRORED;

/// The most that a data set may take of a GPU's memory, in bytes. Drivers do not say how much there is; any
/// GPU that a model is trained on can spare this.
const MOST: u64 = 256 << 20;
/// Of memory that is the machine's, it may take at most one part in this many of what is available.
const SHARE: u64 = 8;

/// All samples of a data set in a device's memory.
pub(super) struct Resident {
    pub buffer: Buffer,
    pub count: usize,
    /// A byte a value, not a float.
    pub bytes: bool,
}

/// Samples that a step trains on.
pub enum Examples {
    /// Their values.
    Images(Batch),
    /// Their numbers in the data set that lies on the device.
    Picks(Picks),
}

impl From<Batch> for Examples {
    fn from(batch: Batch) -> Examples {
        Examples::Images(batch)
    }
}

impl From<Picks> for Examples {
    fn from(picks: Picks) -> Examples {
        Examples::Picks(picks)
    }
}

impl Examples {
    /// Their numbers in the data set.
    pub(super) fn samples(&self) -> Vec<u64> {
        match self {
            Examples::Images(batch) => batch.samples.clone(),
            Examples::Picks(picks) => picks.samples.iter().map(|&pick| u64::from(pick & !MIRRORED)).collect(),
        }
    }

    pub(super) fn labels(&self) -> &[u32] {
        match self {
            Examples::Images(batch) => &batch.labels,
            Examples::Picks(picks) => &picks.labels,
        }
    }
}

fn raw<'a>(values: &Values<'a>) -> &'a [u8] {
    match values {
        Values::Bytes(bytes) => bytes,
        Values::Numbers(numbers) => bytemuck::cast_slice(numbers),
    }
}

/// The data set, if it is to lie on the device. The CPU device reads it where it is; a GPU gets a copy if
/// that is in memory as a whole and small enough.
pub(super) fn kept<'a>(data: &'a dyn Dataset, device: &Device) -> Option<Whole<'a>> {
    let Device::Gpu(gpu) = device else { return None };
    let whole = data.whole()?;
    let spare = if gpu.is_software() { available_memory()? / SHARE } else { MOST };
    (raw(&whole.values).len() as u64 <= spare.min(gpu.max_buffer())).then_some(whole)
}

impl Resident {
    /// Copies it.
    pub fn new(whole: &Whole, device: &Device) -> Result<Resident> {
        let raw = raw(&whole.values);
        let buffer = device.alloc("data", raw.len())?;
        // GPUs take whole words.
        let (words, rest) = raw.split_at(raw.len() / 4 * 4);
        device.write(&buffer, 0, words)?;
        if !rest.is_empty() {
            let mut last = [0; 4];
            last[..rest.len()].copy_from_slice(rest);
            device.write(&buffer, words.len(), &last)?;
        }
        let bytes = matches!(whole.values, Values::Bytes(_));
        Ok(Resident { buffer, count: whole.labels.len(), bytes })
    }
}
