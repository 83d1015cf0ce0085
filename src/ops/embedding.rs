//! Rows of a trained table, picked by number: class labels, timesteps.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{CHUNK, Dispatch, Dispatches, Io, LaunchInfo, Recorded, Slot, launch_of};
use crate::ops::shared::{MOST_BOUND, derivative, ranges};
use crate::tape::Tensor;
use crate::tensor::DType;

pub(crate) static KERNEL: Kernel = kernel!("embedding");

/// `y[n] = table[index[n]]`: `table [V, C]` and `index [N]` give `[N, C]`. `index` holds `u32`, or whole
/// numbers as `f32` (as timesteps are).
///
/// A number past the last row picks the last row. Nothing reports that, since numbers are only known while
/// the program runs: whoever writes `index` answers for it.
#[track_caller]
pub fn embedding(table: &Tensor, index: &Tensor) -> Tensor {
    embedding_in_ranges(table, index, MOST_BOUND)
}

/// `most`: elements of the table, or of its gradient, that one dispatch binds.
#[track_caller]
fn embedding_in_ranges(table: &Tensor, index: &Tensor, most: usize) -> Tensor {
    let [rows, width] = table.shape().of_rank("embedding");
    let [n] = index.shape().of_rank("embedding");
    assert!(rows > 0, "embedding: table {} has no row to pick", table.shape());
    let size = Size { n, rows, width, words: index.dtype() == DType::U32 };
    let forward = launch_of(
        "embedding",
        move |io| {
            let table = io.read(0);
            io.write(0).par_chunks_mut(width).zip(size.picked(io, 1)).for_each(|(y, row)| {
                y.copy_from_slice(&table[row * width..][..width]);
            });
        },
        move |plan| {
            for range in ranges(rows * width, most) {
                let forward = size.dispatch(plan, "forward", ("table", Slot::Read(0)), range);
                forward.read("index", 1).write("y", 0).cover(n * width, 256);
            }
        },
    );
    let [y] = table.tape().launch(forward, &[table, index], [[n, width].into()]);
    let index = index.clone();
    derivative(&[table], &y, move |dy| {
        let backward = launch_of(
            "embedding backward_table",
            move |io| {
                let (picked, dy, dtable) = (size.picked(io, 0), io.read(1), io.write(0));
                dtable.par_chunks_mut(CHUNK).for_each(|part| part.fill(0.0));
                for (row, dy) in picked.into_iter().zip(dy.chunks(width)) {
                    let own = &mut dtable[row * width..][..width];
                    own.iter_mut().zip(dy).for_each(|(dtable, dy)| *dtable += dy);
                }
            },
            move |plan| {
                let links = size.params(plan, "link").param("first", 0_usize).param("count", 0_usize);
                links.read("index", 0).scratch("links", 0).cover(n, 256);
                for range in ranges(rows * width, most) {
                    let dtable = ("dtable", Slot::Write(0));
                    size.dispatch(plan, "backward_clear", dtable, range).cover(range.1, 256);
                    let sums = size.dispatch(plan, "backward_rows", dtable, range);
                    sums.read("index", 0).read("dy", 1).scratch("links", 0).cover(n * width, 256);
                }
            },
        );
        let backward = Recorded::new(backward, LaunchInfo { gpu_scratch: vec![n], ..LaunchInfo::default() });
        dy.tape().launch(backward, &[&index, dy], [[rows, width].into()]).into()
    });
    y
}

#[derive(Clone, Copy)]
struct Size {
    n: usize,
    rows: usize,
    width: usize,
    /// Whether the index is of `u32`.
    words: bool,
}

impl Size {
    /// A dispatch for a range of the table, or of its gradient, which the kernel calls `table`.
    fn dispatch<'a>(
        &self,
        plan: &'a mut Dispatches,
        entry: &'static str,
        (table, slot): (&'static str, Slot),
        (first, count): (usize, usize),
    ) -> &'a mut Dispatch {
        self.params(plan, entry).params([("first", first), ("count", count)]).range(table, slot, first, count)
    }

    fn params<'a>(&self, plan: &'a mut Dispatches, entry: &'static str) -> &'a mut Dispatch {
        plan.add(&KERNEL, entry)
            .params([("n", self.n), ("rows", self.rows), ("width", self.width)])
            .param("words", self.words)
    }

    /// The row of each of the numbers that the launch reads as its input `place`.
    fn picked(&self, io: &Io, place: usize) -> Vec<usize> {
        let last = self.rows - 1;
        if self.words {
            io.read_u32(place).iter().map(|&index| (index as usize).min(last)).collect()
        } else {
            io.read(place).iter().map(|&index| (index as usize).min(last)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Check;

    /// Row `index[n]` of the table for each n.
    fn reference(x: &[Vec<f64>], rows: usize, width: usize) -> Vec<f64> {
        let mut y = Vec::new();
        for index in &x[1] {
            let row = (*index as usize).min(rows - 1);
            y.extend_from_slice(&x[0][row * width..(row + 1) * width]);
        }
        y
    }

    fn check(rows: usize, width: usize, index: Vec<u32>) {
        check_in_ranges(rows, width, index, MOST_BOUND);
    }

    fn check_in_ranges(rows: usize, width: usize, index: Vec<u32>, most: usize) {
        Check::new("embedding")
            .input(&[rows, width])
            .words(&[index.len()], index)
            .run(|x| embedding_in_ranges(&x[0], &x[1], most), |x| reference(x, rows, width));
    }

    #[test]
    fn in_several_ranges() {
        check_in_ranges(10, 257, vec![9, 3, 3, 0, 7, 3, 9], 128);
    }

    #[test]
    fn rows_repeated_missing_and_past_the_end() {
        check(1, 1, vec![0]);
        check(5, 3, vec![4, 0, 4, 4, 2]);
        check(10, 257, vec![9, 3, 3, 0, 7, 3, 9]);
        check(257, 2, (0..600).map(|n| n * 7919 % 257).collect());
        check(5000, 3, (0..300).map(|n| n * n % 77 * 64).collect());
        check(3, 4, vec![3, u32::MAX, 1]);
    }

    #[test]
    fn whole_numbers_as_floats() {
        let index = vec![4.0, 0.0, 4.0, 999.0, 2.0];
        Check::new("embedding of floats")
            .input(&[5, 3])
            .fixed(&[5], index)
            .run(|x| embedding(&x[0], &x[1]), |x| reference(x, 5, 3));
    }

    #[test]
    fn past_65535_workgroups() {
        // Wide rather than long: llvmpipe leaves any loop after 65,535 rounds, and link makes up to n of
        // them.
        let (n, width) = (4096, 4099);
        Check::new("embedding")
            .probes(2)
            .input(&[3, width])
            .words(&[n], (0..n as u32).map(|n| n % 3).collect())
            .run(|x| embedding(&x[0], &x[1]), |x| reference(x, 3, width));
    }
}
