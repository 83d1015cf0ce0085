//! Convolution (cross-correlation) of images, with bias, time embedding and residual fused in; its adjoint, the
//! transposed convolution; and that of images of twice the size, each pixel repeated.

mod gpu;
mod gpu_winograd;
mod transpose;
mod twin;
mod upsampled;
mod winograd;

#[cfg(test)]
mod tests;

use gpu::{Gather, WG, Weights};
pub use gpu::{KERNEL, SPREAD, SPREAD_W, TILED, TILED_W};
pub use gpu_winograd::WINOGRAD;
pub use transpose::conv_transpose2d;
pub use upsampled::conv2d_upsampled;

use crate::launch::{Accumulate, Dispatch, Dispatches, Io, Launch, LaunchInfo, Recorded, Tuning};
use crate::tape::{Tape, Tensor};
use crate::tensor::Shape;

/// Rows and columns of zeros around the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Padding {
    pub top: usize,
    pub bottom: usize,
    pub left: usize,
    pub right: usize,
}

impl Padding {
    /// The same on all four sides.
    pub const fn same(pad: usize) -> Self {
        Padding { top: pad, bottom: pad, left: pad, right: pad }
    }

    /// One row below and one column to the right: what TensorFlow's `SAME` means for stride 2 on even
    /// sizes.
    pub const BOTTOM_RIGHT: Padding = Padding { top: 0, bottom: 1, left: 0, right: 1 };
}

/// What the convolution adds to its result, each optional.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// `[Cout]`.
    pub bias: Option<&'a Tensor>,
    /// `[N, Cout]`, the same for all pixels of a sample: the time embedding of a residual block.
    pub shift: Option<&'a Tensor>,
    /// `[N, OH, OW, Cout]`: the shortcut of a residual block.
    pub residual: Option<&'a Tensor>,
}

impl Epilogue<'_> {
    /// What is given, and that it fits a result `[N, pixels, Cout]`.
    #[track_caller]
    fn given(&self, op: &str, of: Image) -> Given {
        let Image { n, pixels, channels } = of;
        let check = |what: &str, t: Option<&Tensor>, elements: usize| {
            if let Some(t) = t {
                assert_eq!(
                    t.elements(),
                    elements,
                    "{op}: {what} {} for {n} images of {channels} channels",
                    t.shape()
                );
            }
            t.is_some()
        };
        Given {
            bias: check("bias", self.bias, channels),
            shift: check("shift", self.shift, n * channels),
            residual: check("residual", self.residual, n * pixels * channels),
        }
    }

    /// What is read after the image and the weights.
    fn reads(&self) -> impl Iterator<Item = &Tensor> {
        [self.bias, self.shift, self.residual].into_iter().flatten()
    }
}

/// Which parts of an [`Epilogue`] a launch reads after the image and the weights.
#[derive(Clone, Copy, Debug, Default)]
struct Given {
    bias: bool,
    shift: bool,
    residual: bool,
}

impl Given {
    /// Which reads they are.
    fn reads(self) -> [Option<usize>; 3] {
        let mut next = 2..;
        [self.bias, self.shift, self.residual].map(|given| given.then(|| next.next()).flatten())
    }

    /// With a residual, the last read, if there is none yet.
    fn accumulating(self) -> Option<Given> {
        (!self.residual).then_some(Given { residual: true, ..self })
    }

    /// What they are on the CPU.
    fn slices<'a>(self, io: &Io<'a>) -> [Option<&'a [f32]>; 3] {
        self.reads().map(|given| given.map(|i| io.read(i)))
    }

    /// Their gradients, of that of a result of these sizes; `dbias`: the bias's, where it is there already.
    fn gradients(
        self,
        tape: &Tape,
        name: &'static str,
        of: Image,
        dy: &Tensor,
        mut dbias: Option<Tensor>,
    ) -> Vec<Option<Tensor>> {
        let mut dshift = None;
        if self.shift || self.bias && dbias.is_none() {
            let shapes = [Shape::from([of.n, of.channels]), Shape::from([of.channels])];
            let [of_samples, of_all] = tape.launch(BackwardShift { name, of }.recorded(), &[dy], shapes);
            (dshift, dbias) = (Some(of_samples), Some(of_all));
        }
        let mut gradients = Vec::new();
        gradients.extend(self.bias.then_some(dbias));
        gradients.extend(self.shift.then_some(dshift));
        gradients.extend(self.residual.then(|| Some(dy.clone())));
        gradients
    }
}

/// All sizes of one convolution.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub cin: usize,
    pub kh: usize,
    pub kw: usize,
    pub cout: usize,
    pub oh: usize,
    pub ow: usize,
    pub stride: usize,
    pub top: usize,
    pub left: usize,
}

