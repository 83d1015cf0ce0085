//! Sums: of everything, and of the columns over all leading dimensions.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{CHUNK, Dispatch, Dispatches, Io, Launch, LaunchInfo, Recorded, launch_of};
use crate::ops::shared::derivative;
use crate::simd::vectorized;
use crate::tape::Tensor;

pub(crate) static KERNEL: Kernel = kernel!("reduce", [[("PRODUCTS", "false")], [("PRODUCTS", "true")]]);

/// The sum of all elements. `x` of any shape; the result is `[1]`.
pub fn sum(x: &Tensor) -> Tensor {
    reduce("sum", x, View { outer: 1, rows: x.elements(), columns: 1 }, 1.0)
}

/// The mean of all elements. `x` of any shape; the result is `[1]`.
pub fn mean(x: &Tensor) -> Tensor {
    let scale = (1.0 / x.elements() as f64) as f32;
    reduce("mean", x, View { outer: 1, rows: x.elements(), columns: 1 }, scale)
}

/// The sum over all dimensions but the last: `x` of `[.., C]`, the result of `[C]`. The gradient of a bias.
pub fn sum_rows(x: &Tensor) -> Tensor {
    let columns = x.shape().last();
    reduce("sum_rows", x, View { outer: 1, rows: x.elements() / columns, columns }, 1.0)
}

fn reduce(name: &'static str, x: &Tensor, view: View, scale: f32) -> Tensor {
    let products = false;
    let [y] = x.tape().launch(Sum { name, view, scale, products }.recorded(), &[x], [[view.columns].into()]);
    let shape = x.shape().clone();
    derivative(&[x], &y, move |dy| dy.tape().launch(spread(view, scale), &[dy], [shape]).into());
    y
}

/// A tensor seen as `[outer, rows, columns]`; the rows are what is summed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub outer: usize,
    pub rows: usize,
    pub columns: usize,
}

impl View {
    pub fn elements(self) -> usize {
        self.outer * self.rows * self.columns
    }
}

/// `out[o, c] = scale * sum over r of x[o, r, c]`, of `x[o, r, c] * y[o, r, c]` if `products`. Reads `x`
/// (and `y`).
#[derive(Debug)]
pub(crate) struct Sum {
    pub name: &'static str,
    pub view: View,
    pub scale: f32,
    pub products: bool,
}

/// Columns that the CPU twin sums at once.
const TILE: usize = 64;

impl Sum {
    /// Rows of one task of the CPU twin: about `CHUNK` elements, and enough rows that partial sums stay
    /// few.
    fn cpu_slice_rows(&self) -> usize {
        (CHUNK / self.view.columns).max(16)
    }

    /// Columns of one workgroup, number of slices, and rows of a slice: as many slices as fill a large GPU
    /// if each thread still gets 16 rows, and no more than the second dispatch adds up quickly.
    fn gpu_slices(&self) -> (usize, usize, usize) {
        let View { outer, rows, columns } = self.view;
        let width = columns.next_power_of_two().min(64);
        let lines = 256 / width;
        let groups = outer * columns.div_ceil(width);
        let slices = rows.div_ceil(16 * lines).min(1024 / groups).clamp(1, 64 * lines);
        let slice_rows = rows.div_ceil(slices);
        (width, rows.div_ceil(slice_rows), slice_rows)
    }

    pub fn recorded(self) -> Recorded {
        let Sum { name, view, scale, products } = self;
        let View { outer, rows, columns } = view;
        let slice_rows = self.cpu_slice_rows();
        let slices = rows.div_ceil(slice_rows);
        let (width, gpu_slices, gpu_slice_rows) = self.gpu_slices();
        let info = LaunchInfo {
            cpu_scratch: vec![outer * slices * columns],
            gpu_scratch: if gpu_slices == 1 { Vec::new() } else { vec![outer * gpu_slices * columns] },
            ..LaunchInfo::default()
        };
        let cpu = move |io: &Io| {
            let (x, y) = (io.read(0), products.then(|| io.read(1)));
            let partial = io.scratch(0);
            partial.par_chunks_mut(columns).enumerate().for_each(|(i, partial)| {
                let first = i % slices * slice_rows;
                let count = slice_rows.min(rows - first);
                let begin = (i / slices * rows + first) * columns;
                let range = begin..begin + count * columns;
                vectorized(
                    #[inline(always)]
                    || sum_slice(partial, &x[range.clone()], y.map(|y| &y[range])),
                );
            });
            let partial = partial.par_chunks(slices * columns);
            io.write(0).par_chunks_mut(columns).zip(partial).for_each(|(out, partial)| {
                vectorized(
                    #[inline(always)]
                    || sum_partial(out, partial, f64::from(scale)),
                );
            });
        };
        let gpu = move |plan: &mut Dispatches| {
            let groups = outer * columns.div_ceil(width);
            let first_scale = if gpu_slices == 1 { scale } else { 1.0 };
            let first = dispatch(plan, "sum", view, [gpu_slices, gpu_slice_rows, width], first_scale);
            let y = usize::from(products);
            first.knobs(y).read("x", 0).read("y", y).cover(groups * gpu_slices, 1);
            if gpu_slices == 1 {
                first.write("out", 0);
                return;
            }
            first.scratch("out", 0);
            let partials = View { rows: gpu_slices, ..view };
            let second = dispatch(plan, "sum", partials, [1, gpu_slices, width], scale);
            second.scratch("x", 0).scratch("y", 0).write("out", 0).cover(groups, 1);
        };
        Recorded::new(launch_of(name, cpu, gpu), info)
    }
}

