//! `a + b`, `a - b`, `a * b` and `a / b`, with `b` spread over `a`; and `factor * x + offset`.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{Dispatches, Io, Launch, LaunchInfo, Recompute, Recorded};
use crate::ops::CHUNK;
use crate::ops::reduce::{Sum, View};
use crate::simd::vectorized;
use crate::tape::Tensor;
use crate::tensor::Shape;

pub static KERNEL: Kernel = kernel!("arithmetic");

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
    a.tape().derivative(&[a, b], &[&y], move |dy| {
        let Some(dy) = &dy[0] else { return vec![None, None] };
        let db = if view.rows == 1 { dy.clone() } else { sum("add backward_b", view, 1.0, &[dy], shape) };
        vec![Some(dy.clone()), Some(db)]
    });
    y
}

/// `a - b`. Shapes as in [`add`].
#[track_caller]
pub fn sub(a: &Tensor, b: &Tensor) -> Tensor {
    let (y, view) = apply(Op::Sub, a, b);
    let shape = b.shape().clone();
    a.tape().derivative(&[a, b], &[&y], move |dy| {
        let Some(dy) = &dy[0] else { return vec![None, None] };
        let db = if view.rows == 1 {
            let [db] = dy.tape().launch(
                Affine { factor: -1.0, offset: 0.0, n: shape.elements() }.recorded(),
                &[dy],
                [shape],
            );
            db
        } else {
            sum("sub backward_b", view, -1.0, &[dy], shape)
        };
        vec![Some(dy.clone()), Some(db)]
    });
    y
}

/// `a * b`. Shapes as in [`add`].
#[track_caller]
pub fn mul(a: &Tensor, b: &Tensor) -> Tensor {
    let (y, view) = apply(Op::Mul, a, b);
    let (a, b) = (a.clone(), b.clone());
    y.tape().derivative(&[&a.clone(), &b.clone()], &[&y], move |dy| {
        let Some(dy) = &dy[0] else { return vec![None, None] };
        let product = Forward { op: Op::Mul, view };
        let [da] = dy.tape().launch(product.recorded(), &[dy, &b], [a.shape().clone()]);
        let db = if view.rows == 1 {
            let [db] = dy.tape().launch(product.recorded(), &[dy, &a], [b.shape().clone()]);
            db
        } else {
            sum("mul backward_b", view, 1.0, &[dy, &a], b.shape().clone())
        };
        vec![Some(da), Some(db)]
    });
    y
}

/// `a / b`. Shapes as in [`add`].
#[track_caller]
pub fn div(a: &Tensor, b: &Tensor) -> Tensor {
    let (y, view) = apply(Op::Div, a, b);
    let (saved_y, saved_b) = (y.clone(), b.clone());
    a.tape().derivative(&[a, b], &[&y], move |dy| {
        let Some(dy) = &dy[0] else { return vec![None, None] };
        let (y, b, tape) = (&saved_y, &saved_b, dy.tape());
        let [da] = tape.launch(Forward { op: Op::Div, view }.recorded(), &[dy, b], [y.shape().clone()]);
        let [db] = if view.rows == 1 {
            tape.launch(DivBackwardB { n: view.elements() }, &[dy, y, b], [b.shape().clone()])
        } else {
            // db = -sum(dy * a / b^2) = -sum(dy * y) / b
            let sum = sum("div backward_b", view, -1.0, &[dy, y], b.shape().clone());
            tape.launch(
                Forward { op: Op::Div, view: flat(b.elements()) }.recorded(),
                &[&sum, b],
                [b.shape().clone()],
            )
        };
        vec![Some(da), Some(db)]
    });
    y
}

/// `factor * x + offset`, element by element, any shape.
pub fn affine(x: &Tensor, factor: f32, offset: f32) -> Tensor {
    let n = x.elements();
    let [y] = x.tape().launch(Affine { factor, offset, n }.recorded(), &[x], [x.shape().clone()]);
    let shape = x.shape().clone();
    x.tape().derivative(&[x], &[&y], move |dy| {
        let Some(dy) = &dy[0] else { return vec![None] };
        let [dx] = dy.tape().launch(Affine { factor, offset: 0.0, n }.recorded(), &[dy], [shape]);
        vec![Some(dx)]
    });
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
    let [y] = a.tape().launch(Forward { op, view }.recorded(), &[a, b], [a.shape().clone()]);
    (y, view)
}

/// The gradient of a `b` that was spread: a sum, of one tensor or of a product, over the rows of the view.
fn sum(name: &'static str, view: View, scale: f32, factors: &[&Tensor], shape: Shape) -> Tensor {
    let products = factors.len() == 2;
    let [db] = factors[0].tape().launch(Sum { name, view, scale, products }.recorded(), factors, [shape]);
    db
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
        match self {
            Op::Add => "add",
            Op::Sub => "sub",
            Op::Mul => "mul",
            Op::Div => "div",
        }
    }
}

