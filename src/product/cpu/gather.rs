//! Products whose rows of A are gathered from runs of memory: convolution, its adjoint, and the matrix
//! product, which is a convolution of one tap.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::panels::{Panels, Source, Taps, panel, panel_elements};
use super::shared::Shared;
use super::tile::{Extra, Rows, Target, multiply};
use crate::launch::Prepacked;
use crate::product::{Geometry, Loader, Product};

/// Products of at most so many rows are divided among tasks by columns: each packs those that it multiplies,
/// and finds them in its cache.
const FEW: usize = 192;

/// Panels that such a task packs at most: a row of them is read as one run, which the memory gives faster
/// than lines that lie apart. And tasks that are better than wide ones.
const MOST_PANELS: usize = 4;
const FEW_TASKS: usize = 8;

/// Tasks that keep many cores busy.
const WANTED: usize = 32;

/// Elements of B that a core's cache keeps.
const CACHED: usize = 1 << 18;

/// Rows that a task takes: few enough for the cache and to have work for many cores, enough to read B, of so
/// many elements, not too often. Multiples of all tiles' heights. Depends on the shape alone.
fn rows_of_task(rows: usize, taps: usize, b: usize) -> usize {
    match (taps, rows) {
        (1, 3072..) => 192,
        _ if b > 4 * CACHED => 96,
        (_, 0..768) => 24,
        (_, 768..3072) => 48,
        _ => 96,
    }
}

/// Some rows of a product: pixels that meet the same taps. All those of a convolution; of the adjoint of one
/// with a stride of s those whose rows and columns have the same remainders by s, because only every s-th tap
/// meets them. A matrix is an image one pixel wide, with one tap.
#[derive(Clone, Copy)]
pub struct Class {
    images: usize,
    /// Rows and columns of its pixels in an image.
    size: [usize; 2],
    /// Height, width and channels of the images that are gathered from.
    src: [usize; 3],
    /// The first tap of pixel (0, 0), and the distance to that of the next pixel.
    origin: [isize; 2],
    step: usize,
    /// Rows and columns of the taps, and the distance from one to the next.
    taps: [usize; 2],
    tap_step: isize,
    /// Height and width of the images that are written, the first pixel of the class in them, and the
    /// distance.
    pub dst: [usize; 2],
    first: [usize; 2],
    spacing: usize,
    /// Numbers of the blocks of B, one for each tap.
    blocks: Taps,
}

impl Class {
    pub fn rows(&self) -> usize {
        self.images * self.size[0] * self.size[1]
    }

    fn depth(&self) -> usize {
        self.taps[0] * self.taps[1] * self.src[2]
    }

    /// The tiles of 2 x 2 pixels of a convolution of 3 x 3 taps, or of its adjoint: 4 x 4 pixels, in order,
    /// two apart.
    pub fn tiles(self) -> Class {
        let size = self.size.map(|size| size.div_ceil(2));
        // The adjoint begins with its last tap.
        let origin = self.origin.map(|origin| if self.tap_step < 0 { origin - 2 } else { origin });
        Class { size, origin, step: 2, taps: [4, 4], tap_step: 1, spacing: 2, ..self }
    }

