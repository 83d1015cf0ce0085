//! Matrix products, batched or with one matrix shared by all, with an optional bias; the linear layer.

mod twin;

#[cfg(test)]
mod tests;

use rayon::prelude::*;

use crate::device::gpu::adapters::Traits;
use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{Cost, Cut, Dispatches, Io, Launch, Slot, Variant};
use crate::product::gpu::{self, Schedule, Slots};
use crate::product::{self, Epilogue, Loader};
use crate::simd::vectorized;
use crate::tape::Tensor;
use crate::tensor::Shape;

pub static KERNEL: Kernel = kernel!("matmul");

/// Which factors of a product are given with rows and columns exchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transpose {
    pub a: bool,
    pub b: bool,
}

impl Transpose {
    pub const NONE: Transpose = Transpose { a: false, b: false };
}

/// `y = x w + bias`: x `[.., Cin]`, w `[Cin, Cout]`, bias `[Cout]`, y `[.., Cout]`.
///
/// # Panics
/// When the shapes do not fit.
#[track_caller]
pub fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Tensor {
    matmul(x, w, Transpose::NONE, bias)
}

/// `y = a b + bias` over the last two dimensions: a `[.., M, K]`, b `[.., K, N]`, bias `[N]`,
/// y `[.., M, N]`.
///
/// A transposed a is `[.., K, M]`, a transposed b `[.., N, K]`. The leading dimensions of a and b are
/// equal, or b is a single matrix that all share; a must not be transposed then, unless it is a single
/// matrix too.
///
/// # Panics
/// When the shapes do not fit.
#[track_caller]
pub fn matmul(a: &Tensor, b: &Tensor, transpose: Transpose, bias: Option<&Tensor>) -> Tensor {
    let product = Product::of(a, b, transpose, bias);
    let mut shape = a.dims()[..a.dims().len() - 2].to_vec();
    // Where b is shared, the product has folded a's leading dimensions into M.
    shape.push(a.dims()[a.dims().len() - if transpose.a { 1 } else { 2 }]);
    shape.push(product.n);
    let y = product.record(a, b, bias, shape.as_slice().into());

    let (saved_a, saved_b) = (a.clone(), b.clone());
    let inputs: Vec<&Tensor> = [Some(a), Some(b), bias].into_iter().flatten().collect();
    a.tape().derivative(&inputs, &[&y], move |dy| {
        let Some(dy) = &dy[0] else { return vec![None; inputs_of(product.bias)] };
        let mut gradients = vec![
            Some(product.backward_a(&saved_a, &saved_b, dy)),
            Some(product.backward_b(&saved_a, &saved_b, dy)),
        ];
        if product.bias {
            let sum = ColumnSum { rows: product.batch * product.m, n: product.n };
            let [dbias] = dy.tape().launch(sum, &[dy], [[product.n].into()]);
            gradients.push(Some(dbias));
        }
        gradients
    });
    y
}

fn inputs_of(bias: bool) -> usize {
    if bias { 3 } else { 2 }
}

#[derive(Clone, Copy, Debug)]
struct Product {
    name: &'static str,
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    transpose: Transpose,
    bias: bool,
    /// The sum over K may be cut into parts: only where it runs over the batch. Elsewhere the cut would
    /// depend on the batch, and a sample must not.
    cuts: bool,
}

