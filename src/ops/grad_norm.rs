//! The Euclidean norm of all gradients.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{CHUNK, LaunchInfo, Recorded, Slot, launch_of};
use crate::ops::reduce::sum_in_f64;
use crate::ops::shared::{FlatRange, MOST_BOUND, flat_ranges};
use crate::simd::vectorized;
use crate::tape::Tensor;

pub(crate) static KERNEL: Kernel = kernel!("grad_norm");

/// The Euclidean norm `[1]` of `grads [P]`, always added in the same order. It has no derivative.
#[track_caller]
pub fn grad_norm(grads: &Tensor) -> Tensor {
    grad_norm_in_ranges(grads, MOST_BOUND)
}

/// `most`: elements of one dispatch.
#[track_caller]
fn grad_norm_in_ranges(grads: &Tensor, most: usize) -> Tensor {
    let n = grads.elements();
    assert!(n > 0, "grad_norm: no elements in {}", grads.shape());
    let launch = launch_of(
        "grad_norm",
        |io| {
            let partials: &mut [f64] = bytemuck::cast_slice_mut(io.scratch(0));
            io.read(0).par_chunks(CHUNK).zip(&mut *partials).for_each(|(x, partial)| {
                *partial = vectorized(
                    #[inline(always)]
                    || sum_in_f64(x, x, |x, _| x, |x, again| x * again),
                );
            });
            io.write(0)[0] = partials.iter().sum::<f64>().sqrt() as f32;
        },
        move |plan| {
            let mut groups = 0;
            for range in flat_ranges(n, most) {
                let (entry, name, n) = match range.quads {
                    true => ("partial_sums", "x4", range.count / 4),
                    false => ("partial_rest", "x", range.count),
                };
                plan.add(&KERNEL, entry)
                    .params([("n", n), ("first", groups)])
                    .range(name, Slot::Read(0), range.first, range.count)
                    .scratch("partials", 0)
                    .cover(groups_of(range), 1);
                groups += groups_of(range);
            }
            let total = plan.add(&KERNEL, "total").params([("n", groups), ("first", 0)]); // all of them
            total.scratch("partials", 0).write("norm", 0);
        },
    );
    let info = LaunchInfo {
        cpu_scratch: vec![2 * n.div_ceil(CHUNK)], // f64
        gpu_scratch: vec![flat_ranges(n, most).map(groups_of).sum()],
        ..LaunchInfo::default()
    };
    let [norm] = grads.tape().launch(Recorded::new(launch, info), &[grads], [[1].into()]);
    norm
}

/// Elements that one workgroup adds, WG * QUADS * 4 of the kernel.
const PER_GROUP: usize = 256 * 16 * 4;

/// Partial sums of a range.
fn groups_of(range: FlatRange) -> usize {
    range.count.div_ceil(PER_GROUP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Check, random};

    fn check(x: Vec<f32>, most: usize) {
        Check::new(format!("grad_norm in ranges of {most}")).tolerance(1e-6).fixed(&[x.len()], x).run(
            |x| grad_norm_in_ranges(&x[0], most),
            |x| vec![x[0].iter().map(|x| x * x).sum::<f64>().sqrt()],
        );
    }

    #[test]
    fn any_number_of_elements() {
        for n in [1, 2, 257, 16_384, 16_385, 100_003, 5_000_011] {
            check(random(0, n), MOST_BOUND);
        }
        check(vec![0.0; 300], MOST_BOUND);
        check(random(0, 1021).into_iter().map(|x| 1e15 * x).collect(), MOST_BOUND);
    }

    #[test]
    fn in_several_ranges() {
        check(random(0, 1000), 64);
        check(random(0, 100_003), 32_768);
    }
}