    /// The 2 x 2 pixels of the result, of so many channels, that such tiles give.
    pub fn results(self, channels: usize) -> Class {
        let [h, w] = self.dst;
        Class { src: [h, w, channels], origin: [0, 0], taps: [2, 2], ..self }
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

    pub(super) fn class(&self, number: usize) -> Class {
        let g = self.geometry();
        if let Loader::ConvAdjoint(_) = self.a {
            return adjoint_class(&g, number);
        }
        let (size, src, taps) = ([g.oh, g.ow], [g.h, g.w, g.cin], [g.kh, g.kw]);
        let (origin, step, tap_step) = ([-(g.top as isize), -(g.left as isize)], g.stride, 1);
        let (images, dst, first, spacing) = (g.n, size, [0, 0], 1);
        let blocks = Taps { count: g.taps(), width: g.kw, first: 0, down: g.kw, across: 1 };
        Class { images, size, src, origin, step, taps, tap_step, dst, first, spacing, blocks }
    }

    /// Elements of B packed, for each item or class.
    fn packed(&self, number: usize) -> usize {
        panel_elements(self.class(number).depth(), self.cols)
    }

    /// Elements of all of B, packed.
    pub(super) fn packed_elements(&self) -> usize {
        (0..self.classes()).map(|number| self.packed(number)).sum()
    }

    /// B of an item or a class.
    pub(super) fn source<'a>(&self, class: &Class, b: &'a [f32], number: usize) -> Source<'a> {
        let data = if self.batch > 1 { &b[number * self.depth * self.cols..] } else { b };
        let (cols, transposed, block) = (self.cols, self.b != Loader::Dense, class.src[2]);
        let stride = if transposed { block } else { cols };
        Source { data, cols, stride, block, blocks: class.blocks, transposed }
    }

    pub(super) fn gather(&self, a: &[f32], b: &[f32], y: &mut [f32], extra: Extra, prepacked: Prepacked) {
        let Prepacked { memory, done } = prepacked;
        let (classes, width) = (self.classes(), panel(self.cols));
        let first_class = self.class(0); // which has most rows
        let rows = first_class.rows();
        let room_of = |number: usize| (0..number).map(|number| self.packed(number)).sum::<usize>();
        let few = rows <= FEW;
        let panels = self.cols.div_ceil(width);
        let (dst, memory) = (Shared::new(y), Shared::new(memory));
        let packed = |number: usize, [from, to]: [usize; 2], done: bool| {
            let class = self.class(number);
            let (depth, cols) = (class.depth(), to.min(self.cols) - from);
            // SAFETY: each task packs columns of its own, and nothing writes columns that are packed.
            let room = unsafe { memory.part(room_of(number) + from * depth, (to - from) * depth) };
            if !done {
                self.source(&class, b, number).columns(from, cols, width, room);
            }
            Panels::packed(room, depth, cols, width)
        };
        if !few && !done {
            (0..classes * panels).into_par_iter().for_each(|task| {
                packed(task / panels, [0, 1].map(|i| (task % panels + i) * width), false);
            });
        }
        let (block, ranges) = if few {
            let panels_of_task = (panels * classes / FEW_TASKS).clamp(1, MOST_PANELS);
            (rows, panels.div_ceil(panels_of_task))
        } else {
            let block = rows_of_task(rows, self.depth / first_class.src[2].max(1), self.depth * self.cols);
            (block, WANTED.div_ceil(classes * rows.div_ceil(block)).min(panels))
        };
        let blocks = rows.div_ceil(block);
        (0..classes * blocks * ranges).into_par_iter().for_each(|task| {
            let (number, range) = (task / ranges / blocks, task % ranges);
            let class = self.class(number);
            let first = task / ranges % blocks * block;
            let taken = first..class.rows().min(first + block);
            if taken.is_empty() {
                return;
            }
            let cols = [range, range + 1].map(|i| i * panels / ranges * width);
            let panels = packed(number, cols, done || !few);
            let (stride, col, keep) = (self.cols, cols[0], false);
            let target = Target { dst, first: 0, rows: None, stride, col, keep, extra };
            if matches!(self.a, Loader::Conv(_) | Loader::ConvAdjoint(_)) {
                with_runs(&class, a, taken, |starts, targets| {
                    // SAFETY: every start is that of a run, and every task has rows, or columns, of its own.
                    unsafe {
                        let rows = Rows::gathered(starts, targets.len(), class.src[2]);
                        multiply(rows, panels, &Target { rows: Some(targets), ..target });
                    }
                });
            } else {
                let first = number * self.rows + taken.start;
                let a = &a[first * self.depth..];
                let rows = Rows::matrix(a, [taken.len(), self.depth], [self.depth, 1]);
                // SAFETY: as above.
                unsafe { multiply(rows, panels, &Target { first, ..target }) };
            }
        });
    }
}

/// The class of the adjoint of a convolution whose first pixel has this number.
fn adjoint_class(g: &Geometry, number: usize) -> Class {
    let (s, across) = (g.stride, g.stride.min(g.w));
    let first = [number / across, number % across];
    // The first tap that meets them, and how many do.
    let [h, w] = [first[0] + g.top, first[1] + g.left];
    let taps = [(h, g.kh), (w, g.kw)].map(|(at, all)| all.saturating_sub(at % s).div_ceil(s));
    let size = [(g.h - first[0]).div_ceil(s), (g.w - first[1]).div_ceil(s)];
    let (src, dst, origin) = ([g.oh, g.ow, g.cout], [g.h, g.w], [(h / s) as isize, (w / s) as isize]);
    let (images, step, tap_step, spacing) = (g.n, 1, -1, s);
    let [width, count] = [taps[1].max(1), taps[0] * taps[1]];
    let blocks = Taps { count, width, first: h % s * g.kw + w % s, down: s * g.kw, across: s };
    Class { images, size, src, origin, step, taps, tap_step, dst, first, spacing, blocks }
}

/// Gives where the runs of some rows of a class begin, for each tap, and the rows of the result that they go
/// to. A run is a pixel's channels, or as many zeros.
pub fn with_runs(class: &Class, src: &[f32], rows: Range<usize>, work: impl FnOnce(&[*const f32], &[usize])) {
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
            let (line, w) = (row / class.size[1], row % class.size[1]);
            let (n, h) = (line / class.size[0], line % class.size[0]);
            let to_h = n * class.dst[0] + class.first[0] + h * class.spacing;
            targets.push(to_h * class.dst[1] + class.first[1] + w * class.spacing);
            let [h, w] = [(h, class.origin[0]), (w, class.origin[1])]
                .map(|(at, origin)| (at * class.step) as isize + origin);
            for tap_h in 0..taps_h {
                // A row or a column before the image becomes a number past its end.
                let h = (h + class.tap_step * tap_h as isize) as usize;
                for tap_w in (0..taps_w).filter(|_| h < src_h) {
                    let w = (w + class.tap_step * tap_w as isize) as usize;
                    if w < src_w {
                        let at = ((n * src_h + h) * src_w + w) * c;
                        starts[(tap_h * taps_w + tap_w) * count + i] = src[at..at + c].as_ptr();
                    }
                }
            }
        }
        work(starts, targets);
    });
}