/// A dispatch of `entry` with the sizes of its `slices`, their rows, and the `width` of its blocks of
/// columns.
fn dispatch<'a>(
    plan: &'a mut Dispatches,
    entry: &'static str,
    View { outer, rows, columns }: View,
    [slices, slice_rows, width]: [usize; 3],
    scale: f32,
) -> &'a mut Dispatch {
    plan.add(&KERNEL, entry)
        .params([("outer", outer), ("rows", rows), ("columns", columns), ("slices", slices)])
        .params([("slice_rows", slice_rows), ("width", width)])
        .param("scale", scale)
}

/// Elements of a slice of `n`, on the GPU, so that `most` slices fill a large one if each thread still gets
/// 16 elements.
pub(crate) fn slice_size(n: usize, most: usize) -> usize {
    n.div_ceil(n.div_ceil(16 * 256).min(most).max(1))
}

/// Write 0 becomes `scale` times the sum of the partial sums, which go to scratch 0. For CPU twins.
pub(crate) fn total(io: &Io, scale: f64, partial: impl Fn(usize) -> f64 + Sync) {
    let partials = io.scratch(0);
    partials.par_iter_mut().enumerate().for_each(|(i, sum)| *sum = partial(i) as f32);
    io.write(0)[0] = (scale * partials.iter().map(|&sum| f64::from(sum)).sum::<f64>()) as f32;
}

/// A dispatch that writes `scale` times the sum of the `count` partial sums in scratch 0 to write 0.
pub(crate) fn add_total(plan: &mut Dispatches, count: usize, scale: f32) {
    let all = View { outer: 1, rows: count, columns: 1 };
    dispatch(plan, "sum", all, [1, count, 1], scale).scratch("x", 0).scratch("y", 0).write("out", 0);
}

/// Column sums, in f64, of consecutive rows of `x`, or of `x * y`; `sums` has one element per column.
#[inline(always)]
fn sum_slice(sums: &mut [f32], x: &[f32], y: Option<&[f32]>) {
    let columns = sums.len();
    // Few columns: several rows are taken as one long line, so that vectors are full whatever the number of
    // columns.
    let width = columns * (TILE / columns).max(1);
    for tile in (0..width).step_by(TILE) {
        let mut cells = [0.0_f64; TILE];
        for line in (0..x.len()).step_by(width) {
            let begin = x.len().min(line + tile);
            let end = x.len().min(line + width.min(tile + TILE));
            match y {
                None => {
                    for (cell, x) in cells.iter_mut().zip(&x[begin..end]) {
                        *cell += f64::from(*x);
                    }
                }
                Some(y) => {
                    for ((cell, x), y) in cells.iter_mut().zip(&x[begin..end]).zip(&y[begin..end]) {
                        *cell += f64::from(*x) * f64::from(*y);
                    }
                }
            }
        }
        // Cells of one column lie `columns` apart.
        let end = columns.min(tile + TILE);
        for (column, sum) in sums[tile..end].iter_mut().enumerate() {
            *sum = cells.iter().skip(column).step_by(columns).take(width / columns).sum::<f64>() as f32;
        }
    }
}