impl Geometry {
    fn weights(&self) -> usize {
        self.kh * self.kw * self.cin * self.cout
    }

    /// Of the convolution, its adjoint and the gradient of its weights alike.
    fn flops(&self) -> u64 {
        2 * (self.out_pixels() * self.weights()) as u64
    }

    fn out_pixels(&self) -> usize {
        self.n * self.oh * self.ow
    }

    /// What this convolution writes to, for its bias and time embedding.
    fn result(&self) -> Image {
        Image { n: self.n, pixels: self.oh * self.ow, channels: self.cout }
    }

    /// What this convolution reads, which its adjoint writes to.
    fn image(&self) -> Image {
        Image { n: self.n, pixels: self.h * self.w, channels: self.cin }
    }
}

/// Sizes of a batch of images whose pixels are alike.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Image {
    pub n: usize,
    pub pixels: usize,
    pub channels: usize,
}

/// `y[n,oh,ow,co] = sum x[n, oh*stride + kh - top, ow*stride + kw - left, ci] * w[kh,kw,ci,co]`, plus the
/// epilogue.
///
/// `x` is `[N, H, W, Cin]`, `w` is `[KH, KW, Cin, Cout]`, the result `[N, OH, OW, Cout]` with
/// `OH = (H + top + bottom - KH) / stride + 1`.
///
/// # Panics
/// When the shapes do not fit together.
#[track_caller]
pub fn conv2d(x: &Tensor, w: &Tensor, stride: usize, padding: Padding, epilogue: Epilogue) -> Tensor {
    let [n, h, width, cin] = x.shape().of_rank("conv2d, image");
    let [kh, kw, w_cin, cout] = w.shape().of_rank("conv2d, weights");
    let (ph, pw) = (h + padding.top + padding.bottom, width + padding.left + padding.right);
    assert!(
        cin == w_cin && stride > 0 && ph >= kh && pw >= kw && kh * kw * cout > 0,
        "conv2d: image {} does not fit weights {} with stride {stride} and {padding:?}",
        x.shape(),
        w.shape()
    );
    let (oh, ow) = ((ph - kh) / stride + 1, (pw - kw) / stride + 1);
    let g =
        Geometry { n, h, w: width, cin, kh, kw, cout, oh, ow, stride, top: padding.top, left: padding.left };
    let given = epilogue.given("conv2d", g.result());
    let inputs: Vec<&Tensor> = [x, w].into_iter().chain(epilogue.reads()).collect();
    let launch = Forward { name: "conv2d", g, given };
    let [y] = x.tape().launch(launch.recorded(), &inputs, [Shape::from([n, oh, ow, cout])]);
    let (count, x_saved, w_saved) = (inputs.len(), x.clone(), w.clone());
    x.tape().derivative(&inputs, &[&y], move |dy| {
        let (x, w, tape) = (&x_saved, &w_saved, x_saved.tape());
        let Some(dy) = &dy[0] else { return vec![None; count] };
        // `x` is not needed after `dw`: it makes room for `dx`. Where a time embedding needs the sums of each
        // sample, these give the gradient of the bias too.
        let backward_w = BackwardW { name: "conv2d backward_w", g, bias: given.bias && !given.shift };
        let (dw, dbias) = if backward_w.bias {
            let shapes = [w.shape().clone(), Shape::from([g.cout])];
            let [dw, dbias] = tape.launch(backward_w.recorded(), &[x, dy], shapes);
            (dw, Some(dbias))
        } else {
            let [dw] = tape.launch(backward_w.recorded(), &[x, dy], [w.shape().clone()]);
            (dw, None)
        };
        let backward_x = transpose::Adjoint { name: "conv2d backward_x", g, given: Given::default() };
        let [dx] = tape.launch(backward_x.recorded(), &[dy, w], [x.shape().clone()]);
        let mut gradients = vec![Some(dx), Some(dw)];
        gradients.extend(given.gradients(tape, "conv2d backward_shift", g.result(), dy, dbias));
        gradients
    });
    y
}

#[derive(Clone, Copy, Debug)]
struct Forward {
    name: &'static str,
    g: Geometry,
    given: Given,
}

impl Launch for Forward {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu(&self, io: &Io) {
        let (g, more) = (&self.g, self.given.slices(io));
        twin::forward(g, io.read(0), io.read(1), io.write(0), io.prepacked(), |first, y| {
            twin::epilogue(g.result(), first, y, more);
        });
    }

    fn gpu(&self, plan: &mut Dispatches) {
        self.gather().dispatch(plan);
    }
}