impl Product {
    #[track_caller]
    fn of(a: &Tensor, b: &Tensor, transpose: Transpose, bias: Option<&Tensor>) -> Self {
        let shapes = || {
            let bias = bias.map_or("no bias".to_owned(), |bias| format!("bias {}", bias.shape()));
            format!("a {}, b {}, {bias}, {transpose:?}", a.shape(), b.shape())
        };
        let (a_dims, b_dims) = (a.dims(), b.dims());
        assert!(a_dims.len() >= 2 && b_dims.len() >= 2, "matmul: two dimensions or more: {}", shapes());
        let (a_lead, a_last) = a_dims.split_at(a_dims.len() - 2);
        let (b_lead, b_last) = b_dims.split_at(b_dims.len() - 2);
        let (m, k) = if transpose.a { (a_last[1], a_last[0]) } else { (a_last[0], a_last[1]) };
        let (b_k, n) = if transpose.b { (b_last[1], b_last[0]) } else { (b_last[0], b_last[1]) };
        assert!(k == b_k, "matmul: inner dimensions {k} and {b_k} differ: {}", shapes());
        let items: usize = a_lead.iter().product();
        let (batch, m) = if a_lead == b_lead {
            (items, m)
        } else {
            let shared = b_lead.is_empty() && !transpose.a;
            assert!(
                shared,
                "matmul: leading dimensions differ, or b is shared by a transposed a: {}",
                shapes()
            );
            (1, items * m)
        };
        assert!(batch * m * n * k > 0, "matmul: an empty tensor: {}", shapes());
        if let Some(bias) = bias {
            assert!(bias.dims() == [n], "matmul: expected a bias of [{n}]: {}", shapes());
        }
        Product { name: "matmul", batch, m, n, k, transpose, bias: bias.is_some(), cuts: false }
    }

    fn record(self, a: &Tensor, b: &Tensor, bias: Option<&Tensor>, shape: Shape) -> Tensor {
        let reads: Vec<&Tensor> = [Some(a), Some(b), bias].into_iter().flatten().collect();
        let [y] = a.tape().launch(self, &reads, [shape]);
        y
    }

    /// `dA = dy B^T`, or its transpose `B dy^T`.
    fn backward_a(self, a: &Tensor, b: &Tensor, dy: &Tensor) -> Tensor {
        let name = "matmul backward_a";
        let Transpose { a: ta, b: tb } = self.transpose;
        if ta {
            let transpose = Transpose { a: tb, b: true };
            let product = Product { name, m: self.k, n: self.m, k: self.n, transpose, bias: false, ..self };
            product.record(b, dy, None, a.shape().clone())
        } else {
            let transpose = Transpose { a: false, b: !tb };
            let product = Product { name, n: self.k, k: self.n, transpose, bias: false, ..self };
            product.record(dy, b, None, a.shape().clone())
        }
    }

    /// `dB = A^T dy`, or its transpose `dy^T A`.
    fn backward_b(self, a: &Tensor, b: &Tensor, dy: &Tensor) -> Tensor {
        let name = "matmul backward_b";
        let Transpose { a: ta, b: tb } = self.transpose;
        if tb {
            let transpose = Transpose { a: true, b: ta };
            let product =
                Product { name, m: self.n, n: self.k, k: self.m, transpose, bias: false, cuts: true, ..self };
            product.record(dy, a, None, b.shape().clone())
        } else {
            let transpose = Transpose { a: !ta, b: false };
            let product = Product { name, m: self.k, k: self.m, transpose, bias: false, cuts: true, ..self };
            product.record(a, dy, None, b.shape().clone())
        }
    }

    fn outputs(&self) -> usize {
        self.batch * self.m * self.n
    }

    fn product(&self) -> product::Product {
        let Product { name, batch, m, n, k, transpose, bias, cuts } = *self;
        let loader =
            |transposed, block| if transposed { Loader::Transposed { block } } else { Loader::Dense };
        product::Product {
            name,
            batch,
            rows: m,
            cols: n,
            depth: k,
            a: loader(transpose.a, k),
            b: loader(transpose.b, k),
            epilogue: Epilogue { bias, ..Epilogue::default() },
            split_k: cuts,
            column_sums: false,
        }
    }
}

impl Launch for Product {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cost(&self, bytes: u64) -> Cost {
        Cost { flops: 2 * (self.outputs() * self.k) as u64, bytes }
    }

    fn cpu_scratch(&self) -> Vec<usize> {
        vec![self.room().iter().sum()]
    }

    fn cpu_made_from(&self) -> Option<usize> {
        self.packs_b_alone().then_some(1)
    }

