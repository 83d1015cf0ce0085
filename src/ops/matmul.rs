//! Matrix products, batched or with one matrix shared by all, with an optional bias; the linear layer.

mod twin;

#[cfg(test)]
mod tests;

use rayon::prelude::*;

use crate::device::gpu::adapters::Traits;
use crate::launch::ways::{TILES, Way};
use crate::launch::{Dispatch, Dispatches, Io, Launch, LaunchInfo, Recorded, Slot, Tuning, Variant};
pub use crate::ops::shared::product::{KERNEL, SPREAD, TILED, Transpose};
use crate::ops::shared::product::{Sizes, Slots, TILE};
use crate::simd::vectorized;
use crate::tape::Tensor;
use crate::tensor::Shape;

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
            let [dbias] = dy.tape().launch(sum.recorded(), &[dy], [[product.n].into()]);
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
        let [y] = a.tape().launch(self.recorded(), &reads, [shape]);
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

    /// The kernel of [`Way::Broad`] computes it.
    fn may_be_broad(&self) -> bool {
        let wide = self.n.is_multiple_of(4) && self.k.is_multiple_of(4);
        self.transpose == Transpose::NONE && wide && !self.cuts
    }

    fn outputs(&self) -> usize {
        self.batch * self.m * self.n
    }

    /// Parts of K, and the length of each, for the GPU. Depends on the shapes and the way alone.
    fn gpu_parts(&self, way: Way) -> (usize, usize) {
        let most = if self.cuts { self.k / 256 } else { 1 };
        let wanted = match way {
            Way::Direct => WANTED_GROUPS / (self.batch * self.m.div_ceil(TILE) * self.n.div_ceil(TILE)),
            way => way.parts([self.m, self.n]) / self.batch,
        };
        let needed = if self.cuts { self.k.div_ceil(LONGEST_SUM) } else { 1 };
        let depth = self.k.div_ceil(most.min(wanted).max(needed)).next_multiple_of(4);
        (self.k.div_ceil(depth), depth)
    }
}

/// Terms of a part where the sum runs over the batch: rounding grows with their number, and llvmpipe leaves any
/// loop after 65,535 turns.
const LONGEST_SUM: usize = 1 << 14;

/// Workgroups that a GPU product aims at by cutting K.
const WANTED_GROUPS: usize = 512;

impl Launch for Product {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu(&self, io: &Io) {
        let (a, b, bias) = (io.read(0), io.read(1), io.has_read(2).then(|| io.read(2)));
        self.multiply(a, b, bias, io.write(0), io.prepacked());
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let way = Way::of(plan.variant());
        let (parts, depth) = self.gpu_parts(way);
        let Product { batch, m, n, k, transpose, .. } = *self;
        let sizes = Sizes { batch, m, n, k, transpose };
        let bias = self.bias.then_some(Slot::Read(2));
        let slots = Slots { a: Slot::Read(0), b: Slot::Read(1), bias, y: Slot::Write(0) };
        if parts == 1 {
            sizes.dispatch(plan, way, [parts, depth], slots);
        } else {
            sizes.dispatch(plan, way, [parts, depth], Slots { bias: None, y: Slot::Scratch(0), ..slots });
            let sum = plan.add(&KERNEL, "sum_parts");
            sizes.params(sum, [parts, depth], bias, slots.b);
            sum.scratch("part_sums", 0).write("y", 0).cover_in_sub_dispatches(self.outputs(), 256);
        }
    }
}

impl Product {
    fn recorded(self) -> Recorded {
        let info = LaunchInfo {
            flops: 2 * (self.outputs() * self.k) as u64,
            cpu_scratch: vec![self.room().iter().sum()],
            gpu_scratch: self.gpu_scratch(),
            prepacked_from: self.packs_b_alone().then_some(1),
            tuning: Tuning::new(self.shape_class(), move |adapter| self.variants(adapter)),
            ..LaunchInfo::default()
        };
        Recorded::new(self, info)
    }

    fn variants(&self, adapter: &Traits) -> Vec<Variant> {
        let spread: &[Way] = match (adapter.broadcasts, self.may_be_broad()) {
            (false, _) => &[],
            (true, false) => &[Way::Spread],
            // Whose tile is half full at least.
            (true, true) if self.m >= 128 && self.n >= 64 => &[Way::Broad, Way::Spread],
            (true, true) => &[Way::Spread, Way::Broad],
        };
        Way::variants(adapter, [self.batch * self.m, self.n], spread)
    }

    fn shape_class(&self) -> String {
        let Product { batch, m, n, k, transpose: Transpose { a, b }, .. } = *self;
        let turned = |yes| if yes { ", turned" } else { "" };
        format!("{batch} x {m} x {k}{} by {k} x {n}{}", turned(a), turned(b))
    }

    fn gpu_scratch(&self) -> Vec<usize> {
        let ways = (0..TILES.len()).map(Way::Tiled).chain([Way::Direct, Way::Spread]);
        match ways.map(|way| self.gpu_parts(way).0).max() {
            None | Some(1) => Vec::new(),
            Some(parts) => vec![parts * self.outputs()],
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

    fn gpu(&self, plan: &mut Dispatches) {
        let (parts, depth) = self.parts();
        let params = |dispatch: &mut Dispatch, m: usize| {
            dispatch.param("batch", 1_usize).param("m", m).param("n", self.n).param("k", 1_usize);
            dispatch.param("parts", parts).param("depth", depth).param("has_bias", false);
            dispatch.param("a_transposed", false).param("b_transposed", false);
        };
        let partial = plan.add(&KERNEL, "column_sum_parts");
        params(partial, self.rows);
        partial
            .read("dy", 0)
            .scratch("column_parts", 0)
            .cover_in_sub_dispatches(parts * self.n.div_ceil(64), 1);
        // The sum of the parts, of which each is one row.
        let sum = plan.add(&KERNEL, "sum_parts");
        params(sum, 1);
        sum.scratch("part_sums", 0).read("bias", 0).write("y", 0).cover_in_sub_dispatches(self.n, 256);
    }
}

impl ColumnSum {
    fn recorded(self) -> Recorded {
        let info = LaunchInfo {
            // One f64 for each column of each part.
            cpu_scratch: vec![2 * self.parts().0 * self.n],
            gpu_scratch: vec![self.parts().0 * self.n],
            ..LaunchInfo::default()
        };
        Recorded::new(self, info)
    }
}
