//! Rows of a trained table, picked by number: class labels.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{Dispatches, Io, Launch};
use crate::tape::Tensor;
use crate::tensor::DType;

pub static KERNEL: Kernel = kernel!("embedding");

/// `y[n] = table[index[n]]`: `table [V, C]` and `index [N]` of `u32` give `[N, C]`.
///
/// A number past the last row picks the last row. Nothing reports that, since numbers are only known while
/// the program runs: whoever writes `index` answers for it.
#[track_caller]
pub fn embedding(table: &Tensor, index: &Tensor) -> Tensor {
    let [rows, width] = table.shape().of_rank("embedding");
    let [n] = index.shape().of_rank("embedding");
    assert_eq!(index.dtype(), DType::U32, "embedding: index {} must be u32", index.shape());
    assert!(rows > 0, "embedding: table {} has no row to pick", table.shape());
    let size = Size { n, rows, width };
    let [y] = table.tape().launch(Forward(size), &[table, index], [[n, width].into()]);
    let (tape, index) = (table.tape().clone(), index.clone());
    table.tape().derivative(&[table], &[&y], move |dy| {
        let Some(dy) = &dy[0] else { return vec![None] };
        let [dtable] = tape.launch(BackwardTable(size), &[&index, dy], [[rows, width].into()]);
        vec![Some(dtable)]
    });
    y
}

#[derive(Clone, Copy, Debug)]
struct Size {
    n: usize,
    rows: usize,
    width: usize,
}

impl Size {
    fn row(&self, index: u32) -> usize {
        (index as usize).min(self.rows - 1)
    }
}

#[derive(Debug)]
struct Forward(Size);

impl Launch for Forward {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu(&self, io: &Io) {
        let (size, table) = (self.0, io.read(0));
        io.write(0).par_chunks_mut(size.width).zip(io.read_u32(1)).for_each(|(y, &index)| {
            y.copy_from_slice(&table[size.row(index) * size.width..][..size.width]);
        });
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let Size { n, rows, width } = self.0;
        plan.add(&KERNEL, "forward")
            .param("n", n)
            .param("rows", rows)
            .param("width", width)
            .read("table", 0)
            .read("index", 1)
            .write("y", 0)
            .cover(n * width, 256);
    }
}

#[derive(Debug)]
struct BackwardTable(Size);

impl Launch for BackwardTable {
    fn name(&self) -> &'static str {
        "embedding backward_table"
    }

    fn cpu(&self, io: &Io) {
        let (size, index, dy) = (self.0, io.read_u32(0), io.read(1));
        io.write(0).par_chunks_mut(size.width).enumerate().for_each(|(row, dtable)| {
            dtable.fill(0.0);
            for (&index, dy) in index.iter().zip(dy.chunks(size.width)) {
                if size.row(index) == row {
                    for (dtable, dy) in dtable.iter_mut().zip(dy) {
                        *dtable += dy;
                    }
                }
            }
        });
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let Size { n, rows, width } = self.0;
        plan.add(&KERNEL, "backward_table")
            .param("n", n)
            .param("rows", rows)
            .param("width", width)
            .read("index", 0)
            .read("dy", 1)
            .write("dtable", 0)
            .cover(rows * width, 256);
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
        Check::new("embedding")
            .input(&[rows, width])
            .words(&[index.len()], index)
            .run(|x| embedding(&x[0], &x[1]), |x| reference(x, rows, width));
    }

    #[test]
    fn rows_repeated_missing_and_past_the_end() {
        check(1, 1, vec![0]);
        check(5, 3, vec![4, 0, 4, 4, 2]);
        check(10, 257, vec![9, 3, 3, 0, 7, 3, 9]);
        check(257, 2, (0..600).map(|n| n * 7919 % 257).collect());
        check(3, 4, vec![3, u32::MAX, 1]);
    }

    #[test]
    fn past_65535_workgroups() {
        // Wide rather than long: llvmpipe leaves any loop after 65,535 rounds, and backward_table makes n
        // of them.
        let (n, width) = (4096, 4099);
        Check::new("embedding")
            .probes(2)
            .input(&[3, width])
            .words(&[n], (0..n as u32).map(|n| n % 3).collect())
            .run(|x| embedding(&x[0], &x[1]), |x| reference(x, 3, width));
    }
}