    fn cpu(&self, io: &Io) {
        let (a, b, bias) = (io.read(0), io.read(1), io.has_read(2).then(|| io.read(2)));
        self.multiply(a, b, bias, io.write(0), io.made());
    }

    fn variants(&self, adapter: &Traits) -> Vec<Variant> {
        gpu::variants(&self.product(), adapter)
    }

    fn shape_class(&self) -> String {
        gpu::shape_class(&self.product())
    }

    fn gpu_scratch(&self) -> Vec<usize> {
        gpu::scratch(&self.product())
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let [a, b, y] = [Slot::Read(0), Slot::Read(1), Slot::Write(0)];
        let extra = [self.bias.then_some(Slot::Read(2)), None, None];
        let slots = Slots { a, b, extra, y, column_sums: y };
        gpu::dispatch(&self.product(), Schedule::of(plan.variant()), plan, 0, slots);
    }

    fn cuts(&self) -> Vec<Cut> {
        let whole = *self;
        let Product { batch, m, n, k, transpose, .. } = whole;
        if batch > 1 {
            vec![Cut::along(batch, move |_, batch| Product { batch, ..whole }).reads([0, 1]).writes([0])]
        } else if !transpose.a {
            vec![Cut::along(m, move |_, m| Product { m, ..whole }).reads([0]).writes([0])]
        } else {
            // The bias is added once.
            let part = move |first, k| Product { k, bias: whole.bias && first == 0, ..whole };
            let cut = Cut::along(k, part).reads([0]).sums([0]);
            vec![if transpose.b { cut.within(Slot::Read(1), n) } else { cut.reads([1]) }]
        }
    }
}

/// `y[n] = sum over rows of x[row, n]`: the gradient of a bias.
#[derive(Debug)]
struct ColumnSum {
    rows: usize,
    n: usize,
}

impl ColumnSum {
    /// Parts of the rows, and the length of each.
    fn parts(&self) -> (usize, usize) {
        let depth = self.rows.div_ceil(256).max(64);
        (self.rows.div_ceil(depth), depth)
    }
}

impl Launch for ColumnSum {
    fn name(&self) -> &'static str {
        "matmul backward_bias"
    }

    /// One f64 for each column of each part.
    fn cpu_scratch(&self) -> Vec<usize> {
        vec![2 * self.parts().0 * self.n]
    }

    fn cpu(&self, io: &Io) {
        let n = self.n;
        let sums: &mut [f64] = bytemuck::cast_slice_mut(io.scratch(0));
        sums.par_chunks_mut(n).zip(io.read(0).par_chunks(self.parts().1 * n)).for_each(|(sums, rows)| {
            vectorized(
                #[inline(always)]
                || {
                    sums.fill(0.0);
                    for row in rows.chunks_exact(n) {
                        for (sum, x) in sums.iter_mut().zip(row) {
                            *sum += f64::from(*x);
                        }
                    }
                },
            );
        });
        for (col, y) in io.write(0).iter_mut().enumerate() {
            *y = sums.iter().skip(col).step_by(n).sum::<f64>() as f32;
        }
    }

    fn gpu_scratch(&self) -> Vec<usize> {
        vec![self.parts().0 * self.n]
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let (parts, depth) = self.parts();
        plan.add(&KERNEL, "column_sum_parts")
            .param("m", self.rows)
            .param("n", self.n)
            .param("parts", parts)
            .param("depth", depth)
            .read("dy", 0)
            .scratch("column_parts", 0)
            .cover_in_pieces(parts * self.n.div_ceil(64), 1);
        plan.add(&KERNEL, "sum_parts")
            .param("m", self.rows)
            .param("n", self.n)
            .param("parts", parts)
            .param("depth", depth)
            .scratch("part_sums", 0)
            .write("y", 0)
            .cover_in_pieces(self.n, 256);
    }

    fn cuts(&self) -> Vec<Cut> {
        let n = self.n;
        vec![Cut::along(self.rows, move |_, rows| ColumnSum { rows, n }).reads([0]).sums([0])]
    }
}
