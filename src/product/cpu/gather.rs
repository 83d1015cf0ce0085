//! Products whose rows of A are gathered from runs of memory: convolution, its adjoint, and the matrix
//! product, which is a convolution of one tap.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::panels::{Panels, Source, Taps, panel, panel_elements};
use super::shared::Shared;
use super::tile::{Extra, Rows, Target, multiply};
use crate::launch::Prepacked;
use crate::product::{Loader, Product};

/// Products of at most so many rows are divided among tasks by columns: each packs those that it multiplies,
/// and finds them in its cache.
const FEW: usize = 192;

/// Panels that such a task packs at most: a row of them is read as one run, which the memory gives faster
/// than lines that lie apart. And tasks that are better than wide ones.
const MOST_PANELS: usize = 4;
const FEW_TASKS: usize = 8;

/// Tasks that keep many cores busy.
const WANTED: usize = 32;

/// Rows that a task takes: few enough for the cache and to have work for many cores, enough to read B not too
/// often. Multiples of all tiles' heights. Depends on the shape alone.
fn rows_of_task(rows: usize, taps: usize) -> usize {
    match (taps, rows) {
        (1, 3072..) => 192,
        (_, 0..768) => 24,
        (_, 768..3072) => 48,
        _ => 96,
    }
}

/// Some rows of a product: pixels that meet the same taps. All those of a convolution; of the adjoint of one
/// with a stride of s those whose rows and columns have the same remainders by s, because only every s-th tap
/// meets them.
#[derive(Clone, Copy)]
struct Class {
    images: usize,
    /// Rows and columns of its pixels in an image.
    size: [usize; 2],
    /// Height, width and channels of the images that are gathered from.
    src: [usize; 3],
    /// The first tap of pixel (0, 0), and the distance to that of the next pixel.
    origin: [isize; 2],
    step: usize,
    /// Rows and columns of the taps; `back`: each lies one before the other, not behind.
    taps: [usize; 2],
    back: bool,
    /// Height and width of the images that are written, the first pixel of the class in them, and the
    /// distance.
    dst: [usize; 2],
    first: [usize; 2],
    spacing: usize,
    blocks: Taps,
    /// Elements of a block of B.
    block: usize,
}

impl Class {
    fn rows(&self) -> usize {
        self.images * self.size[0] * self.size[1]
    }

    fn depth(&self) -> usize {
        self.taps[0] * self.taps[1] * self.src[2]
    }
}

impl Product {
    /// Items of a batch, or classes of pixels.
    fn classes(&self) -> usize {
        match self.a {
            Loader::ConvAdjoint(g) => g.stride.min(g.h) * g.stride.min(g.w),
            _ => self.batch,
        }
    }

    fn class(&self, number: usize) -> Class {
        let one = |images, size: [usize; 2], src, origin, step, taps: [usize; 2]| Class {
            images,
            size,
            src,
            origin,
            step,
            taps,
            back: false,
            dst: size,
            first: [0, 0],
            spacing: 1,
            blocks: Taps::ONE,
            block: self.depth,
        };
        match self.a {
            Loader::Conv(g) => {
                let origin = [-(g.top as isize), -(g.left as isize)];
                one(g.n, [g.oh, g.ow], [g.h, g.w, g.cin], origin, g.stride, [g.kh, g.kw])
            }
            Loader::ConvAdjoint(g) => {
                let (s, across) = (g.stride, g.stride.min(g.w));
                let first = [number / across, number % across];
                // The first tap that meets them, and how many do.
                let [h, w] = [first[0] + g.top, first[1] + g.left];
                let taps = [(h, g.kh), (w, g.kw)].map(|(at, all)| all.saturating_sub(at % s).div_ceil(s));
                let size = [(g.h - first[0]).div_ceil(s), (g.w - first[1]).div_ceil(s)];
                let origin = [(h / s) as isize, (w / s) as isize];
                let blocks = Taps {
                    count: taps[0] * taps[1],
                    width: taps[1].max(1),
                    first: h % s * g.kw + w % s,
                    down: s * g.kw,
                    across: s,
                };
                let class = one(g.n, size, [g.oh, g.ow, g.cout], origin, 1, taps);
                Class { back: true, dst: [g.h, g.w], first, spacing: s, blocks, block: g.cout, ..class }
            }
            _ => one(1, [self.rows, 1], [self.rows, 1, self.depth], [0, 0], 1, [1, 1]),
        }
    }

    /// Elements of B packed, for each item or class.
    fn packed(&self, number: usize) -> usize {
        panel_elements(self.class(number).depth(), self.cols)
    }

    /// Elements of all of B, packed.
    pub(super) fn packed_elements(&self) -> usize {
        (0..self.classes()).map(|number| self.packed(number)).sum()
    }

