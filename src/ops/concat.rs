//! Tensors side by side along the channels, and channels taken apart; each is the other's derivative.

use std::ops::Range;

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{CHUNK, Dispatch, Dispatches, launch_of, pack};
use crate::ops::shared::{derivative, replayed};
use crate::tape::Tensor;
use crate::tensor::Shape;

pub(crate) static KERNEL: Kernel = kernel!("concat", pack::KNOBS);

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

/// Puts `parts` side by side in a tensor of `shape`; the channels of one that is `None` become zero.
fn join(widths: &[usize], parts: &[Option<&Tensor>], shape: Shape) -> Tensor {
    let reads: Vec<&Tensor> = parts.iter().flatten().copied().collect();
    let total: usize = widths.iter().sum();
    // Channels of each part, and the number of its read if it has one.
    let mut numbers = 0..reads.len();
    let inputs: Vec<_> =
        channels(widths).zip(parts).map(|(of, part)| (of, part.and_then(|_| numbers.next()))).collect();
    let (inputs_gpu, rows) = (inputs.clone(), shape.elements() / total);
    let launch = launch_of(
        "concat join",
        move |io| {
            let (whole, rows) = (io.write(0), (CHUNK / total).max(1));
            for (channels, read) in &inputs {
                let chunks = whole.par_chunks_mut(rows * total);
                let width = channels.len();
                match read {
                    Some(read) => chunks.zip(io.read(*read).par_chunks(rows * width)).for_each(|(y, x)| {
                        for (y, x) in y.chunks_exact_mut(total).zip(x.chunks_exact(width)) {
                            y[channels.clone()].copy_from_slice(x);
                        }
                    }),
                    None => chunks.for_each(|y| {
                        y.chunks_exact_mut(total).for_each(|y| y[channels.clone()].fill(0.0));
                    }),
                }
            }
        },
        move |plan| {
            for (channels, read) in &inputs_gpu {
                let to = Strip { stride: total, first: channels.start };
                let from = Strip { stride: channels.len(), first: 0 };
                match read {
                    Some(read) => strip(plan, "strip", rows, channels.len(), from, to).read("input", *read),
                    None => strip(plan, "zero", rows, channels.len(), to, to),
                };
            }
        },
    );
    let [whole] = reads[0].tape().launch(replayed(launch), &reads, [shape]);
    whole
}

/// The channels of each part.
fn channels(widths: &[usize]) -> impl Iterator<Item = Range<usize>> {
    let mut end = 0;
    widths.iter().map(move |width| {
        end += width;
        end - width..end
    })
}

/// A launch for each part, so that unused ones are dropped.
fn take_apart(whole: &Tensor, widths: &[usize], shapes: &[Shape]) -> Vec<Tensor> {
    let total: usize = widths.iter().sum();
    let all_rows = whole.elements() / total;
    let take = |(channels, shape): (Range<usize>, &Shape)| {
        let width = channels.len();
        let from = Strip { stride: total, first: channels.start };
        let launch = launch_of(
            "concat take",
            move |io| {
                let rows = (CHUNK / total).max(1);
                let whole = io.read(0).par_chunks(rows * total);
                io.write(0).par_chunks_mut(rows * width).zip(whole).for_each(|(part, whole)| {
                    for (part, whole) in part.chunks_exact_mut(width).zip(whole.chunks_exact(total)) {
                        part.copy_from_slice(&whole[channels.clone()]);
                    }
                });
            },
            move |plan| {
                let to = Strip { stride: width, first: 0 };
                strip(plan, "strip", all_rows, width, from, to).read("input", 0);
            },
        );
        let [part] = whole.tape().launch(replayed(launch), &[whole], [shape.clone()]);
        part
    };
    channels(widths).zip(shapes).map(take).collect()
}

/// The place of some channels in a tensor.
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
        .write("output", 0)
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
