//! conv_transpose2d against plain loops, against conv2d's definition, and against PyTorch.

use super::*;
use crate::check::Check;
use crate::ops::conv2d::tests::reference as conv2d_reference;

/// A transposed convolution of an image `[n, h, w, cin]` with a kernel `[kh, kw, cout]`.
#[derive(Clone, Copy)]
struct Case {
    image: [usize; 4],
    kernel: [usize; 3],
    stride: usize,
    padding: Padding,
    output_padding: usize,
}

fn case(image: [usize; 4], kernel: [usize; 3], stride: usize, padding: Padding) -> Case {
    Case { image, kernel, stride, padding, output_padding: 0 }
}

impl Case {
    fn output_padding(self, output_padding: usize) -> Self {
        Case { output_padding, ..self }
    }

    fn out(&self) -> [usize; 4] {
        let ([n, h, w, _], [kh, kw, cout], p) = (self.image, self.kernel, self.padding);
        let size = |size: usize, k: usize| (size - 1) * self.stride + k + self.output_padding;
        [n, size(h, kh) - p.top - p.bottom, size(w, kw) - p.left - p.right, cout]
    }

    fn weights(&self) -> [usize; 4] {
        [self.kernel[0], self.kernel[1], self.kernel[2], self.image[3]]
    }

    /// The definition, in f64: each pixel of the image, times the weights, is added to where it lands.
    fn reference(&self, x: &[f64], w: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
        let ([n, h, width, cin], [kh, kw, cout], [_, oh, ow, _]) = (self.image, self.kernel, self.out());
        let mut y = vec![0.0; n * oh * ow * cout];
        for (i, y) in y.iter_mut().enumerate() {
            *y = bias.map_or(0.0, |bias| bias[i % cout]);
        }
        for (pixel, x) in x.chunks_exact(cin).enumerate() {
            let (sample, ih, iw) = (pixel / (h * width), pixel / width % h, pixel % width);
            for (tap, w) in w.chunks_exact(cout * cin).enumerate() {
                let at_h = (ih * self.stride + tap / kw).checked_sub(self.padding.top);
                let at_w = (iw * self.stride + tap % kw).checked_sub(self.padding.left);
                let (Some(at_h), Some(at_w)) = (at_h, at_w) else { continue };
                if at_h >= oh || at_w >= ow {
                    continue;
                }
                for (co, w) in w.chunks_exact(cin).enumerate() {
                    let sum: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
                    y[((sample * oh + at_h) * ow + at_w) * cout + co] += sum;
                }
            }
        }
        assert_eq!(w.len(), kh * kw * cout * cin);
        y
    }

    fn check(&self) {
        let Case { stride, padding, output_padding, kernel: [_, _, cout], .. } = *self;
        let check = |name: &str| {
            let form = format!("stride {stride}, {padding:?}, output padding {output_padding}{name}");
            Check::new(format!("conv_transpose2d {form}"))
                .input(&self.image)
                .input(&self.weights())
                .probes(16)
        };
        check(", bias").input(&[cout]).run(
            |x| conv_transpose2d(&x[0], &x[1], stride, padding, output_padding, Epilogue::bias(&x[2])),
            |x| self.reference(&x[0], &x[1], Some(&x[2])),
        );
        check("").run(
            |x| conv_transpose2d(&x[0], &x[1], stride, padding, output_padding, Epilogue::default()),
            |x| self.reference(&x[0], &x[1], None),
        );
    }
}

const UNEVEN: Padding = Padding { top: 1, bottom: 0, left: 0, right: 2 };

#[test]
fn kernels_of_1_to_5_with_strides_of_1_to_3() {
    for kernel in 1..=5 {
        for stride in 1..=3 {
            for output_padding in 0..stride {
                // Even and odd numbers of channels, so that both sets of knobs run.
                let channels = if (kernel + stride) % 2 == 0 { [3, 4] } else { [4, 5] };
                let [cin, cout] = channels;
                case([2, 5, 4, cin], [kernel, kernel, cout], stride, UNEVEN)
                    .output_padding(output_padding)
                    .check();
            }
        }
    }
}

#[test]
fn paddings_and_shapes_of_every_kind() {
    let same = Padding::same;
    for case in [
        case([1, 1, 1, 1], [1, 1, 1], 1, same(0)),
        case([1, 1, 1, 1], [2, 3, 1], 2, same(0)),
        case([2, 4, 6, 8], [4, 4, 4], 2, same(1)),
        case([2, 3, 5, 7], [3, 3, 11], 2, same(1)).output_padding(1),
        case([3, 5, 3, 2], [3, 5, 3], 2, Padding::BOTTOM_RIGHT),
        case([1, 6, 7, 3], [2, 5, 4], 1, Padding { top: 0, bottom: 2, left: 4, right: 1 }),
        // More padding than the kernel is large.
        case([2, 7, 6, 3], [2, 2, 8], 1, same(2)),
        case([2, 6, 7, 5], [3, 2, 4], 2, same(4)),
        // A kernel smaller than the stride leaves pixels that get the bias alone, in whole columns too.
        case([2, 3, 4, 4], [1, 1, 4], 4, same(0)).output_padding(3),
        case([1, 3, 2, 3], [2, 1, 5], 5, Padding { top: 0, bottom: 1, left: 1, right: 0 }).output_padding(2),
        // A result narrower than the stride.
        case([2, 1, 1, 3], [2, 2, 4], 7, same(0)),
    ] {
        case.check();
    }
}

