//! The matrix B as the register tile reads it: panels of columns, row after row.

use half::f16;
use pulp::{Arch, Simd, WithSimd};

use crate::launch::Weights;
use crate::simd::{vectorized, widen};

/// Columns of a panel of a matrix of `cols` columns: two vectors of this machine; or one where that is
/// enough, or leaves an eighth less padding and a tile of it has sums enough to hide an addition's latency.
pub fn panel(cols: usize) -> usize {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = (usize, bool);
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> (usize, bool) {
            (S::F32_LANES, S::REGISTER_COUNT >= 32)
        }
    }
    let (lanes, tall) = Arch::new().dispatch(Lanes);
    let [one, two] = [1, 2].map(|vectors| cols.next_multiple_of(vectors * lanes));
    if cols <= lanes || tall && 8 * (two - one) >= two { lanes } else { 2 * lanes }
}

/// Elements of the panels of a matrix of this size.
pub fn panel_elements(rows: usize, cols: usize) -> usize {
    rows * cols.next_multiple_of(panel(cols))
}

/// A matrix `[rows, cols]` in panels of columns, each `[rows, width]`, the last padded with zeros.
#[derive(Clone, Copy)]
pub struct Panels<'a> {
    data: &'a [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) width: usize,
    /// Elements from one row of a panel to the next, and from one panel to the next.
    pub(super) row: usize,
    next: usize,
}

impl<'a> Panels<'a> {
    /// Packed panels of `width` columns, `cols` together.
    pub fn packed(data: &'a [f32], rows: usize, cols: usize, width: usize) -> Self {
        assert_eq!(data.len(), rows * cols.next_multiple_of(width), "panels of [{rows}, {cols}]");
        Panels { data, rows, cols, width, row: width, next: rows * width }
    }

    /// Panels of `cols` columns, read from rows of `row` elements as they stand.
    pub fn unpacked(data: &'a [f32], rows: usize, cols: usize, row: usize) -> Self {
        let width = panel(cols);
        let whole = cols.next_multiple_of(width);
        let fits = rows > 0 && whole <= row && (rows - 1) * row + whole <= data.len();
        assert!(fits, "panels of [{rows}, {cols}] in rows of {row}, {} elements", data.len());
        Panels { data, rows, cols, width, row, next: width }
    }

    pub fn count(&self) -> usize {
        self.cols.div_ceil(self.width)
    }

    /// The first element of a panel. Constructors checked that all panels are there.
    pub fn panel(&self, index: usize) -> *const f32 {
        assert!(index < self.count(), "panel {index} of {}", self.count());
        self.data.as_ptr().wrapping_add(index * self.next)
    }
}

/// The numbers of some blocks: of taps of a kernel, `first` and those `down` and `across` from it in lines
/// of `width`.
#[derive(Clone, Copy)]
pub struct Taps {
    pub count: usize,
    pub width: usize,
    pub first: usize,
    pub down: usize,
    pub across: usize,
}

impl Taps {
    pub const ONE: Taps = Taps { count: 1, width: 1, first: 0, down: 0, across: 0 };

    fn numbers(self) -> impl Iterator<Item = usize> {
        let number = move |i: usize| self.first + i / self.width * self.down + i % self.width * self.across;
        (0..self.count).map(number)
    }
}

/// A matrix `[blocks * block, cols]` as its tensor has it: blocks of rows, those numbered by `blocks`, each
/// `[block, cols]` or, transposed, `[cols, block]`, with lines that begin `stride` elements apart.
pub struct Source<'a> {
    pub data: Weights<'a>,
    pub cols: usize,
    pub stride: usize,
    pub block: usize,
    pub blocks: Taps,
    pub transposed: bool,
}

impl Source<'_> {
    /// Packs the columns `first .. first + cols`, whole panels of `width` but for the last.
    pub fn columns(&self, first: usize, cols: usize, width: usize, out: &mut [f32]) {
        match self.data {
            Weights::F32(data) => self.pack(data, [first, cols], width, out),
            Weights::F16(data) => self.pack(data, [first, cols], width, out),
        }
    }

    fn pack<N: Number>(&self, all: &[N], [first, cols]: [usize; 2], width: usize, out: &mut [f32]) {
        let depth = self.blocks.count * self.block;
        if !cols.is_multiple_of(width) {
            out[cols / width * depth * width..].fill(0.0);
        }
        for (block, number) in self.blocks.numbers().enumerate() {
            let (data, at) = (&all[number * self.block * self.cols..], block * self.block * width);
            if self.transposed {
                for (panel, out) in out.chunks_exact_mut(depth * width).enumerate() {
                    let (first, cols) = (first + panel * width, width.min(cols - panel * width));
                    let out = &mut out[at..][..self.block * width];
                    N::transposed(&data[first * self.stride..], self.stride, cols, out, width);
                }
                continue;
            }
            vectorized(
                #[inline(always)]
                || {
                    // Row by row: a row of several panels is one run of memory.
                    for row in 0..self.block {
                        let line = &data[row * self.stride + first..][..cols];
                        for (panel, line) in line.chunks(width).enumerate() {
                            N::copy(&mut out[panel * depth * width + at + row * width..][..line.len()], line);
                        }
                    }
                },
            );
        }
    }
}

