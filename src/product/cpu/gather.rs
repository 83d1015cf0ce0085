//! Products whose rows of A are gathered from runs of memory: convolution, its adjoint, and the matrix
//! product, which is a convolution of one tap.

use std::cell::RefCell;
use std::mem::take;
use std::ops::Range;

use rayon::prelude::*;

use super::multiply::multiply;
use super::panels::{Panels, Source, Taps, panel, panel_elements};
use super::rows::Rows;
use super::tile::{Extra, Target};
use crate::launch::{Prepacked, Weights};
use crate::product::{Loader, Product, View};
use crate::shared::Shared;

/// Products of at most so many rows are divided among tasks by columns: each packs those that it multiplies,
/// and finds them in its cache.
const FEW: usize = 192;

/// Panels that such a task packs at most: a row of them is read as one run, which the memory gives faster
/// than lines that lie apart. And tasks that are better than wide ones: so many or a multiple, for which
/// threads find equal work.
const MOST_PANELS: usize = 4;
const FEW_TASKS: usize = 8;

/// Tasks that keep many cores busy.
const WANTED: usize = 32;

/// Elements of B that a core's cache keeps.
pub const CACHED: usize = 1 << 18;

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

/// A block of a product, whose pixels meet the same taps.
pub struct Class {
    pub view: View,
    /// Rows and columns of its pixels in an image, and the first of them.
    size: [usize; 2],
    first: [usize; 2],
    /// The first tap of that pixel.
    origin: [isize; 2],
    /// Rows and columns of the taps; those of an adjoint go backwards.
    taps: [usize; 2],
    /// Numbers of the blocks of B, one for each tap.
    blocks: Taps,
}

impl Class {
    pub fn rows(&self) -> usize {
        self.view.g.n * self.size[0] * self.size[1]
    }

    fn depth(&self) -> usize {
        self.blocks.count * self.view.src[2]
    }

    /// The tiles of 2 x 2 pixels of a convolution of 3 x 3 taps, or of its adjoint: 4 x 4 pixels, in order,
    /// two apart.
    pub fn tiles(self) -> Class {
        let size = self.size.map(|size| size.div_ceil(2));
        // The adjoint begins with its last tap.
        let origin = self.origin.map(|origin| if self.view.adjoint { origin - 2 } else { origin });
        let view = View { adjoint: false, stride: 2, spacing: 2, ..self.view };
        Class { view, size, origin, taps: [4, 4], ..self }
    }

    /// The 2 x 2 pixels of the result, of so many channels, that such tiles give.
    pub fn results(self, channels: usize) -> Class {
        let [h, w] = self.view.dst;
        let view = View { src: [h, w, channels], ..self.view };
        Class { view, origin: [0, 0], taps: [2, 2], ..self }
    }

    /// Where the runs of some of its rows begin.
    pub fn runs(&self, src: &[f32], rows: Range<usize>) -> Runs {
        let View { adjoint, src: [src_h, src_w, c], dst, stride, spacing, .. } = self.view;
        let ([taps_h, taps_w], count) = (self.taps, rows.len());
        let Parts { mut starts, mut targets, mut zeros } = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
        zeros.resize(c, 0.0);
        starts.resize(taps_h * taps_w * count, zeros.as_ptr());
        for (i, row) in rows.enumerate() {
            let (line, w) = (row / self.size[1], row % self.size[1]);
            let (n, h) = (line / self.size[0], line % self.size[0]);
            let to_h = n * dst[0] + self.first[0] + h * spacing;
            targets.push(to_h * dst[1] + self.first[1] + w * spacing);
            // A row or a column before the image becomes a number past its end.
            let under = |at: usize, origin: isize, tap: usize| {
                let (first, tap) = ((at * stride) as isize + origin, tap as isize);
                (if adjoint { first - tap } else { first + tap }) as usize
            };
            for tap_h in 0..taps_h {
                let h = under(h, self.origin[0], tap_h);
                for tap_w in (0..taps_w).filter(|_| h < src_h) {
                    let w = under(w, self.origin[1], tap_w);
                    if w < src_w {
                        let at = ((n * src_h + h) * src_w + w) * c;
                        starts[(tap_h * taps_w + tap_w) * count + i] = src[at..at + c].as_ptr();
                    }
                }
            }
        }
        Runs { starts, targets, zeros }
    }
}

#[derive(Default)]
struct Parts {
    starts: Vec<*const f32>,
    targets: Vec<usize>,
    zeros: Vec<f32>,
}

