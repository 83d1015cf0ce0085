//! `a + b`, `a - b`, `a * b` and `a / b`, with `b` spread over `a`; and `factor * x + offset`.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{CHUNK, Dispatch, Dispatches, launch_of, pack};
use crate::ops::reduce::{Sum, View};
use crate::ops::shared::{derivative, replayed};
use crate::simd::vectorized;
use crate::tape::Tensor;
use crate::tensor::Shape;

pub(crate) static KERNEL: Kernel = kernel!("arithmetic", pack::KNOBS);

/// How the second operand spreads over the first, `[N, .., C]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broadcast {
    /// The same shape.
    Same,
    /// One element for all.
    Scalar,
    /// `[C]`: one for each channel.
    Channel,
    /// `[N, C]`, or with ones between: one for each sample and channel.
    SampleChannel,
    /// `[N]`, or with ones after: one for each sample.
    Sample,
}

impl Broadcast {
    /// The first case, in the order of the enum, that fits; `None` if none does.
    ///
    /// So `[C]` wins over `[N]` when `C == N`, as trailing dimensions do in numpy. Write `[N, 1]` to mean
    /// samples for sure.
    pub fn of(a: &Shape, b: &Shape) -> Option<Self> {
        let (n, c) = (a.dims().first().copied().unwrap_or(1), a.last());
        let ones = |dims: &[usize]| dims.iter().all(|&d| d == 1);
        match b.dims() {
            dims if dims.len() > a.dims().len() => None,
            dims if dims == a.dims() => Some(Broadcast::Same),
            dims if ones(dims) => Some(Broadcast::Scalar),
            [last] if *last == c => Some(Broadcast::Channel),
            [first, middle @ .., last] if *first == n && *last == c && ones(middle) => {
                Some(Broadcast::SampleChannel)
            }
            [first, rest @ ..] if *first == n && ones(rest) => Some(Broadcast::Sample),
            _ => None,
        }
    }

    /// `a` as `[outer, rows, columns]` so that `b` is `[outer, columns]`.
    fn view(self, a: &Shape) -> View {
        let (all, n, c) = (a.elements(), a.dims().first().copied().unwrap_or(1), a.last());
        let view = match self {
            Broadcast::Same => flat(all),
            Broadcast::Scalar => View { outer: 1, rows: all, columns: 1 },
            Broadcast::Channel => View { outer: 1, rows: all / c, columns: c },
            Broadcast::SampleChannel => View { outer: n, rows: all / (n * c), columns: c },
            Broadcast::Sample => View { outer: n, rows: all / n, columns: 1 },
        };
        if view.rows == 1 { flat(all) } else { view }
    }
}

/// The view of two tensors with as many elements, of which neither is spread.
fn flat(elements: usize) -> View {
    View { outer: 1, rows: 1, columns: elements }
}

/// `a + b`. `a` of `[N, .., C]`, `b` spread over it (see [`Broadcast`]); the result has `a`'s shape.
#[track_caller]
pub fn add(a: &Tensor, b: &Tensor) -> Tensor {
    let (y, view) = apply(Op::Add, a, b);
    let shape = b.shape().clone();
    derivative(&[a, b], &y, move |dy| {
        let db = if view.rows == 1 { dy.clone() } else { sum("add backward_b", view, 1.0, &[dy], shape) };
        vec![dy.clone(), db]
    });
    y
}

/// `a - b`. Shapes as in [`add`].
#[track_caller]
pub fn sub(a: &Tensor, b: &Tensor) -> Tensor {
    let (y, view) = apply(Op::Sub, a, b);
    let shape = b.shape().clone();
    derivative(&[a, b], &y, move |dy| {
        let db = if view.rows == 1 {
            launch_affine(dy, -1.0, 0.0)
        } else {
            sum("sub backward_b", view, -1.0, &[dy], shape)
        };
        vec![dy.clone(), db]
    });
    y
}

/// `a * b`. Shapes as in [`add`].
#[track_caller]
pub fn mul(a: &Tensor, b: &Tensor) -> Tensor {
    let (y, view) = apply(Op::Mul, a, b);
    let (saved_a, saved_b) = (a.clone(), b.clone());
    derivative(&[a, b], &y, move |dy| {
        let (a, b) = (&saved_a, &saved_b);
        let db = if view.rows == 1 {
            launch(Op::Mul, view, dy, a)
        } else {
            sum("mul backward_b", view, 1.0, &[dy, a], b.shape().clone())
        };
        vec![launch(Op::Mul, view, dy, b), db]
    });
    y
}

/// `a / b`. Shapes as in [`add`].
#[track_caller]
pub fn div(a: &Tensor, b: &Tensor) -> Tensor {
    let (y, view) = apply(Op::Div, a, b);
    let (saved_y, saved_b) = (y.clone(), b.clone());
    derivative(&[a, b], &y, move |dy| {
        let (y, b) = (&saved_y, &saved_b);
        let da = launch(Op::Div, view, dy, b);
        // db = -sum(dy * a / b^2) = -sum(da * y)
        let db = if view.rows == 1 {
            launch_affine(&launch(Op::Mul, view, &da, y), -1.0, 0.0)
        } else {
            sum("div backward_b", view, -1.0, &[&da, y], b.shape().clone())
        };
        vec![da, db]
    });
    y
}