    fn source<'a>(&self, class: &Class, b: &'a [f32], number: usize) -> Source<'a> {
        let first = if self.batch > 1 { number * self.depth * self.cols } else { 0 };
        let transposed = self.b != Loader::Dense;
        let stride = if transposed { class.block } else { self.cols };
        Source {
            data: &b[first..],
            cols: self.cols,
            stride,
            block: class.block,
            blocks: class.blocks,
            transposed,
        }
    }

    /// `a`: rows of A as they stand, or the images that they are gathered from.
    pub(super) fn gather(&self, a: &[f32], b: &[f32], y: &mut [f32], extra: Extra, prepacked: Prepacked) {
        let Prepacked { memory, done } = prepacked;
        let (classes, width) = (self.classes(), panel(self.cols));
        let first_class = self.class(0); // which has most rows
        let rows = first_class.rows();
        let room_of = |number: usize| (0..number).map(|number| self.packed(number)).sum::<usize>();
        let few = rows <= FEW;
        let panels = self.cols.div_ceil(width);
        if !few && !done {
            let mut rest = &mut *memory;
            for number in 0..classes {
                let (room, others) = rest.split_at_mut(self.packed(number));
                self.source(&self.class(number), b, number).all(room);
                rest = others;
            }
        }
        let (block, ranges) = if few {
            let strip = (panels * classes / FEW_TASKS).clamp(1, MOST_PANELS);
            (rows, panels.div_ceil(strip))
        } else {
            let block = rows_of_task(rows, self.depth / first_class.src[2].max(1));
            (block, WANTED.div_ceil(classes * rows.div_ceil(block)).min(panels))
        };
        let blocks = rows.div_ceil(block);
        let (y, memory) = (Shared::new(y), Shared::new(memory));
        (0..classes * blocks * ranges).into_par_iter().for_each(|task| {
            let (number, range) = (task / ranges / blocks, task % ranges);
            let class = self.class(number);
            let first = task / ranges % blocks * block;
            let taken = first..class.rows().min(first + block);
            if taken.is_empty() {
                return;
            }
            let depth = class.depth();
            let (panels, first_col) = if few {
                let [from, to] = [range, range + 1].map(|i| i * panels / ranges * width);
                let cols = to.min(self.cols) - from;
                // SAFETY: each task packs panels of its own.
                let room = unsafe { memory.part(room_of(number) + from * depth, (to - from) * depth) };
                if !done {
                    self.source(&class, b, number).columns(from, cols, width, room);
                }
                (Panels::packed(room, depth, cols, width), from)
            } else {
                // SAFETY: nothing writes packed panels any more.
                let room = unsafe { memory.part(room_of(number), self.packed(number)) };
                Panels::packed(room, depth, self.cols, width).range(range, ranges)
            };
            let target = Target {
                dst: y,
                first: 0,
                rows: None,
                stride: self.cols,
                col: first_col,
                keep: false,
                extra,
            };
            if matches!(self.a, Loader::Conv(_) | Loader::ConvAdjoint(_)) {
                with_runs(&class, a, taken, |rows, targets| {
                    // SAFETY: every task has rows, or columns, of its own.
                    unsafe { multiply(rows, panels, &Target { rows: Some(targets), ..target }) };
                });
            } else {
                let first = number * self.rows + taken.start;
                let rows = Rows::matrix(&a[first * depth..], [taken.len(), depth], [depth, 1]);
                // SAFETY: as above.
                unsafe { multiply(rows, panels, &Target { first, ..target }) };
            }
        });
    }
}

/// Gives the runs of some rows of a class, and the rows of the result that they go to.
fn with_runs(class: &Class, src: &[f32], rows: Range<usize>, work: impl FnOnce(Rows, &[usize])) {
    #[derive(Default)]
    struct Table {
        starts: Vec<*const f32>,
        targets: Vec<usize>,
        zeros: Vec<f32>,
    }
    thread_local! {
        static TABLE: RefCell<Table> = RefCell::default();
    }
    TABLE.with_borrow_mut(|Table { starts, targets, zeros }| {
        let ([src_h, src_w, c], [taps_h, taps_w]) = (class.src, class.taps);
        if zeros.len() < c {
            *zeros = vec![0.0; c];
        }
        let count = rows.len();
        starts.clear();
        starts.resize(taps_h * taps_w * count, zeros.as_ptr());
        targets.clear();
        for (i, row) in rows.enumerate() {
            let [size_h, size_w] = class.size;
            let (n, h, w) = (row / (size_h * size_w), row / size_w % size_h, row % size_w);
            let to_h = n * class.dst[0] + class.first[0] + h * class.spacing;
            targets.push(to_h * class.dst[1] + class.first[1] + w * class.spacing);
            let h = (h * class.step) as isize + class.origin[0];
            let w = (w * class.step) as isize + class.origin[1];
            let sign = if class.back { -1 } else { 1 };
            for tap_h in 0..taps_h {
                // A row or a column before the image becomes a number past its end.
                let h = (h + sign * tap_h as isize) as usize;
                for tap_w in (0..taps_w).filter(|_| h < src_h) {
                    let w = (w + sign * tap_w as isize) as usize;
                    if w < src_w {
                        let at = ((n * src_h + h) * src_w + w) * c;
                        starts[(tap_h * taps_w + tap_w) * count + i] = src[at..at + c].as_ptr();
                    }
                }
            }
        }
        // SAFETY: every start is that of a run of `src`, or of as many zeros.
        work(unsafe { Rows::gathered(starts, count, c) }, targets);
    });
}
