//! conv2d against plain loops.

use super::*;
use crate::check::{Check, random};
use crate::device::gpu::adapters::Traits;
use crate::launch::Variant;
use crate::ops::activation::{Activation, activation};
use crate::ops::arithmetic::{add, affine};

/// The definition, in f64, for weights `[kh, kw, cin, cout]` and an image `[n, h, w, cin]`.
pub(crate) fn reference(g: &Geometry, x: &[f64], w: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; (g.n * g.oh * g.ow) * g.cout];
    for n in 0..g.n {
        for oh in 0..g.oh {
            for ow in 0..g.ow {
                for kh in 0..g.kh {
                    for kw in 0..g.kw {
                        let h = (oh * g.stride + kh) as isize - g.top as isize;
                        let ww = (ow * g.stride + kw) as isize - g.left as isize;
                        if h < 0 || ww < 0 || h >= g.h as isize || ww >= g.w as isize {
                            continue;
                        }
                        for ci in 0..g.cin {
                            let xv = x[((n * g.h + h as usize) * g.w + ww as usize) * g.cin + ci];
                            for co in 0..g.cout {
                                y[((n * g.oh + oh) * g.ow + ow) * g.cout + co] +=
                                    xv * w[((kh * g.kw + kw) * g.cin + ci) * g.cout + co];
                            }
                        }
                    }
                }
            }
        }
    }
    y
}

/// Pixels of the result.
pub(crate) fn out_pixels(g: &Geometry) -> usize {
    g.n * g.oh * g.ow
}

fn none() -> product::Epilogue {
    product::Epilogue::default()
}

struct Case {
    image: [usize; 4],
    kernel: [usize; 3],
    stride: usize,
    padding: Padding,
}

fn case(image: [usize; 4], kernel: [usize; 3], stride: usize, padding: Padding) -> Case {
    Case { image, kernel, stride, padding }
}

impl Case {
    fn geometry(&self) -> Geometry {
        let ([n, h, w, cin], [kh, kw, cout], p) = (self.image, self.kernel, self.padding);
        let oh = (h + p.top + p.bottom - kh) / self.stride + 1;
        let ow = (w + p.left + p.right - kw) / self.stride + 1;
        Geometry { n, h, w, cin, kh, kw, cout, oh, ow, stride: self.stride, top: p.top, left: p.left }
    }

    fn check(&self) {
        let g = self.geometry();
        let check = Check::new(format!("conv2d stride {} {:?}", self.stride, self.padding))
            .input(&self.image)
            .input(&[g.kh, g.kw, g.cin, g.cout])
            .probes(24);
        let check = if out_pixels(&g) > 1 << 19 { check.untuned().probes(4) } else { check };
        check.run(
            |x| conv2d(&x[0], &x[1], self.stride, self.padding, Epilogue::default()),
            |x| reference(&g, &x[0], &x[1]),
        );
    }

    /// With a bias, whose gradient comes with that of the weights.
    fn check_with_bias(&self) {
        let g = self.geometry();
        Check::new(format!("conv2d with bias, stride {} {:?}", self.stride, self.padding))
            .input(&self.image)
            .input(&[g.kh, g.kw, g.cin, g.cout])
            .input(&[g.cout])
            .probes(16)
            .run(
                |x| {
                    let epilogue = Epilogue { bias: Some(&x[2]), ..Epilogue::default() };
                    conv2d(&x[0], &x[1], self.stride, self.padding, epilogue)
                },
                |x| {
                    let y = reference(&g, &x[0], &x[1]).into_iter().enumerate();
                    y.map(|(i, y)| y + x[2][i % g.cout]).collect()
                },
            );
    }
}

#[test]
fn kernel_sizes_strides_and_paddings() {
    let same = Padding::same;
    for case in [
        case([1, 1, 1, 1], [1, 1, 1], 1, same(0)),
        case([2, 5, 7, 3], [3, 3, 4], 1, same(1)),
        case([3, 4, 9, 8], [1, 1, 5], 1, same(0)),
        case([2, 8, 6, 4], [3, 3, 8], 2, same(1)),
        case([2, 8, 6, 5], [3, 3, 8], 2, Padding::BOTTOM_RIGHT),
        case([2, 7, 9, 4], [3, 3, 3], 2, Padding::BOTTOM_RIGHT),
        case([1, 11, 8, 2], [5, 3, 3], 3, same(2)),
        case([2, 6, 6, 4], [4, 4, 4], 2, same(1)),
        case([1, 9, 10, 1], [2, 5, 7], 1, Padding { top: 0, bottom: 3, left: 4, right: 1 }),
        case([2, 6, 5, 3], [3, 3, 2], 1, same(4)),
        case([1, 9, 9, 4], [1, 1, 4], 4, same(0)),
        case([1, 7, 7, 3], [2, 2, 5], 5, same(0)),
    ] {
        case.check();
        case.check_with_bias();
    }
}

