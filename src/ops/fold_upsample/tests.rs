//! An upsampled convolution, by summed weights, against the plain loops of conv2d, of an image that is
//! upsampled first.

use super::*;
use crate::check::Check;
use crate::nn::conv2d_upsampled;
use crate::ops::conv2d::Epilogue;
use crate::ops::conv2d::tests::{check_epilogue, out_pixels, reference as conv2d_reference};
use crate::product::{Geometry, Padding};

/// A convolution of an image `[n, h, w, cin]`, upsampled, with a kernel `[kh, kw, cout]`.
#[derive(Clone, Copy)]
struct Case {
    image: [usize; 4],
    kernel: [usize; 3],
    padding: Padding,
}

fn case(image: [usize; 4], kernel: [usize; 3], padding: Padding) -> Case {
    Case { image, kernel, padding }
}

impl Case {
    /// Of the convolution of the upsampled image.
    fn geometry(&self) -> Geometry {
        let ([n, h, w, cin], [kh, kw, cout], p) = (self.image, self.kernel, self.padding);
        let (h, w) = (2 * h, 2 * w);
        let (oh, ow) = (h + p.top + p.bottom - kh + 1, w + p.left + p.right - kw + 1);
        Geometry { n, h, w, cin, kh, kw, cout, oh, ow, stride: 1, top: p.top, left: p.left }
    }

    fn weights(&self) -> [usize; 4] {
        let [kh, kw, cout] = self.kernel;
        [kh, kw, self.image[3], cout]
    }

    fn reference(&self, x: &[f64], w: &[f64]) -> Vec<f64> {
        let [n, h, width, c] = self.image;
        let mut large = Vec::new();
        for row in 0..n * 2 * h {
            for column in 0..2 * width {
                let pixel = row / 2 * width + column / 2;
                large.extend(&x[pixel * c..][..c]);
            }
        }
        conv2d_reference(&self.geometry(), &large, w)
    }

    fn check(&self) {
        let check = Check::new(format!("conv2d_upsampled {:?}", self.padding))
            .input(&self.image)
            .input(&self.weights())
            .probes(24);
        let check = if out_pixels(&self.geometry()) > 1 << 19 { check.untuned().probes(4) } else { check };
        check.run(
            |x| conv2d_upsampled(&x[0], &x[1], self.padding, Epilogue::default()),
            |x| self.reference(&x[0], &x[1]),
        );
    }
}

#[test]
fn kernel_sizes_and_paddings() {
    let same = Padding::same;
    for case in [
        case([1, 1, 1, 1], [3, 3, 1], same(1)),
        case([2, 3, 5, 3], [3, 3, 4], same(1)),
        case([3, 4, 2, 8], [3, 3, 12], same(1)),
        case([2, 1, 4, 5], [3, 3, 7], same(1)),
        case([1, 5, 1, 4], [3, 3, 3], same(1)),
        case([2, 3, 4, 4], [1, 1, 8], same(0)),
        case([2, 3, 4, 3], [2, 2, 4], same(0)),
        case([2, 3, 2, 4], [2, 4, 4], Padding { top: 1, bottom: 0, left: 2, right: 1 }),
        case([2, 4, 3, 2], [5, 5, 3], same(2)),
        case([1, 3, 4, 4], [3, 3, 4], Padding::BOTTOM_RIGHT),
        case([1, 3, 4, 3], [3, 3, 5], Padding { top: 2, bottom: 0, left: 0, right: 2 }),
        // One row, and one column, of the result.
        case([2, 1, 3, 4], [2, 5, 4], same(0)),
        case([2, 3, 1, 3], [3, 2, 2], same(0)),
    ] {
        case.check();
    }
}

#[test]
fn one_past_the_tiles() {
    // More pixels than a CPU tile, more rows than a part, channels one past a lane, channels of several
    // panels.
    case([3, 15, 16, 17], [3, 3, 13], Padding::same(1)).check();
    case([2, 17, 9, 20], [3, 3, 36], Padding::same(1)).check();
    case([1, 6, 5, 131], [3, 3, 67], Padding::same(1)).check();
    case([2, 5, 7, 64], [3, 3, 48], Padding::same(1)).check();
}

#[test]
fn past_65535_workgroups() {
    // A thread has one element of the result.
    let wide = case([1, 513, 410, 1], [1, 1, 5], Padding::same(0));
    assert!(out_pixels(&wide.geometry()) * 5 > 65_535 * WG);
    wide.check();
}

#[test]
fn epilogue_of_every_kind() {
    for (channels, on) in [
        ([3, 8], [true, false, false]),
        ([3, 8], [false, true, false]),
        ([4, 5], [false, false, true]),
        ([4, 5], [true, true, false]),
        ([4, 8], [true, true, true]),
        ([3, 5], [true, true, true]),
    ] {
        // Samples of fewer pixels than a task of the CPU twin has, and of more.
        for [h, w] in [[2, 3], [7, 5]] {
            let [cin, cout] = channels;
            let case = case([3, h, w, cin], [3, 3, cout], Padding::same(1));
            check_epilogue(
                "conv2d_upsampled",
                &case.geometry(),
                case.image,
                on,
                |x, w, extra| conv2d_upsampled(x, w, case.padding, extra),
                |x, w| case.reference(x, w),
            );
        }
    }
}

#[test]
#[should_panic(expected = "conv2d_upsampled: image [1, 4, 4, 3] does not fit weights [3, 3, 2, 8]")]
fn channels_that_differ_are_named() {
    let tape = crate::tape::Tape::new();
    let (x, w) = (tape.stored("x", 0, [1, 4, 4, 3]), tape.stored("w", 0, [3, 3, 2, 8]));
    conv2d_upsampled(&x, &w, Padding::same(1), Epilogue::default());
}

#[test]
#[should_panic(expected = "with Padding { top: 3, bottom: 3, left: 3, right: 3 }")]
fn padding_is_less_than_the_kernel() {
    let tape = crate::tape::Tape::new();
    let (x, w) = (tape.stored("x", 0, [1, 4, 4, 3]), tape.stored("w", 0, [3, 3, 3, 8]));
    conv2d_upsampled(&x, &w, Padding::same(3), Epilogue::default());
}
