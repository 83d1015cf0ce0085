//! Tensors side by side along the channels, and channels taken apart; each is the other's derivative.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{Dispatch, Dispatches, Io, Launch, pack};
use crate::ops::CHUNK;
use crate::ops::shared::{derivative, replayed};
use crate::tape::Tensor;
use crate::tensor::Shape;

pub static KERNEL: Kernel = kernel!("concat", pack::KNOBS);

/// Tensors that differ in their last dimension only, side by side: `[.., C1]`, `[.., C2]`, ... to `[.., C1
/// + C2 + ..]`.
#[track_caller]
pub fn concat(parts: &[&Tensor]) -> Tensor {
    let shapes = || parts.iter().map(|t| t.shape().to_string()).collect::<Vec<_>>().join(", ");
    assert!(!parts.is_empty(), "concat: no tensors");
    let outer = |t: &Tensor| t.dims().split_last().map(|(_, outer)| outer.to_vec());
    let same = parts.iter().all(|t| outer(t).is_some() && outer(t) == outer(parts[0]));
    assert!(same && parts.iter().all(|t| t.elements() > 0), "concat: {} do not fit together", shapes());
    let widths: Vec<usize> = parts.iter().map(|t| t.shape().last()).collect();
    let shape = with_last(parts[0].shape(), widths.iter().sum());
    let y = join(&widths, &parts.iter().map(|t| Some(*t)).collect::<Vec<_>>(), shape);
    let shapes: Vec<Shape> = parts.iter().map(|t| t.shape().clone()).collect();
    derivative(parts, &y, move |dy| take_apart(dy, &widths, &shapes));
    y
}

/// The channels of `x [.., C]` taken apart: `[.., widths[0]]`, `[.., widths[1]]`, ... whose widths add up
/// to `C`.
#[track_caller]
pub fn split(x: &Tensor, widths: &[usize]) -> Vec<Tensor> {
    assert!(
        x.elements() > 0 && widths.iter().sum::<usize>() == x.shape().last() && widths.iter().all(|&w| w > 0),
        "split: widths {widths:?} do not add up to the last dimension of x {}",
        x.shape()
    );
    let shapes: Vec<Shape> = widths.iter().map(|&w| with_last(x.shape(), w)).collect();
    let parts = take_apart(x, widths, &shapes);
    let (widths, shape) = (widths.to_vec(), x.shape().clone());
    x.tape().derivative(&[x], &parts.iter().collect::<Vec<_>>(), move |dy| {
        vec![Some(join(&widths, &dy.iter().map(Option::as_ref).collect::<Vec<_>>(), shape))]
    });
    parts
}

fn with_last(shape: &Shape, width: usize) -> Shape {
    let mut dims = shape.dims().to_vec();
    *dims.last_mut().expect("a dimension to join or split along") = width;
    Shape::from(dims.as_slice())
}

/// One launch that writes a tensor of `shape`; the channels of a part that is `None` become zero.
fn join(widths: &[usize], parts: &[Option<&Tensor>], shape: Shape) -> Tensor {
    let reads: Vec<&Tensor> = parts.iter().flatten().copied().collect();
    let total = widths.iter().sum();
    let launch = Join {
        rows: shape.elements() / total,
        total,
        parts: widths.iter().zip(parts).map(|(&width, part)| (width, part.is_some())).collect(),
    };
    let [whole] = reads[0].tape().launch(replayed(launch), &reads, [shape]);
    whole
}

/// A launch for each part, so that those that nobody uses are dropped.
fn take_apart(whole: &Tensor, widths: &[usize], shapes: &[Shape]) -> Vec<Tensor> {
    let total: usize = widths.iter().sum();
    let mut first = 0;
    let mut parts = Vec::new();
    for (&width, shape) in widths.iter().zip(shapes) {
        let launch = Take { rows: whole.elements() / total, total, first, width };
        let [part] = whole.tape().launch(replayed(launch), &[whole], [shape.clone()]);
        parts.push(part);
        first += width;
    }
    parts
}

/// Puts its reads side by side.
#[derive(Debug)]
struct Join {
    rows: usize,
    total: usize,
    /// Width of each part, and whether there is a tensor for it; zero otherwise.
    parts: Vec<(usize, bool)>,
}

impl Launch for Join {
    fn name(&self) -> &'static str {
        "concat join"
    }

    fn cpu(&self, io: &Io) {
        let whole = io.write(0);
        let rows = (CHUNK / self.total).max(1);
        let (mut first, mut read) = (0, 0);
        for &(width, there) in &self.parts {
            let chunks = whole.par_chunks_mut(rows * self.total);
            let strip = first..first + width;
            if there {
                chunks.zip(io.read(read).par_chunks(rows * width)).for_each(|(whole, part)| {
                    for (whole, part) in whole.chunks_exact_mut(self.total).zip(part.chunks_exact(width)) {
                        whole[strip.clone()].copy_from_slice(part);
                    }
                });
                read += 1;
            } else {
                chunks.for_each(|whole| {
                    whole.chunks_exact_mut(self.total).for_each(|whole| whole[strip.clone()].fill(0.0));
                });
            }
            first += width;
        }
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let (mut first, mut read) = (0, 0);
        for &(width, there) in &self.parts {
            let to = Strip { stride: self.total, first };
            if there {
                let from = Strip { stride: width, first: 0 };
                strip(plan, "strip", self.rows, width, from, to).read("input", read).write("output", 0);
                read += 1;
            } else {
                strip(plan, "zero", self.rows, width, to, to).write("output", 0);
            }
            first += width;
        }
    }
}