impl Forward {
    pub fn recorded(self) -> Recorded {
        let info = LaunchInfo {
            flops: self.g.flops(),
            cpu_scratch: vec![twin::forward_weights(&self.g)],
            gpu_scratch: self.gather().scratch(),
            prepacked_from: Some(1),
            accumulate: Accumulate::by(move |_| {
                Some(Forward { given: self.given.accumulating()?, ..self }.recorded())
            }),
            tuning: Tuning::new(self.gather().shape_class(), move |adapter| self.gather().variants(adapter)),
            ..LaunchInfo::default()
        };
        Recorded::new(self, info)
    }
}

impl Forward {
    fn gather(&self) -> Gather {
        Gather::forward(&self.g, self.given.reads())
    }
}

/// Reads the image and `dy`; writes `dw` and, where `bias` says so, `dbias [Cout]`.
#[derive(Clone, Copy, Debug)]
struct BackwardW {
    name: &'static str,
    g: Geometry,
    bias: bool,
}

impl Launch for BackwardW {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu(&self, io: &Io) {
        twin::backward_w(&self.g, io.read(0), io.read(1), io.write(0), io.scratch(0));
        if self.bias {
            twin::backward_shift(self.g.result(), io.read(1), io.scratch(1), io.write(1));
        }
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let parts = self.weights().dispatch(plan);
        let (weights, both) = (self.g.weights(), self.weights().elements());
        let sum = if self.bias {
            plan.add(&KERNEL, "sum_weights")
                .param("weights", weights)
                .param("channels", self.g.cout)
                .param("parts", parts)
                .write("dw", 0)
                .write("dbias", 1)
                .cover(both, WG)
        } else {
            sum_parts(plan.add(&KERNEL, "sum_parts"), weights, parts, parts, 1).write("total", 0)
        };
        sum.range("pieces", crate::launch::Slot::Scratch(0), 0, parts * both);
    }
}

impl BackwardW {
    pub fn recorded(self) -> Recorded {
        let sums = self.bias.then_some(self.g.n * self.g.cout);
        let info = LaunchInfo {
            flops: self.g.flops(),
            cpu_scratch: [twin::weight_room(&self.g)].into_iter().chain(sums).collect(),
            gpu_scratch: vec![self.weights().scratch()],
            tuning: Tuning::new(self.weights().shape_class(), move |adapter| {
                self.weights().variants(adapter)
            }),
            ..LaunchInfo::default()
        };
        Recorded::new(self, info)
    }
}

impl BackwardW {
    fn weights(&self) -> Weights<'_> {
        Weights { g: &self.g, bias: self.bias }
    }
}

/// `total[outer, n]`: the sums of `parts` pieces each, of `all` in all.
fn sum_parts(dispatch: &mut Dispatch, n: usize, parts: usize, all: usize, outer: usize) -> &mut Dispatch {
    dispatch
        .param("n", n)
        .param("parts", parts)
        .param("stride", all)
        .param("outer", outer)
        .cover(n * outer, WG)
}

/// Sums of `dy` over the pixels: `dshift [N, C]`, and over the samples too: `dbias [C]`.
#[derive(Debug)]
struct BackwardShift {
    name: &'static str,
    of: Image,
}

impl BackwardShift {
    /// Pixels that one thread of the first pass adds up.
    const RUN: usize = 32;

    fn runs(&self) -> usize {
        self.of.pixels.div_ceil(Self::RUN)
    }
}

impl Launch for BackwardShift {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu(&self, io: &Io) {
        twin::backward_shift(self.of, io.read(0), io.write(0), io.write(1));
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let (Image { n, pixels, channels }, runs) = (self.of, self.runs());
        plan.add(&KERNEL, "sum_runs")
            .param("n", channels)
            .param("parts", Self::RUN)
            .param("stride", pixels)
            .param("outer", n * runs)
            .read("pieces", 0)
            .scratch("total", 0)
            .cover(n * runs * channels, WG);
        sum_parts(plan.add(&KERNEL, "sum_parts"), channels, runs, n * runs, n)
            .scratch("pieces", 0)
            .write("total", 0);
        // Reading dshift here and writing it above are two dispatches; dbias is another tensor.
        let last = sum_parts(plan.add(&KERNEL, "sum_parts"), channels, n, n, 1);
        last.range("pieces", crate::launch::Slot::Write(0), 0, n * channels).write("total", 1);
    }
}

impl BackwardShift {
    pub fn recorded(self) -> Recorded {
        let info = LaunchInfo {
            gpu_scratch: vec![self.of.n * self.runs() * self.of.channels],
            ..LaunchInfo::default()
        };
        Recorded::new(self, info)
    }
}