#[test]
fn a_bias_beside_weights_of_several_tiles_and_parts() {
    for case in [
        // One quad past the columns of each tile, several tiles of rows, some not full.
        case([3, 13, 11, 12], [3, 3, 36], 1, Padding::same(1)),
        case([2, 15, 13, 8], [3, 3, 132], 2, Padding::BOTTOM_RIGHT),
        case([3, 12, 17, 72], [1, 1, 68], 1, Padding::same(0)),
        // Rows of dy that are no multiple of four or eight, and no tap that meets all of them.
        case([2, 5, 6, 16], [3, 3, 20], 1, Padding::same(4)),
        // Channels one past a lane, one past the tiles.
        case([3, 11, 9, 9], [3, 3, 33], 1, Padding::same(1)),
        case([2, 14, 15, 66], [1, 1, 129], 2, Padding::same(0)),
    ] {
        case.check_with_bias();
    }
}

#[test]
fn one_past_the_tiles() {
    // More pixels than a CPU tile, more rows than a part, channels one past a lane.
    case([3, 29, 31, 17], [3, 3, 13], 1, Padding::same(1)).check();
    case([2, 33, 31, 12], [3, 3, 20], 2, Padding::same(1)).check();
    case([1, 6, 5, 257], [3, 3, 131], 1, Padding::same(1)).check();
}

#[test]
fn few_multiplications() {
    // Shapes that the CPU twin takes Winograd's way: odd sides, one pixel, paddings that differ, channels of
    // one and of several panels, more tiles than a task has.
    for (image, cout, padding) in [
        ([1, 1, 1, 32], 32, Padding::same(1)),
        ([2, 5, 7, 32], 48, Padding::same(1)),
        ([1, 6, 4, 48], 32, Padding { top: 0, bottom: 1, left: 2, right: 0 }),
        ([1, 5, 4, 32], 32, Padding::same(0)),
        ([3, 9, 8, 64], 80, Padding::same(1)),
        ([1, 3, 4, 272], 32, Padding::same(2)),
    ] {
        let case = case(image, [3, 3, cout], 1, padding);
        assert!(crate::product::cpu::winograd::suits(&Product::conv("conv2d", case.geometry(), none())));
        case.check();
    }
}

#[test]
fn few_multiplications_on_a_gpu() {
    // Odd sides, one pixel, paddings that differ, columns one quad past a tile, several chunks: the last not
    // full, and in one of them the end of a sample and the beginning of the next.
    for (image, cout, padding) in [
        ([1, 1, 1, 128], 132, Padding::same(1)),
        ([1, 6, 4, 132], 128, Padding { top: 0, bottom: 1, left: 2, right: 0 }),
        ([3, 5, 7, 128], 132, Padding::same(1)),
        ([1, 5, 4, 128], 128, Padding::same(0)),
        ([1, 3, 4, 128], 128, Padding::same(2)),
    ] {
        let case = case(image, [3, 3, cout], 1, padding);
        for software in [false, true] {
            let adapter =
                Traits { software, broadcasts: true, halves: false, keeps_halves: false, matrices: None };
            let forward = Product::conv("conv2d", case.geometry(), none());
            let backward = Product::conv_adjoint("conv2d backward_x", case.geometry(), none());
            let counts = [forward, backward].map(|of| {
                let is = |variant: &&Variant| variant.name.starts_with("Winograd");
                product::gpu::variants(&of, &adapter).iter().filter(is).count()
            });
            assert!(counts[0] > 0 && counts[1] > 0, "{counts:?}");
        }
        case.check();
    }
}

#[test]
fn past_65535_workgroups() {
    // A thread has one element of the result.
    let wide = case([1, 1025, 820, 1], [1, 1, 5], 1, Padding::same(0));
    assert!(out_pixels(&wide.geometry()) * 5 > 65_535 * 64);
    wide.check();
}

