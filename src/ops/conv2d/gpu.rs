//! Convolutions on a GPU, as products.

use super::Geometry;
use crate::device::gpu::adapters::Traits;
use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{Dispatches, Slot, Variant};
use crate::product::gpu::{self, Schedule, Slots};
use crate::product::{self, Epilogue, Loader, Product};

pub static KERNEL: Kernel = kernel!("conv2d");

/// Threads of a workgroup of [`KERNEL`].
pub(super) const WG: usize = 64;

fn geometry(g: &Geometry) -> product::Geometry {
    let Geometry { n, h, w, cin, kh, kw, cout, oh, ow, stride, top, left } = *g;
    product::Geometry { n, h, w, cin, kh, kw, cout, oh, ow, stride, top, left }
}

/// A convolution, or the adjoint of one.
pub(super) struct Gather {
    pub product: Product,
    pub g: Geometry,
    pub weights: Origin,
    pub extra: [Option<usize>; 3],
}

/// What the weights `[taps, src_c, dst_c]` of a [`Gather`] are, of those that it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Read,
    /// Those of a convolution of images of twice the size, see `upsampled`.
    Upsampled,
    /// Those of one whose adjoint it is.
    UpsampledAdjoint,
}

impl Gather {
    pub fn forward(g: &Geometry, extra: [Option<usize>; 3]) -> Gather {
        let product = Product {
            name: "conv2d",
            batch: 1,
            rows: g.n * g.oh * g.ow,
            cols: g.cout,
            depth: g.kh * g.kw * g.cin,
            a: Loader::Conv(geometry(g)),
            b: Loader::Dense,
            epilogue: Epilogue { pixels: g.oh * g.ow, ..Epilogue::default() },
            split_k: false,
            column_sums: false,
        };
        Gather { product, g: *g, weights: Origin::Read, extra }
    }

    pub fn adjoint(g: &Geometry, extra: [Option<usize>; 3]) -> Gather {
        let forward = Gather::forward(g, extra);
        let product = Product {
            rows: g.n * g.h * g.w,
            cols: g.cin,
            depth: g.kh * g.kw * g.cout,
            a: Loader::ConvAdjoint(geometry(g)),
            b: Loader::Transposed { block: g.cout },
            epilogue: Epilogue { pixels: g.h * g.w, ..Epilogue::default() },
            ..forward.product
        };
        Gather { product, ..forward }
    }

    pub fn variants(&self, adapter: &Traits) -> Vec<Variant> {
        gpu::variants(&self.product, adapter)
    }

    pub fn shape_class(&self) -> String {
        gpu::shape_class(&self.product)
    }

    pub fn scratch(&self) -> Vec<usize> {
        let made =
            (self.weights == Origin::UpsampledAdjoint).then_some(self.product.depth * self.product.cols);
        made.into_iter().chain(gpu::scratch(&self.product)).collect()
    }

    pub fn dispatch(&self, plan: &mut Dispatches) {
        let extra = self.extra.map(|given| given.map(Slot::Read));
        let slots = Slots {
            a: Slot::Read(0),
            b: Slot::Read(1),
            extra,
            y: Slot::Write(0),
            column_sums: Slot::Write(0),
        };
        let schedule = Schedule::of(plan.variant());
        // Of what is read.
        let (entry, rows, cols) = match self.weights {
            Origin::Read => return gpu::dispatch(&self.product, schedule, plan, 0, slots),
            Origin::Upsampled => ("upsampled_weights", self.g.cout, self.g.cin),
            Origin::UpsampledAdjoint => ("upsampled_adjoint_weights", self.g.cout, self.g.cin),
        };
        plan.add(&KERNEL, entry)
            .param("kh", self.g.kh)
            .param("kw", self.g.kw)
            .param("rows", rows)
            .param("cols", cols)
            .param("step", if self.weights == Origin::Upsampled { self.g.stride } else { 1 })
            .read("weights", 1)
            .scratch("made", 0)
            .cover(self.product.depth * self.product.cols, WG);
        gpu::multiply(&self.product, schedule, plan, 1, Slots { b: Slot::Scratch(0), ..slots });
    }
}

/// The gradient of a convolution's weights; with `bias` that of its bias too, the sums of `dy`, as a row more.
pub(super) struct Weights {
    pub product: Product,
}

impl Weights {
    pub fn of(g: &Geometry, bias: bool) -> Weights {
        let product = Product {
            name: "conv2d backward_w",
            batch: 1,
            rows: g.kh * g.kw * g.cin,
            cols: g.cout,
            depth: g.n * g.oh * g.ow,
            a: Loader::ConvWeights(geometry(g)),
            b: Loader::Dense,
            epilogue: Epilogue::default(),
            split_k: true,
            column_sums: bias,
        };
        Weights { product }
    }

    pub fn dispatch(&self, plan: &mut Dispatches, y: Slot, column_sums: Slot) {
        let slots = Slots { a: Slot::Read(0), b: Slot::Read(1), extra: [None; 3], y, column_sums };
        gpu::dispatch(&self.product, Schedule::of(plan.variant()), plan, 0, slots);
    }
}
