//! In which ways a convolution can run on a GPU, and the dispatches of each.

use super::{Geometry, gpu_winograd};
use crate::device::gpu::adapters::Traits;
use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::ways::{self, TILE_KNOBS, TILES, Tile, Way};
use crate::launch::{Dispatch, Dispatches, Slot, Variant};

/// Every thread alone.
pub static KERNEL: Kernel =
    kernel!("conv2d", [[("Lane", "f32"), ("WIDTH", "1u")], [("Lane", "vec4<f32>"), ("WIDTH", "4u")]]);

/// Shared through workgroup memory.
pub static TILED: Kernel = kernel!("conv2d_tiled", TILE_KNOBS);

/// The same for the gradient of the weights.
pub static TILED_W: Kernel = kernel!("conv2d_tiled_w", TILE_KNOBS);

/// Shared through the lanes of a subgroup.
pub static SPREAD: Kernel = kernel!("conv2d_spread");

/// The same for the gradient of the weights.
pub static SPREAD_W: Kernel = kernel!("conv2d_spread_w");

/// Threads of a workgroup of [`KERNEL`].
pub(super) const WG: usize = 64;

/// Number of the kernel's knob set for `channels`: four at a time where that divides them; and channels per
/// lane.
fn lanes(channels: usize) -> (usize, usize) {
    if channels.is_multiple_of(4) { (1, 4) } else { (0, 1) }
}

/// A convolution, or the adjoint of one: as in `kernels/lib/conv.wgsl`.
pub(super) struct Gather {
    pub n: usize,
    /// Height, width and channels.
    pub dst: [usize; 3],
    pub src: [usize; 3],
    pub taps: [usize; 2],
    pub stride: usize,
    /// The stride of the convolution whose adjoint it is.
    pub step: usize,
    pub pad: [i32; 2],
    pub weights: Origin,
    /// Which reads are the bias, the time embedding and the residual.
    pub extra: [Option<usize>; 3],
}

/// What the weights `[taps, src_c, dst_c]` of a [`Gather`] are, of those that it reads. All but `Read` are made
/// in the first block of its scratch, except in the way of `gpu_winograd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Read,
    /// Those of the convolution whose adjoint it is.
    Adjoint,
    /// Those of a convolution of images of twice the size, see `upsampled`.
    Upsampled,
    /// Those of one whose adjoint it is.
    UpsampledAdjoint,
}

impl Gather {
    pub fn forward(g: &Geometry, extra: [Option<usize>; 3]) -> Gather {
        Gather {
            n: g.n,
            dst: [g.oh, g.ow, g.cout],
            src: [g.h, g.w, g.cin],
            taps: [g.kh, g.kw],
            stride: g.stride,
            step: 1,
            pad: [g.kh as i32 - 1 - g.top as i32, g.kw as i32 - 1 - g.left as i32],
            weights: Origin::Read,
            extra,
        }
    }

    pub fn adjoint(g: &Geometry, extra: [Option<usize>; 3]) -> Gather {
        Gather {
            n: g.n,
            dst: [g.h, g.w, g.cin],
            src: [g.oh, g.ow, g.cout],
            taps: [g.kh, g.kw],
            stride: 1,
            step: g.stride,
            pad: [g.top as i32, g.left as i32],
            weights: Origin::Adjoint,
            extra,
        }
    }

    fn residues(&self) -> usize {
        self.step.min(self.dst[0]) * self.step.min(self.dst[1])
    }

    /// Pixels of the residue that has most.
    fn most_pixels(&self) -> usize {
        self.n * self.dst[0].div_ceil(self.step) * self.dst[1].div_ceil(self.step)
    }

    pub fn variants(&self, adapter: &Traits) -> Vec<Variant> {
        let spread: &[Way] = match (adapter.broadcasts && self.dst[2].is_multiple_of(4), self) {
            (false, _) => &[],
            (true, Gather { taps: [3, 3], stride: 1, step: 1, dst: [high, ..], .. }) => {
                if high.next_multiple_of(16) == high.next_multiple_of(8) {
                    &[Way::Tall, Way::Square, Way::Spread]
                } else {
                    &[Way::Square, Way::Tall, Way::Spread]
                }
            }
            (true, _) => &[Way::Spread],
        };
        let mut ways = Way::variants(adapter, [self.residues() * self.most_pixels(), self.dst[2]], spread);
        ways.extend(gpu_winograd::variants(self, adapter));
        ways
    }

    pub fn shape_class(&self) -> String {
        let Gather {
            n, dst: [dst_h, dst_w, dst_c], src: [_, _, src_c], taps: [kh, kw], stride, step, ..
        } = self;
        format!(
            "{n} x {dst_h} x {dst_w} x {dst_c} of {src_c} channels, {kh} x {kw}, stride {stride} / {step}"
        )
    }

    /// Elements of working memory, one number a block.
    pub fn scratch(&self) -> Vec<usize> {
        let made = self.taps[0] * self.taps[1] * self.src[2] * self.dst[2];
        let made = (self.weights != Origin::Read).then_some(made);
        made.into_iter().chain(gpu_winograd::scratch(self)).collect()
    }