/// The parts of an epilogue beside a convolution of `image` whose result has the sizes of `g`.
pub(crate) fn check_epilogue(
    name: &str,
    g: &Geometry,
    image: [usize; 4],
    on: [bool; 3],
    record: impl Fn(&Tensor, &Tensor, Epilogue) -> Tensor,
    reference: impl Fn(&[f64], &[f64]) -> Vec<f64>,
) {
    let [bias, shift, residual] = on;
    let mut check = Check::new(format!("{name}, bias {bias}, shift {shift}, residual {residual}"))
        .input(&image)
        .input(&[g.kh, g.kw, g.cin, g.cout])
        .probes(24);
    let mut given = Vec::new();
    let shapes = [vec![g.cout], vec![g.n, g.cout], vec![g.n, g.oh, g.ow, g.cout]];
    for (on, shape) in on.into_iter().zip(shapes) {
        given.push(on.then_some(2 + given.iter().flatten().count()));
        if on {
            check = check.input(&shape);
        }
    }
    check.run(
        |x| {
            let [bias, shift, residual] = [0, 1, 2].map(|i| given[i].map(|i: usize| &x[i]));
            record(&x[0], &x[1], Epilogue { bias, shift, residual })
        },
        |x| {
            let mut y = reference(&x[0], &x[1]);
            for (i, y) in y.iter_mut().enumerate() {
                let (n, c) = (i / (g.oh * g.ow * g.cout), i % g.cout);
                *y += given[0].map_or(0.0, |k| x[k][c]);
                *y += given[1].map_or(0.0, |k| x[k][n * g.cout + c]);
                *y += given[2].map_or(0.0, |k| x[k][i]);
            }
            y
        },
    );
}

#[test]
fn epilogue_of_every_kind() {
    let few = case([3, 4, 5, 3], [3, 3, 8], 1, Padding::same(1)).geometry();
    let many = case([3, 3, 4, 128], [3, 3, 128], 1, Padding::same(1)).geometry();
    for (g, on) in [
        (few, [true, false, false]),
        (few, [false, true, false]),
        (few, [false, false, true]),
        (few, [true, true, false]),
        (few, [true, true, true]),
        (many, [false, true, false]),
        (many, [true, true, true]),
    ] {
        let image = [g.n, g.h, g.w, g.cin];
        check_epilogue(
            "conv2d",
            &g,
            image,
            on,
            |x, w, extra| conv2d(x, w, 1, Padding::same(1), extra),
            |x, w| reference(&g, x, w),
        );
    }
}

/// The convolution of an image and the image, whose gradient comes on two ways.
fn beside_its_image(g: &Geometry, x: &Tensor, w: &Tensor) -> Tensor {
    let image = affine(x, 2.0, 0.0);
    let padding = Padding::same(g.top);
    activation(&add(&conv2d(&image, w, 1, padding, Epilogue::default()), &image), Activation::Silu)
}

#[test]
fn its_gradient_is_added_to_another() {
    for case in [
        case([2, 5, 4, 3], [3, 3, 3], 1, Padding::same(1)),
        case([2, 5, 4, 8], [1, 1, 8], 1, Padding::same(0)),
        case([1, 9, 17, 64], [3, 3, 64], 1, Padding::same(1)),
    ] {
        let g = case.geometry();
        Check::new("conv2d beside its image")
            .input(&case.image)
            .input(&[g.kh, g.kw, g.cin, g.cout])
            .probes(24)
            .run(
                |x| beside_its_image(&g, &x[0], &x[1]),
                |x| {
                    let image: Vec<f64> = x[0].iter().map(|v| 2.0 * v).collect();
                    let sums = reference(&g, &image, &x[1]).into_iter().zip(&image).map(|(y, x)| y + x);
                    sums.map(|z| z / (1.0 + (-z).exp())).collect()
                },
            );
        let tape = crate::tape::Tape::new();
        let (x, w) = (tape.variable("x", 0, case.image), tape.variable("w", 0, [g.kh, g.kw, g.cin, g.cout]));
        let y = beside_its_image(&g, &x, &w);
        tape.backward_from(&y, &tape.stored("dy", 0, y.shape().clone()));
        tape.recorded(|all| {
            assert!(all.entries.iter().all(|e| e.recorded.launch().name() != "accumulate"), "{g:?}")
        });
    }
}

#[test]
fn sums_over_many_pixels() {
    let (n, side) = (2, 67);
    let bias = random(3, 5);
    Check::new("conv2d bias gradient")
        .probes(8)
        .input(&[n, side, side, 2])
        .input(&[1, 1, 2, 5])
        .values(&[5], bias)
        .run(
            |x| {
                conv2d(
                    &x[0],
                    &x[1],
                    1,
                    Padding::same(0),
                    Epilogue { bias: Some(&x[2]), ..Default::default() },
                )
            },
            |x| {
                let g = case([n, side, side, 2], [1, 1, 5], 1, Padding::same(0)).geometry();
                reference(&g, &x[0], &x[1]).iter().enumerate().map(|(i, y)| y + x[2][i % 5]).collect()
            },
        );
}

#[test]
#[should_panic(expected = "conv2d: image [1, 4, 4, 3] does not fit weights [3, 3, 2, 8]")]
fn channels_that_differ_are_named() {
    let tape = crate::tape::Tape::new();
    let (x, w) = (tape.stored("x", 0, [1, 4, 4, 3]), tape.stored("w", 0, [3, 3, 2, 8]));
    conv2d(&x, &w, 1, Padding::same(1), Epilogue::default());
}