/// Takes `width` channels from `first` on out of `total`.
#[derive(Debug)]
struct Take {
    rows: usize,
    total: usize,
    first: usize,
    width: usize,
}

impl Launch for Take {
    fn name(&self) -> &'static str {
        "concat take"
    }

    fn cpu(&self, io: &Io) {
        let rows = (CHUNK / self.total).max(1);
        let strip = self.first..self.first + self.width;
        let whole = io.read(0).par_chunks(rows * self.total);
        io.write(0).par_chunks_mut(rows * self.width).zip(whole).for_each(|(part, whole)| {
            for (part, whole) in part.chunks_exact_mut(self.width).zip(whole.chunks_exact(self.total)) {
                part.copy_from_slice(&whole[strip.clone()]);
            }
        });
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let from = Strip { stride: self.total, first: self.first };
        let to = Strip { stride: self.width, first: 0 };
        strip(plan, "strip", self.rows, self.width, from, to).read("input", 0).write("output", 0);
    }
}

/// Where a strip of channels lies in a tensor.
#[derive(Clone, Copy)]
struct Strip {
    stride: usize,
    first: usize,
}

fn strip<'a>(
    plan: &'a mut Dispatches,
    entry: &'static str,
    rows: usize,
    width: usize,
    from: Strip,
    to: Strip,
) -> &'a mut Dispatch {
    let pack = pack::of(&[width, from.stride, from.first, to.stride, to.first]);
    plan.add(&KERNEL, entry)
        .knobs(pack::set(pack))
        .params([("rows", rows), ("width", width / pack)])
        .params([("from_width", from.stride / pack), ("from_first", from.first / pack)])
        .params([("to_width", to.stride / pack), ("to_first", to.first / pack)])
        .cover(rows * width / pack, 256)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Check;

    fn reference_concat(rows: usize, widths: &[usize], parts: &[Vec<f64>]) -> Vec<f64> {
        let mut y = Vec::new();
        for row in 0..rows {
            for (part, width) in parts.iter().zip(widths) {
                y.extend_from_slice(&part[row * width..(row + 1) * width]);
            }
        }
        y
    }

    fn reference_split(total: usize, first: usize, width: usize, x: &[f64]) -> Vec<f64> {
        x.chunks(total).flat_map(|row| row[first..first + width].to_vec()).collect()
    }

    #[test]
    fn concatenation() {
        let cases: [(&[usize], &[usize]); 8] = [
            (&[2, 3, 5], &[7, 4]),
            (&[1], &[1, 1]),
            (&[3, 2, 1], &[16, 1, 33]),
            (&[], &[3, 5]),
            (&[2, 257], &[4]),
            (&[3], &[16_385, 2]),
            (&[2, 3], &[8, 12]),
            (&[5], &[4, 6, 2, 4]),
        ];
        for (outer, widths) in cases {
            let mut check = Check::new("concat");
            for &width in widths {
                check = check.input(&[outer, &[width]].concat());
            }
            check.run(
                |x| concat(&x.iter().collect::<Vec<_>>()),
                |x| reference_concat(outer.iter().product(), widths, x),
            );
        }
    }

    #[test]
    fn a_tensor_beside_itself() {
        // Two gradients of one tensor.
        Check::new("concat twice").input(&[5, 3]).run(
            |x| concat(&[&x[0], &x[0]]),
            |x| reference_concat(5, &[3, 3], &[x[0].clone(), x[0].clone()]),
        );
    }

    #[test]
    fn splitting() {
        let widths = [5, 1, 7];
        for (part, first) in [0, 5, 6].into_iter().enumerate() {
            // One part is used: the gradients of the others are missing.
            Check::new(format!("part {part} of split")).input(&[2, 3, 11, 13]).run(
                |x| split(&x[0], &widths)[part].clone(),
                |x| reference_split(13, first, widths[part], &x[0]),
            );
        }
    }

    #[test]
    fn splitting_in_fours() {
        let widths = [8, 4, 12];
        for (part, first) in [0, 8, 12].into_iter().enumerate() {
            Check::new(format!("part {part} of split")).input(&[7, 24]).run(
                |x| split(&x[0], &widths)[part].clone(),
                |x| reference_split(24, first, widths[part], &x[0]),
            );
        }
    }

    #[test]
    fn parts_in_another_order() {
        Check::new("split, then concat").input(&[2, 5, 12]).run(
            |x| {
                let parts = split(&x[0], &[3, 4, 5]);
                concat(&[&parts[2], &parts[0]])
            },
            |x| {
                let part = |first, width| reference_split(12, first, width, &x[0]);
                reference_concat(10, &[5, 3], &[part(7, 5), part(0, 3)])
            },
        );
    }

    #[test]
    fn past_65535_workgroups() {
        let rows = 65_536 * 256 / 2 + 3;
        Check::new("concat")
            .probes(2)
            .input(&[rows, 2])
            .input(&[rows, 1])
            .run(|x| concat(&[&x[0], &x[1]]), |x| reference_concat(rows, &[2, 1], x));
    }

    #[test]
    #[should_panic(expected = "concat: [2, 3, 4], [2, 5, 4] do not fit together")]
    fn outer_dimensions_must_agree() {
        let tape = crate::tape::Tape::new();
        concat(&[&tape.variable("a", 0, [2, 3, 4]), &tape.variable("b", 0, [2, 5, 4])]);
    }

    #[test]
    #[should_panic(expected = "split: widths [3, 4] do not add up to the last dimension of x [2, 8]")]
    fn widths_must_add_up() {
        split(&crate::tape::Tape::new().variable("x", 0, [2, 8]), &[3, 4]);
    }
}