/// `y[o, r, c] = a[o, r, c] op b[o, c]`.
#[derive(Clone, Copy, Debug)]
struct Forward {
    op: Op,
    view: View,
}

impl Launch for Forward {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn cpu(&self, io: &Io) {
        let (view, b) = (self.view, io.read(1));
        let chunks = io.write(0).par_chunks_mut(CHUNK).zip(io.read(0).par_chunks(CHUNK));
        chunks.enumerate().for_each(|(chunk, (y, a))| {
            let start = chunk * CHUNK;
            vectorized(
                #[inline(always)]
                || match self.op {
                    Op::Add => zip_spread(view, start, y, a, b, |a, b| a + b),
                    Op::Sub => zip_spread(view, start, y, a, b, |a, b| a - b),
                    Op::Mul => zip_spread(view, start, y, a, b, |a, b| a * b),
                    Op::Div => zip_spread(view, start, y, a, b, |a, b| a / b),
                },
            );
        });
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let View { outer: _, rows, columns } = self.view;
        let vec4 = columns.is_multiple_of(4);
        let (entry, [a, b, y], pack) = match vec4 {
            true => ("forward_vec4", ["a4", "b4", "y4"], 4),
            false => ("forward", ["a", "b", "y"], 1),
        };
        let n = self.view.elements() / pack;
        plan.add(&KERNEL, entry)
            .param("n", n)
            .param("op", self.op as u32)
            .param("block", rows * columns / pack)
            .param("columns", columns / pack)
            .param("factor", 0.0_f32)
            .param("offset", 0.0_f32)
            .read(a, 0)
            .read(b, 1)
            .write(y, 0)
            .cover(n, 256);
    }
}

impl Forward {
    fn recorded(self) -> Recorded {
        let info = LaunchInfo { recompute: Recompute::Replay, ..LaunchInfo::default() };
        Recorded::new(self, info)
    }
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

/// `db = -dy * y / b`, where `y = a / b` and nothing was spread.
#[derive(Debug)]
struct DivBackwardB {
    n: usize,
}

impl Launch for DivBackwardB {
    fn name(&self) -> &'static str {
        "div backward_b"
    }

    fn cpu(&self, io: &Io) {
        let (dy, y, b) =
            (io.read(0).par_chunks(CHUNK), io.read(1).par_chunks(CHUNK), io.read(2).par_chunks(CHUNK));
        io.write(0).par_chunks_mut(CHUNK).zip(dy).zip(y).zip(b).for_each(|(((db, dy), y), b)| {
            vectorized(
                #[inline(always)]
                || {
                    for (((db, dy), y), b) in db.iter_mut().zip(dy).zip(y).zip(b) {
                        *db = -dy * y / b;
                    }
                },
            );
        });
    }

    fn gpu(&self, plan: &mut Dispatches) {
        plan.add(&KERNEL, "divide_backward_b")
            .param("n", self.n)
            .param("op", Op::Div as u32)
            .param("block", self.n)
            .param("columns", self.n)
            .param("factor", 0.0_f32)
            .param("offset", 0.0_f32)
            .read("dy", 0)
            .read("quotient", 1)
            .read("b", 2)
            .write("db", 0)
            .cover(self.n, 256);
    }
}

#[derive(Debug)]
struct Affine {
    factor: f32,
    offset: f32,
    n: usize,
}

impl Launch for Affine {
    fn name(&self) -> &'static str {
        "affine"
    }

    fn cpu(&self, io: &Io) {
        io.write(0).par_chunks_mut(CHUNK).zip(io.read(0).par_chunks(CHUNK)).for_each(|(y, x)| {
            vectorized(
                #[inline(always)]
                || {
                    for (y, x) in y.iter_mut().zip(x) {
                        *y = self.factor * x + self.offset;
                    }
                },
            );
        });
    }

    fn gpu(&self, plan: &mut Dispatches) {
        plan.add(&KERNEL, "affine")
            .param("n", self.n)
            .param("op", 0_u32)
            .param("block", self.n)
            .param("columns", self.n)
            .param("factor", self.factor)
            .param("offset", self.offset)
            .read("u", 0)
            .write("v", 0)
            .cover(self.n, 256);
    }
}

impl Affine {
    fn recorded(self) -> Recorded {
        let info = LaunchInfo { recompute: Recompute::Replay, ..LaunchInfo::default() };
        Recorded::new(self, info)
    }
}

#[cfg(test)]
mod tests;
