//! Rows and columns of the places of a grid, as numbers to embed.

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::launch_of;
use crate::ops::shared::replayed;
use crate::tape::{Tape, Tensor};

pub(crate) static KERNEL: Kernel = kernel!("positions");

/// The row and the column of each place of a grid of `[h, w]`, row by row, as whole numbers: two constants
/// `[h * w]`.
///
/// # Panics
/// When the grid is empty.
#[track_caller]
pub fn positions(tape: &Tape, [h, w]: [usize; 2]) -> [Tensor; 2] {
    let n = h * w;
    assert!(n > 0, "positions: an empty grid, {h}x{w}");
    [(w, h), (1, w)].map(|(step, size)| {
        let launch = launch_of(
            "positions",
            move |io| {
                for (i, y) in io.write(0).iter_mut().enumerate() {
                    *y = (i / step % size) as f32;
                }
            },
            move |plan| {
                let forward = plan.add(&KERNEL, "forward").params([("n", n), ("step", step), ("size", size)]);
                forward.write("y", 0).cover(n, 256);
            },
        );
        let [y] = tape.launch(replayed(launch), &[], [[n].into()]);
        y
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Check;
    use crate::ops::arithmetic::mul;

    #[test]
    fn rows_and_columns() {
        for [h, w] in [[1, 1], [3, 5], [7, 1], [257, 3]] {
            for axis in [0, 1] {
                Check::new(format!("positions {h}x{w}, axis {axis}")).input(&[h * w]).probes(1).run(
                    |x| mul(&x[0], &positions(x[0].tape(), [h, w])[axis]),
                    |x| (0..h * w).map(|i| x[0][i] * [i / w, i % w][axis] as f64).collect(),
                );
            }
        }
    }

    #[test]
    #[should_panic(expected = "positions: an empty grid, 0x3")]
    fn something_to_count() {
        positions(&Tape::new(), [0, 3]);
    }
}