/// `factor * x + offset`, element by element, any shape.
pub fn affine(x: &Tensor, factor: f32, offset: f32) -> Tensor {
    let y = launch_affine(x, factor, offset);
    derivative(&[x], &y, move |dy| vec![launch_affine(dy, factor, 0.0)]);
    y
}

fn launch_affine(x: &Tensor, factor: f32, offset: f32) -> Tensor {
    let n = x.elements();
    let launch = launch_of(
        "affine",
        move |io| {
            io.map(
                #[inline(always)]
                |y, x| {
                    let (factor, offset) = (factor, offset);
                    for (y, x) in y.iter_mut().zip(x) {
                        *y = factor * x + offset;
                    }
                },
            );
        },
        move |plan| {
            dispatch(plan, "affine", flat(n), Op::Mul, [factor, offset]);
        },
    );
    let [y] = x.tape().launch(replayed(launch), &[x], [x.shape().clone()]);
    y
}

#[track_caller]
fn apply(op: Op, a: &Tensor, b: &Tensor) -> (Tensor, View) {
    let Some(broadcast) = Broadcast::of(a.shape(), b.shape()) else {
        panic!(
            "{}: {} does not spread over {}; it may have the same shape, one element, [C], [N, C] or [N, 1]",
            op.name(),
            b.shape(),
            a.shape()
        )
    };
    let view = broadcast.view(a.shape());
    (launch(op, view, a, b), view)
}

/// `y[o, r, c] = a[o, r, c] op b[o, c]` of `a`'s shape, without a derivative.
fn launch(op: Op, view: View, a: &Tensor, b: &Tensor) -> Tensor {
    let launch = launch_of(
        op.name(),
        move |io| {
            let b = io.read(1);
            let chunks = io.write(0).par_chunks_mut(CHUNK).zip(io.read(0).par_chunks(CHUNK));
            chunks.enumerate().for_each(|(chunk, (y, a))| {
                let start = chunk * CHUNK;
                vectorized(
                    #[inline(always)]
                    || match op {
                        Op::Add => zip_spread(view, start, y, a, b, |a, b| a + b),
                        Op::Sub => zip_spread(view, start, y, a, b, |a, b| a - b),
                        Op::Mul => zip_spread(view, start, y, a, b, |a, b| a * b),
                        Op::Div => zip_spread(view, start, y, a, b, |a, b| a / b),
                    },
                );
            });
        },
        move |plan| {
            dispatch(plan, "forward", view, op, [0.0; 2]).read("b", 1);
        },
    );
    let [y] = a.tape().launch(replayed(launch), &[a, b], [a.shape().clone()]);
    y
}

/// The gradient of a `b` that was spread: a sum, of one tensor or of a product, over the rows of the view.
fn sum(name: &'static str, view: View, scale: f32, factors: &[&Tensor], shape: Shape) -> Tensor {
    let products = factors.len() == 2;
    let [db] = factors[0].tape().launch(Sum { name, view, scale, products }.recorded(), factors, [shape]);
    db.exact()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Op {
    Add = 0,
    Sub = 1,
    Mul = 2,
    Div = 3,
}

impl Op {
    fn name(self) -> &'static str {
        ["add", "sub", "mul", "div"][self as usize]
    }
}

/// A dispatch from `a` to `y`, the elements of a view, in fours where the columns allow it.
fn dispatch<'a>(
    plan: &'a mut Dispatches,
    entry: &'static str,
    view: View,
    op: Op,
    [factor, offset]: [f32; 2],
) -> &'a mut Dispatch {
    let pack = pack::of(&[view.columns]);
    let n = view.elements() / pack;
    plan.add(&KERNEL, entry)
        .knobs(pack::set(pack))
        .params([("n", n), ("op", op as usize), ("block", view.rows * view.columns / pack)])
        .params([("columns", view.columns / pack)])
        .param("factor", factor)
        .param("offset", offset)
        .read("a", 0)
        .write("y", 0)
        .cover(n, 256)
}

/// `y = f(a, b)` for the elements of `a` from `start` on, in runs over which `b` is one number or goes
/// along with `a`.
#[inline(always)]
fn zip_spread(view: View, start: usize, y: &mut [f32], a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) {
    let View { outer: _, rows, columns } = view;
    let mut at = 0;
    while at < y.len() {
        let outer = (start + at) / (rows * columns);
        let column = (start + at) % columns;
        let run = if columns == 1 { (outer + 1) * rows - (start + at) } else { columns - column };
        let end = y.len().min(at + run);
        let (y, a) = (&mut y[at..end], &a[at..end]);
        let b = &b[outer * columns + column..];
        if columns == 1 {
            for (y, a) in y.iter_mut().zip(a) {
                *y = f(*a, b[0]);
            }
        } else {
            for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                *y = f(*a, *b);
            }
        }
        at = end;
    }
}

#[cfg(test)]
mod tests;