thread_local! {
    /// Empty parts of earlier runs: a step allocates nothing.
    static FREE: RefCell<Vec<Parts>> = const { RefCell::new(Vec::new()) };
}

/// Where runs begin, for each tap and row, and the rows of the result that they go to. A run is a pixel's
/// channels, or as many zeros.
pub struct Runs {
    pub starts: Vec<*const f32>,
    pub targets: Vec<usize>,
    zeros: Vec<f32>,
}

impl Drop for Runs {
    fn drop(&mut self) {
        self.starts.clear();
        self.targets.clear();
        let (starts, targets, zeros) =
            (take(&mut self.starts), take(&mut self.targets), take(&mut self.zeros));
        FREE.with_borrow_mut(|free| free.push(Parts { starts, targets, zeros }));
    }
}

impl Product {
    pub(super) fn class(&self, number: usize) -> Class {
        let view = self.view();
        let (g, dst, spacing) = (view.g, view.dst, view.spacing);
        let across = spacing.min(dst[1]);
        let first = [number / across % spacing, number % across];
        let at = [first[0] + g.top, first[1] + g.left];
        // The first tap that meets them, and how many do.
        let from = at.map(|at| at % spacing);
        let taps =
            [(from[0], g.kh), (from[1], g.kw)].map(|(from, all)| all.saturating_sub(from).div_ceil(spacing));
        let (count, width) = (taps[0] * taps[1], taps[1]);
        let blocks =
            Taps { count, width, first: from[0] * g.kw + from[1], down: spacing * g.kw, across: spacing };
        let size = [0, 1].map(|i| (dst[i] - first[i]).div_ceil(spacing));
        let origin = at.map(|at| if view.adjoint { (at / spacing) as isize } else { -(at as isize) });
        Class { view, size, first, origin, taps, blocks }
    }

    /// Elements of B packed, of so many items or classes.
    pub(super) fn packed_elements(&self, count: usize) -> usize {
        let one = |number: usize| if self.batch > 1 { self.depth } else { self.class(number).depth() };
        panel_elements((0..count).map(one).sum(), self.cols)
    }

    /// B of an item or a class.
    pub(super) fn source<'a>(&self, class: &Class, b: Weights<'a>, number: usize) -> Source<'a> {
        let data = if self.batch > 1 { b.from(number * self.depth * self.cols) } else { b };
        let (cols, transposed, block) = (self.cols, self.b != Loader::Dense, class.view.src[2]);
        let stride = if transposed { block } else { cols };
        Source { data, cols, stride, block, blocks: class.blocks, transposed }
    }

    pub(super) fn gather(&self, a: &[f32], b: Weights, y: &mut [f32], extra: Extra, prepacked: Prepacked) {
        let Prepacked { memory, done } = prepacked;
        let View { blocks: classes, rows, src, .. } = self.view();
        let width = panel(self.cols);
        let (few, panels) = (rows <= FEW, self.cols.div_ceil(width));
        let (dst, memory) = (Shared::new(y), Shared::new(memory));
        let packed = |number: usize, [from, to]: [usize; 2], done: bool| {
            let class = self.class(number);
            let (depth, cols) = (class.depth(), to.min(self.cols) - from);
            let first = self.packed_elements(number) + from * depth;
            // SAFETY: each task packs columns of its own, and nothing writes columns that are packed.
            let room = unsafe { memory.part(first, (to - from) * depth) };
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
            let tasks = (panels * classes).div_ceil(MOST_PANELS).next_multiple_of(FEW_TASKS);
            (rows, tasks.div_ceil(classes).min(panels))
        } else {
            let block = rows_of_task(rows, self.depth / src[2].max(1), self.depth * self.cols);
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
            let (count, first) = (taken.len(), number * self.rows + taken.start);
            let target =
                Target { dst, first, rows: None, stride: self.cols, col: cols[0], keep: false, extra };
            // SAFETY: every start is that of a run, and every task has rows, or columns, of its own.
            unsafe {
                if self.a == Loader::Dense {
                    let rows = Rows::matrix(&a[first * self.depth..], [count, self.depth], [self.depth, 1]);
                    multiply(rows, panels, &target);
                } else {
                    let runs = class.runs(a, taken);
                    let rows = Rows::gathered(&runs.starts, count, src[2]);
                    multiply(rows, panels, &Target { first: 0, rows: Some(&runs.targets), ..target });
                }
            }
        });
    }
}