#[test]
fn one_past_the_tiles() {
    // More pixels than a CPU tile, more than four columns of a residue, channels one past a lane.
    case([3, 17, 19, 13], [3, 3, 17], 2, Padding::same(1)).output_padding(1).check();
    case([2, 17, 31, 20], [4, 4, 12], 2, Padding::same(1)).check();
    case([1, 5, 4, 131], [3, 3, 257], 2, Padding::same(1)).check();
    case([2, 29, 31, 5], [3, 3, 12], 1, Padding::same(1)).check();
}

#[test]
fn a_long_stride_has_a_residue_for_each_of_its_rows() {
    let tall = case([1, 83, 1, 1], [512, 1, 1], 512, Padding::same(0));
    assert_eq!(tall.out()[1], 512 * 83);
    Check::new("conv_transpose2d of a long column").input(&tall.image).input(&tall.weights()).probes(4).run(
        |x| conv_transpose2d(&x[0], &x[1], tall.stride, tall.padding, 0, Epilogue::default()),
        |x| tall.reference(&x[0], &x[1], None),
    );
}

#[test]
fn past_65535_workgroups() {
    // A thread has one element of the result.
    let wide = case([1, 513, 410, 1], [2, 2, 5], 2, Padding::same(0));
    let [_, h, w, _] = wide.out();
    assert!(h * w * 5 > 65_535 * 64);
    Check::new("conv_transpose2d of a large image")
        .untuned()
        .input(&wide.image)
        .input(&wide.weights())
        .probes(4)
        .run(
            |x| conv_transpose2d(&x[0], &x[1], wide.stride, wide.padding, 0, Epilogue::default()),
            |x| wide.reference(&x[0], &x[1], None),
        );
}

#[test]
fn it_is_the_adjoint_of_conv2d() {
    // Column i of a matrix is what it makes of the unit vector i, so what its adjoint makes of x has the
    // element <column i, x> there.
    for case in [
        case([2, 4, 3, 3], [3, 3, 2], 1, Padding::same(1)),
        case([2, 3, 4, 2], [3, 3, 3], 2, Padding::same(1)).output_padding(1),
        case([1, 3, 2, 3], [4, 2, 4], 3, UNEVEN).output_padding(2),
    ] {
        let Case { image: [n, oh, ow, cin], kernel: [kh, kw, cout], stride, padding, .. } = case;
        let [_, h, w, _] = case.out();
        let Padding { top, left, .. } = padding;
        let g = Geometry { n, h, w, cin: cout, kh, kw, cout: cin, oh, ow, stride, top, left };
        Check::new("conv_transpose2d as the adjoint of conv2d")
            .probes(8)
            .input(&case.image)
            .input(&case.weights())
            .run(
                |x| conv_transpose2d(&x[0], &x[1], stride, padding, case.output_padding, Epilogue::default()),
                |x| {
                    let element = |i| {
                        let mut unit = vec![0.0; n * h * w * cout];
                        unit[i] = 1.0;
                        conv2d_reference(&g, &unit, &x[1]).iter().zip(&x[0]).map(|(y, x)| y * x).sum()
                    };
                    (0..n * h * w * cout).map(element).collect()
                },
            );
    }
}

#[test]
fn agrees_with_pytorch() {
    // x = (torch.arange(12) * 5 % 7 - 3.0).reshape(1, 2, 2, 3)
    // w = (torch.arange(36) * 3 % 11 - 5.0).reshape(2, 2, 3, 3)
    // y = F.conv_transpose2d(x, w, torch.tensor([1.0, 2.0]), stride=2, padding=1, output_padding=1)
    // print(y.permute(0, 2, 3, 1).flatten().int().tolist())
    let golden = [
        18, -1, 5, -8, 8, 4, 11, -5, -9, 2, -3, 8, -14, 1, -12, 14, -1, 11, 22, -35, -2, 7, -6, 14, 9, 0, 9,
        -6, -1, 5, 15, -3, -18, 3, -6, 15, -9, 4, 11, -4, 8, 3, 5, -13, 18, -5, -14, 7,
    ];
    let x: Vec<f32> = (0..12)
        .map(|i| {
            let (pixel, ci) = (i / 2, i % 2);
            ((ci * 6 + pixel) * 5 % 7) as f32 - 3.0
        })
        .collect();
    let w: Vec<f32> = (0..36)
        .map(|i| {
            let (tap, co, ci) = (i / 4, i / 2 % 2, i % 2);
            (((ci * 2 + co) * 9 + tap) * 3 % 11) as f32 - 5.0
        })
        .collect();
    Check::new("conv_transpose2d against PyTorch")
        .fixed(&[1, 2, 3, 2], x)
        .fixed(&[3, 3, 2, 2], w)
        .fixed(&[2], vec![1.0, 2.0])
        .run(
            |x| conv_transpose2d(&x[0], &x[1], 2, Padding::same(1), 1, Epilogue::bias(&x[2])),
            |_| golden.map(f64::from).to_vec(),
        );
}

#[test]
#[should_panic(expected = "conv_transpose2d: image [1, 4, 4, 3] does not fit weights [3, 3, 3, 8]")]
fn channels_that_differ_are_named() {
    let tape = crate::tape::Tape::new();
    let (x, w) = (tape.stored("x", 0, [1, 4, 4, 3]), tape.stored("w", 0, [3, 3, 3, 8]));
    conv_transpose2d(&x, &w, 2, Padding::same(1), 0, Epilogue::default());
}

#[test]
#[should_panic(expected = "stride 2, Padding { top: 1, bottom: 1, left: 1, right: 1 } and output padding 2")]
fn output_padding_is_less_than_the_stride() {
    let tape = crate::tape::Tape::new();
    let (x, w) = (tape.stored("x", 0, [1, 4, 4, 3]), tape.stored("w", 0, [3, 3, 8, 3]));
    conv_transpose2d(&x, &w, 2, Padding::same(1), 2, Epilogue::default());
}