/// The sum over i of `widened(a[i], f(a[i], b[i]))`: `f` in f32, what follows and the sum in f64.
#[inline(always)]
pub(crate) fn sum_in_f64(
    a: &[f32],
    b: &[f32],
    f: impl Fn(f32, f32) -> f32,
    widened: impl Fn(f64, f64) -> f64,
) -> f64 {
    const LANES: usize = 16; // sums side by side, so that they vectorise
    let mut sums = [0.0_f64; LANES];
    let ((a, last_a), (b, last_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        // In two loops, so that `f` fills whole vectors of f32.
        let mut values = [0.0; LANES];
        for i in 0..LANES {
            values[i] = f(a[i], b[i]);
        }
        for ((sum, a), value) in sums.iter_mut().zip(a).zip(values) {
            *sum += widened(f64::from(*a), f64::from(value));
        }
    }
    for ((sum, a), b) in sums.iter_mut().zip(last_a).zip(last_b) {
        *sum += widened(f64::from(*a), f64::from(f(*a, *b)));
    }
    sums.iter().sum()
}

/// `out[c] = scale * sum over s of partial[s, c]`, in f64.
#[inline(always)]
fn sum_partial(out: &mut [f32], partial: &[f32], scale: f64) {
    let columns = out.len();
    for (tile, out) in out.chunks_mut(TILE).enumerate() {
        let mut cells = [0.0_f64; TILE];
        for line in partial.chunks_exact(columns) {
            for (cell, x) in cells.iter_mut().zip(&line[tile * TILE..][..out.len()]) {
                *cell += f64::from(*x);
            }
        }
        for (out, cell) in out.iter_mut().zip(cells) {
            *out = (scale * cell) as f32;
        }
    }
}

/// `dx[o, r, c] = scale * dy[o, c]`.
fn spread(view: View, scale: f32) -> impl Launch {
    let View { rows, columns, .. } = view;
    launch_of(
        "reduce backward_x",
        move |io| {
            let chunk_rows = (CHUNK / columns).clamp(1, rows);
            for (dx, dy) in io.write(0).chunks_mut(rows * columns).zip(io.read(0).chunks(columns)) {
                dx.par_chunks_mut(chunk_rows * columns).for_each(|dx| {
                    vectorized(
                        #[inline(always)]
                        || {
                            if columns == 1 {
                                dx.fill(scale * dy[0]);
                                return;
                            }
                            for dx in dx.chunks_mut(columns) {
                                for (dx, dy) in dx.iter_mut().zip(dy) {
                                    *dx = scale * dy;
                                }
                            }
                        },
                    );
                });
            }
        },
        move |plan| {
            let spread = dispatch(plan, "spread", view, [1, rows, 1], scale);
            spread.read("dy", 0).write("dx", 0).cover(view.elements(), 256);
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Check, random};

    #[test]
    fn sum_and_mean() {
        // Around one workgroup, one slice of the GPU, one chunk of the CPU; and a size of many slices.
        for n in [1, 63, 65, 257, 4097, CHUNK - 1, CHUNK + 1, 1_300_003] {
            Check::new("sum").probes(4).input(&[n]).run(|x| sum(&x[0]), |x| vec![x[0].iter().sum()]);
        }
        Check::new("mean")
            .input(&[3, 5, 7, 11])
            .run(|x| mean(&x[0]), |x| vec![x[0].iter().sum::<f64>() / x[0].len() as f64]);
    }

    /// Numbers of one sign, where a plain f32 loop is off by 1e-4.
    #[test]
    fn long_sums_are_accurate() {
        let n = 4_000_037;
        let x: Vec<f32> = random(1, n).into_iter().map(|v| v.abs() + 0.1).collect();
        Check::new("sum of positive numbers")
            .tolerance(5e-7)
            .probes(2)
            .values(&[n], x)
            .run(|x| sum(&x[0]), |x| vec![x[0].iter().sum()]);
    }

    fn column_sums(x: &[f64], columns: usize) -> Vec<f64> {
        let mut sums = vec![0.0; columns];
        for (i, x) in x.iter().enumerate() {
            sums[i % columns] += x;
        }
        sums
    }

    #[test]
    fn rows() {
        let shapes: [&[usize]; 12] = [
            &[1, 1],
            &[7],
            &[5, 1],
            &[2, 3, 5, 3],
            &[3, 7, 11, 17],
            &[1023, 63],
            &[517, 64],
            &[1025, 65],
            &[130, 129],
            &[3, 1021],
            &[17, 20_000], // one row is more than a chunk
            &[4, 9, 31, 320],
        ];
        for shape in shapes {
            let columns = shape[shape.len() - 1];
            Check::new("sum_rows")
                .input(shape)
                .probes(8)
                .run(|x| sum_rows(&x[0]), move |x| column_sums(&x[0], columns));
        }
    }

    #[test]
    fn tall_and_narrow() {
        for columns in [3, 64] {
            Check::new("sum_rows")
                .input(&[40_009, columns])
                .probes(3)
                .run(|x| sum_rows(&x[0]), |x| column_sums(&x[0], columns));
        }
    }

    #[test]
    fn past_65535_workgroups() {
        let n = 65_536 * 256 + 3;
        Check::new("sum").probes(2).input(&[n]).run(|x| sum(&x[0]), |x| vec![x[0].iter().sum()]);
    }
}