    pub fn dispatch(&self, plan: &mut Dispatches) {
        if let Some(product) = gpu_winograd::product_of(plan.variant()) {
            let first = usize::from(self.weights != Origin::Read);
            return gpu_winograd::dispatch(self, first, product, plan);
        }
        self.make_weights(plan);
        let [dst_h, dst_w, dst_c] = self.dst;
        let [_, _, src_c] = self.src;
        match Way::of(plan.variant()) {
            Way::Direct => {
                let (set, width) = lanes(dst_c);
                let threads = self.residues() * self.most_pixels().div_ceil(4) * (dst_c / width);
                self.fill(plan.add(&KERNEL, "gather").knobs(set), ["src", "w", "dst"], EXTRA)
                    .cover_in_sub_dispatches(threads, WG);
            }
            Way::Tiled(tile) => {
                let Tile { rows, cols, .. } = TILES[tile];
                let groups = self.residues() * self.most_pixels().div_ceil(rows) * dst_c.div_ceil(cols);
                let wide = src_c.is_multiple_of(4) && dst_c.is_multiple_of(4);
                let (entry, main, extra) = if wide {
                    ("gather", ["src4", "w4", "dst4"], ["bias4", "shift4", "residual4"])
                } else {
                    ("gather_ragged", ["src", "w", "dst"], EXTRA)
                };
                self.fill(plan.add(&TILED, entry).knobs(tile), main, extra)
                    .cover_in_sub_dispatches(groups, 1);
            }
            Way::Broad => unreachable!("a product alone is spread so"),
            Way::Spread => {
                let groups = self.residues()
                    * self.most_pixels().div_ceil(ways::SPREAD[0])
                    * dst_c.div_ceil(ways::SPREAD[1]);
                self.fill(plan.add(&SPREAD, "gather"), ["src", "w", "dst"], EXTRA)
                    .cover_in_sub_dispatches(groups, 1);
            }
            way @ (Way::Square | Way::Tall) => {
                let (entry, high) =
                    if way == Way::Tall { ("gather_3x3_tall", 16) } else { ("gather_3x3", 8) };
                let squares = self.n * dst_h.div_ceil(high) * dst_w.div_ceil(8);
                self.fill(plan.add(&SPREAD, entry), ["src", "w", "dst"], EXTRA)
                    .cover_in_sub_dispatches(squares * dst_c.div_ceil(ways::SPREAD[1]), 1);
            }
        }
    }

    /// The weights into the scratch, unless they are what is read.
    fn make_weights(&self, plan: &mut Dispatches) {
        let [kh, kw] = self.taps;
        // Of what is read.
        let (entry, rows, cols) = match self.weights {
            Origin::Read => return,
            Origin::Adjoint => ("adjoint_weights", self.dst[2], self.src[2]),
            Origin::Upsampled => ("upsampled_weights", self.src[2], self.dst[2]),
            Origin::UpsampledAdjoint => ("upsampled_adjoint_weights", self.dst[2], self.src[2]),
        };
        plan.add(&KERNEL, entry)
            .param("kh", kh)
            .param("kw", kw)
            .param("rows", rows)
            .param("cols", cols)
            .param("step", self.step)
            .read("weights", 1)
            .scratch("made", 0)
            .cover(kh * kw * rows * cols, WG);
    }

    fn fill<'a>(
        &self,
        dispatch: &'a mut Dispatch,
        [src, w, dst]: [&'static str; 3],
        extra: [&'static str; 3],
    ) -> &'a mut Dispatch {
        let weights = if self.weights == Origin::Read { Slot::Read(1) } else { Slot::Scratch(0) };
        dispatch.read(src, 0).bind(w, weights).write(dst, 0);
        for (name, given) in extra.into_iter().zip(self.extra) {
            // What is absent is never looked at, but a binding must see something, as large as a lane.
            dispatch.read(name, given.unwrap_or(1));
        }
        dispatch
            .param("n", self.n)
            .param("dst_h", self.dst[0])
            .param("dst_w", self.dst[1])
            .param("dst_c", self.dst[2])
            .param("src_h", self.src[0])
            .param("src_w", self.src[1])
            .param("src_c", self.src[2])
            .param("kh", self.taps[0])
            .param("kw", self.taps[1])
            .param("stride", self.stride)
            .param("step", self.step)
            .param("pad_h", self.pad[0])
            .param("pad_w", self.pad[1])
            .param("has_bias", self.extra[0].is_some())
            .param("has_shift", self.extra[1].is_some())
            .param("has_residual", self.extra[2].is_some())
    }
}

const EXTRA: [&str; 3] = ["bias", "shift", "residual"];

/// The gradient of a convolution's weights; with `bias` that of its bias too, the sums of `dy`, as a row more.
pub(super) struct Weights<'a> {
    pub g: &'a Geometry,
    pub bias: bool,
}

