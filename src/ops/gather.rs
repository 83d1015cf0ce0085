//! Samples of a data set that lies on the device, picked by number.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{LaunchInfo, Recorded, Slot, launch_of};
use crate::ops::shared::{MOST_BOUND, ranges};
use crate::tape::Tensor;
use crate::tensor::DType;

pub(crate) static KERNEL: Kernel = kernel!("gather");

/// The bit of a sample's number that has it mirrored, left for right.
pub const MIRRORED: u32 = 1 << 31;

/// Samples `[N, H, W, C]` picked from `rows` of them: sample `n` is number `sample[n]`, without the bit
/// [`MIRRORED`], which mirrors it. `shape` is `[H, W, C]`, `sample [N]` of `u32`.
///
/// `data` of `u32` holds a byte for each value, in the order of memory, `ceil(rows H W C / 4)` words of them,
/// and byte `b` becomes `2 b / 255 - 1`; `data` of `f32` holds `rows H W C` numbers, which are copied. A
/// number past the last row picks the last row. There is no derivative: this is data.
#[track_caller]
pub fn gather(data: &Tensor, rows: usize, shape: [usize; 3], sample: &Tensor) -> Tensor {
    gather_in_ranges(data, rows, shape, sample, MOST_BOUND)
}

/// `most`: elements of the data that one dispatch binds.
#[track_caller]
fn gather_in_ranges(data: &Tensor, rows: usize, shape: [usize; 3], sample: &Tensor, most: usize) -> Tensor {
    let [n] = sample.shape().of_rank("gather");
    let [h, width, channels] = shape;
    let elements = h * width * channels;
    let bytes = data.dtype() == DType::U32;
    let stored = data.elements();
    let wanted = if bytes { (rows * elements).next_multiple_of(4) } else { rows * elements };
    assert!(
        rows > 0
            && rows <= MIRRORED as usize
            && elements > 0
            && stored * if bytes { 4 } else { 1 } == wanted
            && sample.dtype() == DType::U32,
        "gather: {rows} samples of {shape:?} from {}, by {}",
        data.shape(),
        sample.shape()
    );
    // Kernels count the values in 32 bits.
    assert!(
        u32::try_from(rows * elements).is_ok(),
        "gather: {rows} samples of {shape:?} are too many values"
    );
    let launch = launch_of(
        if bytes { "gather bytes" } else { "gather" },
        move |io| {
            let data = io.read(0);
            io.write(0).par_chunks_mut(elements).zip(io.read_u32(1)).for_each(|(y, &picked)| {
                let first = ((picked & !MIRRORED) as usize).min(rows - 1) * elements;
                let (range, mirrored) = (first..first + elements, picked & MIRRORED != 0);
                if bytes {
                    let data: &[u8] = bytemuck::cast_slice(data);
                    copy(&data[range], y, [width, channels], mirrored, |b| {
                        f32::from(b) * (2.0 / 255.0) - 1.0
                    });
                } else {
                    copy(&data[range], y, [width, channels], mirrored, |v| v);
                }
            });
        },
        move |plan| {
            let (entry, data) = if bytes { ("bytes", "packed") } else { ("numbers", "data") };
            for (first, count) in ranges(stored, most) {
                plan.add(&KERNEL, entry)
                    .params([("n", n), ("rows", rows), ("elements", elements)])
                    .params([("width", width), ("channels", channels)])
                    .params([("first", first), ("count", count)])
                    .range(data, Slot::Read(0), first, count)
                    .read("sample", 1)
                    .write("y", 0)
                    .cover(n * elements, 256);
            }
        },
    );
    // Of the data, only what is picked is read.
    let extra_bytes = (n * elements * if bytes { 1 } else { 4 }) as i64 - stored as i64 * 4;
    let launch = Recorded::new(launch, LaunchInfo { extra_bytes, ..LaunchInfo::default() });
    let [y] =
        sample.tape().launch(launch, &[data, sample], [[n, h, width, channels].into()]).map(Tensor::exact);
    y
}

/// Copies a sample, row by row, each pixel of `channels` values through `value`.
fn copy<T: Copy>(
    from: &[T],
    to: &mut [f32],
    [width, channels]: [usize; 2],
    mirrored: bool,
    value: impl Fn(T) -> f32,
) {
    if !mirrored {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = value(*from));
        return;
    }
    for (to, from) in to.chunks_exact_mut(width * channels).zip(from.chunks_exact(width * channels)) {
        for (to, from) in to.chunks_exact_mut(channels).zip(from.chunks_exact(channels).rev()) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = value(*from));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Check, random};

    /// What the samples are, from values in the order of `data`.
    fn reference(values: &[f64], rows: usize, [h, w, c]: [usize; 3], samples: &[f64]) -> Vec<f64> {
        let mut y = Vec::new();
        for &sample in samples {
            let (mirrored, k) = (sample >= 2_147_483_648.0, sample as u64 % (1 << 31));
            let k = (k as usize).min(rows - 1);
            for i in 0..h * w * c {
                let (row, x, channel) = (i / (w * c), i / c % w, i % c);
                let x = if mirrored { w - 1 - x } else { x };
                y.push(values[((k * h + row) * w + x) * c + channel]);
            }
        }
        y
    }

    fn check_bytes(rows: usize, shape: [usize; 3], samples: Vec<u32>, most: usize) {
        let values = rows * shape.iter().product::<usize>();
        let mut bytes: Vec<u8> = (0..values).map(|i| (i * 151 % 256) as u8).collect();
        bytes.resize(values.next_multiple_of(4), 0);
        let words: Vec<u32> = bytes.chunks(4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect();
        let value = |b: &u8| f64::from(*b) * 2.0 / 255.0 - 1.0;
        Check::new("gather bytes")
            .tolerance(2e-7)
            .words(&[words.len()], words)
            .words(&[samples.len()], samples)
            .run(
                |x| gather_in_ranges(&x[0], rows, shape, &x[1], most),
                |x| reference(&bytes.iter().map(value).collect::<Vec<_>>(), rows, shape, &x[1]),
            );
    }

    fn check_numbers(rows: usize, shape: [usize; 3], samples: Vec<u32>, most: usize) {
        let size = rows * shape.iter().product::<usize>();
        Check::new("gather")
            .tolerance(0.0)
            .fixed(&[size], random(3, size))
            .words(&[samples.len()], samples)
            .run(
                |x| gather_in_ranges(&x[0], rows, shape, &x[1], most),
                |x| reference(&x[0], rows, shape, &x[1]),
            );
    }

    #[test]
    fn repeated_mirrored_and_past_the_end() {
        let some = |rows: u32| vec![0, rows - 1, MIRRORED, MIRRORED | (rows - 1), 0, rows, u32::MAX];
        for (rows, shape) in
            [(1, [1, 1, 1]), (3, [5, 7, 3]), (11, [2, 1, 4]), (7, [28, 28, 1]), (5, [3, 2, 5])]
        {
            for most in [64, MOST_BOUND] {
                check_bytes(rows, shape, some(rows as u32), most);
                check_numbers(rows, shape, some(rows as u32), most);
            }
        }
        let samples = (0..700).map(|n| (n * 7919 % 300) | ((n % 2) << 31)).collect();
        check_bytes(300, [3, 3, 1], samples, MOST_BOUND);
    }

    #[test]
    fn past_65535_workgroups() {
        let samples = (0..1366).map(|n| (n % 2) | ((n % 3 / 2) << 31)).collect();
        check_bytes(2, [64, 64, 3], samples, MOST_BOUND);
    }
}
