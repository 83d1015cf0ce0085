//! Two neighbouring axes change places: what takes images apart into patches, and puts them together.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{CHUNK, Launch, launch_of, pack};
use crate::ops::shared::{derivative, replayed};
use crate::tape::Tensor;

pub(crate) static KERNEL: Kernel = kernel!("swap", pack::KNOBS);

/// `y[a, c, b, d] = x[a, b, c, d]`: `x [A, B, C, D]` to `[A, C, B, D]`.
///
/// # Panics
/// When `x` has not four dimensions, or no elements.
#[track_caller]
pub fn swap(x: &Tensor) -> Tensor {
    let [a, b, c, d] = x.shape().of_rank("swap");
    assert!(x.elements() > 0, "swap: an empty tensor {}", x.shape());
    let [y] = x.tape().launch(replayed(launch("swap", [a, b, c, d])), &[x], [[a, c, b, d].into()]);
    let shape = x.shape().clone();
    derivative(&[x], &y, move |dy| {
        dy.tape().launch(launch("swap backward_x", [a, c, b, d]), &[dy], [shape]).into()
    });
    y
}

/// From `[a, b, c, d]` to `[a, c, b, d]`.
fn launch(name: &'static str, [a, b, c, d]: [usize; 4]) -> impl Launch {
    launch_of(
        name,
        move |io| {
            // Lines [b, d] of y, some to a task.
            let (x, lines) = (io.read(0), (CHUNK / (b * d)).max(1));
            io.write(0).par_chunks_mut(lines * b * d).enumerate().for_each(|(chunk, y)| {
                for (line, y) in (chunk * lines..).zip(y.chunks_exact_mut(b * d)) {
                    let first = (line / c * b * c + line % c) * d;
                    for (y, x) in y.chunks_exact_mut(d).zip(x[first..].chunks(c * d)) {
                        y.copy_from_slice(&x[..d]);
                    }
                }
            });
        },
        move |plan| {
            let pack = pack::of(&[d]);
            let n = a * b * c * d / pack;
            plan.add(&KERNEL, "forward")
                .knobs(pack::set(pack))
                .params([("n", n), ("b", b), ("c", c), ("d", d / pack)])
                .read("x", 0)
                .write("y", 0)
                .cover(n, 256);
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Check;

    fn check(shape: [usize; 4]) {
        let [a, b, c, d] = shape;
        let reference = move |x: &[f64]| {
            let mut y = Vec::new();
            for a in 0..a {
                for c_at in 0..c {
                    for b_at in 0..b {
                        let first = ((a * b + b_at) * c + c_at) * d;
                        y.extend_from_slice(&x[first..first + d]);
                    }
                }
            }
            y
        };
        Check::new("swap").probes(6).input(&shape).run(|x| swap(&x[0]), |x| reference(&x[0]));
    }

    #[test]
    fn shapes() {
        for shape in [
            [1, 1, 1, 1],
            [2, 3, 5, 7],
            [3, 5, 2, 4],
            [1, 7, 11, 12],
            [5, 1, 3, 2],
            [2, 16_385, 2, 1],
            [2, 2, 3, 16_385],
            [7, 31, 29, 1],
        ] {
            check(shape);
        }
    }

    #[test]
    fn past_65535_workgroups() {
        check([1, 65_536, 64, 5]);
    }

    #[test]
    #[should_panic(expected = "swap: expected a tensor of 4 dimensions, got [2, 3]")]
    fn four_dimensions() {
        swap(&crate::tape::Tape::new().stored("x", 0, [2, 3]));
    }
}