impl Weights<'_> {
    /// Rows and columns of the gradient as a matrix.
    fn size(&self) -> [usize; 2] {
        [self.g.kh * self.g.kw * self.g.cin, self.g.cout]
    }

    /// Elements of both gradients, and so of a part.
    pub fn elements(&self) -> usize {
        self.g.weights() + if self.bias { self.g.cout } else { 0 }
    }

    /// Rows of pixels of a part, and the number of parts. Depends on the shapes and the way alone; not more
    /// memory than a few copies of the weights or 64 MiB, nor than the 128 MiB that every adapter binds.
    fn split(&self, way: Way) -> (usize, usize) {
        let g = self.g;
        let rows = g.n * g.oh;
        let wanted = match way {
            // A thread has 16 of the weights: enough threads to fill a large GPU.
            Way::Direct | Way::Tall | Way::Broad => (1_usize << 17).div_ceil((g.weights() / 16).max(1)),
            Way::Square => 16 / self.squares(),
            way => way.parts(self.size()),
        };
        let most = ((16 << 20) / self.elements()).max(4).min(((32 << 20) / self.elements()).max(1));
        let per_part = rows.div_ceil(wanted.min(most).clamp(1, rows));
        (per_part, rows.div_ceil(per_part))
    }

    /// Workgroups of a part in the way of that name: the taps of eight channels, to 32.
    fn squares(&self) -> usize {
        self.g.cin.div_ceil(8) * self.g.cout.div_ceil(ways::SPREAD[1])
    }

    fn is_wide(&self) -> bool {
        self.g.cin.is_multiple_of(4) && self.g.cout.is_multiple_of(4)
    }

    pub fn variants(&self, adapter: &Traits) -> Vec<Variant> {
        let spread: &[Way] = match (adapter.broadcasts && self.is_wide(), self.g) {
            (false, _) => &[],
            // Of fewer than eight channels the squares waste a part.
            (true, Geometry { kh: 3, kw: 3, stride: 1, cin: 8.., .. }) => &[Way::Square, Way::Spread],
            (true, Geometry { kh: 3, kw: 3, stride: 1, .. }) => &[Way::Spread, Way::Square],
            (true, _) => &[Way::Spread],
        };
        Way::variants(adapter, self.size(), spread)
    }

    pub fn shape_class(&self) -> String {
        let Geometry { n, h, w, cin, kh, kw, cout, stride, .. } = self.g;
        format!("{n} x {h} x {w} x {cin} to {cout} channels, {kh} x {kw}, stride {stride}")
    }

    /// Elements of the parts, in the way that has most.
    pub fn scratch(&self) -> usize {
        let ways = (0..TILES.len()).map(Way::Tiled).chain([Way::Direct, Way::Spread, Way::Square]);
        ways.map(|way| self.split(way).1).max().unwrap_or(1) * self.elements()
    }

    /// The parts into the scratch; gives their number.
    pub fn dispatch(&self, plan: &mut Dispatches) -> usize {
        let g = self.g;
        let way = Way::of(plan.variant());
        let (rows, parts) = self.split(way);
        let [height, width] = self.size();
        let (dispatch, names) = match way {
            Way::Tiled(tile) => {
                let Tile { rows, cols, .. } = TILES[tile];
                let (entry, names) = if self.is_wide() {
                    ("backward_w", ["x4", "dy4", "parts4"])
                } else {
                    ("backward_w_ragged", PARTS)
                };
                let groups = parts * height.div_ceil(rows) * width.div_ceil(cols);
                (plan.add(&TILED_W, entry).knobs(tile).cover_in_sub_dispatches(groups, 1), names)
            }
            Way::Spread => {
                let [rows, cols] = ways::SPREAD;
                let groups = parts * height.div_ceil(rows) * width.div_ceil(cols);
                (plan.add(&SPREAD_W, "backward_w").cover_in_sub_dispatches(groups, 1), PARTS)
            }
            Way::Square => (
                plan.add(&SPREAD_W, "backward_w_3x3").cover_in_sub_dispatches(parts * self.squares(), 1),
                ["x_ones", "dy", "parts"],
            ),
            Way::Direct | Way::Tall | Way::Broad => {
                let (set, width) = lanes(g.cout);
                let rows = g.kh * g.kw * g.cin.div_ceil(4) + usize::from(self.bias);
                let threads = parts * rows * (g.cout / width);
                (plan.add(&KERNEL, "backward_w").knobs(set).cover_in_sub_dispatches(threads, WG), PARTS)
            }
        };
        let [x, dy, out] = names;
        dispatch
            .param("n", g.n)
            .param("h", g.h)
            .param("w", g.w)
            .param("cin", g.cin)
            .param("kh", g.kh)
            .param("kw", g.kw)
            .param("oh", g.oh)
            .param("ow", g.ow)
            .param("cout", g.cout)
            .param("stride", g.stride)
            .param("top", g.top)
            .param("left", g.left)
            .param("parts", parts)
            .param("rows", rows)
            .param("has_bias", self.bias)
            .read(x, 0)
            .read(dy, 1)
            .scratch(out, 0);
        parts
    }
}

const PARTS: [&str; 3] = ["x", "dy", "parts"];