/// How numbers of a type become f32 in panels.
trait Number: Sized {
    /// A row of a panel.
    fn copy(out: &mut [f32], x: &[Self]);

    /// As [`copy_transposed`].
    fn transposed(b: &[Self], stride: usize, cols: usize, out: &mut [f32], width: usize);
}

impl Number for f32 {
    #[inline(always)]
    fn copy(out: &mut [f32], x: &[f32]) {
        copy_short(out, x);
    }

    fn transposed(b: &[f32], stride: usize, cols: usize, out: &mut [f32], width: usize) {
        copy_transposed(b, stride, cols, out, width);
    }
}

impl Number for f16 {
    #[inline(always)]
    fn copy(out: &mut [f32], x: &[f16]) {
        widen(out, x);
    }

    fn transposed(b: &[f16], stride: usize, cols: usize, out: &mut [f32], width: usize) {
        // Widened in pieces that stay in the first cache.
        const PIECE: usize = 128;
        const WIDEST: usize = 32;
        assert!(cols <= WIDEST, "a panel of {cols} columns");
        let mut piece = [0.0; WIDEST * PIECE];
        for (number, out) in out.chunks_mut(PIECE * width).enumerate() {
            let elements = out.len() / width;
            vectorized(
                #[inline(always)]
                || {
                    for (col, line) in piece.chunks_exact_mut(PIECE).take(cols).enumerate() {
                        widen(&mut line[..elements], &b[col * stride + number * PIECE..][..elements]);
                    }
                },
            );
            copy_transposed(&piece, PIECE, cols, out, width);
        }
    }
}

/// Copies a row of a panel: such short ones are done before a call of `memcpy` has begun.
#[inline(always)]
pub fn copy_short(out: &mut [f32], x: &[f32]) {
    match x.len() {
        8 => out[..8].copy_from_slice(&x[..8]),
        16 => out[..16].copy_from_slice(&x[..16]),
        32 => out[..32].copy_from_slice(&x[..32]),
        _ => out.copy_from_slice(x),
    }
}

/// `out[i][j] = b[j][i]` for `cols` rows of `b`, which begin `stride` elements apart, and the rows of `out`.
pub fn copy_transposed(b: &[f32], stride: usize, cols: usize, out: &mut [f32], width: usize) {
    vectorized(
        #[inline(always)]
        || {
            // In squares, of which a row is read, and written, by one instruction.
            const SIDE: usize = 4;
            let rows = out.len() / width;
            for (square, out) in out.chunks_mut(SIDE * width).enumerate() {
                let from = square * SIDE;
                let mut col = 0;
                while from + SIDE <= rows && col + SIDE <= cols {
                    let line = |j: usize| &b[(col + j) * stride + from..][..SIDE];
                    let square = transposed([line(0), line(1), line(2), line(3)]);
                    for (i, line) in square.iter().enumerate() {
                        out[i * width + col..][..SIDE].copy_from_slice(line);
                    }
                    col += SIDE;
                }
                for (i, out) in out.chunks_exact_mut(width).enumerate() {
                    for col in col..cols {
                        out[col] = b[col * stride + from + i];
                    }
                }
            }
        },
    );
}

/// A square of four lines, each of 4 numbers, turned over.
#[inline(always)]
fn transposed([p, q, r, s]: [&[f32]; 4]) -> [[f32; 4]; 4] {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: these instructions are part of every x86-64 processor; each line was cut to 4 numbers.
    unsafe {
        use std::arch::x86_64::*;
        assert!([p, q, r, s].iter().all(|line| line.len() == 4));
        let [mut p, mut q, mut r, mut s] = [
            _mm_loadu_ps(p.as_ptr()),
            _mm_loadu_ps(q.as_ptr()),
            _mm_loadu_ps(r.as_ptr()),
            _mm_loadu_ps(s.as_ptr()),
        ];
        _MM_TRANSPOSE4_PS(&mut p, &mut q, &mut r, &mut s);
        std::mem::transmute([p, q, r, s])
    }
    #[cfg(not(target_arch = "x86_64"))]
    [[p[0], q[0], r[0], s[0]], [p[1], q[1], r[1], s[1]], [p[2], q[2], r[2], s[2]], [p[3], q[3], r[3], s[3]]]
}
