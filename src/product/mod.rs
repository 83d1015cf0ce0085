//! The one loop of convolution, transposed convolution, matrix product and linear layer: "sum over k of
//! `A[row, k] * B[k, col]`, then an epilogue".
//!
//! An op says which elements A and B have ([`loader`]) and what is added to the sums. How the loop runs is
//! decided here, once for all ops: `plain.rs` is the loop as it reads, [`cpu`] the register tile of the CPU
//! device, [`gpu`] the schedules of the GPU kernels.
//!
//! The epilogue is added where sums are written: on the CPU by `Extra` in `cpu/tile.rs`, on GPUs by `store`
//! in `kernels/product/product.wgsl` and, for Winograd, in `kernels/product/winograd.wgsl`.

pub mod cpu;
pub mod gpu;
mod loader;
#[cfg(test)]
mod plain;

use crate::launch::{Accumulate, Dispatches, Io, Launch, LaunchInfo, Recorded, Slot, Tuning};
use crate::tape::Tensor;
use crate::tensor::Shape;
pub use loader::{Geometry, Loader, Padding};

/// `y[item, row, col] = sum over k of A[item, row, k] * B[item, k, col]`, plus the epilogue.
///
/// Reads: the tensor of A, the tensor of B, then bias, shift and residual, those that there are. Writes: y
/// `[batch, rows, cols]`, then the column sums if wanted.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// Of the launch, for profiles and errors: `conv2d backward_x`.
    pub name: &'static str,
    pub batch: usize,
    pub rows: usize,
    pub cols: usize,
    pub depth: usize,
    pub a: Loader,
    pub b: Loader,
    pub epilogue: Epilogue,
    /// The sum may be split into partial sums that are added in order. Only for sums over the batch:
    /// elsewhere the split would depend on the batch, and a sample must not.
    pub split_k: bool,
    /// Also writes `sum over k of B[k, col]`: the gradient of a bias. For one item.
    pub column_sums: bool,
}

/// A product in blocks: the items of a batch or, of the adjoint of a convolution with a stride of s, the
/// pixels whose rows and columns have the same remainders by s, because only every s-th tap meets them.
#[derive(Clone, Copy)]
pub struct View {
    g: Geometry,
    adjoint: bool,
    blocks: usize,
    /// Of the largest block, the first.
    rows: usize,
    /// Height, width and channels of the images that A is gathered from; height and width of those whose
    /// pixels the rows are. Pixels of a block lie `stride` apart in the former, `spacing` in the latter.
    src: [usize; 3],
    dst: [usize; 2],
    stride: usize,
    spacing: usize,
    /// Rows and columns of zeros before the images of the adjoint, whichever of the two this is.
    pad: [i32; 2],
}

/// What is added to the sums, each optional.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epilogue {
    /// `[cols]`.
    pub bias: bool,
    /// `[samples, cols]`: row r adds that of sample `r / pixels`. The time embedding of a residual block.
    pub shift: bool,
    /// Like y. The shortcut of a residual block, or another gradient of the same tensor.
    pub residual: bool,
    /// Rows of a sample.
    pub pixels: usize,
}

impl Epilogue {
    /// Which reads bias, shift and residual are.
    pub fn reads(self) -> [Option<usize>; 3] {
        let mut next = 2..;
        [self.bias, self.shift, self.residual].map(|given| given.then(|| next.next()).flatten())
    }
}

impl Product {
    /// The sums alone, unsplit, of sizes `[batch, rows, cols, depth]` and the loaders of A and B.
    pub fn new(name: &'static str, [batch, rows, cols, depth]: [usize; 4], [a, b]: [Loader; 2]) -> Product {
        let epilogue = Epilogue::default();
        Product { name, batch, rows, cols, depth, a, b, epilogue, split_k: false, column_sums: false }
    }

    /// The convolution that A is of; a matrix is an image one pixel wide, with one tap.
    fn geometry(&self) -> Geometry {
        let (n, w, kh, kw, cout, ow) = (1, 1, 1, 1, self.cols, 1);
        let point = |h, cin| Geometry { n, h, w, cin, kh, kw, cout, oh: h, ow, stride: 1, top: 0, left: 0 };
        match self.a {
            Loader::Conv(g) | Loader::ConvAdjoint(g) | Loader::ConvWeights(g) => g,
            Loader::Dense => point(self.rows, self.depth),
            Loader::Transposed => point(self.depth, self.rows),
        }
    }

    /// The same as both devices see it.
    fn view(&self) -> View {
        let (g, blocks, rows) = (self.geometry(), self.batch, self.rows);
        let (src, dst) = ([g.h, g.w, g.cin], [g.oh, g.ow]);
        let pad = [g.top as i32, g.left as i32];
        let Loader::ConvAdjoint(_) = self.a else {
            let pad = [g.kh as i32 - 1 - pad[0], g.kw as i32 - 1 - pad[1]];
            return View { g, adjoint: false, blocks, rows, src, dst, stride: g.stride, spacing: 1, pad };
        };
        let (blocks, spacing) = (g.stride.min(g.h) * g.stride.min(g.w), g.stride);
        let rows = g.n * g.h.div_ceil(spacing) * g.w.div_ceil(spacing);
        let (src, dst) = ([g.oh, g.ow, g.cout], [g.h, g.w]);
        View { g, adjoint: true, blocks, rows, src, dst, stride: 1, spacing, pad }
    }

    /// Elements of y.
    pub fn outputs(&self) -> usize {
        self.batch * self.rows * self.cols
    }

    /// Two for each multiplication and addition, zeros around images included, as PyTorch counts them.
    pub fn flops(&self) -> u64 {
        let g = self.geometry();
        2 * (self.batch * g.n * g.oh * g.ow * g.weights()) as u64
    }

    /// Records the product of `reads`; gives y, of this shape, and the column sums `[cols]` if wanted.
    pub fn record(self, reads: &[&Tensor], shape: Shape) -> (Tensor, Option<Tensor>) {
        let tape = reads[0].tape();
        if self.column_sums {
            let [y, sums] = tape.launch(self.recorded(), reads, [shape, [self.cols].into()]);
            (y, Some(sums))
        } else {
            let [y] = tape.launch(self.recorded(), reads, [shape]);
            (y, None)
        }
    }

    fn recorded(self) -> Recorded {
        // Another gradient of the same tensor is a residual: it is added where y is written.
        let accumulate = match self {
            Product { split_k: false, column_sums: false, epilogue, .. } if !epilogue.residual => {
                let epilogue = Epilogue { residual: true, ..epilogue };
                Accumulate::by(move |_| Some(Product { epilogue, ..self }.recorded()))
            }
            _ => Accumulate::default(),
        };
        let info = LaunchInfo {
            flops: self.flops(),
            cpu_scratch: self.cpu_scratch(),
            gpu_scratch: gpu::scratch(&self),
            prepacked_from: (!self.is_outer()).then_some(1),
            accumulate,
            tuning: Tuning::new(gpu::shape_class(&self), move |adapter| gpu::variants(&self, adapter)),
            ..LaunchInfo::default()
        };
        Recorded::new(self, info)
    }
}

impl Launch for Product {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu(&self, io: &Io) {
        self.run_on_cpu(io);
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let slots = gpu::Slots {
            a: Slot::Read(0),
            b: Slot::Read(1),
            extra: self.epilogue.reads().map(|read| read.map(Slot::Read)),
            y: Slot::Write(0),
        };
        gpu::dispatch(self, gpu::Schedule::of(plan.variant()), plan, slots);
    }
}
